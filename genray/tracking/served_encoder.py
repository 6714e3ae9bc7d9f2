"""The code of a registered encoder: images in, features out.

It is copied into the MLflow model and runs from there, so it imports neither genray nor timm nor Ray.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.export.passes import move_to_device_pass

BATCH_SIZE = 256
"""Images in one forward pass."""


class Encoder:
    """The backbone's pooled features of images, which are resized, centre-cropped and normalised as in training.

    >>> Encoder(Path("runs/demo/export")).predict(images)  # uint8 [n, H, W, 3] -> float32 [n, d]

    Args:
        directory: with `encoder.pt2`, a torch.export program, and `config.json`.
    """

    def __init__(self, directory: Path) -> None:
        description = json.loads((directory / "config.json").read_text())
        known = description["pretrained_cfg"]
        self.size, self.width = known["input_size"][-1], description["num_features"]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        program = torch.export.load(directory / "encoder.pt2")
        if self.device.type != "cpu":
            program = move_to_device_pass(program, self.device)
        self.network = program.module()
        self.mean, self.std = (torch.tensor(known[name], device=self.device)[:, None, None] for name in ("mean", "std"))

    def predict(self, images: Any, params: Any = None) -> np.ndarray:
        """Features, float32 `[n, d]`, of images, uint8 `[n, H, W, 3]` of any height and width."""
        images = np.asarray(images)
        chunks = [self._features(images[first : first + BATCH_SIZE]) for first in range(0, len(images), BATCH_SIZE)]
        return np.concatenate(chunks) if chunks else np.zeros((0, self.width), dtype=np.float32)

    @torch.inference_mode()
    def _features(self, images: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device).permute(0, 3, 1, 2).float() / 255
        height, width = pixels.shape[-2:]
        if (height, width) != (self.size, self.size):
            shorter = min(height, width)
            sides = self.size * height // shorter, self.size * width // shorter
            pixels = F.interpolate(pixels, size=sides, mode="bilinear", antialias=True)
            top, left = (round((side - self.size) / 2) for side in sides)
            pixels = pixels[..., top : top + self.size, left : left + self.size]
        features: torch.Tensor = self.network((pixels - self.mean) / self.std)
        return features.float().cpu().numpy()


def _load_pyfunc(path: str) -> Encoder:
    """MLflow's entry point: it passes the directory of the model's data."""
    return Encoder(Path(path))
