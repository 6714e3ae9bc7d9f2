"""Reports of the learners become lines of metrics.jsonl, whatever happened to the writer before."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from genray.recorder import Recorder, merged


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "metrics.jsonl"


def report(recorder: Recorder, *metrics: dict[str, Any]) -> None:
    recorder.after_report(None, list(metrics), None)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def steps(path: Path) -> list[int]:
    return [record["step"] for record in lines(path)]


def test_learners_are_averaged() -> None:
    found = merged(
        [
            {"step": 3, "anchors": 768, "loss": 1.0, "knn": 0.5, "view_age_s": 2.0},
            {"step": 3, "anchors": 768, "loss": 4.0, "lr": 0.1},
            {"step": 3, "anchors": 768, "loss": 4.0, "view_age_s": 4.0},
        ]
    )
    assert found == {"step": 3, "anchors": 768, "loss": 3.0, "knn": 0.5, "view_age_s": 3.0, "lr": 0.1}
    assert isinstance(found["step"], int)


def test_records_are_appended_with_their_time(path: Path) -> None:
    recorder = Recorder(path)
    report(recorder, {"step": 1, "loss": 2.0}, {"step": 1, "loss": 4.0})
    report(recorder, {"step": 2, "loss": 1.0}, {"step": 2, "loss": 1.0})
    first, second = lines(path)
    assert first == {"time": first["time"], "step": 1, "loss": 3.0}
    assert 1.6e9 < first["time"] <= second["time"]
    assert second["step"] == 2


def test_a_report_that_is_only_a_checkpoint_is_no_record(path: Path) -> None:
    recorder = Recorder(path)
    report(recorder, {}, {})
    report(recorder)
    assert not path.exists()


def test_steps_that_are_done_again_are_not_recorded_again(path: Path) -> None:
    recorder = Recorder(path)
    for step in (10, 20, 30):
        report(recorder, {"step": step, "loss": 1.0})
    report(recorder, {"step": 20, "loss": 9.0})  # the learners were restarted at 10, the controller was not
    report(recorder, {"step": 30, "loss": 9.0})
    report(recorder, {"step": 40, "loss": 1.0})
    assert steps(path) == [10, 20, 30, 40]
    again = Recorder(path)  # the whole run was started again
    report(again, {"step": 30, "loss": 9.0})
    report(again, {"step": 50, "loss": 1.0})
    assert steps(path) == [10, 20, 30, 40, 50]
    assert {record["loss"] for record in lines(path)} == {1.0}


@pytest.mark.parametrize("half", ['{"time": 1.0, "step": 2, "lo', '{"time": 1.0, "step": 2}', "{"])
def test_a_line_that_was_cut_off_is_written_anew(path: Path, half: str) -> None:
    report(Recorder(path), {"step": 1, "loss": 1.0})
    with path.open("a") as file:
        file.write(half)
    recorder = Recorder(path)
    report(recorder, {"step": 2, "loss": 1.0})
    report(recorder, {"step": 3, "loss": 1.0})
    assert steps(path) == [1, 2, 3]
