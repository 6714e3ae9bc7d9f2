"""What is shown at a position is a function of the position."""

import numpy as np
import pytest
from worlds import picture

from genray.probes.crops import Geometry, whole
from genray.probes.labelled_images import Split
from genray.probes.shown_images import SHUFFLED_GROUPS, ShownImages

GEOMETRY = Geometry(8, 9)


class Pictures:
    def image(self, row: int):
        return picture("green", row)


class Grouped(Pictures):
    def __init__(self, *sizes: int) -> None:
        self.starts = np.cumsum([0, *sizes])


def at(shown: ShownImages, position: int) -> np.ndarray:
    return next(iter(shown.images(np.array([position]))))


def showing(n: int = 40, reader=None, **changes) -> ShownImages:
    return ShownImages(Split(np.arange(n) % 3, reader or Pictures()), GEOMETRY, **changes)


def test_whole_images_are_shown_once_in_their_order():
    shown = showing(5)
    assert len(shown) == 5
    assert shown.labels(np.arange(5)).tolist() == [0, 1, 2, 0, 1]
    for row in range(5):
        assert np.array_equal(at(shown, row), whole(picture("green", row), GEOMETRY))


def test_each_epoch_shows_all_in_an_order_of_its_own():
    shown = showing(crops=3, shuffled=True, seed=1)
    rows, epochs = shown.rows(np.arange(len(shown)))
    assert len(shown) == 120
    assert epochs.tolist() == [0] * 40 + [1] * 40 + [2] * 40
    orders = rows.reshape(3, 40)
    assert np.array_equal(np.sort(orders), np.tile(np.arange(40), (3, 1)))
    assert len({tuple(order) for order in orders.tolist()}) == 3
    for positions in (np.array([70]), np.arange(35, 95), np.array([119, 3])):  # whatever they are asked with
        assert np.array_equal(shown.rows(positions)[0], rows[positions])
    assert not np.array_equal(showing(crops=3, shuffled=True, seed=2).rows(np.arange(120))[0], rows)


def test_a_crop_is_decided_by_the_image_the_epoch_and_the_seed():
    ordered, mixed = showing(crops=2), showing(crops=2, shuffled=True)
    rows, epochs = mixed.rows(np.arange(80))
    for position in (0, 17, 55):
        same = 40 * epochs[position] + rows[position]
        assert np.array_equal(at(mixed, position), at(ordered, int(same)))
    assert not np.array_equal(at(ordered, 3), at(ordered, 43))
    assert not np.array_equal(at(ordered, 3), at(showing(crops=2, seed=1), 3))


def test_groups_that_are_read_at_once_are_shown_together():
    sizes = [7, 5, 9, 1, 6, 8, 4]
    shown = showing(40, Grouped(*sizes), crops=2, shuffled=True)
    group = np.repeat(np.arange(7), sizes)
    for epoch in range(2):
        rows = shown.rows(np.arange(40 * epoch, 40 * (epoch + 1)))[0]
        assert sorted(rows) == list(range(40))
        first = list(dict.fromkeys(group[rows].tolist()))  # groups in the order of their first row
        early = sum(sizes[g] for g in first[:SHUFFLED_GROUPS])
        assert set(group[rows[:early]]) == set(first[:SHUFFLED_GROUPS])
        assert not (np.diff(group[rows[:early]]) == 0).all()


@pytest.mark.parametrize("mirrored", [True, False])
def test_only_what_may_be_mirrored_is(mirrored):
    upright, shown = showing(crops=1), showing(crops=1, may_mirror=mirrored)
    turned = [not np.array_equal(at(upright, row), at(shown, row)) for row in range(40)]
    assert any(turned) == mirrored
    assert not all(turned)
