"""A signal lets the training come to its checkpoint; a second one, or one before the training, ends the run at once."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from paths import ROOT

from genray.runs.stopping import SIGNALS, Stopping, StopRequested

PATIENCE_S = 60


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "stop"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def over() -> Iterator[threading.Event]:
    """Ends a training that would otherwise outlast its test."""
    event = threading.Event()
    yield event
    event.set()


def handlers() -> list[object]:
    return [signal.getsignal(number) for number in SIGNALS]


def send(number: int, until: Callable[[], bool]) -> None:
    """Sent by the training itself, so that it comes while there is one."""
    os.kill(os.getpid(), number)
    deadline = time.monotonic() + PATIENCE_S
    while not until():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_the_training_returns_or_raises_is_passed_on(file: Path, said: list[str]) -> None:
    def fail() -> None:
        raise KeyError("x")

    with Stopping(file, said.append) as found:
        assert found.while_training(lambda: 7) == 7
        with pytest.raises(KeyError, match="x"):
            found.while_training(fail)
    assert found.number is None
    assert not file.exists()
    assert said == []


def test_the_training_has_a_thread_of_its_own(file: Path, said: list[str]) -> None:
    with Stopping(file, said.append) as found:
        assert found.while_training(threading.current_thread) is not threading.current_thread()


@pytest.mark.parametrize("number", SIGNALS)
def test_the_first_signal_lets_the_training_end(file: Path, said: list[str], number: signal.Signals) -> None:
    def train() -> str:
        send(number, file.exists)
        return "stopped at 7"

    with Stopping(file, said.append) as found:
        assert found.while_training(train) == "stopped at 7"
        assert found.number == number
        assert file.exists()
    assert said == ["stopping at the next step, with a checkpoint; signal again to stop at once"]


@pytest.mark.parametrize("second", SIGNALS)
def test_the_second_signal_waits_for_nothing(
    file: Path, said: list[str], second: signal.Signals, over: threading.Event
) -> None:
    def train() -> None:
        send(signal.SIGTERM, file.exists)
        os.kill(os.getpid(), second)
        over.wait()

    with Stopping(file, said.append) as found:
        with pytest.raises(StopRequested) as asked:
            found.while_training(train)
        assert asked.value.number == second
        assert str(asked.value) == second.name
    assert len(said) == 1


@pytest.mark.parametrize("grace_s", [0, 0.1])
def test_learners_that_do_not_stop_are_waited_for_only_so_long(
    file: Path, said: list[str], over: threading.Event, grace_s: float
) -> None:
    def train() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        over.wait()

    with Stopping(file, said.append, grace_s) as found, pytest.raises(StopRequested, match=r"^SIGINT$"):
        found.while_training(train)
    assert file.exists() == bool(said) == (grace_s > 0)  # no checkpoint is promised where none will be


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_before_the_training_ends_the_run_at_once(file: Path, said: list[str], number: signal.Signals) -> None:
    with Stopping(file, said.append) as found:
        with pytest.raises(StopRequested) as asked:
            signal.raise_signal(number)
        assert asked.value.number == found.number == number
        assert found.training_over
        assert not isinstance(asked.value, Exception)  # or Ray's start would take it for a failure, and try again
    assert not file.exists()
    assert said == []


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_after_the_training_does_not_break_off_what_follows(
    file: Path, said: list[str], number: signal.Signals
) -> None:
    with Stopping(file, said.append) as found:
        found.while_training(lambda: None)
        signal.raise_signal(number)
    assert not file.exists()
    assert said == []


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("how", ["stopped", "not stopped"])
def test_a_further_signal_cuts_short_what_follows_a_stop(file: Path, number: signal.Signals, how: str) -> None:
    code = f"""
import os, signal, sys, time
from pathlib import Path
from genray.runs.stopping import StopRequested, Stopping
file = Path(sys.argv[1])
def train():
    os.kill(os.getpid(), signal.SIGTERM)
    while not file.exists():
        time.sleep(.01)
    if {how!r} == "not stopped":
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(600)
with Stopping(file, print) as stopping:
    try:
        stopping.while_training(train)
    except StopRequested:
        print("at once")
    print("training over", flush=True)
    signal.raise_signal({int(number)})
    print("what follows")
"""
    found = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert found.returncode == -number
    first, *then = found.stdout.splitlines()
    assert first.startswith("stopping at the next step")
    assert then == (["at once"] if how == "not stopped" else []) + ["training over"]


@pytest.mark.parametrize("failing", [False, True])
def test_the_handlers_from_before_are_restored(file: Path, said: list[str], failing: bool) -> None:
    taken: list[int] = []
    outer = signal.signal(signal.SIGTERM, lambda number, frame: taken.append(number))
    try:
        before = handlers()
        try:
            with Stopping(file, said.append):
                assert not set(before) & set(handlers())
                if failing:
                    raise KeyError
        except KeyError:
            pass
        assert handlers() == before
        signal.raise_signal(signal.SIGTERM)
        assert taken == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, outer)


def test_handlers_that_were_put_there_meanwhile_do_not_take_the_signals_of_the_training(
    file: Path, said: list[str]
) -> None:
    taken: list[int] = []
    before = handlers()
    with Stopping(file, said.append) as found:
        signal.signal(signal.SIGTERM, lambda number, frame: taken.append(number))  # as Ray does when it starts
        found.while_training(lambda: send(signal.SIGTERM, file.exists))
    assert taken == []
    assert handlers() == before


def test_a_mark_of_an_earlier_stop_is_removed(file: Path, said: list[str]) -> None:
    file.touch()
    with Stopping(file, said.append):
        assert not file.exists()


def test_outside_the_main_thread_no_signals_are_taken(file: Path, said: list[str]) -> None:
    before, found = handlers(), []

    def drive() -> None:
        with Stopping(file, said.append) as stopping:
            found.append(handlers())
            found.append(stopping.while_training(handlers))
            found.append(handlers())

    thread = threading.Thread(target=drive)
    thread.start()
    thread.join(PATIENCE_S)
    assert found == [before] * 3
