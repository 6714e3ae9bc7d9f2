"""The order of a run, stopped anywhere and gone on with by any number of learners: nothing is lost or shown twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import pytest
from fakes import small, uses

from genray.stream.plan import Plan
from genray.stream.tickets import Course

BATCH = 12
NUMBERS = (1, 2, 3, 4, 6)

Steps = list[list[list[int]]]
"""Of each step, each learner's positions."""


@cache
def plan(workers: int, ticket_batches: int, steps: int, reuse: int = 1, window: int = 64) -> Plan:
    config = small(
        stream={
            "batch_size": BATCH,
            "ticket_batches": ticket_batches,
            "reuse": reuse,
            "reuse_window": window,
        },
        learners={"num_workers": workers},
        training={"steps": steps},
    )
    return Plan.of(config)


def numbered(course: Course) -> list[tuple[int, list[int]]]:
    tickets = map(course.ticket, range(len(course)))
    return [(ticket.number, ticket.positions.tolist()) for ticket in tickets]


def walked(found: Plan, begin: int, stop: int) -> Steps:
    """The steps from one to before another, cut from each learner's tickets."""

    def batches(rank: int) -> Iterator[list[int]]:
        for ticket in Course(found, begin).of_learner(rank):
            yield from ticket.positions.reshape(-1, BATCH // found.num_workers).tolist()

    learners = [batches(rank) for rank in range(found.num_workers)]
    return [[next(learner) for learner in learners] for _ in range(begin, stop)]


def expected(workers: int, begin: int, stop: int) -> Steps:
    """The same, by what a step is."""
    share = BATCH // workers
    return [
        [list(range(step * BATCH + part, step * BATCH + part + share)) for part in range(0, BATCH, share)]
        for step in range(begin, stop)
    ]


@pytest.mark.parametrize("ticket_batches", [1, 2, 3])
@pytest.mark.parametrize("workers", NUMBERS)
def test_a_step_shows_the_same_anchors_whoever_makes_it(workers: int, ticket_batches: int) -> None:
    for steps in (1, ticket_batches * workers, 20):
        made = walked(plan(workers, ticket_batches, steps), 0, steps)
        assert made == expected(workers, 0, steps)
        assert list(itertools.chain(*itertools.chain(*made))) == list(range(steps * BATCH))


@pytest.mark.parametrize("ticket_batches", [1, 3])
@pytest.mark.parametrize("numbers", itertools.product(NUMBERS, repeat=3))
def test_stops_at_any_steps_and_any_other_numbers_of_learners_use_each_anchor_once(
    numbers: tuple[int, int, int], ticket_batches: int
) -> None:
    steps = 14
    for stops in itertools.combinations_with_replacement(range(0, steps + 1, 2), 2):
        spans = itertools.pairwise((0, *stops, steps))
        made: Steps = []
        for workers, (begin, stop) in zip(numbers, spans, strict=True):
            made += walked(plan(workers, ticket_batches, steps), begin, stop)
        assert list(itertools.chain(*itertools.chain(*made))) == list(range(steps * BATCH))


@pytest.mark.parametrize("ticket_batches", [1, 2, 3])
@pytest.mark.parametrize("workers", NUMBERS)
def test_a_course_from_any_step_is_the_rest_of_the_whole(workers: int, ticket_batches: int) -> None:
    found = plan(workers, ticket_batches, 20)
    for begin in range(21):
        assert walked(found, begin, 20) == expected(workers, begin, 20)
        assert sum(len(positions) for _, positions in numbered(Course(found, begin))) == (20 - begin) * BATCH


def test_tickets_spelt_out() -> None:
    """Two learners with 6 anchors of each step; a ticket is 4 steps."""
    found = plan(2, 2, 10)
    assert numbered(Course(found)) == [
        (0, [0, 1, 2, 3, 4, 5, *range(12, 18), *range(24, 30), *range(36, 42)]),
        (1, [6, 7, 8, 9, 10, 11, *range(18, 24), *range(30, 36), *range(42, 48)]),
        (2, [*range(48, 54), *range(60, 66), *range(72, 78), *range(84, 90)]),
        (3, [*range(54, 60), *range(66, 72), *range(78, 84), *range(90, 96)]),
        (4, [*range(96, 102), *range(108, 114)]),
        (5, [*range(102, 108), *range(114, 120)]),
    ]
    assert numbered(Course(found, 7)) == [
        (2, list(range(84, 90))),
        (3, list(range(90, 96))),
        (4, [*range(96, 102), *range(108, 114)]),
        (5, [*range(102, 108), *range(114, 120)]),
    ]
    assert numbered(Course(found, 9)) == [(4, list(range(108, 114))), (5, list(range(114, 120)))]


@pytest.mark.parametrize("ticket_batches", [1, 2, 3])
@pytest.mark.parametrize("workers", NUMBERS)
def test_a_ticket_has_its_number_and_its_anchors_wherever_the_course_begins(workers: int, ticket_batches: int) -> None:
    """Only the first of each learner's is cut, where the run stands within it."""
    found, size = plan(workers, ticket_batches, 25), workers * ticket_batches
    whole = numbered(Course(found))
    assert [number for number, _ in whole] == list(range(len(whole)))
    for begin in range(25):
        left = [
            (number, [position for position in positions if position >= begin * BATCH])
            for number, positions in whole
            if number // workers >= begin // size
        ]
        assert numbered(Course(found, begin)) == left


@pytest.mark.parametrize("ticket_batches", [1, 2, 3])
@pytest.mark.parametrize("workers", NUMBERS)
def test_the_last_tickets_end_with_the_run(workers: int, ticket_batches: int) -> None:
    size = workers * ticket_batches
    endless = numbered(Course(plan(workers, ticket_batches, 100)))
    for steps in range(1, 2 * size + 2):
        rounds = -(-steps // size)
        assert numbered(Course(plan(workers, ticket_batches, steps))) == [
            (number, [position for position in positions if position < steps * BATCH])
            for number, positions in endless[: rounds * workers]
        ]


@pytest.mark.parametrize("begin", [0, 1, 6, 7, 19])
@pytest.mark.parametrize("workers", NUMBERS)
def test_the_learners_take_the_tickets_in_turn(workers: int, begin: int) -> None:
    course = Course(plan(workers, 2, 40), begin)
    taken = [
        [(ticket.number, ticket.positions.tolist()) for ticket in course.of_learner(rank)] for rank in range(workers)
    ]
    assert {len(tickets) for tickets in taken} == {len(course) // workers}
    for index, ticket in enumerate(numbered(course)):
        assert ticket == taken[index % workers][index // workers]
        assert ticket[0] % workers == index % workers


@pytest.mark.parametrize("workers", NUMBERS)
def test_a_course_hands_out_places_as_64_bit_integers(workers: int) -> None:
    far = 2**40
    course = Course(plan(workers, 2, far), far - 1)
    positions = [ticket.positions for rank in range(workers) for ticket in course.of_learner(rank)]
    assert {column.dtype.name for column in positions} == {"int64"}
    assert [place for column in positions for place in column.tolist()] == list(range((far - 1) * BATCH, far * BATCH))


@pytest.mark.parametrize(("reuse", "window"), [(2, 3), (3, 4), (4, 2), (2, 8)])
@pytest.mark.parametrize("workers", NUMBERS)
def test_with_reuse_a_course_begins_with_the_window_before_and_has_fresh_steps_only(
    workers: int, reuse: int, window: int
) -> None:
    for steps in range(1, window * (2 * reuse + 1) + 2):
        shown = uses(steps, reuse, window)
        found = plan(workers, 2, steps, reuse, window)
        whole = dict(numbered(Course(found)))
        for begin in range(steps):
            first = max(0, shown[begin][1] // window - 1) * window * BATCH
            tickets = numbered(Course(found, begin))
            needed = sorted(itertools.chain(*(positions for _, positions in tickets)))
            assert needed == list(range(first, (shown[-1][1] + 1) * BATCH))
            assert tickets == [
                (number, [position for position in whole[number] if position >= first]) for number, _ in tickets
            ]


@pytest.mark.parametrize(("reuse", "window"), [(1, 2), (2, 3), (3, 4), (2, 12), (2, 64)])
@pytest.mark.parametrize("steps", [11, 12, 13])
def test_nothing_is_left_at_the_end(steps: int, reuse: int, window: int) -> None:
    """Wherever in a round or in a window it is."""
    for workers in NUMBERS:
        course = Course(plan(workers, 3, steps, reuse, window), steps)
        assert len(course) == 0
        assert [list(course.of_learner(rank)) for rank in range(workers)] == [[]] * workers
