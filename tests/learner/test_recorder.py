"""Reports of the learners become lines of the run's files, whatever happened before; failures are counted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from fakes import small
from ray.train import Checkpoint

from genray.config.errors import Hopeless
from genray.learner import balance, recorder
from genray.learner.learner import NotFinite, OutOfOrder
from genray.learner.recorder import CrashLoop, Recorder, mean_record
from genray.runs import checkpoint as checkpoints
from genray.runs.directory import RunDirectory
from genray.runs.processes import Process
from genray.stream.attempts import TicketFailed
from genray.stream.run import Run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    (tmp_path / "small").mkdir()
    return RunDirectory(tmp_path / "small")


def recording(run: RunDirectory, max_failures: int = 3, **sections: Any) -> Recorder:
    sections = {"stream": {"num_views": 3}, "learners": {"max_failures": max_failures}, **sections}
    return Recorder(Run.of(small(storage_path=str(run.path.parent), **sections)))


def report(made: Recorder, *metrics: dict[str, Any], checkpoint: bool = False) -> None:
    made.after_report(None, list(metrics), Checkpoint(str(made.run.path)) if checkpoint else None)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(path: Path) -> list[int]:
    return [record["step"] for record in lines(path)]


def seen(step: int, latents: str = "0000000a", learners: int = 1) -> dict[str, Any]:
    """What a learner tells of the batch of one step."""
    tickets = [0, learners - 1]
    return {"step": step, "learners": learners, "tickets": tickets, "latents": latents, "pixels": "0000000b"}


def measured(wait: float, rest: float, **arrived: Any) -> dict[str, Any]:
    """What a learner measured over two steps."""
    return balance.Measurements(steps=2, seconds={"wait": wait, "forward_backward": rest}, **arrived).to_dict()


def test_learners_are_averaged() -> None:
    found = mean_record(
        [
            {"step": 3, "anchors": 768, "loss": 1.0, "knn": 0.5, "view_age_s": 2.0},
            {"step": 3, "anchors": 768, "loss": 4.0, "lr": 0.1},
            {"step": 3, "anchors": 768, "loss": 4.0, "view_age_s": 4.0},
        ]
    )
    assert found == {"step": 3, "anchors": 768, "loss": 3.0, "knn": 0.5, "view_age_s": 3.0, "lr": 0.1}
    assert isinstance(found["step"], int)


def test_records_are_appended_with_their_time(run: RunDirectory) -> None:
    made = recording(run)
    report(made, {"step": 1, "loss": 2.0}, {"step": 1, "loss": 4.0})
    report(made, {"step": 2, "loss": 1.0}, {"step": 2, "loss": 1.0})
    first, second = lines(run.metrics)
    assert first == {"time": first["time"], "step": 1, "loss": 3.0}
    assert 1.6e9 < first["time"] <= second["time"]
    assert second["step"] == 2


FEWEST = [({}, 2), ({"pool": {"num": [3, 8]}}, 3), ({"pool": {"num": 4}, "render_on": "learners"}, 2)]


@pytest.mark.parametrize(("sections", "fewest"), FEWEST, ids=["seen", "a pool of 3 at least", "no pool"])
def test_what_the_learners_measured_becomes_the_metrics_of_all(
    run: RunDirectory, sections: dict[str, Any], fewest: int
) -> None:
    """12 views a step; 5 s each, of which 2 s and 1 s were waited, and 7 s of rendering arrived."""
    one = measured(2, 3, blocks=1, images=24, mib=4.0, render_s=3.0, age_s=1.0, generators=["a", "b"])
    other = measured(1, 4, blocks=1, images=24, mib=4.0, render_s=4.0, age_s=2.0, generators=["a"])
    made = recording(run, **sections)
    report(made, {"step": 2, "loss": 1.0, "measured": one}, {"step": 2, "loss": 3.0, "measured": other})
    (line,) = lines(run.metrics)
    assert list(line)[:3] == ["time", "step", "loss"]
    assert line["learners"] == 2
    assert (line["loss"], line["images_per_s"], line["rendered_per_s"]) == pytest.approx((2.0, 24 / 5, 48 / 5))
    assert (line["data_wait"], line["step_ms.wait"], line["step_ms.forward_backward"]) == pytest.approx(
        (0.3, 750, 1750)
    )
    assert (line["generators"], line["generator_busy"]) == pytest.approx((fewest, 7 / (5 * fewest)))
    assert (line["generators_useful"], line["view_age_s"], line["mib_ahead"]) == pytest.approx((2.0, 1.5, 2.4))
    assert "measured" not in line


def test_a_record_without_measurements_has_no_metrics_of_them(run: RunDirectory) -> None:
    made = recording(run)
    report(made, {"step": 1, "loss": 2.0, "knn": 0.5})
    report(made, {"step": 3, "loss": 2.0, "measured": measured(1, 3)})
    first, second = lines(run.metrics)
    assert first.keys() == {"time", "step", "loss", "knn"}
    phases = {f"step_ms.{phase}" for phase in balance.PHASES}
    assert second.keys() == {"time", "step", "loss", "learners", "images_per_s", "data_wait"} | phases


def test_a_report_that_is_only_a_checkpoint_is_no_record(run: RunDirectory) -> None:
    made = recording(run)
    report(made, {}, {}, checkpoint=True)
    report(made)
    assert not run.metrics.exists()
    assert not run.batches.exists()


def test_steps_that_are_done_again_are_not_recorded_again(run: RunDirectory) -> None:
    made = recording(run)
    for step in (10, 20, 30):
        report(made, {"step": step, "loss": 1.0})
    report(made, {"step": 20, "loss": 9.0})  # the learners were restarted at 10, the controller was not
    report(made, {"step": 30, "loss": 9.0})
    report(made, {"step": 40, "loss": 1.0})
    assert steps(run.metrics) == [10, 20, 30, 40]
    again = recording(run)  # the whole run was started again
    report(again, {"step": 30, "loss": 9.0})
    report(again, {"step": 50, "loss": 1.0})
    assert steps(run.metrics) == [10, 20, 30, 40, 50]
    assert {record["loss"] for record in lines(run.metrics)} == {1.0}


HALVES = ['{"time": 1.0, "step": 2, "lo', '{"time": 1.0, "step": 2}', "{"]


@pytest.mark.parametrize("half", HALVES)
def test_a_line_that_was_cut_off_is_written_anew(run: RunDirectory, half: str) -> None:
    report(recording(run), {"step": 1, "loss": 1.0, "batches": [seen(1)]})
    for path in (run.metrics, run.batches):
        with path.open("a") as file:
            file.write(half)
    made = recording(run)
    report(made, {"step": 2, "loss": 1.0, "batches": [seen(2)]})
    report(made, {"step": 3, "loss": 1.0, "batches": [seen(3)]})
    assert steps(run.metrics) == [1, 2, 3]
    assert lines(run.batches) == [seen(1), seen(2), seen(3)]


def test_each_step_has_a_line_with_what_it_saw(run: RunDirectory) -> None:
    made = recording(run)
    both = [seen(1, learners=2), seen(2, learners=2)]
    report(made, {"step": 2, "loss": 1.0, "batches": both}, {"step": 2, "loss": 3.0, "batches": both})
    report(made, {"step": 3, "loss": 1.0, "batches": [seen(3)]})
    assert lines(run.batches) == [*both, seen(3)]
    assert [record.keys() for record in lines(run.metrics)] == [{"time", "step", "loss"}] * 2


def test_a_replay_that_sees_the_same_leaves_no_trace(run: RunDirectory) -> None:
    made = recording(run)
    report(made, {"step": 2, "batches": [seen(1), seen(2)]})
    report(made, {"step": 2, "batches": [seen(2)]})
    again = recording(run)
    report(again, {"step": 3, "batches": [seen(2), seen(3)]})
    report(again, {"step": 4, "batches": [seen(2), seen(3), seen(4)]})
    assert lines(run.batches) == [seen(1), seen(2), seen(3), seen(4)]
    assert not run.faults.exists()


@pytest.mark.parametrize("restarted", [False, True], ids=["the same controller", "another controller"])
@pytest.mark.parametrize("field", ["latents", "pixels"])
def test_a_step_that_is_replayed_differently_is_a_fault(run: RunDirectory, field: str, restarted: bool) -> None:
    made = recording(run)
    report(made, {"step": 2, "batches": [seen(1), seen(2)]})
    if restarted:
        made = recording(run)
    other = seen(2) | {field: "0000000c"}
    report(made, {"step": 3, "batches": [other, seen(3)]})
    (fault,) = lines(run.faults)
    assert (fault["fault"], fault["was"], fault["now"]) == ("replayed differently", seen(2), other)
    assert lines(run.batches) == [seen(1), seen(2), seen(3)]  # the first is what is kept


def test_a_step_that_is_made_again_must_see_the_same_whoever_makes_it(run: RunDirectory) -> None:
    """Three steps by one learner, two of them again by two, who go on; and one of theirs again by one."""
    made = recording(run)
    report(made, {"step": 3, "batches": [seen(1), seen(2), seen(3)]})
    by_two = [seen(step, learners=2) for step in (2, 3, 4)]
    report(made, {"step": 4, "batches": by_two}, {"step": 4, "batches": by_two})
    report(made, {"step": 5, "batches": [seen(4), seen(5)]})
    assert not run.faults.exists()
    assert lines(run.batches) == [seen(1), seen(2), seen(3), seen(4, learners=2), seen(5)]
    report(recording(run), {"step": 5, "batches": [seen(5, "ffffffff", learners=2)]})
    (fault,) = lines(run.faults)
    assert (fault["was"], fault["now"]) == (seen(5), seen(5, "ffffffff", learners=2))
    assert len(lines(run.batches)) == 5


@pytest.mark.parametrize("restarted", [False, True], ids=["the same controller", "another controller"])
def test_only_so_many_steps_are_remembered(run: RunDirectory, monkeypatch: pytest.MonkeyPatch, restarted: bool) -> None:
    monkeypatch.setattr(recorder, "REMEMBERED_STEPS", 3)
    made = recording(run)
    report(made, {"step": 5, "batches": [seen(step) for step in range(1, 6)]})
    if restarted:
        made = recording(run)
        report(made)
    assert list(made.steps) == [3, 4, 5]
    report(made, {"step": 5, "batches": [seen(step, "ffffffff") for step in range(1, 6)]})
    assert [fault["was"]["step"] for fault in lines(run.faults)] == [3]  # one tells
    assert steps(run.batches) == [1, 2, 3, 4, 5]


def test_the_controller_is_noted_as_a_process_of_the_run(run: RunDirectory) -> None:
    made = recording(run)
    report(made, {"step": 1})
    report(made, {"step": 2})
    (line,) = lines(run.processes)
    assert Process(**line) == Process.of(os.getpid(), "controller")


def test_failures_are_noted_and_survived_up_to_a_number(run: RunDirectory) -> None:
    made = recording(run, max_failures=2)
    made.after_exception(None, {1: RuntimeError("first"), 0: RuntimeError("other")})
    made.after_exception(None, {0: RuntimeError("second")})
    with pytest.raises(CrashLoop) as error:
        made.after_exception(None, {0: RuntimeError("third\n")})
    assert str(error.value) == (
        "the learners failed 3 times without a new checkpoint; the last error: RuntimeError: third"
    )
    assert [(fault["fault"], fault["ranks"], fault["error"]) for fault in lines(run.faults)] == [
        ("learners failed", [0, 1], "RuntimeError: first"),
        ("learners failed", [0], "RuntimeError: second"),
        ("learners failed", [0], "RuntimeError: third"),
    ]


def test_a_failure_tells_how_many_steps_have_to_be_made_again(
    run: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recording(run)
    report(made, {"step": 7, "batches": [seen(step) for step in range(1, 8)]})
    made.after_exception(None, {0: RuntimeError("no checkpoint yet")})
    monkeypatch.setattr(checkpoints, "last", lambda path: path)
    monkeypatch.setattr(checkpoints, "read_step", lambda path: 5)
    made.after_exception(None, {0: RuntimeError("one at step 5")})
    assert [fault["steps_lost"] for fault in lines(run.faults)] == [7, 2]


def test_a_node_that_gave_notice_is_told_once_and_is_no_failure(run: RunDirectory) -> None:
    made, gone = recording(run, max_failures=0), RuntimeError("its node is gone")
    gone.preempted = True  # type: ignore[attr-defined] # as Ray Train marks it
    for _ in range(2):
        made.after_exception(None, {1: gone})
    report(made, {"step": 1})
    made.after_exception(None, {0: gone})
    told = [(fault["fault"], fault["ranks"]) for fault in lines(run.faults)]
    assert told == [("node taken away after its notice", [1]), ("node taken away after its notice", [0])]


def test_none_is_survived_where_none_is_allowed(run: RunDirectory) -> None:
    with pytest.raises(CrashLoop, match=r"^the learners failed 1 times"):
        recording(run, max_failures=0).after_exception(None, {0: RuntimeError("x")})


def test_a_new_checkpoint_begins_the_count_anew(run: RunDirectory) -> None:
    made = recording(run, max_failures=1)
    for step in range(3):
        made.after_exception(None, {0: RuntimeError("x")})
        report(made, {}, checkpoint=True)
        assert made.failures == 0, step
    made.after_exception(None, {0: RuntimeError("x")})
    report(made, {"step": 1, "loss": 1.0})  # steps alone are done again, and are no progress
    with pytest.raises(CrashLoop):
        made.after_exception(None, {0: RuntimeError("x")})


TRACEBACK = """ray::MapWorker() (pid=1)
  File "genray/stream/attempts.py", line 1, in at
    raise TicketFailed(message)
genray.stream.attempts.TicketFailed: ticket 3 failed in 3 fresh processes; the last error: RuntimeError: x
"""


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NotFinite("the loss was not finite"), "the loss was not finite"),
        (OutOfOrder("learner 0 expected ticket 1"), "learner 0 expected ticket 1"),
        (TicketFailed("ticket 3 failed"), "ticket 3 failed"),
        (
            RuntimeError(TRACEBACK),
            "ticket 3 failed in 3 fresh processes; the last error: RuntimeError: x",
        ),
    ],
    ids=["not finite", "out of order", "a ticket", "a ticket of the pool"],
)
def test_what_would_only_happen_again_ends_the_run_at_once(run: RunDirectory, error: Exception, message: str) -> None:
    with pytest.raises(Hopeless) as raised:
        recording(run).after_exception(None, {0: RuntimeError("its peer is gone"), 1: error})
    assert str(raised.value) == message
    (fault,) = lines(run.faults)
    assert (fault["ranks"], fault["error"]) == ([0, 1], message)


def test_other_errors_of_genrays_own_may_be_survived(run: RunDirectory) -> None:
    made = recording(run)
    text = TRACEBACK.replace("stream.attempts.TicketFailed: ticket 3", "views.types.BadImages: ticket 3")
    made.after_exception(None, {0: RuntimeError(text)})
    assert made.failures == 1
    told = "ticket 3 failed in 3 fresh processes; the last error: RuntimeError: x"
    assert lines(run.faults)[0]["error"] == told
