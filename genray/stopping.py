"""Being asked to stop: SIGTERM and Ctrl-C end a run at the next step with a checkpoint, a second one at once."""

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
WITHIN_S = 60.0


class Asked(BaseException):
    """This process was asked to end, and does not wait any longer; like KeyboardInterrupt no error."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number


class Stopping:
    """Takes the signals of this process while it is entered, in the main thread; elsewhere it takes none.

    Args:
        file: made when the run is asked to stop; the learners look for it.
        say: takes lines for the user.
        within_s: seconds that the learners get to come to a step's end and write a checkpoint; 0 for what keeps none.
    """

    def __init__(self, file: Path, say: Callable[[str], None], within_s: float = WITHIN_S):
        self.file, self.say, self.within_s = file, say, within_s
        self.number: int | None = None
        self.deadline = float("inf")
        self._phase: Literal["before", "training", "after"] = "before"
        self._before: dict[int, object] = {}

    def __enter__(self) -> Stopping:
        self.file.unlink(missing_ok=True)
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.getsignal(number) for number in SIGNALS}
            self._take()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler or signal.SIG_DFL)  # type: ignore[arg-type]

    def while_training(self, train: Callable[[], T]) -> T:
        """What `train` returns or raises; it runs in a thread of its own, so that signals are taken meanwhile.

        Raises:
            Asked: a second signal came, or the learners did not stop in time.
        """
        found: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                found.append(train())
            except BaseException as error:
                failed.append(error)

        if self._before:
            self._take()  # Ray has put its own handlers there when it started
        thread = threading.Thread(target=run, name="genray-train", daemon=True)
        self._phase = "training"
        thread.start()
        try:
            while thread.is_alive():
                thread.join(0.1)
                if self.number is not None and time.monotonic() > self.deadline:
                    raise Asked(self.number)
        finally:
            self._phase = "after"
        if failed:
            raise failed[0]
        return found[0]

    @property
    def over(self) -> bool:
        """Whether nobody waits for the training any longer."""
        return self._phase == "after"

    def _take(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._asked)

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self._phase == "before":
            self.number, self._phase = number, "after"
            raise Asked(number)
        if self._phase == "after":  # Ray is being shut down, which must not be broken off, but may be cut short
            if self.number is not None:
                signal.signal(number, signal.SIG_DFL)
                signal.raise_signal(number)
            self.number = number
            return
        again, self.number = self.number is not None, number
        self.deadline = time.monotonic() + (0 if again else self.within_s)
        if not again and self.within_s:
            self.file.touch()
            self.say("stopping at the next step, with a checkpoint; once more to stop at once")
