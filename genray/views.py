"""A ticket's block: the views of the anchors it stands for, a pure function of the configuration and their positions.

Which process makes it, when, and how often cannot change it.
"""

from __future__ import annotations

import os
import socket
import time
from typing import TYPE_CHECKING

import numpy as np

from genray import sources
from genray.config import Config
from genray.course import Ticket
from genray.plan import Plan
from genray.sources import Block

if TYPE_CHECKING:
    import torch

__all__ = ["Block", "Renderer"]


class Renderer:
    """Makes blocks of tickets with a source that is loaded once; the body of a pool actor and of an inline learner."""

    def __init__(self, config: Config, device: str | torch.device | None = None):
        self.plan, self.source = Plan.of(config), sources.build(config, device)
        self.identity = f"{socket.gethostname()}:{os.getpid()}"

    def shown(self, position: np.ndarray) -> Block:
        """What is shown at these positions of the stream; see `genray.sources.Source`."""
        return self.source.shown(position)

    def block(self, ticket: Ticket) -> Block:
        """Make the block of one ticket.

        Returns:
            `views` uint8 `[n, V, 3, H, W]` (V = 1 for Tx only), `label` int64, -1 where there is no class, `latent`
            float32 `[n, V, d]` (d = 0 where there are none), `anchor`, `epoch` and `position` int64; `ticket` int64,
            `created_at` (unix seconds), `render_s` and `generator`, constant in the block.

        Raises:
            BadImages: the images are not finite, of another shape or type, or constant.
            UserError: something that was to be read cannot be.
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
