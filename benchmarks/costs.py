"""The bytes that operations move, and the memory that rendering takes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


class Bytes(TorchDispatchMode):
    """Counts the bytes that operations read and write: all their tensor arguments and results, each once.

    Views, uninitialised memory and repeated reads of a broadcast argument do not count. A result that is written in
    place is also read.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs, outputs = tensors_in([args, kwargs]), tensors_in(out)
        writes = any(argument.alias_info and argument.alias_info.is_write for argument in func._schema.arguments)
        storages = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        views = not writes and outputs and all(tensor.untyped_storage().data_ptr() in storages for tensor in outputs)
        if not views and "empty" not in func.__name__:
            self.total += sum(map(extent, (*inputs, *outputs)))
        return out


def tensors_in(nested: Any) -> list[Tensor]:
    return [leaf for leaf in torch.utils._pytree.tree_leaves(nested) if isinstance(leaf, Tensor)]


def extent(tensor: Tensor) -> int:
    """Bytes of a tensor; a broadcast dimension counts once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride else 1
    return count


def peak_bytes(render: Callable[[], object], weights: int) -> int | None:
    """Peak memory of rendering including the weights, after a warm-up; None if the system does not report it."""
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
        reserved = torch.cuda.memory_reserved()
        render()
        render()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        render()
        peak = torch.cuda.max_memory_allocated() - before
        torch.cuda.empty_cache()
        return weights + max(peak, torch.cuda.memory_reserved() - reserved)  # a graph keeps its memory
    render()
    render()
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        render()
        return weights + max(0, resident("VmHWM") - before)
    except (OSError, StopIteration):
        return None


def resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(f"{name}:")))
