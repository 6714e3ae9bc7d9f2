"""Blocks used more than once, against what a learner would see by the definition."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from functools import cache
from itertools import islice

import numpy as np
import pytest
from fakes import small, uses

from genray.stream.plan import Plan
from genray.stream.reuse import batches, orders
from genray.stream.tickets import Course
from genray.views.types import Block

BATCH = 12
NUMBERS = (1, 2, 3, 4, 6)
SEED = 7

Seen = list[tuple[list[int], list[int]]]
"""Of each step, the positions that all learners show, and how often they have been shown before."""


@cache
def plan(workers: int, steps: int, reuse: int, window: int, ticket_batches: int = 2) -> Plan:
    stream = {"batch_size": BATCH, "ticket_batches": ticket_batches, "reuse": reuse, "reuse_window": window}
    return Plan.of(small(stream=stream, learners={"num_workers": workers}, training={"steps": steps}))


def fresh(found: Plan, rank: int, step: int) -> Iterator[Block]:
    """A learner's fresh batches, whose pixels are those of their positions."""
    for ticket in Course(found, step).of_learner(rank):
        for positions in ticket.positions.reshape(-1, found.local_batch):
            yield {"position": positions, "epoch": positions // 100, "views": pixels(positions)}


def pixels(positions: np.ndarray) -> np.ndarray:
    return (positions[:, None, None] * 5 + np.arange(6).reshape(2, 3)) % 251


def run(found: Plan, begin: int = 0, stop: int | None = None, seed: int = SEED) -> Seen:
    """The steps from one to before another, of all learners together; to the end of the run without `stop`."""
    stop = found.steps if stop is None else stop
    learners = [
        islice(batches(fresh(found, rank, begin), found, seed, rank, begin), stop - begin)
        for rank in range(found.num_workers)
    ]
    seen: Seen = []
    for step in zip(*learners, strict=True):
        for batch in step:
            assert batch["position"].shape == batch["use"].shape == (found.local_batch,)
            assert batch["use"].dtype == batch["epoch"].dtype == np.int64
            assert batch["epoch"].tolist() == (batch["position"] // 100).tolist()
            assert np.array_equal(batch["views"], pixels(batch["position"]))
        columns = [[number for batch in step for number in batch[name].tolist()] for name in ("position", "use")]
        seen.append((columns[0], columns[1]))
    return seen


@pytest.mark.parametrize("workers", NUMBERS)
def test_without_reuse_the_batches_come_as_they_are(workers: int) -> None:
    found = plan(workers, 9, 1, 64)
    assert run(found) == [(list(range(step * BATCH, (step + 1) * BATCH)), [0] * BATCH) for step in range(9)]


def test_the_first_use_is_not_copied() -> None:
    block = {"position": np.arange(BATCH), "epoch": np.zeros(BATCH, dtype=np.int64)}
    (batch,) = batches(iter([block]), plan(1, 1, 3, 4), SEED, 0, 0)
    assert batch["position"] is block["position"]
    assert set(block) == {"position", "epoch"}


def windows_of(seen: Seen, reuse: int, window: int) -> dict[tuple[int, int], list[list[int]]]:
    """The positions of the steps that show a window, by its number and by how often it had been shown before."""
    found: dict[tuple[int, int], list[list[int]]] = {}
    for (positions, used), (use, at) in zip(seen, uses(len(seen), reuse, window), strict=True):
        assert used == [use] * BATCH
        found.setdefault((at // window - bool(use), use), []).append(positions)
    return found


def length(windows: int, reuse: int, window: int) -> int:
    """Steps until so many windows have been shown as often as they must be."""
    return window + windows * reuse * window


@pytest.mark.parametrize(("reuse", "window"), [(2, 5), (3, 4), (4, 2), (2, 8), (5, 3)])
@pytest.mark.parametrize("workers", NUMBERS)
def test_each_use_of_a_window_shows_each_of_its_steps_once_at_each_place(workers: int, reuse: int, window: int) -> None:
    seen = run(plan(workers, length(3, reuse, window), reuse, window))
    counts = Counter(itertools.chain(*(positions for positions, _ in seen)))
    assert {counts[position] for position in range(3 * window * BATCH)} == {reuse}
    found = windows_of(seen, reuse, window)
    for number, use in itertools.product(range(3), range(reuse)):
        steps = [number * window + at for at in range(window)]
        part = found[number, use]
        for place in range(BATCH):
            assert sorted(positions[place] for positions in part) == [step * BATCH + place for step in steps]
        if use == 0:  # as they arrive
            assert [positions[0] for positions in part] == [step * BATCH for step in steps]


def test_no_batch_comes_twice_and_no_two_uses_are_equal() -> None:
    """Nor does an order of one place come again at another one, or in another window."""
    reuse, window = 4, 16
    seen = run(plan(1, length(2, reuse, window), reuse, window))
    assert len({frozenset(positions) for positions, _ in seen}) == len(seen)
    taken = [
        tuple(positions[place] // BATCH % window for positions in part)
        for (_, use), part in windows_of(seen, reuse, window).items()
        if use
        for place in range(BATCH)
    ]
    assert len(taken) == 2 * 3 * BATCH
    assert len(set(taken)) == len(taken)


def test_a_batch_that_is_not_fresh_mixes_the_steps_of_its_window() -> None:
    seen = run(plan(1, length(1, 2, 64), 2, 64))
    mixed = [len({position // BATCH for position in positions}) for positions, used in seen if used[0]]
    assert len(mixed) == 64
    assert min(mixed) >= 8
    assert np.mean(mixed) == pytest.approx(64 * (1 - (63 / 64) ** BATCH), rel=0.05)


def test_orders_are_those_of_the_seed_the_window_and_the_use() -> None:
    first = orders(SEED, 0, 1, 16, BATCH)
    assert first.shape == (16, BATCH)
    assert np.array_equal(first, orders(SEED, 0, 1, 16, BATCH))
    for other in (orders(SEED + 1, 0, 1, 16, BATCH), orders(SEED, 1, 1, 16, BATCH), orders(SEED, 0, 2, 16, BATCH)):
        assert (first != other).any(axis=0).all()


def test_orders_do_not_change_between_versions() -> None:
    """A run that is resumed with another one must go on in the same order."""
    assert orders(SEED, 3, 2, 5, 4).T.tolist() == [
        [4, 2, 3, 1, 0],
        [1, 2, 4, 0, 3],
        [4, 0, 2, 3, 1],
        [1, 3, 0, 4, 2],
    ]


def test_windows_are_numbered_in_turn() -> None:
    found = windows_of(run(plan(1, length(3, 3, 5), 3, 5)), 3, 5)
    for window, use in itertools.product(range(3), (1, 2)):
        assert [
            [position // BATCH - window * 5 for position in positions] for positions in found[window, use]
        ] == orders(SEED, window, use, 5, BATCH).tolist()


def test_every_order_is_as_likely_as_every_other() -> None:
    """Of 4000 windows of three steps at two places: 36 pairs of orders, each 111 times but for 10.4."""
    found = Counter(orders(SEED, window, 1, 3, 2).tobytes() for window in range(4000))
    assert len(found) == 36
    assert sum((count - 4000 / 36) ** 2 / (4000 / 36) for count in found.values()) < 66.6  # chi^2, 35: 1 in 1000


@pytest.mark.parametrize(("reuse", "window"), [(2, 5), (3, 4), (2, 7)])
def test_the_number_of_learners_changes_nothing(reuse: int, window: int) -> None:
    steps = 2 * reuse * window
    alone = run(plan(1, steps, reuse, window))
    for workers, ticket_batches in itertools.product(NUMBERS, (1, 3)):
        assert run(plan(workers, steps, reuse, window, ticket_batches)) == alone


@pytest.mark.parametrize(("reuse", "window"), [(1, 2), (2, 5), (3, 4), (2, 7)])
@pytest.mark.parametrize("workers", NUMBERS)
def test_from_every_step_on_comes_the_rest_of_the_whole(workers: int, reuse: int, window: int) -> None:
    steps = 2 * reuse * window
    whole = run(plan(1, steps, reuse, window))
    for begin in range(steps + 1):
        assert run(plan(workers, steps, reuse, window), begin) == whole[begin:]


def test_stops_at_any_steps_and_any_other_numbers_of_learners_change_nothing() -> None:
    steps = 30
    whole = run(plan(1, steps, 3, 4))
    for numbers in ((1, 2, 3), (3, 1, 2), (2, 6, 4), (4, 3, 3)):
        for stops in itertools.combinations(range(2, steps, 3), 2):
            made: Seen = []
            for workers, (begin, stop) in zip(numbers, itertools.pairwise((0, *stops, steps)), strict=True):
                made += run(plan(workers, steps, 3, 4), begin, stop)
            assert made == whole


@pytest.mark.parametrize("workers", NUMBERS)
def test_a_run_may_end_anywhere(workers: int) -> None:
    """Its steps are those of a longer one, and it asks for no more fresh batches than they need."""
    longer = run(plan(1, 24, 3, 4))
    for steps in range(1, 25):
        found = plan(workers, steps, 3, 4)
        for begin in {0, steps // 2, steps - 1}:
            assert run(found, begin, steps) == longer[begin:steps]
        assert run(found, steps) == []


@pytest.mark.parametrize("arrived", range(11))
def test_what_a_stream_did_not_bring_is_not_shown(arrived: int) -> None:
    """The steps before the first that needs more than there is."""
    found = plan(1, 28, 3, 4)
    made = list(batches(islice(fresh(found, 0, 0), arrived), found, SEED, 0, 0))
    expected = itertools.takewhile(lambda step: step[1] < arrived, uses(28, 3, 4))
    assert [int(batch["use"][0]) for batch in made] == [use for use, _ in expected]


def test_a_fresh_batch_is_asked_for_only_when_it_is_due() -> None:
    found, arrived = plan(1, 13, 3, 4), 0

    def counted() -> Iterator[Block]:
        nonlocal arrived
        for batch in fresh(found, 0, 0):
            arrived += 1
            yield batch

    at = [arrived for _ in islice(batches(counted(), found, SEED, 0, 0), 13)]
    assert at == [1, 2, 3, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7]


def test_another_seed_is_another_order_of_the_same() -> None:
    found = plan(2, length(2, 3, 6), 3, 6)
    ours, theirs = (windows_of(run(found, seed=seed), 3, 6) for seed in (SEED, SEED + 1))
    for (number, use), part in ours.items():
        assert (part == theirs[number, use]) == (use == 0)
        assert use == 0 or sorted(itertools.chain(*part)) == sorted(itertools.chain(*theirs[number, use]))
