"""What is judged: a run's encoder, an export of it, or any backbone of timm's or torchvision's."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from genray import storage
from genray.augment import MEAN, STD, normalise
from genray.probes.pixels import INTERPOLATIONS, Geometry
from genray.settings import UserError

if TYPE_CHECKING:
    from genray.learner import Learner

FORMS = "a run's or an export's directory, timm:MODEL, torchvision:MODEL, untrained: and one of these, or pixels"
RAW_SIZE = 32
"""Pixels of a side at which raw pixels are judged."""

_CLASSIFIERS = ("fc.", "classifier", "head", "last_linear.")


@dataclass(eq=False)
class Backbone:
    """A frozen network from normalised images to features, and the images that it takes."""

    name: str
    module: nn.Module
    geometry: Geometry
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD
    channels_last: bool = False
    run: Path | None = None
    """The directory of the run whose trained encoder this is."""
    step: int = 0
    """Steps that it was trained in that run."""

    def to(self, device: torch.device | str) -> Backbone:
        """The same one, moved there and put into evaluation mode."""
        self.module.to(device).eval().requires_grad_(False)
        return self

    def __call__(self, images: Tensor) -> Tensor:
        """Features, float32 `[n, F]`, of normalised images `[n, 3, size, size]` on its device."""
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        with torch.no_grad():
            return self.module(images.contiguous(memory_format=layout)).float()

    def features(self, pixels: Tensor) -> Tensor:
        """Features, float32 `[n, F]`, of uint8 images `[n, 3, size, size]`."""
        device = next((parameter.device for parameter in self.module.parameters()), pixels.device)
        planes = pixels.to(device).float().transpose(0, 1) / 255
        return self(normalise(planes, self.mean, self.std))


def load(name: str, weights: Path | None = None, size: int | None = None) -> Backbone:
    """The backbone of this name on the CPU, in evaluation mode.

    timm's and torchvision's come with their published weights, from the cache of those libraries or by download.

    Args:
        name: a run's directory (its last checkpoint), an export's, `timm:MODEL` (`timm:local-dir:DIRECTORY` too),
            `torchvision:MODEL`, `untrained:` before one of these, or `pixels` for the pixels themselves.
        weights: a file of weights for timm's or torchvision's model, instead of the published ones.
        size: pixels of a side to judge it at; its own where it is not given.

    Raises:
        UserError: there is no such backbone, its weights are not here or do not fit, or it does not take that size.
    """
    kind, colon, rest = name.partition(":")
    untrained = kind == "untrained" and bool(colon)
    if untrained:
        kind, colon, rest = rest.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # for what is not trained
        if name == "pixels":
            found = Backbone(name, nn.Flatten(), Geometry(RAW_SIZE, RAW_SIZE))
        elif kind == "timm" and colon:
            found = _timm(rest, weights, not untrained)
        elif kind == "torchvision" and colon:
            found = _torchvision(rest, weights, not untrained)
        else:
            path = Path(storage.here(name.removeprefix("untrained:") if untrained else name))
            found = _directory(path, not untrained)
    found.name = name
    if size is not None:
        grown = size * found.geometry.resized / found.geometry.size
        found.geometry = Geometry(size, max(size, round(grown)), found.geometry.interpolation, found.geometry.squash)
    found.to("cpu")
    side = found.geometry.size
    try:
        width = found(torch.zeros(1, 3, side, side)).shape
    except Exception as error:  # whatever an architecture raises on a size it does not take
        raise UserError(f"--size must suit the backbone, got {side} for {name} ({_line(error)})") from error
    if len(width) != 2:
        raise UserError(f"a backbone must give one row of features for an image, got {tuple(width)} from {name}")
    return found


def _directory(path: Path, trained: bool) -> Backbone:
    """A run's encoder, or an export."""
    if not path.exists():
        prefixes = ("timm:", "torchvision:", "untrained:", "pixels")
        start = f"{str(path).partition(':')[0]}:" if ":" in str(path) else str(path)
        close = difflib.get_close_matches(start, prefixes, 1, cutoff=0.6)
        remedy = f"; did you mean {close[0]!r}?" if close else ", which does not exist"
        raise UserError(f"a backbone must be {FORMS}, got {str(path)!r}{remedy}")
    if _is_export(path):
        return _timm(f"local-dir:{path.absolute()}", None, trained)
    from genray.runs import load_learner

    learner = load_learner(path, trained)
    return replace(of_learner(learner), run=path.absolute() if trained else None)


def of_learner(learner: Learner) -> Backbone:
    """The encoder of a learner, to be shown images as large as those that it was trained on."""
    side = learner.policy.size
    return Backbone(
        name=learner.config.name,
        module=learner.encoder.backbone,
        geometry=Geometry(side, side),
        channels_last=learner.config.model.channels_last,
        step=learner.step,
    )


def _is_export(path: Path) -> bool:
    try:
        return "architecture" in json.loads((path / "config.json").read_text())
    except (OSError, ValueError):
        return False


def _timm(model: str, weights: Path | None, trained: bool) -> Backbone:
    import timm  # takes seconds: it imports every architecture

    if "/" not in model and ":" not in model and not timm.is_model(model.partition(".")[0]):
        raise UserError(_unknown("timm", model.partition(".")[0], timm.list_models()))
    pretrained = trained and weights is None
    module = _made(f"timm:{model}", pretrained, lambda: timm.create_model(model, pretrained=pretrained, num_classes=0))
    if weights is not None:
        _fill(module, weights)
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
    ours = published if trained and weights is None else None
    module = _made(f"torchvision:{model}", ours is not None, lambda: models.get_model(model, weights=ours))
    layers = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    if not layers:
        raise UserError(f"a backbone of torchvision's must end in a linear classifier, got {model!r}, which does not")
    module.set_submodule(layers[-1], nn.Identity())
    if weights is not None:
        _fill(module, weights)
    transform = published.transforms()
    return Backbone(
        name=model,
        module=module,
        geometry=Geometry(transform.crop_size[0], transform.resize_size[0], transform.interpolation.value),
        mean=tuple(transform.mean),
        std=tuple(transform.std),
    )


def _made(name: str, pretrained: bool, make: Callable[[], nn.Module]) -> nn.Module:
    try:
        return make()
    except Exception as error:  # of the network, of the hub, of a directory that is no model
        if not pretrained:
            raise UserError(f"a backbone must be one that can be made, got {name} ({_line(error)})") from error
        raise UserError(
            f"the weights of {name} must be here or be downloaded, and that failed ({_line(error)}); "
            f"--weights FILE loads them, untrained:{name} does without"
        ) from error


def _fill(module: nn.Module, file: Path) -> None:
    """Load a file of weights, all of the backbone's; a classifier in it is left out."""
    state = _read(file)
    wanted = module.state_dict().keys()
    prefixes = ("", "module.", "backbone.", "model.", "module.backbone.")
    prefix = max(prefixes, key=lambda p: sum(p + key in state for key in wanted))
    missing = [key for key in wanted if prefix + key not in state and not key.endswith("num_batches_tracked")]
    beyond = [key for key in state if not prefix and key not in wanted and not key.startswith(_CLASSIFIERS)]
    if missing or beyond:
        what = f"lacks {missing[0]} and {len(missing) - 1} more" if missing else f"has {beyond[0]} beyond it"
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
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # of the file system, of safetensors, of pickle
        raise UserError(f"--weights must be a file that can be read, got '{file}' ({_line(error)})") from None
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"--weights must be a file of named tensors, got '{file}', which holds something else")
    return found


def _unknown(library: str, model: str, known: list[str]) -> str:
    close = difflib.get_close_matches(model, known, 1, cutoff=0.5)
    remedy = f"did you mean {close[0]!r}?" if close else f"{library} lists its models"
    return f"a backbone must be one of {library}'s models, got {library}:{model}; {remedy}"


def _line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
