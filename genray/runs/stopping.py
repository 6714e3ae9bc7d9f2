"""Stopping a run: SIGTERM or Ctrl-C ends it at the next step with a checkpoint, a second signal ends it at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType, TracebackType
from typing import Literal, TypeVar

T = TypeVar("T")

SIGNALS = (signal.SIGTERM, signal.SIGINT)
GRACE_S = 60.0
"""Seconds in which the learners must finish their step and write a checkpoint."""


class StopRequested(BaseException):
    """This process was asked to end at once. No error, and like KeyboardInterrupt not an Exception."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stopping:
    """Handles this process's signals while it is entered. Outside the main thread it does nothing.

    Args:
        file: created when the run is asked to stop; the learners watch for it.
        say: called with lines for the user.
        grace_s: seconds in which the learners must finish their step and write a checkpoint; 0 if they write none.
    """

    def __init__(self, file: Path, say: Callable[[str], None], grace_s: float = GRACE_S):
        self.file, self.say, self.grace_s = file, say, grace_s
        self.number: int | None = None
        self.deadline = float("inf")
        self._phase: Literal["before", "training", "after"] = "before"
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stopping:
        self.file.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self._install_handlers()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # type: ignore[arg-type]

    def while_training(self, train: Callable[[], T]) -> T:
        """What `train` returns or raises. It runs in another thread, so that this one can handle signals.

        Raises:
            StopRequested: a second signal arrived, or the learners did not stop in time.
        """
        results: list[T] = []
        errors: list[BaseException] = []

        def run() -> None:
            try:
                results.append(train())
            except BaseException as error:
                errors.append(error)

        if self._before:
            self._install_handlers()  # Ray installed its own when it started
        thread = threading.Thread(target=run, name="genray-train", daemon=True)
        self._phase = "training"
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.1)
                if self.number is not None and time.monotonic() > self.deadline:
                    raise StopRequested(self.number)
        finally:
            self._phase = "after"
        if errors:
            raise errors[0]
        return results[0]

    @property
    def training_over(self) -> bool:
        """Whether the training has ended or is no longer waited for."""
        return self._phase == "after"

    def _install_handlers(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._phase == "before":
            self.number, self._phase = number, "after"
            raise StopRequested(number)
        if self._phase == "after":  # Ray shuts down: the first signal must not interrupt that, the second one may
            if self.number is not None:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.number = number
            return
        again, self.number = self.number is not None, number
        self.deadline = time.monotonic() + (0 if again else self.grace_s)
        if not again and self.grace_s:
            self.file.touch()
            self.say("stopping at the next step, with a checkpoint; signal again to stop at once")
