"""Edits of images: which way they go, how far, and what of the result they know."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from genray.commands.lessons.edits import edits

EDITS = edits(zoom=4.0, shift=0.25, rotation=90.0, colour=0.5)
NAMES = ["zoom", "shift_x", "shift_y", "rotation", "brightness", "red", "green", "blue"]


def dot(x: float, y: float) -> Tensor:
    """A spot at this place of the frame [-1, 1], x to the right and y downwards: `[1, 3, 32, 32]`."""
    axis = (torch.arange(32) + 0.5) / 16 - 1
    spot = torch.exp(-((axis - x) ** 2 + (axis[:, None] - y) ** 2) / 0.02)
    return 2 * spot.expand(1, 3, 32, 32) - 1


def place(images: Tensor, known: Tensor) -> list[float]:
    """Where the light is, `[x, y]`."""
    light = ((images + 1).mean(1) * known[:, 0])[0]
    axis = (torch.arange(32) + 0.5) / 16 - 1
    return [float((light.sum(0) * axis).sum() / light.sum()), float((light.sum(1) * axis).sum() / light.sum())]


def test_every_edit_is_there() -> None:
    assert list(EDITS) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_strength_of_nothing_changes_nothing(name: str) -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    edited, known = EDITS[name](images, torch.zeros(4))
    torch.testing.assert_close(edited, images, rtol=0, atol=1e-5)
    assert known.shape == (4, 1, 32, 32)
    assert bool((known == 1).all())


@pytest.mark.parametrize(
    ("name", "strength", "before", "after"),
    [
        ("zoom", 0.5, (0.2, 0.3), (0.4, 0.6)),
        ("zoom", -0.5, (0.4, -0.6), (0.2, -0.3)),
        ("shift_x", 1.0, (-0.2, 0.1), (0.3, 0.1)),
        ("shift_x", -0.5, (-0.2, 0.1), (-0.45, 0.1)),
        ("shift_y", 1.0, (-0.2, 0.1), (-0.2, 0.6)),
        ("rotation", 1.0, (0.5, 0.0), (0.0, -0.5)),  # counter-clockwise: from the right to the top
        ("rotation", -0.5, (0.5, 0.0), (0.354, 0.354)),
    ],
)
def test_what_is_in_the_image_moves(
    name: str, strength: float, before: tuple[float, float], after: tuple[float, float]
) -> None:
    edited = EDITS[name](dot(*before), torch.tensor([strength]))
    assert place(*edited) == pytest.approx(after, abs=0.02)


@pytest.mark.parametrize(
    ("name", "strength", "share"),
    [
        ("zoom", -1.0, 1 / 16),
        ("zoom", 1.0, 1.0),
        ("shift_x", 1.0, 0.75),
        ("shift_y", -1.0, 0.75),
        ("rotation", 1.0, 1.0),
    ],
)
def test_what_came_in_from_outside_is_not_known(name: str, strength: float, share: float) -> None:
    _, known = EDITS[name](dot(0, 0), torch.tensor([strength]))
    assert float(known.mean()) == pytest.approx(share, abs=0.01)


def test_the_side_from_which_a_shift_comes_is_not_known() -> None:
    known = EDITS["shift_x"](dot(0, 0), torch.tensor([1.0]))[1][0, 0]
    assert known[:, :8].sum() == 0
    assert bool((known[:, 8:] == 1).all())
    corners = EDITS["rotation"](dot(0, 0), torch.tensor([0.5]))[1][0, 0]
    assert corners[0, 0] == corners[-1, 0] == corners[0, -1] == corners[-1, -1] == 0
    assert corners[16, 16] == 1


def test_colour_is_added_to_its_channels_and_clamped() -> None:
    images = torch.tensor([-0.9, 0.0, 0.8])[None, :, None, None].expand(1, 3, 4, 4)
    for name, change in {"brightness": (1, 1, 1), "red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}.items():
        for strength in (-1.0, 0.4, 1.0):
            edited, known = EDITS[name](images, torch.tensor([strength]))
            expected = [max(-1, min(1, v + 0.5 * strength * c)) for v, c in zip((-0.9, 0.0, 0.8), change, strict=True)]
            torch.testing.assert_close(edited[0, :, 0, 0], torch.tensor(expected))
            assert bool((known == 1).all())


def test_ranges_are_the_amounts_at_the_ends() -> None:
    assert EDITS["zoom"].range == [0.25, 4.0]
    assert EDITS["shift_x"].range == [-0.25, 0.25]
    assert EDITS["rotation"].range == [-90.0, 90.0]
    images = dot(0.1, -0.2)
    halves, _ = EDITS["zoom"](images, torch.tensor([0.5]))  # evenly on a logarithmic scale
    doubled, _ = edits(2.0, 1, 1, 1)["zoom"](images, torch.tensor([1.0]))
    torch.testing.assert_close(halves, doubled)
