import io
import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from genray.commands.progress import Eta, Progress, clock, record_line
from genray.runs import faults


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True

    def screen(self) -> list[str]:
        """What stands on it: of every line, what was written after it was last erased."""
        return [text.rsplit("\r\x1b[K", 1)[-1] for text in self.getvalue().split("\n")]


def write(path: Path, *steps: int, **extra: Any) -> None:
    with path.open("a") as file:
        for step in steps:
            file.write(json.dumps({"step": step, "time": 10.0 * step, "loss": 3.0, **extra}) + "\n")


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def test_line_holds_everything_a_record_does() -> None:
    record = {"step": 40, "time": 0, "loss": 3.21449, "images_per_s": 1812.4, "data_wait": 0.119}
    record |= {"generator_busy": 0.88, "knn": 0.612}
    expected = "step  40/400  loss 3.214  1 812 images/s  wait 12 %  generators 88 %  kNN 61.2 %  eta 1:23"
    assert record_line(record, 400, 83.4) == expected


def test_line_tells_what_an_objective_measures() -> None:
    record = {"step": 2, "loss": 1.0, "latent_error": 0.926, "class_accuracy": 0.25, "spread": 0.5, "knn": 0.6}
    assert record_line(record, 9, None) == "step 2/9  loss 1.000  latents 0.93  classes 25.0 %  spread 0.50  kNN 60.0 %"


def test_line_leaves_out_what_is_not_known() -> None:
    assert record_line({"step": 1, "time": 0, "loss": 1.0, "data_wait": None}, 9, None) == "step 1/9  loss 1.000"


@pytest.mark.parametrize(("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7325, "2:02:05")])
def test_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text


def test_eta_follows_the_pace_of_the_records() -> None:
    eta = Eta(100)
    assert eta({"step": 10, "time": 5.0}) is None
    assert eta({"step": 20, "time": 25.0}) == 160  # 2 s a step, 80 left
    assert eta({"step": 100, "time": 185.0}) == 0


def test_eta_starts_anew_when_learners_restart() -> None:
    eta = Eta(100)
    eta({"step": 10, "time": 0.0})
    eta({"step": 50, "time": 40.0})
    assert eta({"step": 20, "time": 1000.0}) is None
    assert eta({"step": 30, "time": 1005.0}) == 35


def test_eta_forgets_the_distant_past() -> None:
    eta = Eta(1000)
    eta({"step": 0, "time": -1e6})
    last = [eta({"step": step, "time": 3.0 * step}) for step in range(1, 41)][-1]
    assert last == pytest.approx(3 * 960)


def test_plain_output_is_one_line_per_new_record(tmp_path: Path) -> None:
    path, out = tmp_path / "metrics.jsonl", io.StringIO()
    write(path, 1, 2)  # of the part of the run that is resumed
    progress = Progress(path, 9, out)
    progress.phase("starting Ray")
    write(path, 3, 4)
    with path.open("a") as file:
        file.write('{"step": 5, "ti')  # its writer was killed
    progress.close()
    assert out.getvalue() == "starting Ray\nstep 3/9  loss 3.000\nstep 4/9  loss 3.000  eta 0:50\n"


def test_terminal_shows_phase_then_bar_and_keeps_what_is_said(tmp_path: Path) -> None:
    path, out = tmp_path / "metrics.jsonl", Terminal()
    progress = Progress(path, 4, out)
    progress.phase("starting learners")
    eventually(lambda: bool(re.fullmatch(r"starting learners \(\d s\)", out.screen()[-1])))
    write(path, 1)
    eventually(lambda: out.screen() == ["━" * 5 + " " * 15 + "  step 1/4  loss 3.000"])
    progress.say("a warning")
    assert out.screen() == ["a warning", "━" * 5 + " " * 15 + "  step 1/4  loss 3.000"]
    write(path, 4)
    progress.close()
    assert out.screen() == ["a warning", "━" * 20 + "  step 4/4  loss 3.000  eta 0:00", ""]


def test_terminal_is_clean_when_nothing_was_trained(tmp_path: Path) -> None:
    out = Terminal()
    progress = Progress(tmp_path / "metrics.jsonl", 4, out)
    progress.phase("starting Ray")
    progress.close()
    assert out.screen() == [""]


def test_new_faults_are_told_once(tmp_path: Path) -> None:
    path, log, out = tmp_path / "metrics.jsonl", tmp_path / "faults.jsonl", io.StringIO()
    faults.note(log, "learners failed", error="of the part of the run that is resumed")
    progress = Progress(path, 9, out, log)
    faults.note(log, "generator failed", ticket=7, error="it hung: killed after 120 s")
    faults.note(log, "replayed differently", was={}, now={})
    write(path, 1)
    progress.close()
    assert out.getvalue().splitlines() == [
        "generator failed in ticket 7: it hung: killed after 120 s",
        "replayed differently",
        "step 1/9  loss 3.000",
    ]
