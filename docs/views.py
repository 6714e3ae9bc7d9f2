"""Draw what each latent view makes of the embedded generator's anchors.

    python docs/views.py [--out docs/views.png]

One block for each view: two anchors, the first column, and views of theirs.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from genray.config import load
from genray.stream.renderer import Renderer
from genray.views import preview

VIEWS = {
    "gaussian, std 1": "--view.kind gaussian",
    "gaussian, std 0.2": "--view.kind gaussian --view.std 0.2",
    "uniform, std 1": "--view.kind uniform",
    "angular, std 1": "--view.kind angular",
    "variance preserving, beta 0.5": "--view.kind variance_preserving",
    "independent": "--view.kind independent",
    "chunked, the style alone": "--view.kind chunked --view.slices [[19,32]]",
    "chunked, place and size alone": "--view.kind chunked --view.slices [[0,4]]",
    "steered, all walks": "--view.kind steered",
    "steered, shifts and rotation": '--view.kind steered --view.names ["shift_x","shift_y","rotation"]',
    "navigator": "--view.kind navigator --stream.num_views 2",
}
"""Captions and the settings that are shown."""
ANCHORS, SHOWN = 2, 7


def blocks() -> list[tuple[str, np.ndarray]]:
    """Captions and images, uint8 `[anchors, views, 3, H, W]`."""
    found = []
    for caption, line in VIEWS.items():
        config = load.load("demo", ["--stream.num_views", str(SHOWN), *line.split(), "--stream.batch_size", "16"])
        found.append((caption, Renderer(config, "cpu").block_at(np.arange(ANCHORS))["views"]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "views.png")
    preview.write(parser.parse_args().out, preview.sheet(blocks(), across=2))


if __name__ == "__main__":
    main()
