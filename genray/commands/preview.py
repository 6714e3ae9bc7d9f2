"""`genray preview`: draws the views that a run learns from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from genray.commands.configured import prepared
from genray.config.run import Config
from genray.learner.learner import Learner
from genray.stream.renderer import Renderer
from genray.stream.run import Run
from genray.views.preview import save


def preview(config: Config, out: Path | str = "preview.png", anchors: int = 8) -> None:
    """Draw the first anchors of a run as a PNG: each with its latent views and its augmented views.

    Args:
        config: the run.
        out: the file.
        anchors: how many; each is a row.

    Raises:
        BadImages: the generator returned something that is not an image.
        OSError: the file cannot be written.
    """
    run = Run.of(prepared(config))  # checks what needs the generator's sizes before the generator is loaded
    block = Renderer(run.config).block_at(np.arange(anchors))
    learner = Learner(run, 0, torch.device("cpu"))
    save(Path(out), block["views"], learner.images(block))
