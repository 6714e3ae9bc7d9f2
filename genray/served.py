"""The program of a registered encoder: images in, features out.

It is copied into the model and runs from there, so it needs nothing of genray, of timm or of Ray.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch.export.passes import move_to_device_pass

BATCH = 256
"""Images that go through the network at once."""


class Encoder:
    """Resizes images, takes their centre and normalises it as in training, and returns the backbone's pooled features.

    Args:
        directory: holds `encoder.pt2`, a program of torch.export's, and `config.json`.
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
        chunks = [self._features(images[first : first + BATCH]) for first in range(0, len(images), BATCH)]
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
        found: torch.Tensor = self.network((pixels - self.mean) / self.std)
        return found.float().cpu().numpy()


def _load_pyfunc(path: str) -> Encoder:
    """What MLflow calls with the directory of the model's data."""
    return Encoder(Path(path))
