"""Splits, and choices among their rows."""

import numpy as np
import pytest
from worlds import picture

from genray.config.errors import UserError
from genray.probes.labelled_images import LabelledImages, PickedRows, Split, check_same_classes, ranks_in_class, subset


class Numbered:
    def image(self, row: int):
        return picture("red", row)


def split(labels) -> Split:
    return Split(np.array(labels, dtype=np.int64), Numbered())


def test_ranks_number_the_rows_of_each_class():
    labels = np.array([2, 0, 0, 2, 5, 2, 0])
    found = ranks_in_class(labels, 0, "test")
    for label in (0, 2, 5):
        assert sorted(found[labels == label]) == list(range((labels == label).sum()))
    assert not np.array_equal(ranks_in_class(np.zeros(50), 0, "test"), ranks_in_class(np.zeros(50), 0, "test", draw=1))


def test_some_images_are_as_balanced_as_the_classes_allow():
    labels = np.array([0] * 50 + [1] * 3 + [2] * 50)
    chosen = subset(split(labels), 23)
    assert np.bincount(chosen.labels).tolist() == [10, 3, 10]
    assert isinstance(chosen.reader, PickedRows)
    assert (np.diff(chosen.reader.rows) > 0).all()
    assert np.array_equal(chosen.reader.rows, subset(split(labels), 23).reader.rows)
    assert np.array_equal(np.asarray(chosen.reader.image(4)), np.asarray(picture("red", chosen.reader.rows[4])))
    everything = split(labels)
    assert subset(everything, 103) is everything


def test_choices_never_see_the_test_images():
    train, test, val = split(np.arange(600) % 3), split([0]), split([1])
    images = LabelledImages("x", ("a", "b", "c"), train, test, val)
    assert images.for_choices() == (train, val)
    learnt, judged = LabelledImages("x", ("a", "b", "c"), train, test).for_choices()
    rows = set(learnt.reader.rows), set(judged.reader.rows)
    assert rows[0].isdisjoint(rows[1])
    assert rows[0] | rows[1] == set(range(600))
    assert 35 < len(judged) < 85


def test_other_classes_are_named():
    check_same_classes("here", ["a", "b"], "test", ["b", "a"])
    with pytest.raises(UserError, match=r"the classes of test must be those of train in 'here', got one that has 'c'"):
        check_same_classes("here", ["a", "b"], "test", ["a", "b", "c"])
    with pytest.raises(UserError, match=r"got one that has 'x' and lacks 'a', 'b', 'c' and 2 more$"):
        check_same_classes("here", list("abcde"), "val", ["x"])
