"""The trained backbone in the formats that others read: a timm directory, torchvision's ResNets, a torch program."""

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

from genray.augment import MEAN, STD
from genray.config import Config, Model
from genray.model import build_backbone, feature_width
from genray.settings import UserError

DESCRIPTION, PROGRAM = "config.json", "encoder.pt2"
"""Files of an export: what timm must know of the network, and the network as a program that needs torch alone."""

_TAG = "genray"
_TORCHVISION = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
_SAME_NETWORK = ("zero_init_last", "drop_rate", "drop_path_rate")  # arguments that only matter in training


def export_run(state: Mapping[str, Tensor], config: Config, directory: Path, image_size: int) -> list[str]:
    """Write the backbone of a run as `directory`, for timm; within it for torchvision, where it has the network, and
    for torch alone, where it can.

    Args:
        state: the state dict of the run's Encoder.
        config: the run's configuration.
        directory: where to.
        image_size: pixels of a side after cropping.

    Returns:
        How each of the three is loaded, or why it is not there.

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
    """Writes `config.json` and `model.safetensors`, whole or not at all; an earlier export there is replaced.

    `timm.create_model("local-dir:<directory>", pretrained=True)` then returns the backbone without a classifier, and
    with `num_classes=10` puts a fresh one on top.

    Args:
        state: the state dict of an Encoder, or of its backbone.
        config: the model section of the run.
        directory: where to; its parent is made if need be.
        image_size: pixels of a side of the images that the backbone was trained on, after cropping.
        crop_pct: share of a side that the centre crop keeps of a test image.
        mean: of each channel, subtracted from pixels in [0, 1].
        std: of each channel.

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
    fixed = known.get("fixed_input_size", False)  # then timm knows the side, from model_args or the architecture
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
    unfinished = _beside(directory)
    unfinished.mkdir(parents=True)
    try:
        (unfinished / DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")
        save_file(weights, unfinished / "model.safetensors", metadata={"format": "pt"})
        if directory.exists():  # a directory cannot be renamed onto another
            earlier = directory.rename(_beside(directory))
            unfinished.rename(directory)
            shutil.rmtree(earlier)
        else:
            unfinished.rename(directory)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return directory


def export_torchvision(state: Mapping[str, Tensor], config: Model, path: Path) -> Path | None:
    """Writes a safetensors file that torchvision's model of the same name loads, all but its classifier `fc`.

    timm gave its plain ResNets torchvision's parameter names and strides, so the weights need no translation.

    Args:
        state: the state dict of an Encoder, or of its backbone.
        config: the model section of the run.
        path: the file; its directory is made if need be.

    Returns:
        The path; None where torchvision has no such network (`torchvision_mismatch` says why), and no file is written.
    """
    if torchvision_mismatch(config):
        return None
    unfinished = _beside(path)
    unfinished.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(_backbone_weights(state), unfinished, metadata={"format": "pt"})
        return unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def export_program(state: Mapping[str, Tensor], config: Model, path: Path, *, image_size: int) -> str | None:
    """Writes the backbone as a program of torch.export's: normalised images `[n, 3, size, size]` to pooled features.

    Args:
        state: the state dict of an Encoder, or of its backbone.
        config: the model section of the run.
        path: the file; its directory must exist.
        image_size: pixels of a side, which are fixed; the number of images is not.

    Returns:
        Why there is none; None where it was written.
    """
    backbone = build_backbone(config)
    backbone.load_state_dict(_backbone_weights(state))
    unfinished = _beside(path).with_suffix(path.suffix)
    try:
        images = torch.zeros(2, 3, image_size, image_size)
        program = torch.export.export(backbone.eval(), (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, unfinished)
    except OSError:
        raise
    except Exception as error:  # whatever torch raises on a network that it cannot export
        unfinished.unlink(missing_ok=True)
        return f"torch.export cannot export {config.backbone}: {' '.join(str(error).split())[:200]}"
    unfinished.replace(path)
    return None


def torchvision_mismatch(config: Model) -> str | None:
    """Why torchvision cannot load this backbone, in a sentence; None where it can."""
    if config.backbone not in _TORCHVISION:
        return f"torchvision's format is written for {', '.join(_TORCHVISION)}, not for {config.backbone}"
    changed = sorted(set(config.model_args) - set(_SAME_NETWORK))
    if changed:
        return f"model.model_args make it another network than torchvision's {config.backbone}: {', '.join(changed)}"
    return None


def _backbone_weights(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = "backbone." if any(name.startswith("backbone.") for name in state) else ""
    chosen = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    # safetensors takes neither channels_last memory nor two names for one tensor
    return {name: value.detach().cpu().contiguous().clone() for name, value in chosen.items()}


def _is_replaceable(directory: Path) -> bool:
    """Whether a directory is empty or an export of genray's and nothing else: replacing it loses nothing."""
    if not directory.is_dir():
        return False
    names = {path.name for path in directory.iterdir()}
    if not names:
        return True
    try:
        tag = json.loads((directory / DESCRIPTION).read_text())["pretrained_cfg"]["tag"]
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return tag == _TAG and names <= {DESCRIPTION, "model.safetensors", "torchvision.safetensors", PROGRAM}


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}")
