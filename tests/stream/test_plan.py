"""What follows from a configuration, against the formulas written out."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import small, uses

from genray.config.errors import ConfigError
from genray.stream.plan import MIB, Plan
from genray.stream.tickets import Course


def plan(**sections: Any) -> Plan:
    return Plan.of(small(**sections))


def test_sizes() -> None:
    found = plan(
        stream={"batch_size": 12, "ticket_batches": 5, "num_views": 3},
        learners={"num_workers": 4},
        training={"steps": 100},
        pool={"look_ahead_mib": 3},
    )
    assert (found.generator, found.image_size, found.latent_dim, found.num_classes) == ("fakes:Fake", 8, 4, 3)
    assert (found.num_workers, found.batch_size, found.steps) == (4, 12, 100)
    assert found.rendered_views == 3
    assert found.local_batch == 12 // 4
    assert found.ticket_steps == 5 * 4  # five batches' worth of anchors, all of them one learner's
    assert found.ticket_bytes == found.ticket_steps * found.local_batch * 3 * 3 * 8 * 8 == 60 * 3 * 3 * 8 * 8
    assert (found.reuse, found.window) == (1, 1)
    assert found.look_ahead == 3 * MIB // found.ticket_bytes


def test_tx_only_renders_one_view() -> None:
    found = plan(view={"kind": "none"}, stream={"num_views": 4})
    assert found.rendered_views == 1
    assert found.ticket_bytes == 8 * 3 * 8 * 8


REUSES = [(1, 64), (1, 2), (2, 2), (2, 3), (2, 4), (3, 4), (2, 12), (5, 7)]


def of_reuse(reuse: int, window: int, workers: int = 1, ticket_batches: int = 2, steps: int = 200) -> Plan:
    return plan(
        stream={"batch_size": 12, "ticket_batches": ticket_batches, "reuse": reuse, "reuse_window": window},
        learners={"num_workers": workers},
        training={"steps": steps},
    )


@pytest.mark.parametrize(("reuse", "window"), REUSES)
def test_fresh_steps_and_those_that_show_them_again(reuse: int, window: int) -> None:
    found = of_reuse(reuse, window)
    assert (found.reuse, found.window) == (reuse, window if reuse > 1 else 1)
    shown = uses(101, reuse, window)
    for step, (use, fresh) in enumerate(shown):
        assert found.use_of(step) == (use, fresh)
        assert found.fresh_steps(step) == sum(use == 0 for use, _ in shown[:step])
        if use == 0:
            assert found.step_of(fresh) == step
        if reuse > 1:
            assert found.first_needed(step) == max(0, fresh // window * window - window)


def test_without_reuse_every_step_is_fresh_and_needs_no_other() -> None:
    found = of_reuse(1, 64)
    for step in (0, 1, 63, 64, 65, 10**12):
        assert found.fresh_steps(step) == found.first_needed(step) == found.step_of(step) == step
        assert found.use_of(step) == (0, step)


def test_reuse_spelt_out() -> None:
    """Three fresh steps, then one of two."""
    found = of_reuse(2, 3)
    assert [found.use_of(step) for step in range(9)] == [
        *[(0, 0), (0, 1), (0, 2)],
        *[(0, 3), (1, 3), (0, 4), (1, 4), (0, 5), (1, 5)],
    ]
    assert [found.first_needed(step) for step in range(12)] == [0] * 9 + [3] * 3
    assert [found.tickets_of(step) for step in range(1, 12)] == [
        *([0, 0], [0, 0], [1, 1]),  # tickets of two steps
        *([1, 1], [0, 1], [2, 2], [0, 1], [2, 2], [0, 1]),
        *([3, 3], [1, 2]),
    ]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(("reuse", "window"), REUSES)
def test_the_next_tickets_are_needed_by_the_step_after_those_made(reuse: int, window: int, workers: int) -> None:
    found = of_reuse(reuse, window, workers)
    shown = uses(400, reuse, window)
    for step in range(60):
        begins = (at for at in range(step, 400) if shown[at][0] == 0 and shown[at][1] % found.ticket_steps == 0)
        assert found.next_ticket_step(step) == next(begins)


@pytest.mark.parametrize("ticket_batches", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 6])
@pytest.mark.parametrize(("reuse", "window"), REUSES)
def test_a_step_shows_something_of_its_tickets(reuse: int, window: int, workers: int, ticket_batches: int) -> None:
    found = of_reuse(reuse, window, workers, ticket_batches)
    course = Course(found)
    ticket_of = {
        position: ticket.number for ticket in map(course.ticket, range(len(course))) for position in ticket.positions
    }
    for step, (use, fresh) in enumerate(uses(60, reuse, window), start=1):
        before = fresh // window * window
        tickets = {
            ticket_of[position]
            for shown in (range(before - window, before) if use else [fresh])
            for position in range(shown * 12, shown * 12 + 12)
        }
        assert tickets == set(range(min(tickets), max(tickets) + 1))
        assert found.tickets_of(step) == [min(tickets), max(tickets)]


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"options": {"num_classes": 0}, "objective": {"kind": "supcon"}},
            "objective.kind must be one that needs no classes (simclr, simsiam, byol, inverter) for a source with "
            "fewer than two, got 'supcon' with fakes:Fake",
        ),
        (
            {"options": {"num_classes": 0}, "view": {"kind": "independent"}},
            "view.kind must not be 'independent' with fewer than two classes (an anchor's views would have no more in "
            "common than any two images), got 'independent' with fakes:Fake",
        ),
        (
            {"pool": {"look_ahead_mib": 3}, "stream": {"batch_size": 1366}, "learners": {"num_workers": 2}},
            "pool.look_ahead_mib must hold two tickets of every learner (4 x 1.0 MiB), got 3; raise it to 5 or "
            "lower stream.ticket_batches",
        ),
    ],
)
def test_what_cannot_be_run_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        plan(**sections)
    assert str(error.value) == message


def test_the_remedies_work() -> None:
    stream = {"batch_size": 1366}
    assert plan(pool={"look_ahead_mib": 5}, stream=stream, learners={"num_workers": 2}).look_ahead == 4
    without = plan(pool={"look_ahead_mib": 1}, render_on="learners", stream=stream, learners={"num_workers": 2})
    assert without.num_workers == 2
    assert plan(options={"num_classes": 0}, view={"kind": "none"}).num_classes == 0


def told(**sections: Any) -> dict[str, str]:
    config = small(**sections)
    return {line[:14].strip(): line[15:] for line in Plan.of(config).lines(config)}


def test_every_quantity_is_told_with_its_formula() -> None:
    lines = told(
        stream={"batch_size": 6, "num_anchors": 60},
        training={"steps": 40},
        learners={"num_workers": 3},
        pool={"num": [1, 4], "num_gpus": 0.5, "look_ahead_mib": 2},
    )
    assert lines == {
        "generator": "fakes:Fake: 8 px, latents of 4, 3 classes",
        "views": "2 of each anchor, 2 rendered (gaussian), augmented by genrep",
        "batch / step": "3 learners x 2 = 6 anchors, 12 images",
        "ticket": "6 steps x 2 = 12 anchors, x 2 views x 3 x 8 x 8 = 0.0 MiB",
        "run": "40 fresh steps x 6 = 240 anchors in 21 tickets, 4.0 epochs of 60",
        "generators": "1 to 4 actors x 0.5 GPU, 1 CPU",
        "look-ahead": "2 MiB / 0.0 MiB = 455 tickets",  # of 4608 bytes
        "learners": "3 x 1 GPU, 1 CPU",
    }


def test_reuse_is_told() -> None:
    """Of 100 steps eight are fresh, and then one of four: 8 + 92 / 4."""
    lines = told(
        stream={"batch_size": 12, "reuse": 4, "reuse_window": 8, "ticket_batches": 3},
        training={"steps": 100},
        learners={"num_workers": 2},
        render_on="learners",
    )
    assert lines["run"] == "31 fresh steps x 12 = 372 anchors in 12 tickets"
    assert lines["reuse"] == (
        "each view 4 times: 31 fresh steps make 100 steps; the learners keep two windows of 8 batches, 0.1 MiB in all"
    )
    assert lines["generators"] == "none: each learner renders its own tickets"
    assert "look-ahead" not in lines
    assert "reuse" not in told(stream={"reuse_window": 8})


def test_learners_whose_number_may_change() -> None:
    """What a ticket takes is the same for any number; the rest follows from how many there are."""
    sections: dict[str, Any] = {"stream": {"batch_size": 24, "ticket_batches": 5}}
    config = small(**sections, learners={"num_workers": [2, 4]})
    assert Plan.of(config) == Plan.of(config, 4)
    for workers in (2, 3, 4):
        found = Plan.of(config, workers)
        assert found == plan(**sections, learners={"num_workers": workers})
        assert found.num_workers == workers
        assert found.local_batch == 24 // workers
        assert found.ticket_steps == 5 * workers
        assert found.ticket_bytes == 5 * 24 * 2 * 3 * 8 * 8


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_look_ahead_must_do_for_the_most_learners(workers: int) -> None:
    config = small(
        pool={"look_ahead_mib": 5}, stream={"batch_size": 1362}, learners={"num_workers": [1, 3]}
    )  # tickets of 1.0 MiB
    with pytest.raises(ConfigError, match=r"^pool.look_ahead_mib must hold two tickets of every learner \(6 x"):
        Plan.of(config, workers)


def test_learners_whose_number_may_change_are_told_as_such() -> None:
    lines = told(stream={"batch_size": 12}, learners={"num_workers": [1, 3], "num_gpus": 0.5})
    assert lines["learners"] == "1 to 3 x 0.5 GPU, 1 CPU"
    assert lines["batch / step"] == "3 learners x 4 = 12 anchors, 24 images"


def test_what_will_be_measured_is_said_to_be_open() -> None:
    lines = "\n".join(Plan.of(small()).lines(small()))
    assert "measured" not in lines
    for stream in ({"reuse": "auto"}, {"ticket_batches": "auto"}):
        config = small(stream=stream)
        assert "measured when the run begins" in "\n".join(Plan.of(config).lines(config))
