"""A learner stopped at any step goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from learners import learner, portions, train, whole_run, wishes

from genray.learner.learner import Request
from genray.runs.checkpoint import PartialWindow
from genray.views.types import Block


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    return whole_run()


def test_a_stop_is_a_checkpoint_and_the_end(blocks: list[Block]) -> None:
    told: list[int] = []

    def asked(step: int) -> Request:
        told.append(step)
        return "stop" if step == 6 else "continue"

    made = learner(training={"log_every": 4, "checkpoint_every": 100})
    reports = list(made.train(iter(blocks), asked))
    assert [(report.record.get("step"), report.checkpoint) for report in reports] == [(4, False), (None, True)]
    assert (made.step, made.held.steps) == (6, 2)
    assert told == [1, 2, 3, 4, 5, 6]


def test_a_stop_at_the_end_of_a_window_leaves_none_open(blocks: list[Block]) -> None:
    made = learner(training={"log_every": 4, "checkpoint_every": 4})
    reports = list(made.train(iter(blocks), wishes(s8="stop")))
    assert [(report.record.get("step"), report.checkpoint) for report in reports] == [
        (4, False),
        (None, True),
        (8, False),
        (None, True),
    ]
    assert made.held == PartialWindow()


def test_a_checkpoint_on_demand_does_not_end_anything(blocks: list[Block]) -> None:
    made = learner(training={"steps": 20, "log_every": 20, "checkpoint_every": 8})
    records, saved = train(made, blocks, wishes(s2="save", s3="save", s8="save"))
    assert saved == [2, 3, 8, 16, 20]  # those that are due come when they would have come
    assert [record["step"] for record in records] == [20]


def lasting(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what depends on the clock."""
    keys = ("step", "anchors", "loss", "lr", "alignment", "uniformity", "batches")
    assert all(set(record) == {*keys, "measured"} for record in records)
    return [{key: record[key] for key in keys} for record in records]


@pytest.mark.parametrize(
    ("stream", "stops"),
    [
        ({}, [1]),
        ({}, [5]),
        ({}, [8]),
        ({}, [12]),
        ({}, [6, 7, 13]),
        ({"reuse": 2, "reuse_window": 3}, [2]),  # in the fresh steps of the first window
        ({"reuse": 2, "reuse_window": 3}, [4]),  # in its second use
        ({"reuse": 2, "reuse_window": 3}, [6]),  # between two windows
        ({"reuse": 2, "reuse_window": 3}, [1, 3, 8, 11]),
        ({"reuse": 3, "reuse_window": 2}, [5, 9, 10]),
    ],
    ids=str,
)
def test_a_run_stopped_at_any_step_goes_on_bit_by_bit(
    blocks: list[Block], tmp_path: Path, stream: dict[str, int], stops: list[int]
) -> None:
    training = {"steps": 16, "log_every": 5, "checkpoint_every": 100, "warmup_steps": 2}
    whole = learner(stream=stream, training=training)
    expected, _ = train(whole, blocks)

    found: list[dict[str, Any]] = []
    for number, stop in enumerate([*stops, 16]):
        made = learner(stream=stream, training=training)
        if number:
            made.restore(tmp_path)
        records, saved = train(made, blocks, wishes(**{f"s{stop}": "stop"}))
        assert (saved, made.step) == ([stop], stop)
        found += records
        made.save(tmp_path)
    assert lasting(found) == lasting(expected)
    assert [record["step"] for record in found] == [5, 10, 15, 16]
    for key, value in whole.encoder.state_dict().items():
        torch.testing.assert_close(made.encoder.state_dict()[key], value, rtol=0, atol=0)


def test_a_resumed_run_repeats_what_was_made_after_its_checkpoint(blocks: list[Block], tmp_path: Path) -> None:
    training = {"steps": 12, "checkpoint_every": 6, "log_every": 4, "warmup_steps": 2}
    whole, found = learner(training=training), []
    for report in whole.train(iter(blocks)):
        if report.record:
            found.append(report.record)
        elif whole.step == 6:
            whole.save(tmp_path)
    resumed = learner(training=training)
    resumed.restore(tmp_path)
    assert resumed.step == 6
    records, saved = train(resumed, blocks)
    assert saved == [12]
    assert lasting(records) == lasting(found[1:])


def test_tickets_of_another_size_change_nothing_but_their_numbers(blocks: list[Block], tmp_path: Path) -> None:
    training = {"steps": 12, "log_every": 1}
    expected, _ = train(learner(training=training), blocks)
    made = learner(training=training)
    train(made, blocks, wishes(s5="stop"))
    made.save(tmp_path)
    made = learner(training=training, stream={"ticket_batches": 3})
    made.restore(tmp_path)
    found, _ = train(made, blocks)
    assert [record["batches"][0].pop("tickets")[0] for record in found] == [1, 2, 2, 2, 3, 3, 3]
    for record in expected:
        del record["batches"][0]["tickets"]
    assert lasting(found) == lasting(expected[5:])


def test_the_open_window_of_a_stop_counts_in_the_record_after_it(blocks: list[Block], tmp_path: Path) -> None:
    each, _ = train(learner(training={"steps": 8}), blocks)
    training = {"steps": 8, "log_every": 8}
    stopped = learner(training=training)
    list(stopped.train(iter(blocks), wishes(s3="stop")))
    assert stopped.held.steps == 3
    assert stopped.held.loss == sum(record["loss"] for record in each[:3])
    stopped.save(tmp_path)

    made = learner(training=training)
    made.restore(tmp_path)
    ((record,), _) = train(made, blocks)
    assert record["measured"]["steps"] == 5  # a restart is no part of the time
    assert record["loss"] == sum(record["loss"] for record in each) / 8
    assert [line["step"] for line in record["batches"]] == list(range(1, 9))


@pytest.mark.parametrize("reuse_window", [2, 3])
@pytest.mark.parametrize("steps", [6, 7])
def test_a_run_resumed_at_its_end_has_nothing_to_do(blocks: list[Block], steps: int, reuse_window: int) -> None:
    """Even where it ends within the uses of a window."""
    for stream in ({}, {"reuse": 2, "reuse_window": reuse_window}):
        made = learner(stream=stream, training={"steps": steps})
        made.step = steps
        assert list(portions(blocks, made)) == []
        assert list(made.train(iter(blocks))) == []
