"""The order of a run, stopped anywhere and gone on with by any number of learners: nothing is lost or shown twice."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from functools import cache

import numpy as np
import pytest
from fakes import small

from genray.course import Course, Place
from genray.plan import Plan

BATCH = 12
NUMBERS = (1, 2, 3, 4, 6)

Steps = list[list[list[int]]]
"""Of each step, each learner's positions."""


@cache
def plan(workers: int, ticket_batches: int, steps: int, bounds: tuple[int, int] | None = None) -> Plan:
    """That of one start; `bounds` where the number of learners may change while it runs."""
    config = small(
        stream={"batch_size": BATCH, "ticket_batches": ticket_batches},
        learners={"num_workers": bounds or workers},
        training={"steps": steps},
    )
    return Plan.of(config, workers)


def walked(found: Plan, place: Place, stop: int) -> tuple[Steps, Place]:
    """The steps from a place to before `stop`, cut from the portions of each learner, and where the run then stands."""

    def batches(rank: int) -> Iterator[list[int]]:
        for together in Course(found, place).of_learner(rank):
            width = found.local_batch // len(together)
            yield from np.concatenate([part.reshape(-1, width) for part in together], axis=1).tolist()

    learners = [batches(rank) for rank in range(found.num_workers)]
    made = [[next(learner) for learner in learners] for _ in range(stop - place.step)]
    for _ in made:
        place = place.after_step(found)
    return made, place


def stands_for(place: Place, ticket_anchors: int) -> list[int]:
    """The positions that have been used where a run stands at this place, by what a place means."""
    begun = [
        range((place.next_ticket + learner) * ticket_anchors, (place.next_ticket + learner + 1) * ticket_anchors)
        for learner in range(place.num_workers)
    ]
    share = BATCH // (place.num_workers or 1)
    return [*range(place.next_ticket * ticket_anchors), *itertools.chain(*(r[: place.batch * share] for r in begun))]


def flat(made: Steps) -> list[int]:
    return [position for step in made for learner in step for position in learner]


def check_shares(made: Steps, workers: int) -> None:
    for step in made:
        assert [len(learner) for learner in step] == [BATCH // workers] * workers


@pytest.mark.parametrize("ticket_batches", [1, 2, 3])
@pytest.mark.parametrize("first", NUMBERS)
def test_a_stop_at_any_step_and_any_other_number_of_learners_use_each_anchor_once(
    first: int, ticket_batches: int
) -> None:
    for second in NUMBERS:
        tickets = first + 2 * second  # whole rounds, so that all of them are used
        steps = tickets * ticket_batches
        for stop in range(ticket_batches * first + 1):
            before, place = walked(plan(first, ticket_batches, steps), Place(), stop)
            after, end = walked(plan(second, ticket_batches, steps), place, steps)
            check_shares(before, first)
            check_shares(after, second)
            assert sorted(flat(before)) == stands_for(place, ticket_batches * BATCH)
            if stop:
                assert sorted(flat(before + after)) == list(range(steps * BATCH))
                assert end == Place(steps, tickets)


@pytest.mark.parametrize("ticket_batches", [1, 2, 3])
def test_stops_within_the_rest_of_a_round_lose_nothing_either(ticket_batches: int) -> None:
    steps = 24
    for numbers in itertools.product((1, 2, 3, 4), repeat=3):
        for stop, further in itertools.product(range(1, ticket_batches * numbers[0]), range(1, 6)):
            made: Steps = []
            place = Place()
            for workers, until in zip(numbers, (stop, stop + further, steps), strict=True):
                found, place = walked(plan(workers, ticket_batches, steps), place, until)
                check_shares(found, workers)
                made += found
                assert sorted(flat(made)) == sorted(stands_for(place, ticket_batches * BATCH))
            assert len(set(flat(made))) == steps * BATCH
            assert place.step == steps


@pytest.mark.parametrize("bounds", [None, (1, 4), (2, 4)])
@pytest.mark.parametrize("ticket_batches", [1, 2, 3])
@pytest.mark.parametrize("workers", [2, 3, 4])
def test_as_many_learners_go_on_with_the_batches_of_an_uninterrupted_run(
    workers: int, ticket_batches: int, bounds: tuple[int, int] | None
) -> None:
    a_round = workers * ticket_batches
    found = plan(workers, ticket_batches, 3 * a_round, bounds)
    whole, _ = walked(found, Place(), found.steps)
    for stop in range(a_round + 1):
        before, place = walked(found, Place(), stop)
        for again in range(stop, a_round + 2):
            between, later = walked(found, place, again)
            after, _ = walked(found, later, found.steps)
            assert before + between + after == whole


@pytest.mark.parametrize("bounds", [(1, 4), (2, 3), (2, 4), (3, 4)])
def test_learners_whose_number_changes_share_what_is_left_of_a_round(bounds: tuple[int, int]) -> None:
    """The round may have been begun by a number of learners that the bounds no longer allow."""
    for first in NUMBERS:
        for stop in range(1, 3 * first):
            _, place = walked(plan(first, 3, 99), Place(), stop)
            used = stands_for(place, 3 * BATCH)
            everyone = []
            for workers in range(bounds[0], bounds[1] + 1):
                found = plan(workers, 3, 99, bounds)
                made, end = walked(found, place, 3 * first)
                check_shares(made, workers)
                assert end == Place(3 * first, first)
                assert sorted(used + flat(made)) == list(range(3 * first * BATCH))
                everyone.append([sorted(itertools.chain(*step)) for step in made])
            assert everyone == everyone[:1] * len(everyone)  # a step shows the same, whoever makes it


def test_the_portions_do_not_depend_on_the_number_of_learners() -> None:
    """The pool is started once, and renders for any number within the bounds."""
    for place in (Place(), Place(12, 6), Place(5, 0, 5, 4), Place(1, 0, 1, 1)):
        courses = [Course(plan(workers, 3, 99, (1, 4)), place) for workers in (1, 2, 3, 4)]
        for portion in range(min(map(len, courses))):
            positions = [course.positions(portion).tolist() for course in courses]
            assert positions == positions[:1] * 4


@pytest.mark.parametrize("place", [Place(), Place(6, 2), Place(7, 2, 1, 3), Place(10, 2, 4, 2), Place(19, 6, 1, 1)])
def test_the_learners_take_the_portions_in_turn(place: Place) -> None:
    for workers in NUMBERS:
        course = Course(plan(workers, 3, 40), place)
        taken = [
            [part.tolist() for together in course.of_learner(rank) for part in together] for rank in range(workers)
        ]
        in_turn = [taken[portion % workers][portion // workers] for portion in range(len(course))]
        assert in_turn == [course.positions(portion).tolist() for portion in range(len(course))]
        assert sum(map(len, taken)) == len(course)


def test_a_place_counts_the_steps_of_a_round() -> None:
    found, place, places = plan(2, 2, 99), Place(), []
    for _ in range(5):
        places.append(place := place.after_step(found))
    assert places == [Place(1, 0, 1, 2), Place(2, 0, 2, 2), Place(3, 0, 3, 2), Place(4, 2), Place(5, 2, 1, 2)]


def test_a_round_stays_that_of_the_learners_who_began_it() -> None:
    found, place, places = plan(3, 2, 99), Place(2, 0, 2, 2), []
    for _ in range(3):
        places.append(place := place.after_step(found))
    assert places == [Place(3, 0, 3, 2), Place(4, 2), Place(5, 2, 1, 3)]


def test_a_round_of_one_step_is_over_at_once() -> None:
    assert Place().after_step(plan(1, 1, 9)) == Place(1, 1)


@pytest.mark.parametrize("workers", NUMBERS)
def test_a_run_that_ends_within_a_round_asks_for_no_more_of_it(workers: int) -> None:
    """Six steps of each of two tickets: two are made, and the run ends with the fifth."""
    course = Course(plan(workers, 3, 5), Place(2, 0, 2, 2))
    assert len(course) == workers
    shown = np.sort(np.concatenate([course.positions(portion) for portion in range(len(course))]))
    half = BATCH // 2
    assert shown.tolist() == [*range(2 * half, 5 * half), *range(6 * half + 2 * half, 6 * half + 5 * half)]


@pytest.mark.parametrize("place", [Place(12, 4), Place(12, 3, 3, 2), Place(12, 0, 12, 6)])
def test_nothing_is_left_at_the_end(place: Place) -> None:
    for workers in NUMBERS:
        course = Course(plan(workers, 3, 12), place)
        assert len(course) == 0
        assert [list(course.of_learner(rank)) for rank in range(workers)] == [[]] * workers
