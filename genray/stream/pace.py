"""Limits how often Ray Data's scheduling loop runs."""

from __future__ import annotations

import time
from typing import Any


class Pace:
    """Makes Ray Data's scheduling loop sleep until `STEP_S` after its last step.

    The loop itself sleeps only while it waits for a task. When the look-ahead is full, because the learners are the
    slower side, it would spin and occupy a CPU core.

    An execution callback: Ray Data creates one for each execution, from
    `DataContext.custom_execution_callback_classes`, and calls these methods.
    """

    STEP_S = 0.01
    """Long enough to use little CPU, and short enough not to slow the stream down."""

    def __init__(self) -> None:
        self.last = 0.0

    def on_execution_step(self, executor: Any) -> None:
        """Sleep for the rest of the step."""
        time.sleep(max(0.0, self.last + self.STEP_S - time.monotonic()))
        self.last = time.monotonic()

    def before_execution_starts(self, executor: Any) -> None:
        """There is nothing to do."""

    def after_execution_succeeds(self, executor: Any) -> None:
        """There is nothing to do."""

    def after_execution_fails(self, executor: Any, error: Exception) -> None:
        """There is nothing to do."""
