"""Two learners see together what one does, and go on from one another's checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from learners import BATCH, CPU, portions, tiny, train, whole_run, wishes

from genray.learner import losses
from genray.learner.learner import Learner, OutOfOrder
from genray.stream.run import Run
from genray.views.types import Block


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    return whole_run()


@pytest.fixture
def alone_in_a_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", world_size=1, rank=0)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("alone_in_a_group")
def test_each_of_two_learners_takes_every_other_ticket_and_its_share_of_a_batch(
    blocks: list[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    sound = losses.contrastive_loss
    monkeypatch.setattr(losses, "contrastive_loss", lambda e, *a, **k: (sizes.append(len(e)), sound(e, *a, **k))[1])
    run = Run.of(tiny(learners={"num_workers": 2}, training={"steps": 16, "log_every": 8, "checkpoint_every": 8}))
    second = Learner(run, 1, CPU)
    first_half, second_half = portions(blocks, second)
    assert [int(block["ticket"][0]) for block in (first_half, second_half)] == [1, 3]
    half = BATCH // 2
    assert first_half["position"].tolist() == [
        step * BATCH + place for step in range(8) for place in range(half, BATCH)
    ]
    records, saved = train(second, blocks)
    assert [record["step"] for record in records] == saved == [8, 16]
    assert sizes == [BATCH // 2 * 2] * 16
    with pytest.raises(
        OutOfOrder, match=r"^learner 1 expected ticket 1 from position 8, got ticket 0 from position 0$"
    ):
        next(Learner(run, 1, CPU).train(portions(blocks, Learner(run, 0, CPU))))


def lines_of(made: Learner, blocks: list[Block]) -> list[dict[str, Any]]:
    records, _ = train(made, blocks)
    return [line for record in records for line in record["batches"]]


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.parametrize("stream", [{}, {"reuse": 2, "reuse_window": 3}, {"reuse": 3, "reuse_window": 2}], ids=str)
def test_two_learners_put_together_see_what_one_does_from_any_step_on(
    blocks: list[Block], monkeypatch: pytest.MonkeyPatch, stream: dict[str, int]
) -> None:
    """Each one's checksums are taken by themselves; their sums are those of one learner."""
    run = Run.of(tiny(stream=stream, training={"steps": 12, "log_every": 5}, learners={"num_workers": [1, 2]}))
    one = lines_of(Learner(run.with_learners(1), 0, CPU), blocks)
    monkeypatch.setattr(losses, "sum_over_learners", lambda own: own)
    for start in (0, 2, 5, 7):
        halves = []
        for rank in (0, 1):
            made = Learner(run.with_learners(2), rank, CPU)
            made.step = start
            halves.append(lines_of(made, blocks))
        assert len(halves[0]) == len(halves[1]) == 12 - start
        for whole, first, second in zip(one[start:], *halves, strict=True):
            assert first["step"] == second["step"] == whole["step"]
            assert (first["learners"], second["learners"], whole["learners"]) == (2, 2, 1)
            assert first["tickets"] == second["tickets"]
            for name in ("latents", "pixels"):
                assert (int(first[name], 16) + int(second[name], 16)) % 2**32 == int(whole[name], 16)
                assert first[name] != second[name]


@pytest.mark.usefixtures("alone_in_a_group")
def test_lines_name_the_tickets_of_both_learners(blocks: list[Block]) -> None:
    """Of eight steps each, two at a time."""
    made = Learner(Run.of(tiny(learners={"num_workers": 2}, training={"steps": 12, "log_every": 12})), 1, CPU)
    assert [line["tickets"] for line in lines_of(made, blocks)] == [[0, 1]] * 8 + [[2, 3]] * 4


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_an_open_window_goes_on_with_another_number_of_learners(
    blocks: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    monkeypatch.setattr(losses, "sum_over_learners", lambda own: before * own if own.is_floating_point() else own)
    run = Run.of(tiny(learners={"num_workers": [1, 2]}, training={"steps": 12, "log_every": 6}))
    stopped = Learner(run.with_learners(before), 0, CPU)
    train(stopped, blocks, wishes(s9="stop"))
    stopped.save(tmp_path)
    made = Learner(run.with_learners(after), 0, CPU)
    made.restore(tmp_path)
    ((record,), saved) = train(made, blocks)
    assert (record["step"], saved) == (12, [12])
    assert [(line["step"], line["learners"]) for line in record["batches"]] == [
        (10 - 3 + number, before if number < 3 else after) for number in range(6)
    ]
    assert stopped.held.batches == record["batches"][:3]
    assert math.isfinite(record["loss"])


@pytest.mark.usefixtures("alone_in_a_group")
def test_a_checkpoint_has_the_learners_mean_of_an_open_window(
    blocks: list[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run.of(tiny(learners={"num_workers": 2}, training={"log_every": 16}))
    made = Learner(run, 1, CPU)
    others = {torch.float64: torch.tensor(3.0), torch.int64: torch.tensor([[1, 2], [3, 4], [5, 6]])}
    monkeypatch.setattr(losses, "sum_over_learners", lambda own: own + others[own.dtype])
    train(made, blocks, wishes(s3="stop"))
    monkeypatch.undo()
    each_step = replace(run.config, training=replace(run.config.training, log_every=1))
    alone = Learner(Run.of(each_step), 1, CPU)
    records, _ = train(alone, blocks, wishes(s3="stop"))
    each = [record["loss"] for record in records]
    assert (made.held.steps, made.held.loss) == (3, pytest.approx((sum(each) + 3) / 2))
    for number, (line, record) in enumerate(zip(made.held.batches, records, strict=True)):
        (own,) = record["batches"]
        assert int(line["latents"], 16) == (int(own["latents"], 16) + 2 * number + 1) % 2**32
        assert int(line["pixels"], 16) == (int(own["pixels"], 16) + 2 * number + 2) % 2**32
