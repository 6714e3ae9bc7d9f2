"""What all tests share."""

from __future__ import annotations

import os

os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - at Ray's default of 15 a busy machine would starve them
os.environ["RAY_AUTH_MODE"] = "disabled"  # before ray is imported: it would write a token into the home directory
