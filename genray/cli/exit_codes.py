"""How commands end: errors become a line on standard error and an exit code, without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from genray.config.errors import RunFailed, RunStopped, UserError


@contextmanager
def exit_codes() -> Iterator[None]:
    """End the process with a line and an exit code if the block raises an error that a command may end with."""
    try:
        yield
    except UserError as error:
        _fail(str(error), 2)
    except RunFailed as error:
        _fail(str(error), 1)
    except RunStopped as stopped:
        _fail(str(stopped), 130 if stopped.interrupted else os.EX_TEMPFAIL)
    except KeyboardInterrupt:
        _fail("interrupted", 130)


def _fail(message: str, code: int) -> None:
    print(f"genray: {message}", file=sys.stderr)
    sys.exit(code)
