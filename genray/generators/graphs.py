"""CUDA graphs: all kernels of a rendering launched at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 3
"""Renderings before the one that is captured: libraries choose their algorithms and buffers in the first."""


class Graphed:
    """Replays a captured rendering; one graph for each number of images.

    Args:
        render: of latents `[n, d]` and classes `[n]` on a GPU, without waiting for it.
    """

    def __init__(self, render: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]):
        self.render = render
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = {}

    def __call__(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What `render` returns, in memory of its own, because the next call overwrites the graph's."""
        with torch.cuda.device(z.device):
            if len(z) not in self.graphs:
                self.graphs[len(z)] = self._capture(z, labels)
            graph, (held_z, held_labels), (images, finite) = self.graphs[len(z)]
            held_z.copy_(z)
            held_labels.copy_(labels)
            graph.replay()
            return images.clone(), finite.clone()

    def _capture(
        self, z: Tensor, labels: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        inputs = z.clone(), labels.clone()
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self.render(*inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        # Other threads of a learner that renders for itself use the device meanwhile.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self.render(*inputs)
        return graph, inputs, outputs
