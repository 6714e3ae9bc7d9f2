"""The networks that probes judge: a run's encoder, an export of one, or a backbone of timm or torchvision."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genray.config.errors import UserError
from genray.probes.crops import INTERPOLATIONS, Geometry
from genray.runs import store
from genray.views.augment import MEAN, STD, normalise

BACKBONE_FORMS = (
    "a run's or an export's directory, timm:MODEL, torchvision:MODEL, untrained: and one of these, or pixels"
)
TIMM_CONFIG = "config.json"
"""The file of an export that describes it to timm."""
RAW_SIZE = 32
"""Side length in pixels of images whose raw pixels are the features."""

_CLASSIFIER_PREFIXES = ("fc.", "classifier", "head", "last_linear.")


@dataclass(eq=False)
class Backbone:
    """A frozen network from normalised images to features, and the image format that it expects."""

    name: str
    module: nn.Module
    geometry: Geometry
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    channels_last: bool = False
    run: Path | None = None
    """Directory of the run, if this is a run's trained encoder."""
    step: int = 0
    """Training steps of that encoder."""

    def to(self, device: torch.device | str) -> Backbone:
        """Move it to a device and put it into evaluation mode; returns itself."""
        self.module.to(device).eval().requires_grad_(False)
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """Features, float32 `[n, F]`, of normalised images `[n, 3, size, size]`, which must be on its device."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        with torch.no_grad():
            return self.module(images.contiguous(memory_format=layout)).float()

    def features(self, pixels: Tensor) -> Tensor:
        """Features, float32 `[n, F]`, of uint8 images `[n, 3, size, size]` on any device."""
        device = next((parameter.device for parameter in self.module.parameters()), pixels.device)
        planes = pixels.to(device).float().transpose(0, 1) / 255
        return self(normalise(planes, self.mean, self.std))


OpenRun = Callable[[Path, bool], Backbone]
"""Opens a run's directory: its trained encoder, or, if the flag is False, the untrained encoder it began with."""


def load(name: str, open_run: OpenRun, weights: Path | None = None, size: int | None = None) -> Backbone:
    """The backbone with this name on the CPU, in evaluation mode.

    Models of timm and torchvision have their published weights, from these libraries' caches or downloaded by them.

    Args:
        name: the directory of a run (its last checkpoint) or of an export, `timm:MODEL` (also
            `timm:local-dir:DIRECTORY`), `torchvision:MODEL`, one of these after `untrained:`, or `pixels` for raw
            pixels.
        open_run: opens a run's directory.
        weights: a file with the weights of a timm or torchvision model, instead of the published ones.
        size: image size in pixels to judge it at; by default its own.

    Raises:
        UserError: there is no such backbone, its weights are missing or do not fit, or it does not accept that size.
    """
    kind, colon, rest = name.partition(":")
    untrained = kind == "untrained" and bool(colon)
    if untrained:
        kind, colon, rest = rest.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # for untrained weights
        if name == "pixels":
            backbone = Backbone(name, nn.Flatten(), Geometry(RAW_SIZE, RAW_SIZE))
        elif kind == "timm" and colon:
            backbone = _timm(rest, weights, not untrained)
        elif kind == "torchvision" and colon:
            backbone = _torchvision(rest, weights, not untrained)
        else:
            path = Path(store.fetch_run(name.removeprefix("untrained:") if untrained else name))
            backbone = _directory(path, not untrained, open_run)
    backbone.name = name
    if size is not None:
        own = backbone.geometry
        resized = max(size, round(size * own.resized / own.size))
        backbone.geometry = Geometry(size, resized, own.interpolation, own.squash)
    backbone.to("cpu")
    side = backbone.geometry.size
    try:
        shape = backbone(torch.zeros(1, 3, side, side)).shape
    except Exception as error:  # architectures raise various errors for a size that they do not accept
        raise UserError(f"--size must suit the backbone, got {side} for {name} ({_line(error)})") from error
    if len(shape) != 2:
        raise UserError(f"a backbone must return one row of features per image, got {tuple(shape)} from {name}")
    return backbone


def _directory(path: Path, trained: bool, open_run: OpenRun) -> Backbone:
    """A run's encoder, or an export."""
    if not path.exists():
        prefixes = ("timm:", "torchvision:", "untrained:", "pixels")
        start = f"{str(path).partition(':')[0]}:" if ":" in str(path) else str(path)
        close = difflib.get_close_matches(start, prefixes, 1, cutoff=0.6)
        remedy = f"; did you mean {close[0]!r}?" if close else ", which does not exist"
        raise UserError(f"a backbone must be {BACKBONE_FORMS}, got {str(path)!r}{remedy}")
    if _is_export(path):
        return _timm(f"local-dir:{path.absolute()}", None, trained)
    return replace(open_run(path, trained), run=path.absolute() if trained else None)


def _is_export(path: Path) -> bool:
    try:
        return "architecture" in json.loads((path / TIMM_CONFIG).read_text())
    except (OSError, ValueError):
        return False


def _timm(model: str, weights: Path | None, trained: bool) -> Backbone:
    import timm  # takes seconds: it imports every architecture

    if "/" not in model and ":" not in model and not timm.is_model(model.partition(".")[0]):
        raise UserError(_unknown("timm", model.partition(".")[0], timm.list_models()))
    pretrained = trained and weights is None
    module = _created(
        f"timm:{model}", pretrained, lambda: timm.create_model(model, pretrained=pretrained, num_classes=0)
    )
    if weights is not None:
        _load_weights(module, weights)
    config = timm.data.resolve_model_data_config(module)
    side, mode = config["input_size"][-1], config["crop_mode"]
    if mode not in ("center", "squash") or config["interpolation"] not in INTERPOLATIONS:
        raise UserError(
            "a backbone must take images cropped about their centre, "
            f"got timm:{model} with {mode} and {config['interpolation']}"
        )
    resized = math.floor(side / config["crop_pct"])
    return Backbone(
        name=model,
        module=module,
        geometry=Geometry(side, resized, config["interpolation"], mode == "squash"),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )


def _torchvision(model: str, weights: Path | None, trained: bool) -> Backbone:
    from torchvision import models

    known = models.list_models(module=models)
    if model not in known:
        raise UserError(_unknown("torchvision", model, known))
    published = models.get_model_weights(model).DEFAULT
    used = published if trained and weights is None else None
    module = _created(f"torchvision:{model}", used is not None, lambda: models.get_model(model, weights=used))
    layers = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not layers:
        raise UserError(f"a torchvision backbone must end in a linear classifier, got {model!r}, which does not")
    module.set_submodule(layers[-1], nn.Identity())
    if weights is not None:
        _load_weights(module, weights)
    transform = published.transforms()
    return Backbone(
        name=model,
        module=module,
        geometry=Geometry(transform.crop_size[0], transform.resize_size[0], transform.interpolation.value),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )


def _created(name: str, pretrained: bool, create: Callable[[], nn.Module]) -> nn.Module:
    try:
        return create()
    except Exception as error:  # network errors, hub errors, a directory that is not a model
        if not pretrained:
            raise UserError(f"a backbone must be one that can be created, got {name} ({_line(error)})") from error
        raise UserError(
            f"the weights of {name} must be cached or downloadable, and loading them failed ({_line(error)}); "
            f"--weights FILE loads them, untrained:{name} needs none"
        ) from error


def _load_weights(module: nn.Module, file: Path) -> None:
    """Load a file that has all weights of the backbone; a classifier in it is ignored."""
    state = _read(file)
    wanted = module.state_dict().keys()
    prefixes = ("", "module.", "backbone.", "model.", "module.backbone.")
    prefix = max(prefixes, key=lambda p: sum(p + key in state for key in wanted))
    missing = [key for key in wanted if prefix + key not in state and not key.endswith("num_batches_tracked")]
    extra = [key for key in state if not prefix and key not in wanted and not key.startswith(_CLASSIFIER_PREFIXES)]
    if missing or extra:
        what = f"lacks {missing[0]} and {len(missing) - 1} more" if missing else f"also has {extra[0]}"
        raise UserError(f"--weights must hold the weights of the backbone, got '{file}', which {what}")
    try:
        module.load_state_dict({key: state[prefix + key] for key in wanted if prefix + key in state}, strict=False)
    except RuntimeError as error:
        raise UserError(f"--weights must hold the weights of the backbone, got '{file}' ({_line(error)})") from None


def _read(file: Path) -> Mapping[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # errors of the file system, safetensors or pickle
        raise UserError(f"--weights must be a file that can be read, got '{file}' ({_line(error)})") from None
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise UserError(f"--weights must be a file of named tensors, got '{file}', which holds something else")
    return content


def _unknown(library: str, model: str, known: list[str]) -> str:
    close = difflib.get_close_matches(model, known, 1, cutoff=0.5)
    remedy = f"did you mean {close[0]!r}?" if close else f"{library} lists its models"
    return f"a backbone must be one of {library}'s models, got {library}:{model}; {remedy}"


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
