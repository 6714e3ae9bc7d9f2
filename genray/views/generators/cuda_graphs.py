"""CUDA graphs: launch all kernels of a batch at once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

WARM_UPS = 3
"""Batches rendered before the captured one: libraries choose algorithms and allocate buffers in the first."""


class CudaGraphed:
    """Replays a captured graph of `render`; one graph for each batch size.

    Args:
        render: renders latents `[n, d]` and classes `[n]` on a GPU without waiting for it.
    """

    def __init__(self, render: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]):
        self.render = render
        self.graphs: dict[int, tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]] = {}

    def __call__(self, z: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What `render` returns, copied, because the next call overwrites the graph's outputs."""
        with torch.cuda.device(z.device):
            if len(z) not in self.graphs:
                self.graphs[len(z)] = self._capture(z, labels)
            graph, (graph_z, graph_labels), (images, finite) = self.graphs[len(z)]
            graph_z.copy_(z)
            graph_labels.copy_(labels)
            graph.replay()
            return images.clone(), finite.clone()

    def _capture(
        self, z: Tensor, labels: Tensor
    ) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        inputs = z.clone(), labels.clone()
        side_stream = torch.cuda.Stream()
        side_stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side_stream):
            for _ in range(WARM_UPS):
                self.render(*inputs)
        torch.cuda.current_stream().wait_stream(side_stream)
        graph = torch.cuda.CUDAGraph()
        # thread_local: if the learners render, their other threads use the device at the same time.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = self.render(*inputs)
        return graph, inputs, outputs
