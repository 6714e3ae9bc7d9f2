"""Renders tickets to blocks: a block is a pure function of the configuration and the ticket's positions.

Which process renders it, when and how often does not matter.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import numpy as np

from genray.config.run import Config
from genray.runs import telemetry
from genray.stream.tickets import Ticket
from genray.views import sources
from genray.views.types import Block

if TYPE_CHECKING:
    import torch


class Renderer:
    """Renders tickets, with a source that it loads once; used by the actors of the pool and by learners without one.

    >>> renderer = Renderer(config)
    >>> block = renderer.block(course.ticket(0))
    >>> block["views"].shape, block["position"][:3]
    ((512, 2, 3, 32, 32), array([0, 1, 2]))
    """

    def __init__(self, config: Config, device: str | torch.device | None = None):
        self.source = sources.build(config, device)
        self.identity = f"{socket.gethostname()}:{os.getpid()}"

    def block_at(self, position: np.ndarray) -> Block:
        """The views at these positions of the stream; see `genray.views.types.Source`."""
        return self.source.block_at(position)

    def block(self, ticket: Ticket) -> Block:
        """Render one ticket.

        Returns:
            The views: `views` uint8 `[n, V, 3, H, W]` (V = 1 for pixel augmentation alone), `label` int64 (-1 without
            classes), `latent` float32 `[n, V, d]` (d = 0 without latents), `anchor`, `epoch` and `position` int64.
            About the block, constant in it: `ticket` int64, `created_at` (Unix time), `render_s` (seconds) and
            `generator` (`host:pid`).

        Raises:
            BadImages: the images are not finite, have another shape or type, or are constant.
            UserError: a file cannot be read.
        """
        started, n = time.perf_counter(), len(ticket.positions)
        return {
            **self.block_at(ticket.positions),
            "position": ticket.positions,
            "ticket": np.full(n, ticket.number),
            "created_at": np.full(n, time.time()),
            "render_s": np.full(n, time.perf_counter() - started),
            "generator": np.full(n, self.identity),
        }


def note_rendered(run: str, block: Block) -> None:
    """Count a rendered block in the run's Prometheus metrics."""
    anchors, views = block["views"].shape[:2]
    telemetry.export_rendered(run, str(block["generator"][0]), anchors * views, float(block["render_s"][0]))
