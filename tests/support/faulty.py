"""Generators that fail, for the tests of whole runs; workers import them by name."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from genray.config.generator import BigGANGenerator
from genray.views.generators import load


class Faulty:
    """The embedded generator, which misbehaves where a file in `orders` says so, in its next call.

    A file is called after the fault and holds how often it shall happen: it counts down, over all processes. A file
    `slow_s` says how many seconds each call takes from then on.
    """

    image_size, latent_dim, num_classes = 32, 32, 10

    def __init__(self, orders: str, slow_s: float = 0.0):
        self.orders, self.slow_s = Path(orders), slow_s
        if self._ordered("die at start"):
            os._exit(1)
        if self._ordered("be slow"):
            self.slow_s *= 5
        self.generator = load(BigGANGenerator(), "cpu")

    def __call__(self, z: Tensor, labels: Tensor | None, seeds: Tensor | None = None) -> Tensor:
        images = self.generator(z, labels, seeds)
        if self._ordered("exit"):
            os._exit(1)
        if self._ordered("leave"):
            sys.exit(0)
        if self._ordered("raise"):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")
        if self._ordered("hang"):
            os.kill(os.getpid(), signal.SIGSTOP)
        if self._ordered("nan"):
            return torch.full((len(z), 3, 32, 32), torch.nan)
        if self._ordered("constant"):
            return torch.zeros_like(images)
        if self._ordered("fill the memory"):
            _fill_the_memory()
        pace = self.orders / "slow_s"
        time.sleep(float(pace.read_text()) if pace.exists() else self.slow_s)
        return images

    def _ordered(self, fault: str) -> bool:
        file = self.orders / fault
        try:
            left = int(file.read_text() or 0)
        except (FileNotFoundError, ValueError):
            return False
        if left > 1:
            file.write_text(str(left - 1))
        else:
            file.unlink(missing_ok=True)
        return left > 0


def _fill_the_memory(step: int = 256 * 2**20, most: int = 16 * 2**30) -> None:
    """Allocate until somebody ends it."""
    held = []
    for _ in range(most // step):
        held.append(bytearray(os.urandom(1 << 20)) * (step >> 20))
        time.sleep(0.05)
    time.sleep(600)
