"""Faults are noted by several processes at once, and a ticket is tried only so often."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from genray.config.errors import UserError
from genray.runs import faults, jsonl
from genray.stream.attempts import DIED_SILENTLY, Attempts, NotCounted, StartFailed, TicketFailed, starting
from genray.stream.tickets import Ticket
from genray.views.types import BadImages

TICKET = Ticket(3, np.arange(24, 32))


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "faults.jsonl"


def attempts(log: Path, most: int = 3, deaths: bool = True) -> Attempts:
    return Attempts(log.parent / "attempts" / "one", log, most, deaths)


def file_of(found: Attempts) -> Path:
    return found.directory / "24.jsonl"


def fail(found: Attempts, error: Exception, ticket: Ticket = TICKET) -> None:
    with found.at(ticket):
        raise error


def die(found: Attempts) -> None:
    """An attempt whose process is gone before it is over."""
    found.at(TICKET).__enter__()


def hang(found: Attempts) -> None:
    """An attempt that the watchdog ends."""
    die(found)
    with file_of(found).open("a") as file:
        file.write('{"time": 1.0, "fault": "failed", "error": "it hung: killed after 9 s"}\n')


def told(log: Path) -> list[str]:
    return [line["error"] for line in jsonl.read(log)]


def test_a_fault_is_a_line_with_its_time_and_its_host(log: Path) -> None:
    faults.note(log, "generator failed", ticket=7, error="a\nb\u2028é")
    faults.note(log, "other")
    first, second = (json.loads(line) for line in log.read_text().split("\n")[:2])
    assert first == {
        "time": first["time"],
        "fault": "generator failed",
        "host": socket.gethostname(),
        "ticket": 7,
        "error": "a\nb\u2028é",
    }
    assert abs(first["time"] - time.time()) < 60
    assert second["fault"] == "other"
    assert jsonl.read(log) == [first, second]


def test_lines_of_several_writers_do_not_mix(log: Path) -> None:
    def write(writer: int) -> None:
        for number in range(200):
            faults.note(log, str(writer), number=number, filling="x" * 10_000)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert faults.counts(log) == {str(writer): 200 for writer in range(4)}
    for writer in range(4):
        numbers = [line["number"] for line in jsonl.read(log) if line["fault"] == str(writer)]
        assert numbers == list(range(200))


def test_faults_are_counted_by_kind(log: Path) -> None:
    assert faults.counts(log) == {}
    for kind in ("a", "b", "a"):
        faults.note(log, kind)
    with log.open("a") as file:
        file.write('{"time": 1.0, "fault": "a')
    assert faults.counts(log) == {"a": 2, "b": 1}


def test_an_attempt_that_succeeds_leaves_nothing(log: Path) -> None:
    found = attempts(log)
    with found.at(TICKET) as path:
        assert path == file_of(found)
        assert [line["fault"] for line in jsonl.read(path)] == ["begun"]
    assert list(found.directory.iterdir()) == []
    assert not log.exists()


def test_a_ticket_is_tried_so_often_and_each_error_is_noted_once(log: Path) -> None:
    for number in (1, 2):
        with pytest.raises(RuntimeError, match=f"^{number}$"):
            fail(attempts(log), RuntimeError(number))
    last = RuntimeError("3")
    with pytest.raises(TicketFailed) as error:
        fail(attempts(log), last)
    assert str(error.value) == "ticket 3 failed in 3 fresh processes; the last error: RuntimeError: 3"
    assert error.value.__cause__ is last
    assert told(log) == ["RuntimeError: 1", "RuntimeError: 2", "RuntimeError: 3"]
    assert {(line["fault"], line["ticket"]) for line in jsonl.read(log)} == {("generator failed", 3)}


def test_leaving_is_a_failure(log: Path) -> None:
    with pytest.raises(SystemExit):
        fail(attempts(log), SystemExit(0))
    assert [line["error"] for line in jsonl.read(log)] == ["SystemExit: 0"]


def test_a_single_attempt_is_called_so(log: Path) -> None:
    with pytest.raises(TicketFailed, match=r"^ticket 3 failed in its only attempt; the last error: ValueError: x$"):
        fail(attempts(log, most=1), ValueError("x"))


def test_no_further_process_tries_a_ticket_that_has_failed(log: Path) -> None:
    tried = []
    with pytest.raises(TicketFailed):
        fail(attempts(log, most=1), RuntimeError("x"))
    with pytest.raises(TicketFailed, match=r"RuntimeError: x$"), attempts(log, most=1).at(TICKET):
        tried.append(1)
    assert not tried
    assert told(log) == ["RuntimeError: x"]


def test_success_forgets_the_errors_before_it(log: Path) -> None:
    for _ in range(3):
        with pytest.raises(RuntimeError):
            fail(attempts(log, most=2), RuntimeError("x"))
        with attempts(log, most=2).at(TICKET):
            pass
    assert told(log) == ["RuntimeError: x"] * 3


def test_tickets_and_passes_are_counted_apart(log: Path) -> None:
    """A ticket is told by where it begins, since its number belongs to other places for other numbers of learners."""
    other = Attempts(log.parent / "attempts" / "two", log, 2, count_deaths=True)
    elsewhere = Ticket(3, np.arange(26, 32))
    for found, ticket in ((attempts(log, most=2), TICKET), (attempts(log, most=2), elsewhere), (other, TICKET)):
        with pytest.raises(RuntimeError):
            fail(found, RuntimeError("x"), ticket)
    with pytest.raises(TicketFailed, match=r"^ticket 7 failed in 2 fresh processes"):
        fail(other, RuntimeError("x"), Ticket(7, np.arange(24, 40)))
    assert sorted(path.name for path in other.directory.parent.rglob("*.jsonl")) == ["24.jsonl", "24.jsonl", "26.jsonl"]


def test_deaths_count_and_are_noted_by_the_next_attempt(log: Path) -> None:
    found = attempts(log)
    die(found)
    assert not log.exists()
    die(found)
    assert told(log) == [DIED_SILENTLY]
    die(found)
    with pytest.raises(TicketFailed, match=f"^ticket 3 failed in 3 fresh processes; the last error: {DIED_SILENTLY}$"):
        die(found)
    assert told(log) == [DIED_SILENTLY] * 3


def test_a_death_before_an_error_is_one_attempt_and_the_error_another(log: Path) -> None:
    found = attempts(log, most=2)
    die(found)
    with pytest.raises(TicketFailed, match=r"in 2 fresh processes; the last error: RuntimeError: x$"):
        fail(found, RuntimeError("x"))
    assert told(log) == [DIED_SILENTLY, "RuntimeError: x"]


def test_deaths_do_not_count_where_processes_are_killed_for_other_reasons(log: Path) -> None:
    found = attempts(log, most=2, deaths=False)
    for _ in range(5):
        die(found)
    with pytest.raises(RuntimeError):
        fail(found, RuntimeError("1"))
    for _ in range(5):
        die(found)
    assert told(log) == ["RuntimeError: 1"]
    with pytest.raises(TicketFailed, match=r"in 2 fresh processes; the last error: RuntimeError: 2$"):
        fail(found, RuntimeError("2"))
    assert told(log) == ["RuntimeError: 1", "RuntimeError: 2"]


@pytest.mark.parametrize("deaths", [True, False])
def test_a_hang_counts_once_and_tells_its_own_error(log: Path, deaths: bool) -> None:
    found = attempts(log, most=2, deaths=deaths)
    hang(found)
    hang(found)
    assert told(log) == ["it hung: killed after 9 s"]
    with pytest.raises(TicketFailed, match=r"in 2 fresh processes; the last error: it hung: killed after 9 s$"):
        die(found)
    assert told(log) == ["it hung: killed after 9 s"] * 2


def test_images_that_cannot_be_used_are_tried_twice(log: Path) -> None:
    with pytest.raises(BadImages):
        fail(attempts(log, most=5), BadImages("grey"))
    with pytest.raises(TicketFailed, match=r"in 2 fresh processes; the last error: BadImages: grey$"):
        fail(attempts(log, most=5), BadImages("grey"))


def test_images_that_cannot_be_used_are_tried_once_where_once_is_the_most(log: Path) -> None:
    with pytest.raises(TicketFailed, match=r"in its only attempt; the last error: BadImages: grey$"):
        fail(attempts(log, most=1), BadImages("grey"))


def test_bad_images_after_another_error_are_tried_like_it(log: Path) -> None:
    with pytest.raises(RuntimeError):
        fail(attempts(log), RuntimeError("x"))
    with pytest.raises(BadImages):
        fail(attempts(log), BadImages("grey"))
    with pytest.raises(TicketFailed, match="in 3 fresh processes"):
        fail(attempts(log), BadImages("grey"))


def test_what_the_user_must_mend_is_told_as_it_is(log: Path) -> None:
    with pytest.raises(UserError, match=r"^generator\.target must exist$"):
        fail(attempts(log, most=1), UserError("generator.target must exist"))
    assert not log.exists()


def start(file: Path, log: Path, dies: bool) -> None:
    """A process that begins to load a generator, and dies over it or is ready."""
    code = """
import os, signal, sys
from pathlib import Path
from genray.stream.attempts import starting
with starting(Path(sys.argv[1]), Path(sys.argv[2]), max_deaths=2):
    if sys.argv[3] == "True":
        os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code, str(file), str(log), str(dies)], check=False)


def test_a_start_that_raises_is_not_one_that_died(tmp_path: Path) -> None:
    file, log = tmp_path / "starting", tmp_path / "faults.jsonl"
    for _ in range(3):
        with pytest.raises(UserError, match="no such weights"), starting(file, log, 2):
            raise UserError("no such weights")
    with starting(file, log, 2):
        assert not log.exists()


def test_starts_that_die_are_counted_until_one_is_ready(tmp_path: Path) -> None:
    file, log = tmp_path / "starting", tmp_path / "faults.jsonl"
    for dies in (True, False, True, True):
        start(file, log, dies)
    with (
        pytest.raises(StartFailed, match="died in each of its last 2 starts"),
        starting(file, log, 2),
    ):
        raise AssertionError("it was started once more")
    assert [line["error"] for line in jsonl.read(log)] == ["it died while it was loaded"] * 2


def test_an_attempt_that_cannot_be_counted_is_not_made(tmp_path: Path) -> None:
    (tmp_path / "attempts").write_text("a file where the directory would be")
    found = Attempts(tmp_path / "attempts", tmp_path / "faults.jsonl", max_attempts=3, count_deaths=True)
    with (
        pytest.raises(NotCounted, match="attempts at ticket 4 cannot be counted"),
        found.at(Ticket(4, np.arange(32, 40))),
    ):
        raise AssertionError("it was made")


def test_a_line_that_was_cut_short_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    jsonl.append(file, {"n": 1})
    with file.open("a") as out:
        out.write('{"n": 2, "er')
    jsonl.append(file, {"n": 3}, {"n": 4})
    assert [record["n"] for record in jsonl.read(file)] == [1, 3, 4]
