"""The command line."""

import time

STARTED = time.time()
"""When the command started, in Unix seconds."""
