"""How often Ray Data looks after a stream."""

from __future__ import annotations

import time
from typing import Any


class Pace:
    """Lets Ray Data's scheduling loop rest until `STEP_S` after its last step.

    By itself the loop rests only while it waits for a task. Where all that it may render lies ready, because the
    learners are the slower side, it would go round as fast as it can and take a processor of its own.

    Ray Data makes one for each execution, from `DataContext.custom_execution_callback_classes`, and calls it by these
    names.
    """

    STEP_S = 0.01
    """Long enough to take little, and short enough for the stream to move as many blocks as without it."""

    def __init__(self) -> None:
        self.last = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Rest for what is left."""
        time.sleep(max(0.0, self.last + self.STEP_S - time.monotonic()))
        self.last = time.monotonic()

    def before_execution_starts(self, executor: Any) -> None:
        """There is nothing to do."""

    def after_execution_succeeds(self, executor: Any) -> None:
        """There is nothing to do."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """There is nothing to do."""
