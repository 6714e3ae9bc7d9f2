"""Random faults from a seeded schedule for N minutes, then the exactness check: `make soak MINUTES=30 SEED=0`."""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import time
from pathlib import Path

SUPPORT = str(Path(__file__).parent / "support")
sys.path.insert(0, SUPPORT)
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own name
os.environ["PYTHONPATH"] = os.pathsep.join([SUPPORT, os.environ.get("PYTHONPATH", "")])

from harness import IN_RUN, RESTARTED, Run  # noqa: E402


def main() -> None:
    """Hurt one run until the time is over; ends with an error if a step differs from what the seed says."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    draw, ends = random.Random(arguments.seed), time.monotonic() + 60 * arguments.minutes
    with tempfile.TemporaryDirectory() as directory:
        run = Run(Path(directory), "soak", learners={"max_failures": 1000})
        run.start()
        run.wait_for(lambda: run.step() >= 1)
        while time.monotonic() < ends:
            time.sleep(draw.expovariate(1 / 10))  # the next fault may come before the last one is mended
            fault = draw.choice([*IN_RUN, *RESTARTED, "stopped"])
            print(f"step {run.step():6}  {fault}", flush=True)
            if fault in IN_RUN:
                IN_RUN[fault](run)
            else:
                {**RESTARTED, "stopped": Run.stop}[fault](run)
                run.start("--pool.num", str(draw.randint(1, 2)))
            if draw.random() < 0.5:
                run.progress()
        run.progress(20)
        run.stop()
        steps = run.assert_exact()
        print(f"{steps} steps, {len(run.faults())} faults noted: each step showed what its seed says, once, in order")


if __name__ == "__main__":
    sys.exit(main())
