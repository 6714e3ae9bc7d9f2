"""What each fault costs a run: `python benchmarks/faults.py [--trials 20] [--out benchmarks/faults.json]`.

Runs on digit scenes are hurt again and again, each time when they have recovered from the time before. For each fault:
how often the run recovered, the seconds until it was ahead of where it had been, the steps that had to be made again,
and, at the end, whether every step of the whole run showed exactly what its seed says. Then the share of the
undisturbed speed that is left when a learner is killed every 30, 60 and 300 s.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parents[1] / "tests"
sys.path.insert(0, str(TESTS))
os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own name

from harness import IN_RUN, RESTARTED, Run  # noqa: E402

from genray import checkpoint, records  # noqa: E402

AHEAD = 20
"""Steps beyond the fault that tell a recovered run: more than the look-ahead holds."""

SLOWER = 5
"""Times that one of three generators is slower than the others, where the cost of that is measured."""
GOODPUT = {30: 4, 60: 2, 300: 1}
"""Seconds between two kills of a learner, and how many of them."""


def trial(run: Run, fault: str, hurt: Callable[[Run], Any], again: bool) -> dict[str, Any]:
    """Hurt the run once and wait until it is ahead of where it was."""
    run.progress(8)
    load = os.getloadavg()[0]
    lost_from, began = run.step(), time.monotonic()
    hurt(run)
    if again:
        run.start()
    last = checkpoint.last(run.path)
    kept = checkpoint.read_place(last).step if last else 0
    generator_only = fault.startswith("generator")
    found = {"fault": fault, "recovered": True, "steps_lost": 0 if generator_only else max(0, lost_from - kept)}
    try:
        run.wait_for(lambda: run.step() >= lost_from + AHEAD)
    except AssertionError as error:
        found |= {"recovered": False, "error": str(error)}
    return found | {"seconds": round(time.monotonic() - began, 2), "load": load}


def trials(storage: Path, faults: dict[str, Callable[[Run], Any]], count: int, again: bool) -> Iterator[dict[str, Any]]:
    """So many trials of each fault, in turn, on one run, which is then compared with what its seed says."""
    run = Run(storage, "restarted" if again else "hurt", generators={"look_ahead_mib": 1})
    run.start()
    run.wait_for(lambda: run.step() >= AHEAD)
    for _ in range(count):
        for fault, hurt in faults.items():
            found = trial(run, fault, hurt, again)
            yield found
            if not found["recovered"]:
                run.kill_everything()
                run.start()
                run.progress(AHEAD)
    run.stop()
    yield {"run": run.path.name, **sequence(run)}


def sequence(run: Run) -> dict[str, int]:
    """Steps of the run, and how many of them were left out, came twice or saw something else than they must."""
    found = records.read(run.path / "batches.jsonl")
    seen = [line["step"] for line in found]
    expected = {line["step"]: line for line in run.expected(max(seen))}
    return {
        "steps": max(seen),
        "missing": len(expected.keys() - set(seen)),
        "doubled": len(seen) - len(set(seen)),
        "different": sum(line != expected[line["step"]] for line in found)
        + sum(fault["fault"] == "replayed differently" for fault in run.faults()),
    }


def goodput(storage: Path) -> Iterator[dict[str, Any]]:
    """The share of the undisturbed speed that is left when a learner is killed every so many seconds."""
    run = Run(storage, "goodput", generators={"look_ahead_mib": 1})
    run.start()
    run.wait_for(lambda: run.step() >= AHEAD)
    undisturbed = speed(run, 60)
    for every, kills in GOODPUT.items():
        first, began = run.step(), time.monotonic()
        for kill in range(1, kills + 1):
            run.hurt("learner", signal.SIGKILL)
            time.sleep(max(0.0, began + kill * every - time.monotonic()))
        rate = (run.step() - first) / (time.monotonic() - began)
        yield {"kill_every_s": every, "kills": kills, "goodput": round(rate / undisturbed, 3)}
    run.stop()
    yield {"run": run.path.name, **sequence(run)}


def one_slow(storage: Path) -> Iterator[dict[str, Any]]:
    """What one slow generator of three costs an ordered stream, beside what it does not render itself."""
    speeds = {}
    for name in ("equal", "one slow"):
        run = Run(storage, name.replace(" ", "-"), slow_s=0.25, generators={"num": 3, "look_ahead_mib": 1})
        if name == "one slow":
            run.order("be slow")
        run.start()
        run.wait_for(lambda run=run: run.step() >= AHEAD)
        speeds[name] = speed(run, 45)
        run.stop()
    yield {
        "slower": SLOWER,
        "generators": 3,
        "measured": round(speeds["one slow"] / speeds["equal"], 3),
        "without_waiting": round((2 + 1 / SLOWER) / 3, 3),
    }


def speed(run: Run, seconds: float) -> float:
    """Steps a second."""
    first, began = run.step(), time.monotonic()
    time.sleep(seconds)
    return (run.step() - first) / (time.monotonic() - began)


def summary(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Recovered of how many, seconds (median, 95 %) and steps lost (median, most) of each fault."""
    found = {}
    for fault in dict.fromkeys(record["fault"] for record in records if "fault" in record):
        of = [record for record in records if record.get("fault") == fault]
        seconds = sorted(record["seconds"] for record in of if record["recovered"]) or [float("nan")]
        lost = [record["steps_lost"] for record in of]
        found[fault] = {
            "trials": len(of),
            "recovered": sum(record["recovered"] for record in of),
            "seconds_median": round(statistics.median(seconds), 1),
            "seconds_95": seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))],
            "steps_lost_median": statistics.median(lost),
            "steps_lost_most": max(lost),
        }
    return found


def main() -> None:
    """Run the trials and write the report after each, so that an interrupted measurement keeps what it has."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--parts", nargs="+", default=["slow", "in-run", "restarted", "goodput"])
    arguments = parser.parse_args()
    done: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as directory:
        storage = Path(directory)
        parts = {
            "in-run": lambda: trials(storage, IN_RUN, arguments.trials, again=False),
            "restarted": lambda: trials(storage, RESTARTED, arguments.trials, again=True),
            "slow": lambda: one_slow(storage),
            "goodput": lambda: goodput(storage),
        }
        for part in arguments.parts:
            for record in parts[part]():
                done.append(record)
                print(json.dumps(record), flush=True)
                arguments.out.write_text(json.dumps(report(done), indent=2) + "\n")


def report(records: list[dict[str, Any]]) -> dict[str, Any]:
    """What was measured, where and with what."""
    return {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("ray", "torch")},
        "load_median": round(statistics.median(record.get("load", 0.0) for record in records), 1),
        "checkpoint_every": 10,
        "ticket_timeout_s": 4,
        "hang_timeout_s": 8,
        "faults": summary(records),
        "slow": [record for record in records if "slower" in record],
        "goodput": [record for record in records if "goodput" in record],
        "sequences": [record for record in records if "run" in record],
    }


if __name__ == "__main__":
    main()
