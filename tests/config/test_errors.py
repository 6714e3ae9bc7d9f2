"""What an error of another process means for the run, as an object and as the text of a traceback."""

from __future__ import annotations

import pytest
from ray.exceptions import RayTaskError

from genray.config.errors import ConfigError, GenrayError, Hopeless, Reason, Remedy, RunFailed, UserError, reason_of
from genray.learner.learner import NotFinite
from genray.learner.recorder import CrashLoop
from genray.stream.attempts import NotCounted, StartFailed, TicketFailed
from genray.views.types import BadImages

TRACEBACK = """ray::MapWorker() (pid=1)
genray.views.types.BadImages: 1 of 4 images

The above exception was the direct cause of the following exception:

  File "genray/stream/attempts.py", line 1, in at
{last}
"""


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (UserError("x"), Remedy.USER),
        (ConfigError("x"), Remedy.USER),
        (BadImages("x"), Remedy.RETRY),
        (NotCounted("x"), Remedy.RETRY),
        (NotFinite("x"), Remedy.NONE),
        (TicketFailed("x"), Remedy.NONE),
        (StartFailed("x"), Remedy.NONE),
        (CrashLoop("x"), Remedy.NONE),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_an_error_means_the_same_as_an_object_and_as_text(error: GenrayError, remedy: Remedy) -> None:
    assert reason_of(error) == Reason(remedy, "x")
    last = f"{type(error).__module__}.{type(error).__name__}: x"
    text = TRACEBACK.format(last=last)
    assert reason_of(RuntimeError(text)) == Reason(remedy, "x")
    for cause in (error, ValueError("what Ray could not pickle")):
        assert reason_of(RayTaskError("rendered", text, cause)) == Reason(remedy, "x")
    assert reason_of(RayTaskError("rendered", text, error).as_instanceof_cause()) == Reason(remedy, "x")


@pytest.mark.parametrize("name", ["genray.removed.Error", "genray.runs.stopping.StopRequested"])
def test_an_error_outside_the_hierarchy_may_be_tried_again(name: str) -> None:
    assert reason_of(RuntimeError(TRACEBACK.format(last=f"{name}: it broke"))) == Reason(Remedy.RETRY, "it broke")


def test_other_errors_give_no_reason() -> None:
    assert reason_of(ValueError("genray.config.errors.UserError without a message")) is None
    assert reason_of(RuntimeError("RuntimeError: genray.config.errors.UserError: within a line")) is None


def test_a_command_raises_what_the_user_can_mend_as_such() -> None:
    for remedy in Remedy:
        error = Reason(remedy, "x").error()
        assert type(error) is (UserError if remedy is Remedy.USER else RunFailed)
        assert str(error) == "x"
    assert issubclass(TicketFailed, Hopeless)
