"""Exports of the trained backbone: a timm directory, torchvision's ResNets, and a torch.export program."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import Tensor

from genray.config.errors import UserError
from genray.config.run import Config
from genray.config.sections import Model
from genray.learner.encoder import build_backbone, feature_width
from genray.probes.backbones import TIMM_CONFIG
from genray.views.augment import MEAN, STD

PROGRAM = "encoder.pt2"
"""The file of an export with the network as a program that needs only torch."""

_TAG = "genray"
_TORCHVISION_MODELS = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_TRAINING_ONLY_ARGS = ("zero_init_last", "drop_rate", "drop_path_rate")  # these leave the trained network as it is


def export_encoder(state: Mapping[str, Tensor], config: Config, directory: Path, image_size: int) -> list[str]:
    """Write a run's backbone in every format that it allows: for timm, torchvision, and torch alone.

    Args:
        state: the state dict of the run's Encoder.
        config: the run's configuration.
        directory: a timm directory, which also holds the two other files.
        image_size: pixels of a side after cropping.

    Returns:
        For each of the three how it is loaded, or why it was not written.

    Raises:
        UserError: the directory holds something else, or cannot be written.
    """
    try:
        export_timm(state, config.model, directory, image_size=image_size)
        file = export_torchvision(state, config.model, directory / "torchvision.safetensors")
        without_program = export_program(state, config.model, directory / PROGRAM, image_size=image_size)
    except OSError as error:
        raise UserError(
            f"an export must go to a directory that can be written, got '{directory}' ({error.strerror})"
        ) from None
    return [
        f"timm.create_model('local-dir:{directory}', pretrained=True)",
        torchvision_mismatch(config.model)
        or f"torchvision.models.{config.model.backbone}: load_state_dict of {file}, strict=False (no fc)",
        without_program or f"torch.export.load('{directory / PROGRAM}').module()",
    ]


def export_timm(
    state: Mapping[str, Tensor],
    config: Model,
    directory: Path,
    *,
    image_size: int,
    crop_pct: float = 1.0,
    mean: Sequence[float] = MEAN,
    std: Sequence[float] = STD,
) -> Path:
    """Write `config.json` and `model.safetensors`, whole or not at all, replacing an earlier export.

    `timm.create_model("local-dir:<directory>", pretrained=True)` then returns the backbone without a classifier;
    `num_classes=10` adds an untrained one.

    Args:
        state: the state dict of an Encoder, or of its backbone.
        config: the model section of the run.
        directory: created with its parents if need be.
        image_size: pixels of a side of the training images, after cropping.
        crop_pct: share of a side of a test image that the centre crop keeps.
        mean: of each channel, to subtract from pixels in [0, 1].
        std: of each channel, to divide by.

    Raises:
        UserError: the directory holds something that is not an earlier export.
        RuntimeError: the state is not that of the configured backbone.
    """
    directory = directory.absolute()
    if directory.exists() and not _is_replaceable(directory):
        raise UserError(
            f"an export must go to a new or empty directory, or replace an earlier export, got '{directory}', "
            "which holds something else"
        )
    backbone = build_backbone(config)
    weights = _backbone_weights(state)
    backbone.load_state_dict(weights)
    known = cast(dict[str, Any], backbone.pretrained_cfg)
    fixed = known.get("fixed_input_size", False)  # then timm takes the size from model_args or the architecture
    description = {
        "architecture": config.backbone,
        "num_classes": 0,
        "num_features": feature_width(backbone),
        "pretrained_cfg": {
            "tag": _TAG,
            "custom_load": False,
            "input_size": known["input_size"] if fixed else (3, image_size, image_size),
            "fixed_input_size": fixed,
            "interpolation": "bilinear",
            "crop_pct": crop_pct,
            "crop_mode": "center",
            "mean": mean,
            "std": std,
            "num_classes": 0,
            "pool_size": None,
            "first_conv": known.get("first_conv"),
            "classifier": known.get("classifier"),
        },
        "model_args": config.model_args,
    }
    unfinished = _temporary(directory)
    unfinished.mkdir(parents=True)
    try:
        (unfinished / TIMM_CONFIG).write_text(json.dumps(description, indent=2) + "\n")
        save_file(weights, unfinished / "model.safetensors", metadata={"format": "pt"})
        if directory.exists():  # a directory cannot be renamed onto another
            earlier = directory.rename(_temporary(directory))
            unfinished.rename(directory)
            shutil.rmtree(earlier)
        else:
            unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return directory


def export_torchvision(state: Mapping[str, Tensor], config: Model, path: Path) -> Path | None:
    """Write a safetensors file that torchvision's model of the same name loads, except for its classifier `fc`.

    timm's plain ResNets have torchvision's parameter names and strides, so the weights need no translation.

    Args:
        state: the state dict of an Encoder, or of its backbone.
        config: the model section of the run.
        path: of the file; its directory is created if need be.

    Returns:
        The path; None, without a file, if torchvision lacks the network (`torchvision_mismatch` says why).
    """
    if torchvision_mismatch(config):
        return None
    unfinished = _temporary(path)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(_backbone_weights(state), unfinished, metadata={"format": "pt"})
        return unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def export_program(state: Mapping[str, Tensor], config: Model, path: Path, *, image_size: int) -> str | None:
    """Write the backbone as a torch.export program: normalised images `[n, 3, size, size]` to pooled features.

    Args:
        state: the state dict of an Encoder, or of its backbone.
        config: the model section of the run.
        path: of the file; its directory must exist.
        image_size: pixels of a side, which is fixed in the program; the number of images is not.

    Returns:
        None, or why no program was written.
    """
    backbone = build_backbone(config)
    backbone.load_state_dict(_backbone_weights(state))
    unfinished = _temporary(path).with_suffix(path.suffix)
    try:
        images = torch.zeros(2, 3, image_size, image_size)
        program = torch.export.export(backbone.eval(), (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, unfinished)
    except OSError:
        raise
    except Exception as error:  # torch may raise anything on a network that it cannot export
        unfinished.unlink(missing_ok=True)
        return f"torch.export cannot export {config.backbone}: {' '.join(str(error).split())[:200]}"
    unfinished.replace(path)
    return None


def torchvision_mismatch(config: Model) -> str | None:
    """None, or in a sentence why torchvision cannot load this backbone."""
    if config.backbone not in _TORCHVISION_MODELS:
        return f"torchvision's format is written for {', '.join(_TORCHVISION_MODELS)}, not for {config.backbone}"
    changed = sorted(set(config.model_args) - set(_TRAINING_ONLY_ARGS))
    if changed:
        return f"model.model_args make it another network than torchvision's {config.backbone}: {', '.join(changed)}"
    return None


def _backbone_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "backbone." if any(name.startswith("backbone.") for name in state) else ""
    chosen = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    # safetensors rejects channels_last memory, and tensors that share memory
    return {name: value.detach().cpu().contiguous().clone() for name, value in chosen.items()}


def _is_replaceable(directory: Path) -> bool:
    """Whether a directory is empty or holds only an export of genray's, so that nothing is lost."""
    if not directory.is_dir():
        return False
    names = {path.name for path in directory.iterdir()}
    if not names:
        return True
    try:
        tag = json.loads((directory / TIMM_CONFIG).read_text())["pretrained_cfg"]["tag"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return tag == _TAG and names <= {TIMM_CONFIG, "model.safetensors", "torchvision.safetensors", PROGRAM}


def _temporary(path: Path) -> Path:
    """A new hidden path in the same directory."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
