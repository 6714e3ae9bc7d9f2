"""What all tests share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - at Ray's default of 15 a busy machine would starve them
os.environ["RAY_AUTH_MODE"] = "disabled"  # before ray is imported: it would write a token into the home directory
os.environ["PYTHONPATH"] = os.pathsep.join(
    [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
)  # for workers

# Held for as long as the tests run; what they keep of generators is not for the user's own directory.
_CACHE = tempfile.TemporaryDirectory(prefix="genray-cache-", ignore_cleanup_errors=True)
os.environ["GENRAY_CACHE"] = _CACHE.name
