"""Features of images that are read as they are needed: by this process, or by actors of Ray Data.

Ray Data's tasks decode and crop, its actors hold the backbone; both kinds of worker can be on any node. Where the
actors ask for no GPU, Ray Data lets them decode as well. What is shown at a position is a function of the position, so
neither their number nor their order changes a feature.
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

from genray.probes.backbones import Backbone
from genray.probes.features import features
from genray.probes.showing import Showing, decode
from genray.settings import UserError, reason_in

BATCH = 256
"""Images encoded at once."""
BLOCK = 1024
"""Images decoded by one task of Ray Data."""
DECODERS = 8
"""Threads of one process that decode, at most."""


def best_device() -> torch.device:
    """Where this process computes if nothing else is said."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Extract(Protocol):
    """What makes features: of what is shown, to whom."""

    @property
    def device(self) -> torch.device:
        """Where this process computes."""
        ...

    def __call__(self, showing: Showing, backbone: Backbone) -> Iterator[tuple[np.ndarray, Tensor]]:
        """Batches of positions in order, each with its features `[n, F]` on the CPU."""
        ...


@dataclass(frozen=True)
class Here:
    """Features made by this process: an `Extract`."""

    device: torch.device = field(default_factory=best_device)

    def __call__(self, showing: Showing, backbone: Backbone) -> Iterator[tuple[np.ndarray, Tensor]]:
        backbone.to(self.device)
        batches = [range(first, min(first + BATCH, len(showing))) for first in range(0, len(showing), BATCH)]
        with ThreadPoolExecutor(min(DECODERS, os.cpu_count() or 1)) as pool:
            following = showing.images(np.array(batches[0]), pool.map)
            for batch, after in zip(batches, [*batches[1:], range(0)], strict=True):
                images, following = following, showing.images(np.array(after, dtype=np.int64), pool.map)
                pixels = torch.from_numpy(np.stack(list(images)))
                yield np.array(batch), backbone.features(pixels).cpu()


@dataclass(frozen=True)
class OnRay:
    """Features made by actors of Ray Data on the cluster that this process is in: an `Extract`."""

    actors: int = 1
    """Processes that each hold the backbone."""
    num_gpus: float | None = None
    """GPUs of each; 1 where the cluster has any, if it is not given."""
    device: torch.device = field(default_factory=best_device)

    def __call__(self, showing: Showing, backbone: Backbone) -> Iterator[tuple[np.ndarray, Tensor]]:
        import ray.data
        import ray.exceptions

        logging.getLogger("ray.data").setLevel(logging.ERROR)  # importing it made it talkative
        gpus = self.num_gpus
        if gpus is None:
            gpus = min(1.0, ray.cluster_resources().get("GPU", 0.0))
        rows = ray.data.range(len(showing), override_num_blocks=1)
        context = rows.context  # of this dataset and those made from it
        context.execution_options.preserve_order = True
        context.execution_no_progress_timeout_s = -1  # waiting for nodes is not a failure
        context.enable_progress_bars = context.print_on_execution_start = False
        found = (
            rows.repartition(target_num_rows_per_block=BLOCK)
            .map_batches(decode, batch_size=BATCH, batch_format="numpy", fn_kwargs={"showing": showing})
            .map_batches(
                Extractor,
                batch_size=BATCH,
                batch_format="numpy",
                # An actor that asked for no GPU may see one all the same.
                fn_constructor_args=(backbone.to("cpu"), None if gpus else "cpu"),
                compute=ray.data.ActorPoolStrategy(size=self.actors),
                num_gpus=gpus,
            )
        )
        try:
            for batch in found.iter_batches(batch_size=BATCH, batch_format="numpy", prefetch_batches=1):
                # Copies, which may be written to: Ray's own memory may not.
                yield np.array(batch["position"]), torch.from_numpy(np.array(batch["features"]))
        except ray.exceptions.RayError as error:
            reason = reason_in(str(error))
            if reason is None or not reason.mendable:
                raise
            raise UserError(reason.message) from error


class Extractor:
    """An actor of Ray Data that holds a backbone."""

    def __init__(self, backbone: Backbone, device: str | None = None) -> None:
        self.backbone = backbone.to(device or best_device())

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.backbone.features(torch.from_numpy(np.array(batch["pixels"])))
        return {"position": batch["position"], "features": found.cpu().numpy()}


def all_features(showing: Showing, backbone: Backbone, extract: Extract) -> Tensor:
    """Features of every image of a showing, float32 `[n, F]`, in its order.

    Images in memory that are shown whole are encoded as the probes of a run encode them, whatever `extract` is.
    """
    pixels = showing.split.pixels
    if pixels is not None and not showing.crops:
        backbone.to(extract.device)
        size = None if backbone.name == "pixels" else backbone.geometry.size
        return features(backbone, pixels.to(extract.device), size=size, mean=backbone.mean, std=backbone.std)
    found: Tensor | None = None
    for positions, part in extract(showing, backbone):
        if found is None:
            found = part.new_empty(len(showing), part.shape[1])
        found[torch.from_numpy(positions)] = part
    assert found is not None  # no split is empty
    return found
