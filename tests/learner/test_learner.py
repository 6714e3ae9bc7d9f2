"""A learner on blocks that are already there: that it learns, what it shows and reports, and when it gives up."""

from __future__ import annotations

import itertools
import math
import zlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from learners import BATCH, CPU, learner, portions, tiny, train, whole_run

from genray.config.view import NoLatentView
from genray.learner import losses
from genray.learner.learner import Learner, NotFinite, OutOfOrder
from genray.stream import reuse
from genray.stream.run import Run
from genray.views.types import Block


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    return whole_run()


def test_the_loss_starts_where_chance_does(blocks: list[Block]) -> None:
    records, _ = train(learner(training={"steps": 1}), blocks)
    assert records[0]["loss"] == pytest.approx(0.2 / 0.07 * math.log(2 * BATCH - 1), rel=0.05)


def test_the_loss_falls(blocks: list[Block]) -> None:
    made = learner(augment={"policy": "none"})
    records, _ = train(made, blocks)
    found = [record["loss"] for record in records]
    assert np.isfinite(found).all()
    assert np.mean(found[-5:]) < 0.6 * np.mean(found[:3])
    assert records[-1]["uniformity"] < records[0]["uniformity"] - 0.5  # the embeddings have spread
    assert [record["step"] for record in records] == list(range(1, 33))
    assert [record["anchors"] for record in records] == list(range(BATCH, 33 * BATCH, BATCH))


def test_reports_come_where_they_are_due(blocks: list[Block]) -> None:
    made = learner(
        training={"steps": 14, "log_every": 4, "checkpoint_every": 5}, probe={"data": "digit-scenes", "every": 6}
    )
    records, saved = train(made, blocks)
    assert [record["step"] for record in records] == [4, 6, 8, 12, 14]  # every 4, every probe, and the last
    assert saved == [5, 10, 14]  # every 5, wherever that is within a ticket, and the last
    assert made.marks["model built"] <= made.marks["first block"] <= made.marks["first step"]


def test_a_record_is_the_mean_over_its_window(blocks: list[Block]) -> None:
    each, _ = train(learner(training={"steps": 8}), blocks)
    windows, _ = train(learner(training={"steps": 8, "log_every": 4}), blocks)
    for window, of in zip(windows, (each[:4], each[4:]), strict=True):
        assert window["loss"] == pytest.approx(np.mean([record["loss"] for record in of]), rel=1e-6)
        assert window["lr"] == of[-1]["lr"]


def test_the_rest_of_the_stream_is_not_asked_for(blocks: list[Block]) -> None:
    made = learner(training={"steps": 6})
    stream = itertools.chain(portions(blocks, made), blocks[2:])
    list(made.train(stream))
    assert int(next(stream)["ticket"][0]) == 2


@pytest.mark.parametrize(("step", "given"), [(0, 1), (16, 3), (16, 0)])
def test_the_stream_must_begin_at_the_next_ticket(blocks: list[Block], step: int, given: int) -> None:
    made = learner()
    made.step = step
    with pytest.raises(
        OutOfOrder,
        match=f"^learner 0 expected ticket {step // 4} from position {16 * step}, "
        f"got ticket {given} from position {64 * given}$",
    ):
        next(made.train(iter(blocks[given:])))


def test_a_ticket_must_be_cut_where_the_run_stands(blocks: list[Block]) -> None:
    made = learner()
    made.step = 18
    with pytest.raises(
        OutOfOrder, match=r"^learner 0 expected ticket 4 from position 288, got ticket 4 from position 256$"
    ):
        next(made.train(iter(blocks[4:])))


@pytest.mark.parametrize("step", [12, 14, 19])
def test_the_stream_must_begin_where_a_window_does_that_is_used_again(blocks: list[Block], step: int) -> None:
    made = learner(stream={"reuse": 2, "reuse_window": 4}, training={"log_every": 1})
    made.step = step
    with pytest.raises(OutOfOrder, match=r"^learner 0 expected ticket 1 from position 64, got ticket 2"):
        next(made.train(iter(blocks[2:])))
    assert next(made.train(iter(blocks[1:]))).record["step"] == step + 1


def test_no_ticket_may_be_left_out(blocks: list[Block]) -> None:
    reports = learner(training={"log_every": 4}).train(iter([blocks[0], blocks[2]]))
    assert next(reports).record["step"] == 4
    with pytest.raises(OutOfOrder, match=r"^learner 0 expected ticket 1 from position 64, got ticket 2"):
        next(reports)


def spoilt_once(step: int) -> Callable[..., torch.Tensor]:
    """The loss, but not a number at this step."""
    calls, sound = itertools.count(1), losses.contrastive_loss
    return lambda *a, **k: sound(*a, **k) * (math.nan if next(calls) == step else 1)


def test_a_loss_that_is_not_finite_ends_the_run(blocks: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "contrastive_loss", spoilt_once(step=6))
    made, saved = learner(training={"log_every": 16, "checkpoint_every": 4}), []
    with pytest.raises(NotFinite, match="not finite in step 6; the last checkpoint is from before it") as error:  # noqa: PT012
        for report in made.train(iter(blocks)):
            saved.append((report.checkpoint, made.step))
    assert saved == [(True, 4)]
    assert "optimizer.lr" in str(error.value)


def test_the_first_bad_step_is_named(blocks: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is due only much later, when every loss is bad."""
    monkeypatch.setattr(losses, "contrastive_loss", spoilt_once(step=10))
    with pytest.raises(NotFinite, match="not finite in step 10;"):
        list(learner(training={"log_every": 24, "checkpoint_every": 1000}).train(iter(blocks)))


def test_the_learning_rate_is_a_function_of_anchors(blocks: list[Block]) -> None:
    training = {"steps": 24, "warmup_steps": 4, "final_lr": 0.1, "log_every": 2}
    made = learner(training=training)
    for step, expected in {1: 0.25, 4: 1.0, 14: 0.1 + 0.9 / 2, 24: 0.1}.items():
        assert made.learning_rate(step) == pytest.approx(3e-3 * expected)
    alone = learner(training=training, learners={"num_workers": 2})
    assert [alone.learning_rate(step) for step in range(1, 25)] == [made.learning_rate(step) for step in range(1, 25)]
    for report in made.train(iter(blocks)):
        if report.record:
            used = {group["lr"] for group in made.optimizer.param_groups}
            assert used == {made.learning_rate(report.record["step"])} == {report.record["lr"]}


def checksum(rows: np.ndarray) -> str:
    """2 i + 1 times the CRC-32 of what the i-th place of the batch shows, summed."""
    return f"{sum((2 * place + 1) * zlib.crc32(row.tobytes()) for place, row in enumerate(rows)) % 2**32:08x}"


def test_each_batch_is_told_by_its_tickets_and_by_checksums_of_what_it_showed(blocks: list[Block]) -> None:
    made = learner(training={"steps": 14, "log_every": 4, "checkpoint_every": 1})
    records, _ = train(made, blocks)
    assert [len(record["batches"]) for record in records] == [4, 4, 4, 2]
    found = [line for record in records for line in record["batches"]]
    for step, line in enumerate(found):
        block, rows = blocks[step // 4], slice(step % 4 * BATCH, (step % 4 + 1) * BATCH)
        assert line == {
            "step": step + 1,
            "learners": 1,
            "tickets": [step // 4, step // 4],
            "latents": checksum(block["latent"][rows]),
            "pixels": checksum(block["views"][rows]),
        }
    assert len({line["latents"] for line in found}) == len({line["pixels"] for line in found}) == 14


def test_the_lines_of_a_window_tell_each_use_and_the_window_s_tickets(blocks: list[Block]) -> None:
    """A window of six steps begins or ends within tickets of four."""
    made = learner(stream={"reuse": 2, "reuse_window": 6}, training={"steps": 26, "log_every": 26})
    ((record,), _) = train(made, blocks)
    lines = record["batches"]
    first, second = [[[number, number], [0, 1]] for number in (1, 1, 2, 2, 2, 2)], [[[3, 3], [1, 2]]] * 4
    assert [line["tickets"] for line in lines] == [*[[0, 0]] * 4, *[[1, 1]] * 2, *itertools.chain(*first, *second)]
    whole = {name: np.concatenate([block[name] for block in blocks]) for name in ("latent", "views")}
    for window in range(2):
        order = reuse.orders(made.config.seed, window, 1, 6, BATCH)
        for line, sources in zip(lines[7 + 12 * window :: 2], order, strict=False):
            rows = (6 * window + sources) * BATCH + np.arange(BATCH)
            assert line["latents"] == checksum(whole["latent"][rows])
            assert line["pixels"] == checksum(whole["views"][rows])
    assert len({line["latents"] for line in lines}) == 26


def test_a_view_used_again_is_augmented_anew(blocks: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    made = learner(stream={"reuse": 3, "reuse_window": 2}, training={"steps": 8})
    shown: dict[int, list[torch.Tensor]] = {}
    images = made.images

    def watched(batch: Block) -> torch.Tensor:
        found = images(batch)
        for anchor, image in zip(batch["anchor"].tolist(), found, strict=False):  # the first view of each
            shown.setdefault(anchor, []).append(image)
        return found

    monkeypatch.setattr(made, "images", watched)
    train(made, blocks)
    assert sorted(shown) == list(range(4 * BATCH))
    for anchor, uses in shown.items():
        assert len(uses) == (3 if anchor < 2 * BATCH else 1)
        assert len({image.numpy().tobytes() for image in uses}) == len(uses), anchor


def test_an_anchor_shown_again_is_augmented_anew(blocks: list[Block]) -> None:
    made = learner()
    batch = {name: column[:4] for name, column in blocks[0].items()}
    images = made.images(batch)
    assert images.shape == (2 * 4, 3, 32, 32)
    assert torch.equal(made.images(batch), images)
    assert torch.equal(made.images({**batch, "use": np.zeros_like(batch["epoch"])}), images)
    later = made.images({**batch, "epoch": batch["epoch"] + 1})
    assert not (later == images).flatten(1).all(1).any()
    alone = made.images({name: column[2:3] for name, column in batch.items()})
    torch.testing.assert_close(alone, images[[2, 6]], rtol=0, atol=1e-5)  # view-major


def test_no_use_in_one_epoch_is_augmented_like_one_in_another(blocks: list[Block]) -> None:
    made = learner(stream={"reuse": 3, "reuse_window": 2})
    batch = {name: column[:2] for name, column in blocks[0].items()}
    shown = [
        made.images({**batch, "epoch": batch["epoch"] + epoch, "use": np.full(2, use)}).numpy()
        for epoch, use in itertools.product(range(3), repeat=2)
    ]
    for row in range(4):
        assert len({images[row].tobytes() for images in shown}) == 9


def test_tx_only_augments_one_image_into_all_views(blocks: list[Block]) -> None:
    made = Learner(Run.of(replace(tiny(stream={"num_views": 3}), view=NoLatentView())), 0, CPU)
    batch = {name: column[:4] for name, column in blocks[0].items()}
    images = made.images({**batch, "views": batch["views"][:, :1]})
    assert images.shape == (3 * 4, 3, 32, 32)
    assert len(np.unique(images.flatten(1).numpy(), axis=0)) == 12


def test_features_leave_the_training_as_it_was(blocks: list[Block]) -> None:
    made = learner()
    made.encoder.train()
    before = {key: value.clone() for key, value in made.encoder.state_dict().items()}
    features = made.features(made.images(blocks[0]))
    assert features.shape == (128, 32)
    assert made.encoder.training
    assert all(torch.equal(made.encoder.state_dict()[key], value) for key, value in before.items())


def test_bfloat16_trains_float32_weights(blocks: list[Block]) -> None:
    made = learner(model={"precision": "bfloat16"}, training={"steps": 2})
    records, _ = train(made, blocks)
    assert [record["loss"] for record in records] == pytest.approx(
        [record["loss"] for record in train(learner(training={"steps": 2}), blocks)[0]], rel=0.02
    )
    assert {value.dtype for value in made.encoder.parameters()} == {torch.float32}


def test_a_compiled_encoder_is_the_one_that_is_saved(blocks: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def compiled(call: Callable[..., torch.Tensor], **options: Any) -> Callable[..., torch.Tensor]:
        return lambda images: (calls.append(len(images)), call(images))[1]

    monkeypatch.setattr(torch, "compile", compiled)
    plain, made = learner(), learner(model={"compile": True}, training={"steps": 2})
    train(made, blocks)
    assert calls == [2 * BATCH] * 2
    assert list(made.encoder.state_dict()) == list(plain.encoder.state_dict())
    assert made.features(made.images(blocks[0])).shape == (128, 32)


def test_a_stream_that_ends_early_is_no_end_of_the_run(blocks: list[Block]) -> None:
    with pytest.raises(OutOfOrder, match=r"^the stream ended at step 8 of 32$"):
        list(learner().train(iter(blocks[:2])))
