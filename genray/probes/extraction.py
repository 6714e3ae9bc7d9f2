"""Features of images that are decoded on demand, by this process or by actors of Ray Data.

Ray Data's tasks decode and crop, its actors hold the backbone; both may run on any node. If the actors request no GPU,
Ray Data fuses the two. The image at a position depends on the position alone, so features do not depend on the number
or order of workers.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from genray.config.errors import Remedy, reason_of
from genray.probes.backbones import Backbone
from genray.probes.features import features
from genray.probes.shown_images import ShownImages, decode_batch

ENCODE_BATCH = 256
"""Images encoded at once."""
DECODE_BLOCK = 1024
"""Images decoded by one task of Ray Data."""
MAX_DECODE_THREADS = 8
"""Decoding threads of one process."""


def best_device() -> torch.device:
    """The default device of this process: a GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Extractor(Protocol):
    """Computes a backbone's features of a sequence of images."""

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        ...

    def __call__(self, shown: ShownImages, backbone: Backbone) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Yield batches of positions in order, each with its features `[n, F]` on the CPU."""
        ...


@dataclass(frozen=True)
class LocalExtractor:
    """Computes features in this process."""

    device: torch.device = field(default_factory=best_device)

    def __call__(self, shown: ShownImages, backbone: Backbone) -> Iterator[tuple[np.ndarray, Tensor]]:
        backbone.to(self.device)
        batches = [range(first, min(first + ENCODE_BATCH, len(shown))) for first in range(0, len(shown), ENCODE_BATCH)]
        with ThreadPoolExecutor(min(MAX_DECODE_THREADS, os.cpu_count() or 1)) as pool:
            prefetched = shown.images(np.array(batches[0]), pool.map)
            for batch, next_batch in zip(batches, [*batches[1:], range(0)], strict=True):
                images, prefetched = prefetched, shown.images(np.array(next_batch, dtype=np.int64), pool.map)
                pixels = torch.from_numpy(np.stack(list(images)))
                yield np.array(batch), backbone.features(pixels).cpu()


@dataclass(frozen=True)
class RayExtractor:
    """Computes features in actors of Ray Data, on the cluster that this process is connected to."""

    actors: int = 1
    """Processes that each hold the backbone."""
    num_gpus: float | None = None
    """GPUs of each; by default 1 if the cluster has any, else 0."""
    device: torch.device = field(default_factory=best_device)

    def __call__(self, shown: ShownImages, backbone: Backbone) -> Iterator[tuple[np.ndarray, Tensor]]:
        import ray.data
        import ray.exceptions

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # its import sets a verbose level
        gpus = self.num_gpus
        if gpus is None:
            gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0))
        rows = ray.data.range(len(shown), override_num_blocks=1)
        context = rows.context  # of this dataset and those derived from it
        context.execution_options.preserve_order = True
        context.execution_no_progress_timeout_s = -1  # waiting for nodes is not a failure
        context.enable_progress_bars = context.print_on_execution_start = False
        dataset = (
            rows.repartition(target_num_rows_per_block=DECODE_BLOCK)
            .map_batches(decode_batch, batch_size=ENCODE_BATCH, batch_format="numpy", fn_kwargs={"shown": shown})
            .map_batches(
                BackboneActor,
                batch_size=ENCODE_BATCH,
                batch_format="numpy",
                # An actor that requested no GPU may still see one.
                fn_constructor_args=(backbone.to("cpu"), None if gpus else "cpu"),
                compute=ray.data.ActorPoolStrategy(size=self.actors),
                num_gpus=gpus,
            )
        )
        try:
            for batch in dataset.iter_batches(batch_size=ENCODE_BATCH, batch_format="numpy", prefetch_batches=1):
                # Copied, because Ray's own memory is read-only.
                yield np.array(batch["position"]), torch.from_numpy(np.array(batch["features"]))
        except ray.exceptions.RayError as error:
            reason = reason_of(error)
            if reason is None or reason.remedy is not Remedy.USER:
                raise
            raise reason.error() from error


class BackboneActor:
    """An actor of Ray Data that holds a backbone."""

    def __init__(self, backbone: Backbone, device: str | None = None) -> None:
        self.backbone = backbone.to(device or best_device())

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        part = self.backbone.features(torch.from_numpy(np.array(batch["pixels"])))
        return {"position": batch["position"], "features": part.cpu().numpy()}


def all_features(shown: ShownImages, backbone: Backbone, extract: Extractor) -> Tensor:
    """Features of all images in order, float32 `[n, F]`.

    Whole images in memory are encoded by this process, exactly as a run's own probes do, and not by `extract`.
    """
    pixels = shown.split.pixels
    if pixels is not None and not shown.crops:
        backbone.to(extract.device)
        size = None if backbone.name == "pixels" else backbone.geometry.size
        return features(backbone, pixels.to(extract.device), size=size, mean=backbone.mean, std=backbone.std)
    total: Tensor | None = None
    for positions, part in extract(shown, backbone):
        if total is None:
            total = part.new_empty(len(shown), part.shape[1])
        total[torch.from_numpy(positions)] = part
    assert total is not None  # no split is empty
    return total
