"""Copies rendered images to host memory while the next ones are rendered."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


class ToHost:
    """An array in host memory that collects micro-batches.

    From a GPU, they are copied into pinned memory on a separate stream, so that neither the host nor the next
    micro-batch waits for the copy.

    Args:
        shape: of all images together, `[n, 3, H, W]`.
        device: where they are rendered.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device):
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.images = torch.empty(shape, dtype=torch.uint8, pin_memory=self.stream is not None)

    def put(self, start: int, images: Tensor) -> None:
        """Copy images, uint8 `[m, 3, H, W]`, to the rows from `start` on."""
        rows = self.images[start : start + len(images)]
        if self.stream is None or not images.is_cuda:
            rows.copy_(images)
            return
        self.stream.wait_stream(torch.cuda.current_stream(images.device))
        with torch.cuda.stream(self.stream):
            rows.copy_(images, non_blocking=True)
        images.record_stream(self.stream)  # its memory must not be reused before it is copied

    def array(self) -> np.ndarray:
        """The array, after all copies have finished; it shares the memory of this object."""
        if self.stream is not None:
            self.stream.synchronize()
        return self.images.numpy()
