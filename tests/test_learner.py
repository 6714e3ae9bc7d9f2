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

from genray import balance, losses, reuse
from genray.augment import augment_views
from genray.checkpoint import Open
from genray.config import Config
from genray.configure import build
from genray.course import Course
from genray.latent_views import NoLatentView
from genray.learner import Learner, NotFinite, OutOfOrder, Wish
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
    return [renderer.block(ticket) for ticket in Course(renderer.plan).of_learner(0)]


def learner(**sections: Any) -> Learner:
    return Learner(tiny(**sections), 0, CPU)


def portions(blocks: list[Block], made: Learner) -> Iterator[Block]:
    """What the stream gives this learner from where it stands, cut from the blocks of the whole run."""
    whole = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    for ticket in Course(made.plan, made.step).of_learner(made.rank):
        block = {name: column[ticket.positions] for name, column in whole.items()}
        yield {**block, "ticket": np.full(len(ticket.positions), ticket.number)}


def train(
    made: Learner, blocks: list[Block], asked: Callable[[int], Wish] = lambda step: "go on"
) -> tuple[list[dict[str, Any]], list[int]]:
    """All records of a run from where the learner stands, and the steps at which a checkpoint was due."""
    records, saved = [], []
    for record, checkpoint in made.train(portions(blocks, made), asked):
        assert bool(record) != checkpoint
        if checkpoint:
            saved.append(made.step)
        else:
            records.append(record)
    return records, saved


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
    assert set(first) == set(balance.Window().to_dict())
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

    monkeypatch.setattr("genray.learner.augment_views", late("augment", augment_views))
    monkeypatch.setattr(losses, "contrastive_loss", late("forward_backward", losses.contrastive_loss))
    monkeypatch.setattr(made.optimizer, "step", late("optimizer", made.optimizer.step))
    monkeypatch.setattr("genray.learner._checksums", lambda *batch: [0, 0])  # they would be waited for
    monkeypatch.setattr(made, "images", late("copy", made.images))
    found, at = [], []
    for report in made.train(travelled(blocks, slow["wait"]), late("other", lambda step: "go on")):
        if report.record:
            at.append(time.perf_counter())
            found.append(report.record["measured"]["seconds"])
            time.sleep(0.5)  # a probe
    assert set(found[0]) | {"wait"} == set(found[1]) == set(balance.PHASES)
    assert all(slow[name] <= seconds for name, seconds in found[1].items())
    elapsed = at[1] - at[0] - 0.5
    assert elapsed - 0.3 <= sum(found[1].values()) <= elapsed


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


def wishes(**at: Wish) -> Callable[[int], Wish]:
    """What is asked after the steps `s1`, `s2`, …; else to go on."""
    return lambda step: at.get(f"s{step}", "go on")


def test_a_stop_is_a_checkpoint_and_the_end(blocks: list[Block]) -> None:
    told: list[int] = []

    def asked(step: int) -> Wish:
        told.append(step)
        return "stop" if step == 6 else "go on"

    made = learner(training={"log_every": 4, "checkpoint_every": 100})
    reports = list(made.train(iter(blocks), asked))
    assert [(report.record.get("step"), report.checkpoint) for report in reports] == [(4, False), (None, True)]
    assert (made.step, made.window.steps) == (6, 2)
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
    assert made.window == Open()


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
    assert stopped.window.steps == 3
    assert stopped.window.loss == sum(record["loss"] for record in each[:3])
    stopped.save(tmp_path)

    made = learner(training=training)
    made.restore(tmp_path)
    ((record,), _) = train(made, blocks)
    assert record["measured"]["steps"] == 5  # a restart is no part of the time
    assert record["loss"] == sum(record["loss"] for record in each) / 8
    assert [line["step"] for line in record["batches"]] == list(range(1, 9))


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


@pytest.mark.parametrize("reuse_window", [2, 3])
@pytest.mark.parametrize("steps", [6, 7])
def test_a_run_resumed_at_its_end_has_nothing_to_do(blocks: list[Block], steps: int, reuse_window: int) -> None:
    """Even where it ends within the uses of a window."""
    for stream in ({}, {"reuse": 2, "reuse_window": reuse_window}):
        made = learner(stream=stream, training={"steps": steps})
        made.step = steps
        assert list(portions(blocks, made)) == []
        assert list(made.train(iter(blocks))) == []


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
    made = Learner(replace(tiny(stream={"num_views": 3}), view=NoLatentView()), 0, CPU)
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
        next(Learner(config, 1, CPU).train(portions(blocks, Learner(config, 0, CPU))))


def lines_of(made: Learner, blocks: list[Block]) -> list[dict[str, Any]]:
    records, _ = train(made, blocks)
    return [line for record in records for line in record["batches"]]


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.parametrize("stream", [{}, {"reuse": 2, "reuse_window": 3}, {"reuse": 3, "reuse_window": 2}], ids=str)
def test_two_learners_put_together_see_what_one_does_from_any_step_on(
    blocks: list[Block], monkeypatch: pytest.MonkeyPatch, stream: dict[str, int]
) -> None:
    """Each one's checksums are taken by themselves; their sums are those of one learner."""
    config = tiny(stream=stream, training={"steps": 12, "log_every": 5}, learners={"num_workers": [1, 2]})
    one = lines_of(Learner(config, 0, CPU, num_workers=1), blocks)
    monkeypatch.setattr(losses, "sum_over_learners", lambda own: own)
    for start in (0, 2, 5, 7):
        halves = []
        for rank in (0, 1):
            made = Learner(config, rank, CPU, num_workers=2)
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
    made = Learner(tiny(learners={"num_workers": 2}, training={"steps": 12, "log_every": 12}), 1, CPU)
    assert [line["tickets"] for line in lines_of(made, blocks)] == [[0, 1]] * 8 + [[2, 3]] * 4


@pytest.mark.usefixtures("alone_in_a_group")
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_an_open_window_goes_on_with_another_number_of_learners(
    blocks: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    monkeypatch.setattr(losses, "sum_over_learners", lambda own: before * own if own.is_floating_point() else own)
    config = tiny(learners={"num_workers": [1, 2]}, training={"steps": 12, "log_every": 6})
    stopped = Learner(config, 0, CPU, num_workers=before)
    train(stopped, blocks, wishes(s9="stop"))
    stopped.save(tmp_path)
    made = Learner(config, 0, CPU, num_workers=after)
    made.restore(tmp_path)
    ((record,), saved) = train(made, blocks)
    assert (record["step"], saved) == (12, [12])
    assert [(line["step"], line["learners"]) for line in record["batches"]] == [
        (10 - 3 + number, before if number < 3 else after) for number in range(6)
    ]
    assert stopped.window.batches == record["batches"][:3]
    assert math.isfinite(record["loss"])


@pytest.mark.usefixtures("alone_in_a_group")
def test_a_checkpoint_has_the_learners_mean_of_an_open_window(
    blocks: list[Block], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(learners={"num_workers": 2}, training={"log_every": 16})
    made = Learner(config, 1, CPU)
    others = {torch.float64: torch.tensor(3.0), torch.int64: torch.tensor([[1, 2], [3, 4], [5, 6]])}
    monkeypatch.setattr(losses, "sum_over_learners", lambda own: own + others[own.dtype])
    train(made, blocks, wishes(s3="stop"))
    monkeypatch.undo()
    alone = Learner(replace(config, training=replace(config.training, log_every=1)), 1, CPU)
    records, _ = train(alone, blocks, wishes(s3="stop"))
    each = [record["loss"] for record in records]
    assert (made.window.steps, made.window.loss) == (3, pytest.approx((sum(each) + 3) / 2))
    for number, (line, record) in enumerate(zip(made.window.batches, records, strict=True)):
        (own,) = record["batches"]
        assert int(line["latents"], 16) == (int(own["latents"], 16) + 2 * number + 1) % 2**32
        assert int(line["pixels"], 16) == (int(own["pixels"], 16) + 2 * number + 2) % 2**32


def test_a_stream_that_ends_early_is_no_end_of_the_run(blocks: list[Block]) -> None:
    with pytest.raises(OutOfOrder, match=r"^the stream ended at step 8 of 32$"):
        list(learner().train(iter(blocks[:2])))
