"""What a learner measures: the blocks that arrive, and where its time goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from learners import BATCH, learner, portions, train, whole_run

from genray.learner import balance, losses
from genray.views.augment import augment_views
from genray.views.types import Block


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    return whole_run()


def travelled(blocks: list[Block], pause: float = 0.0) -> Iterator[Block]:
    """The blocks, each from another generator, which took a minute for it 100 seconds ago."""
    for number, block in enumerate(blocks):
        time.sleep(pause)
        n = len(block["anchor"])
        times = {"created_at": np.full(n, time.time() - 100), "render_s": np.full(n, 60.0)}
        yield {**block, **times, "generator": np.full(n, f"host:{number}")}


def test_what_travels_with_the_blocks_is_counted(blocks: list[Block]) -> None:
    made = learner(training={"steps": 12, "log_every": 8})
    first, second = [report.record["measured"] for report in made.train(travelled(blocks)) if report.record]
    assert set(first) == set(balance.Measurements().to_dict())
    for found, number in ((first, 2), (second, 1)):
        assert (found["steps"], found["blocks"], found["images"]) == (4 * number, number, number * 4 * BATCH * 2)
        assert found["mib"] == number * blocks[0]["views"].nbytes / 2**20
        assert found["render_s"] == 60 * number
        assert found["age_s"] == pytest.approx(100 * number, abs=2)
    assert (first["generators"], second["generators"]) == (["host:0", "host:1"], ["host:2"])


def test_a_generator_counts_once(blocks: list[Block]) -> None:
    records, _ = train(learner(training={"steps": 8, "log_every": 8}), blocks)
    assert records[0]["measured"]["generators"] == [str(blocks[0]["generator"][0])]


def test_waiting_for_a_slow_stream_is_told_but_not_for_its_first_block(blocks: list[Block]) -> None:
    made = learner(training={"steps": 8, "log_every": 4})
    reports = made.train(travelled(blocks, pause=0.5))
    first, second = [report.record["measured"]["seconds"].get("wait", 0.0) for report in reports if report.record]
    assert first < 0.25
    assert 0.5 <= second < 2


def test_blocks_that_are_used_again_are_neither_counted_nor_waited_for(blocks: list[Block]) -> None:
    """After the first ticket only every other step takes of a new one."""
    made = learner(stream={"reuse": 2, "reuse_window": 4}, training={"steps": 20, "log_every": 4})
    reports = made.train(travelled(blocks, pause=0.5))
    found = [report.record["measured"] for report in reports if report.record]
    assert [window["blocks"] for window in found] == [1, 1, 0, 1, 0]
    assert [window["images"] for window in found] == [window["blocks"] * 4 * BATCH * 2 for window in found]
    assert [window["generators"] for window in found] == [["host:0"], ["host:1"], [], ["host:2"], []]
    waited = [window["seconds"].get("wait", 0.0) >= 0.5 for window in found]
    assert waited == [False, True, False, True, False]


def test_a_window_that_is_refilled_after_a_restart_is_no_part_of_the_balance(blocks: list[Block]) -> None:
    """Step 10 shows something of the second ticket again, and needs the first one for it too."""
    made = learner(stream={"reuse": 2, "reuse_window": 4}, training={"steps": 20, "log_every": 4})
    made.step = 9
    given = list(portions(blocks, made))
    record = next(report.record for report in made.train(iter(given)) if report.record)
    assert len(given) > 2
    assert record["measured"]["blocks"] == 1
    assert record["measured"]["images"] == 2 * len(given[1]["anchor"])


def test_the_phases_add_up_to_the_time_that_passed(blocks: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    """With something slow in each of them, which is told apart from the others; the time of a report is not counted."""
    slow = dict(zip(balance.PHASES, (0.3, 0.1, 0.15, 0.25, 0.2, 0.35), strict=True))
    made = learner(training={"steps": 8, "log_every": 4})

    def late(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *arguments, **options: (time.sleep(slow[name] / 4), call(*arguments, **options))[1]

    monkeypatch.setattr("genray.learner.learner.augment_views", late("augment", augment_views))
    monkeypatch.setattr(losses, "contrastive_loss", late("forward_backward", losses.contrastive_loss))
    monkeypatch.setattr(made.optimizer, "step", late("optimizer", made.optimizer.step))
    monkeypatch.setattr("genray.learner.learner.checksums", lambda *batch: [0, 0])  # they would be waited for
    monkeypatch.setattr(made, "images", late("copy", made.images))
    found, at = [], []
    for report in made.train(travelled(blocks, slow["wait"]), late("other", lambda step: "continue")):
        if report.record:
            at.append(time.perf_counter())
            found.append(report.record["measured"]["seconds"])
            time.sleep(0.5)  # a probe
    assert set(found[0]) | {"wait"} == set(found[1]) == set(balance.PHASES)
    assert all(slow[name] <= seconds for name, seconds in found[1].items())
    elapsed = at[1] - at[0] - 0.5
    assert elapsed - 0.3 <= sum(found[1].values()) <= elapsed
