"""A ticket's block: the views of the anchors it stands for, a pure function of the seed and their positions.

Which process renders it, when, and how often cannot change it.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import numpy as np

from genray.config import MICRO_BATCH, Config
from genray.course import Ticket
from genray.generators import BadImages, Generator, load
from genray.plan import Plan, anchors_of

if TYPE_CHECKING:
    import torch

Block = dict[str, np.ndarray]


def render(
    generator: Generator,
    latents: np.ndarray,
    labels: np.ndarray,
    seeds: np.ndarray,
    micro_batch: int,
    device: torch.device,
) -> np.ndarray:
    """Images of these latents, always `micro_batch` at a time so that the arithmetic is the same for all.

    Args:
        latents: float32 `[n, d]`.
        labels: int64 `[n]`, -1 where the generator has no classes.
        seeds: int64 `[n]`, for generators that draw noise.

    Returns:
        uint8 `[n, 3, H, W]`.

    Raises:
        BadImages: the images are not finite, or of another shape or type.
    """
    import torch

    from genray.generators.pixels import refuse
    from genray.transfer import ToHost

    count = len(latents)
    rows = np.minimum(np.arange(-(-count // micro_batch) * micro_batch), count - 1)  # the last micro-batch is padded
    z, y, s = (torch.from_numpy(column[rows]).to(device) for column in (latents, labels, seeds))
    expected = (micro_batch, 3, generator.image_size, generator.image_size)
    host, finite = ToHost((count, *expected[1:]), device), []
    for start in range(0, count, micro_batch):
        part = slice(start, start + micro_batch)
        out, sound = generator.unchecked(z[part], y[part] if generator.num_classes else None, s[part])
        finite.append(sound)
        if out.dtype != torch.uint8 or tuple(out.shape) != expected:
            raise BadImages(f"the generator must return uint8 images {expected}, got {out.dtype} {tuple(out.shape)}")
        host.put(start, out[: count - start])
    refuse(torch.cat(finite)[:count])  # one look at the end, since each would wait for the device
    return host.array()


class Renderer:
    """Renders tickets with a generator loaded once; the body of a pool actor, or of an inline learner."""

    def __init__(self, config: Config, device: str | torch.device | None = None):
        import torch

        self.config, self.plan = config, Plan.of(config)
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.generator = load(config.generator, self.device)
        self.anchors = anchors_of(config, self.plan)
        asked = config.generator.micro_batch
        self.micro_batch = MICRO_BATCH if asked == "auto" else asked  # a run has settled it when it begins
        self.identity = f"{socket.gethostname()}:{os.getpid()}"

    def shown(self, position: np.ndarray) -> Block:
        """What is shown at these positions of the stream: `views`, `label`, `latent`, `anchor` and `epoch`.

        Raises:
            BadImages: the images are of another shape or type, or constant.
        """
        n = len(position)
        anchor, epoch = self.anchors.at(position)
        latent = self.anchors.views(position, self.config.view, self.config.stream.num_views)
        seeds = self.anchors.seeds(position, self.config.view, self.config.stream.num_views)
        label = self.anchors.labels(anchor)
        rendered = latent.shape[1]
        images = render(
            self.generator,
            latent.reshape(n * rendered, -1),
            label.repeat(rendered),
            seeds.reshape(-1),
            self.micro_batch,
            self.device,
        )
        flat = images.reshape(len(images), -1)
        if (constant := flat.min(1) == flat.max(1)).any():
            raise BadImages(f"{constant.sum()} of {len(flat)} images are of one constant colour")
        return {
            "views": images.reshape(n, rendered, *images.shape[1:]),
            "label": label,
            "latent": latent,
            "anchor": anchor,
            "epoch": epoch,
        }

    def block(self, ticket: Ticket) -> Block:
        """Render one ticket.

        Returns:
            `views` uint8 `[n, V, 3, H, W]` (V = 1 for Tx only), `label` int64, `latent` float32 `[n, V, d]`, `anchor`,
            `epoch` and `position` int64; `ticket` int64, `created_at` (unix seconds), `render_s` and `generator`,
            constant in the block.

        Raises:
            BadImages: the images are not finite, of another shape or type, or constant.
        """
        started, n = time.perf_counter(), len(ticket.positions)
        shown = self.shown(ticket.positions)
        return {
            **shown,
            "position": ticket.positions,
            "ticket": np.full(n, ticket.number),
            "created_at": np.full(n, time.time()),
            "render_s": np.full(n, time.perf_counter() - started),
            "generator": np.full(n, self.identity),
        }
