from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genray.config.sections import Augment
from genray.views.augment import augment_views, policy
from genray.views.preview import CAPTION, GAP, GROUP_GAP, MARGIN, cell_size, grid, save, sheet


def coloured(n: int, v: int, size: int) -> torch.Tensor:
    """Every view of one colour of its own: uint8 [n, v, 3, size, size]."""
    colours = torch.arange(n * v * 3, dtype=torch.uint8).mul(7).reshape(n, v, 3, 1, 1)
    return colours.expand(-1, -1, -1, size, size)


def plain(views: torch.Tensor, num_views: int) -> torch.Tensor:
    """The views as the learner gets them, with nothing changed."""
    chosen = policy(Augment(policy="none"), views.shape[-1])
    return augment_views(views, np.arange(len(views)), chosen, 0, num_views)


@pytest.mark.parametrize("as_array", [False, True])
def test_every_image_lies_in_its_cell(as_array: bool) -> None:
    views = coloured(4, 2, 32)
    picture = grid(views.numpy() if as_array else views, plain(views, 2))
    assert picture.dtype == np.uint8
    assert picture.shape == (2 * MARGIN + CAPTION + 4 * 64 + 3 * GAP, 2 * MARGIN + 4 * 64 + 2 * GROUP_GAP + GAP, 3)
    lefts = [MARGIN, MARGIN + 64 + GROUP_GAP, MARGIN + 2 * (64 + GROUP_GAP)]
    lefts.append(lefts[-1] + 64 + GAP)
    for row in range(4):
        top = MARGIN + CAPTION + row * (64 + GAP)
        for left, view in zip(lefts, (0, 1, 0, 1), strict=True):  # anchor | latent view | both augmented
            cell = picture[top : top + 64, left : left + 64]
            np.testing.assert_array_equal(cell, np.broadcast_to(views[row, view, :, 0, 0], cell.shape))


def test_latent_views_are_left_out_where_only_the_anchor_was_rendered() -> None:
    views = coloured(2, 1, 32)
    picture = grid(views, plain(views, 3))
    assert picture.shape[1] == 2 * MARGIN + 4 * 64 + GROUP_GAP + 2 * GAP


def test_captions_stand_above_their_groups() -> None:
    views = coloured(1, 2, 32)
    strip = grid(views, plain(views, 2))[MARGIN : MARGIN + CAPTION]
    for left, width in ((MARGIN, 64), (MARGIN + 64 + GROUP_GAP, 64), (MARGIN + 2 * (64 + GROUP_GAP), 128 + GAP)):
        inked = np.flatnonzero((strip[:, left : left + width] < 150).any((0, 2)))
        assert len(inked) > 10
        assert abs((inked[0] + inked[-1]) / 2 - width / 2) < 3


@pytest.mark.parametrize(("size", "shown"), [(28, 84), (32, 64), (64, 64), (112, 112), (128, 128), (256, 128)])
def test_images_are_shown_at_a_readable_size(size: int, shown: int) -> None:
    assert cell_size(size) == shown


def test_scaling_takes_the_nearest_pixel() -> None:
    views = torch.randint(0, 256, (1, 1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    cell = grid(views, plain(views, 1))[MARGIN + CAPTION :][:64, MARGIN : MARGIN + 64]
    np.testing.assert_array_equal(cell, views[0, 0].permute(1, 2, 0).numpy().repeat(2, 0).repeat(2, 1))


def test_a_sheet_has_a_caption_above_each_block() -> None:
    blocks = [(f"block {b}", coloured(2, 3 + b, 32).numpy()) for b in range(3)]
    picture = sheet(blocks, across=2)
    cells = [64 * n + GAP * (n - 1) for n in range(6)]  # n images with gaps between them
    shelf = CAPTION + cells[2] + MARGIN
    assert picture.shape == (MARGIN + 2 * shelf, 2 * MARGIN + cells[5] + GROUP_GAP + cells[4], 3)
    # The third block lies below the first, and is wider.
    places = [(MARGIN, MARGIN), (MARGIN, MARGIN + cells[5] + GROUP_GAP), (MARGIN + shelf, MARGIN)]
    for (top, left), (_, images) in zip(places, blocks, strict=True):
        assert (picture[top : top + CAPTION, left : left + 60] < 150).any()
        for row, line in enumerate(images):
            for column, image in enumerate(line):
                y, x = top + CAPTION + row * (64 + GAP), left + column * (64 + GAP)
                assert (picture[y : y + 64, x : x + 64] == image[:, 0, 0]).all()


def test_save_writes_a_png_and_nothing_else(tmp_path: Path) -> None:
    views = coloured(2, 2, 32)
    path = tmp_path / "previews" / "0.png"
    for _ in range(2):  # replaces what was there
        save(path, views, plain(views, 2))
    assert list(path.parent.iterdir()) == [path]
    with Image.open(path) as picture:
        assert picture.format == "PNG"
        np.testing.assert_array_equal(np.asarray(picture), grid(views, plain(views, 2)))
