"""What the tests of faults share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from harness import Run


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """A test that failed must not leave its run to the next ones."""
    yield
    while Run.started:
        Run.started.pop().kill_everything()
