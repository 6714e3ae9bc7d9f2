"""What follows from a configuration, against the formulas written out."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import small

from genray.plan import MIB, Plan, anchors_of
from genray.settings import ConfigError


def plan(**sections: Any) -> Plan:
    return Plan.of(small(**sections))


def test_sizes() -> None:
    found = plan(
        stream={"batch_size": 12, "ticket_batches": 5, "num_views": 3},
        learners={"num_workers": 4},
        training={"steps": 100, "checkpoint_every": 41},
        generators={"look_ahead_mib": 3},
    )
    assert (found.generator, found.image_size, found.latent_dim, found.num_classes) == ("fakes:Fake", 8, 4, 3)
    assert found.rendered_views == 3
    assert found.local_batch == 12 // 4
    assert found.ticket_anchors == 5 * 12
    assert found.ticket_bytes == 60 * 3 * 3 * 8 * 8
    assert found.steps_per_round == 5 * 4  # a ticket feeds its learner 20 local batches
    assert found.ticket_anchors // found.local_batch == found.steps_per_round
    assert found.checkpoint_rounds == 3  # 41 steps, rounded up to 60
    assert found.look_ahead == 3 * MIB // found.ticket_bytes


def test_tx_only_renders_one_view() -> None:
    found = plan(view={"kind": "none"}, stream={"num_views": 4})
    assert found.rendered_views == 1
    assert found.ticket_bytes == 8 * 3 * 8 * 8


@pytest.mark.parametrize("workers", [1, 2, 4])
@pytest.mark.parametrize("steps", [1, 7, 8, 9, 64])
def test_tickets_are_enough_and_whole_rounds(workers: int, steps: int) -> None:
    """Walks through the run as learners do, two batches a ticket, and counts what is still needed."""
    found = plan(stream={"batch_size": 8}, learners={"num_workers": workers}, training={"steps": steps})
    step = next_ticket = 0
    while step < steps:
        left = found.tickets_from(next_ticket)
        assert left % workers == 0
        assert (left // workers - 1) * 2 * workers < steps - step <= left // workers * 2 * workers
        step, next_ticket = step + 2 * workers, next_ticket + workers
    assert found.tickets_from(next_ticket) == 0
    assert found.tickets_from(next_ticket + workers) == 0


def test_tickets_after_a_change_of_learners() -> None:
    """Four tickets of two batches are eight steps, whoever used them; 16 are left, 6 for each round of three."""
    found = plan(stream={"batch_size": 6}, learners={"num_workers": 3}, training={"steps": 24})
    assert found.tickets_from(4) == 9
    assert found.tickets_from(3) == 9
    assert found.tickets_from(2) == 12
    found = plan(stream={"batch_size": 6}, learners={"num_workers": 3}, training={"steps": 14})
    assert found.tickets_from(4) == 3


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"options": {"num_classes": 0}, "objective": {"kind": "supcon"}},
            "objective.kind must be 'simclr' for a generator without classes, got 'supcon' with fakes:Fake",
        ),
        (
            {"options": {"num_classes": 0}, "view": {"kind": "independent"}},
            "view.kind must not be 'independent' for a generator without classes (its views would share nothing), got "
            "'independent' with fakes:Fake",
        ),
        (
            {"generators": {"look_ahead_mib": 3}, "stream": {"batch_size": 1366}, "learners": {"num_workers": 2}},
            "generators.look_ahead_mib must hold two tickets of every learner (4 x 1.0 MiB), got 3; raise it to 5 or "
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
    assert plan(generators={"look_ahead_mib": 5}, stream=stream, learners={"num_workers": 2}).look_ahead == 4
    inline = {"look_ahead_mib": 1, "mode": "inline"}
    assert plan(generators=inline, stream=stream, learners={"num_workers": 2}).num_workers == 2
    assert plan(options={"num_classes": 0}, view={"kind": "none"}).num_classes == 0


def test_every_quantity_is_told_with_its_formula() -> None:
    config = small(
        stream={"batch_size": 6, "num_anchors": 60},
        training={"steps": 40, "checkpoint_every": 10},
        learners={"num_workers": 3},
        generators={"num": [1, 4], "num_gpus": 0.5},
    )
    lines = {line[:14].strip(): line[15:] for line in Plan.of(config).lines(config)}
    assert lines["batch / step"] == "3 learners x 2 = 6 anchors, 12 images"
    assert lines["ticket"].startswith("2 batches x 6 = 12 anchors, x 2 views x 3 x 8 x 8 = ")
    assert lines["round"] == "3 tickets = 6 steps; a checkpoint every 2 rounds = 12 steps"
    assert lines["run"] == "40 steps x 6 = 240 anchors from 21 tickets, 4.0 epochs of 60"
    assert lines["generators"] == "1 to 4 actors x 0.5 GPU, 1 CPU"


def test_the_population_is_the_configured_one() -> None:
    config = small(seed=9, generator={"truncation": 0.5}, stream={"num_anchors": 100, "num_neighbors": 5})
    anchors = anchors_of(config, Plan.of(config))
    assert (anchors.seed, anchors.latent_dim, anchors.num_classes) == (9, 4, 3)
    assert (anchors.truncation, anchors.num_anchors, anchors.num_neighbors) == (0.5, 100, 5)


def test_learners_whose_number_may_change() -> None:
    """What the generators render must do for any number; the rest follows from how many there are."""
    sections: dict[str, Any] = {"stream": {"batch_size": 24, "ticket_batches": 5}, "training": {"checkpoint_every": 21}}
    config = small(**sections, learners={"num_workers": [2, 4]})
    assert Plan.of(config) == Plan.of(config, 4)
    for workers in (2, 3, 4):
        found, alone = Plan.of(config, workers), plan(**sections, learners={"num_workers": workers})
        assert found.parts == 12  # the least common multiple of 2, 3 and 4
        assert alone.parts == workers
        assert found.num_workers == alone.num_workers == workers
        assert found.local_batch == alone.local_batch == 24 // workers
        assert found.steps_per_round == alone.steps_per_round == 5 * workers
        assert found.checkpoint_rounds == alone.checkpoint_rounds == -(-21 // (5 * workers))
        assert found.ticket_anchors == alone.ticket_anchors == 5 * 24
        assert found.ticket_bytes == alone.ticket_bytes
        assert found.tickets_from(1) == alone.tickets_from(1)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_look_ahead_must_do_for_the_most_learners(workers: int) -> None:
    config = small(
        generators={"look_ahead_mib": 5}, stream={"batch_size": 1362}, learners={"num_workers": [1, 3]}
    )  # tickets of 1.0 MiB
    with pytest.raises(ConfigError, match=r"^generators.look_ahead_mib must hold two tickets of every learner \(6 x"):
        Plan.of(config, workers)


def test_a_position_tells_its_ticket() -> None:
    found = plan(stream={"batch_size": 4, "ticket_batches": 2})
    for ticket in (0, 1, 7):
        positions = found.positions(ticket)
        assert positions.tolist() == list(range(8 * ticket, 8 * ticket + 8))
        assert [found.ticket_at(positions[first:]) for first in (0, 3, 7)] == [
            (ticket, 8 * ticket),
            (ticket, 8 * ticket + 3),
            (ticket, 8 * ticket + 7),
        ]


def test_learners_whose_number_may_change_are_told_as_such() -> None:
    config = small(stream={"batch_size": 12}, learners={"num_workers": [1, 3], "num_gpus": 0.5})
    lines = {line[:14].strip(): line[15:] for line in Plan.of(config).lines(config)}
    assert lines["learners"] == "1 to 3 x 0.5 GPU, 1 CPU"
    assert lines["batch / step"] == "3 learners x 4 = 12 anchors, 24 images"
