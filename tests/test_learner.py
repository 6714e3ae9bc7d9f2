"""A learner on blocks that are already there: what it reports, when it stops, and how it goes on."""

from __future__ import annotations

import itertools
import math
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed

from genray import losses
from genray.checkpoint import Open
from genray.config import Config
from genray.configure import build
from genray.course import Course, Place
from genray.latents import NoLatentView
from genray.learner import Learner, NotFinite, OutOfOrder, Report, Wish
from genray.views import Block, Renderer

CPU = torch.device("cpu")
BATCH, TICKETS = 16, 8


def tiny(**sections: Any) -> Config:
    """32 steps at the most, of 16 anchors on a small encoder; four steps a ticket."""
    values: dict[str, Any] = {
        "name": "tiny",
        "generator": {"micro_batch": 128},
        "view": {"std": 0.2},  # an easy task, so that few steps show
        "stream": {"batch_size": BATCH, "ticket_batches": 4},
        "augment": {"policy": "digits"},
        "objective": {"temperature": 0.2},
        "model": {
            "backbone": "resnet18",
            "model_args": {
                "layers": [1, 1, 0, 0],
                "channels": [16, 32, 32, 32],
                "stem_width": 8,
                "zero_init_last": False,
            },
            "projection": [32, 16],
        },
        "optimizer": {"kind": "adamw", "lr": 3e-3},
        "training": {"steps": 4 * TICKETS, "log_every": 1},
    }
    for name, section in sections.items():
        values[name] = {**values.get(name, {}), **section} if isinstance(section, dict) else section
    return build(values)


@pytest.fixture(scope="module")
def blocks() -> list[Block]:
    """The tickets of a run of 32 steps, with the embedded generator."""
    renderer = Renderer(tiny(), CPU)
    return [renderer.block(renderer.plan.positions(ticket)) for ticket in range(TICKETS)]


def learner(**sections: Any) -> Learner:
    return Learner(tiny(**sections), 0, CPU)


def train(made: Learner, blocks: list[Block]) -> tuple[list[dict[str, Any]], list[Place]]:
    """All records and all places of a run."""
    reports = list(made.train(iter(blocks)))
    assert all(bool(report.record) != (report.place is not None) for report in reports)
    return [report.record for report in reports if report.record], [r.place for r in reports if r.place]


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
    records, places = train(made, blocks)
    assert [record["step"] for record in records] == [4, 6, 8, 12, 14]  # every 4, every probe, and the last
    assert places == [Place(8, 2), Place(14, 3, 2, 1)]  # 5 steps are two rounds of 4; the last lies within its round
    assert made.marks["model built"] <= made.marks["first block"] <= made.marks["first step"]


def test_a_record_is_the_mean_over_its_window(blocks: list[Block]) -> None:
    each, _ = train(learner(training={"steps": 8}), blocks)
    windows, _ = train(learner(training={"steps": 8, "log_every": 4}), blocks)
    for window, of in zip(windows, (each[:4], each[4:]), strict=True):
        assert window["loss"] == pytest.approx(np.mean([record["loss"] for record in of]), rel=1e-6)
        assert window["lr"] == of[-1]["lr"]


def test_the_rest_of_the_stream_is_not_asked_for(blocks: list[Block]) -> None:
    stream = iter(blocks)
    list(learner(training={"steps": 6}).train(stream))
    assert int(next(stream)["ticket"][0]) == 2


def test_measurements_travel_with_the_blocks(blocks: list[Block]) -> None:
    def slow() -> Iterator[Block]:
        for block in blocks[:2]:
            time.sleep(0.5)  # before the first it is start-up, before the second it is waiting
            n = len(block["anchor"])
            yield {**block, "created_at": np.full(n, time.time() - 100), "render_s": np.full(n, 1e9)}

    made = learner(training={"steps": 8, "log_every": 4}, generators={"num": 3})
    first, second = [report.record for report in made.train(slow()) if report.record]
    assert first["data_wait"] == 0
    elapsed = 4 * BATCH * 2 / second["images_per_s"]
    assert 0.5 <= second["data_wait"] * elapsed < 2
    assert second["data_wait"] < 1
    assert first["view_age_s"] == pytest.approx(100, abs=0.4)
    assert first["generator_busy"] == 1


@pytest.mark.parametrize(("start", "given"), [(0, 1), (4, 3), (4, 0)])
def test_the_stream_must_begin_at_the_next_ticket(blocks: list[Block], start: int, given: int) -> None:
    made = learner()
    made.place = Place(step=4 * start, next_ticket=start)
    with pytest.raises(
        OutOfOrder,
        match=f"^learner 0 expected ticket {start} from position {64 * start}, "
        f"got ticket {given} from position {64 * given}$",
    ):
        next(made.train(iter(blocks[given:])))


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
    reports: list[Report] = []
    with pytest.raises(NotFinite, match="not finite in ticket 1; the last checkpoint is from before it") as error:  # noqa: PT012
        for report in learner(training={"log_every": 16, "checkpoint_every": 4}).train(iter(blocks)):
            reports.append(report)
    assert [report.place for report in reports] == [Place(4, 1)]
    assert "optimizer.lr" in str(error.value)


def test_the_first_bad_ticket_is_named(blocks: list[Block], monkeypatch: pytest.MonkeyPatch) -> None:
    """A record is due only much later, when every loss is bad."""
    monkeypatch.setattr(losses, "contrastive_loss", spoilt_once(step=10))
    with pytest.raises(NotFinite, match="not finite in ticket 2;"):
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


def test_a_resumed_run_sees_and_computes_the_same(blocks: list[Block], tmp_path: Path) -> None:
    training = {"steps": 16, "checkpoint_every": 8, "warmup_steps": 2}
    whole = learner(training=training)
    losses = []
    for report in whole.train(iter(blocks)):
        if report.record:
            losses.append(report.record["loss"])
        elif report.place == Place(8, 2):
            whole.save(tmp_path)

    resumed = learner(training=training)
    resumed.restore(tmp_path)
    assert resumed.place == Place(8, 2)
    records, places = train(resumed, blocks[2:])
    assert [record["step"] for record in records] == list(range(9, 17))
    assert [record["loss"] for record in records] == losses[8:]
    assert places == [Place(16, 4)]
    for key, value in whole.encoder.state_dict().items():
        torch.testing.assert_close(resumed.encoder.state_dict()[key], value, rtol=0, atol=0)


def wishes(**at: Wish) -> Callable[[Place], Wish]:
    """What is asked after the steps `s1`, `s2`, …; else to go on."""
    return lambda place: at.get(f"s{place.step}", "go on")


def test_a_stop_within_a_round_is_a_checkpoint_and_the_end(blocks: list[Block]) -> None:
    told: list[int] = []

    def asked(place: Place) -> Wish:
        told.append(place.step)
        return "stop" if place.step == 6 else "go on"

    made = learner(training={"log_every": 4, "checkpoint_every": 100})
    reports = list(made.train(iter(blocks), asked))
    assert [report.record.get("step") for report in reports] == [4, None]
    assert [report.place for report in reports] == [None, Place(6, 1, 2, 1)]
    assert made.place == Place(6, 1, 2, 1)
    assert told == [1, 2, 3, 4, 5, 6]


def test_a_stop_at_the_end_of_a_round_and_of_a_window_is_both(blocks: list[Block]) -> None:
    made = learner(training={"log_every": 4, "checkpoint_every": 4})
    reports = list(made.train(iter(blocks), wishes(s8="stop")))
    assert [(report.record.get("step"), report.place) for report in reports] == [
        (4, None),
        (None, Place(4, 1)),
        (8, None),
        (None, Place(8, 2)),
    ]
    assert made.window == Open()


def test_a_checkpoint_on_demand_does_not_end_anything(blocks: list[Block]) -> None:
    made = learner(training={"steps": 20, "log_every": 20, "checkpoint_every": 8})
    reports = list(made.train(iter(blocks), wishes(s2="save", s3="save", s6="save")))
    # The next one on its own is due 8 steps after the last, and between two rounds.
    assert [report.place for report in reports if report.place] == [
        Place(2, 0, 2, 1),
        Place(3, 0, 3, 1),
        Place(6, 1, 2, 1),
        Place(16, 4),
        Place(20, 5),
    ]
    assert [report.record["step"] for report in reports if report.record] == [20]


def portions(blocks: list[Block], made: Learner) -> Iterator[Block]:
    """What the stream gives this learner from where it stands, cut from the tickets of the whole run."""
    whole = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    for together in Course(made.plan, made.place).of_learner(made.rank):
        for positions in together:
            yield {name: column[positions] for name, column in whole.items()}


def lasting(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Records without what depends on the clock."""
    keys = ("step", "anchors", "loss", "lr", "alignment", "uniformity", "batches")
    return [{key: record[key] for key in keys} for record in records]


@pytest.mark.parametrize("stops", [[1], [5], [7], [10], [12], [6, 7, 13]], ids=str)
def test_a_run_stopped_at_any_step_goes_on_bit_by_bit(blocks: list[Block], tmp_path: Path, stops: list[int]) -> None:
    training = {"steps": 16, "log_every": 5, "checkpoint_every": 100, "warmup_steps": 2}
    whole = learner(training=training)
    expected, _ = train(whole, blocks)

    found: list[dict[str, Any]] = []
    for number, stop in enumerate([*stops, 16]):
        made = learner(training=training)
        if number:
            made.restore(tmp_path)
        reports = list(made.train(portions(blocks, made), wishes(**{f"s{stop}": "stop"})))
        found += [report.record for report in reports if report.record]
        assert made.place.step == stop
        made.save(tmp_path)
    assert lasting(found) == lasting(expected)
    assert [record["step"] for record in found] == [5, 10, 15, 16]
    for key, value in whole.encoder.state_dict().items():
        torch.testing.assert_close(made.encoder.state_dict()[key], value, rtol=0, atol=0)


def test_the_open_window_of_a_stop_counts_in_the_record_after_it(blocks: list[Block], tmp_path: Path) -> None:
    each, _ = train(learner(training={"steps": 8}), blocks)
    training = {"steps": 8, "log_every": 8}
    stopped = learner(training=training)
    list(stopped.train(iter(blocks), wishes(s3="stop")))
    assert stopped.window.steps == 3
    assert stopped.window.loss == sum(record["loss"] for record in each[:3])
    stopped.save(tmp_path)

    made = learner(training=training)
    made.restore(tmp_path)
    ((record,), _) = train(made, list(portions(blocks, made)))
    assert record["loss"] == sum(record["loss"] for record in each) / 8
    assert [line["step"] for line in record["batches"]] == list(range(1, 9))


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
            "tickets": [step // 4],
            "latents": f"{zlib.crc32(block['latent'][rows].tobytes()):08x}",
            "pixels": f"{zlib.crc32(block['views'][rows].tobytes()):08x}",
        }
    assert len({line["latents"] for line in found}) == len({line["pixels"] for line in found}) == 14


def checksum(batches: list[Block], column: str) -> str:
    """Of what several learners saw in a step: 2 r + 1 times the CRC-32 of learner r, summed."""
    each = ((2 * rank + 1) * zlib.crc32(batch[column].tobytes()) for rank, batch in enumerate(batches))
    return f"{sum(each) % 2**32:08x}"


@pytest.mark.parametrize("bounds", [2, 1, [1, 2]], ids=str)
def test_a_round_of_two_learners_is_ended_by_one(blocks: list[Block], bounds: int | list[int]) -> None:
    """Two tickets of four batches are eight steps, of which three are made."""
    training = {"steps": 12, "log_every": 1, "checkpoint_every": 100}
    made = Learner(tiny(training=training, learners={"num_workers": bounds}), 0, CPU, num_workers=1)
    made.place = Place(3, 0, 3, 2)
    records, places = train(made, list(portions(blocks, made)))
    assert places == [Place(12, 3)]
    half = BATCH // 2
    for line in (record["batches"][0] for record in records[:5]):
        rows = slice((line["step"] - 1) * half, line["step"] * half)
        seen = {name: np.concatenate([block[name][rows] for block in blocks[:2]]) for name in ("latent", "views")}
        assert line == {
            "step": line["step"],
            "learners": 1,
            "tickets": [0, 1],
            "latents": checksum([seen], "latent"),
            "pixels": checksum([seen], "views"),
        }
    assert [record["batches"][0]["tickets"] for record in records[5:]] == [[2]] * 4


def test_what_is_left_of_a_round_must_come_in_order_too(blocks: list[Block]) -> None:
    made = Learner(tiny(learners={"num_workers": [1, 2]}), 0, CPU, num_workers=1)
    made.place = Place(3, 0, 3, 2)
    first, second, *_ = portions(blocks, made)
    assert len(first["anchor"]) == len(second["anchor"]) == 5 * BATCH // 2
    message = r"^learner 0 expected ticket 1 from position 88, got ticket 0 from position 24$"
    with pytest.raises(OutOfOrder, match=message):
        next(made.train(iter([first, first])))


def test_a_run_resumed_at_its_end_has_nothing_to_do(blocks: list[Block]) -> None:
    made = learner(training={"steps": 8})
    made.place = Place(8, 2)
    assert list(made.train(iter([]))) == []


def test_an_anchor_shown_again_is_augmented_anew(blocks: list[Block]) -> None:
    made = learner()
    batch = {name: column[:4] for name, column in blocks[0].items()}
    images = made.images(batch)
    assert images.shape == (2 * 4, 3, 32, 32)
    assert torch.equal(made.images(batch), images)
    later = made.images({**batch, "epoch": batch["epoch"] + 1})
    assert not (later == images).flatten(1).all(1).any()
    alone = made.images({name: column[2:3] for name, column in batch.items()})
    torch.testing.assert_close(alone, images[[2, 6]], rtol=0, atol=1e-5)  # view-major


def test_tx_only_augments_one_image_into_all_views(blocks: list[Block]) -> None:
    made = Learner(replace(tiny(stream={"num_views": 3}), view=NoLatentView()), 0, CPU)
    batch = {name: column[:4] for name, column in blocks[0].items()}
    images = made.images({**batch, "views": batch["views"][:, :1]})
    assert images.shape == (3 * 4, 3, 32, 32)
    assert len(np.unique(images.flatten(1).numpy(), axis=0)) == 12


def test_views_of_an_anchor_or_of_a_class_attract(blocks: list[Block]) -> None:
    block = blocks[1]
    assert learner().labels(block).tolist() == block["anchor"].tolist() == list(range(64, 128))
    by_class = learner(objective={"kind": "supcon"}).labels(block).tolist()
    assert by_class == block["label"].tolist()
    assert set(by_class) == set(range(10))


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
    config = tiny(learners={"num_workers": 2}, training={"steps": 16, "log_every": 8, "checkpoint_every": 8})
    second = Learner(config, 1, CPU)
    records, places = train(second, [blocks[1], blocks[3]])
    assert [record["step"] for record in records] == [8, 16]
    assert places == [Place(8, 2), Place(16, 4)]
    assert sizes == [BATCH // 2 * 2] * 16
    with pytest.raises(OutOfOrder, match=r"^learner 1 expected ticket 1 from position 64, got ticket 0"):
        next(Learner(replace(config, name="other"), 1, CPU).train(iter(blocks)))


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.parametrize("bounds", [2, [1, 2]], ids=str)
def test_a_round_of_one_learner_is_shared_by_two(blocks: list[Block], bounds: int | list[int]) -> None:
    """One ticket of four batches, of which one is made; each learner takes its half of the others."""
    training = {"steps": 12, "log_every": 1, "checkpoint_every": 100}
    config = tiny(training=training, learners={"num_workers": bounds})
    for rank in (0, 1):
        made = Learner(config, rank, CPU, num_workers=2)
        made.place = Place(5, 1, 1, 1)
        records, places = train(made, list(portions(blocks, made)))
        assert places == [Place(12, 2, 4, 2)]
        half = BATCH // 2
        for line in (record["batches"][0] for record in records[:3]):
            start = (line["step"] - 5) * BATCH + rank * half
            seen = blocks[1]["latent"][start : start + half]
            assert line["latents"] == f"{(2 * rank + 1) * zlib.crc32(seen.tobytes()) % 2**32:08x}"
            assert (line["learners"], line["tickets"]) == (2, [1])
        assert [record["batches"][0]["tickets"] for record in records[3:]] == [[2, 3]] * 4


@pytest.mark.usefixtures("alone_in_a_group")
def test_a_checkpoint_has_the_learners_mean_of_an_open_window(
    blocks: list[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(learners={"num_workers": 2}, training={"log_every": 16})
    made = Learner(config, 1, CPU)
    others = {torch.float64: torch.tensor(3.0), torch.int64: torch.tensor([[1, 2], [3, 4], [5, 6]])}
    monkeypatch.setattr(losses, "sum_over_learners", lambda own: own + others[own.dtype])
    list(made.train(iter([blocks[1]]), wishes(s3="stop")))
    half = BATCH // 2
    monkeypatch.undo()
    reports = Learner(tiny(learners={"num_workers": 2}), 1, CPU).train(iter([blocks[1]]))
    each = [next(reports).record["loss"] for _ in range(3)]
    assert (made.window.steps, made.window.loss) == (3, pytest.approx((sum(each) + 3) / 2))
    for step, line in enumerate(made.window.batches):
        own = zlib.crc32(blocks[1]["latent"][step * half : (step + 1) * half].tobytes())
        assert line["latents"] == f"{(3 * own + 2 * step + 1) % 2**32:08x}"


def test_a_stream_that_ends_early_is_no_end_of_the_run(blocks: list[Block]) -> None:
    with pytest.raises(OutOfOrder, match=r"^the stream ended at step 8 of 32$"):
        list(learner().train(iter(blocks[:2])))
