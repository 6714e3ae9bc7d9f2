"""What each fault costs a run: `python benchmarks/faults.py [--trials 20] [--parts …] [--out benchmarks/faults.json]`.

Faults are injected into runs on digit scenes, one after the other, each once the run has recovered from the last. The
report has for each fault how often the run recovered, the seconds until it was ahead of where it had been, and the
recorded steps that it had to repeat; and for each run whether every step showed exactly what its seed says. Then it has
the cost of one slow generator out of three, and the share of the undisturbed speed that is left if a learner is killed
every 30, 60 and 300 s. Started again with the same --out, the benchmark adds the missing trials.
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

SUPPORT = str(Path(__file__).parents[1] / "tests" / "support")
sys.path.insert(0, SUPPORT)
os.environ["PYTHONPATH"] = os.pathsep.join([SUPPORT, os.environ.get("PYTHONPATH", "")])
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own name

from harness import IN_RUN, RESTARTED, Run, shown  # noqa: E402
from nodes import WHOLE, Nodes  # noqa: E402

from genray.runs import checkpoint  # noqa: E402
from genray.runs.jsonl import read  # noqa: E402
from genray.stream.plan import Plan  # noqa: E402

Record = dict[str, Any]
Hurts = dict[str, Callable[[Run], Any]]

SMALL_LOOK_AHEAD = {"look_ahead_mib": 1}
RECOVERED_STEPS = 20
"""Steps beyond the fault after which a run counts as recovered: more than its look-ahead holds."""

SLOW_FACTOR = 5
"""How many times slower than the two others the slow generator is."""
GOODPUT_KILLS = {30: 4, 60: 2, 300: 1}
"""Number of kills of a learner by the seconds between two of them."""


def trial(run: Run, fault: str, hurt: Callable[[Run], Any], again: bool) -> Record:
    """Inject a fault once, start the run again if need be, and wait until it is ahead of where it was."""
    run.progress(8)
    load = os.getloadavg()[0]
    logged, step, began = len(run.faults()), run.step(), time.monotonic()
    hurt(run)
    record: Record = {"fault": fault, "recovered": True}
    if again:
        run.start()
        last = checkpoint.last(run.path)
        record["steps_lost"] = max(0, step - (checkpoint.read_step(last) if last else 0))
    try:
        run.wait_for(lambda: run.step() >= step + RECOVERED_STEPS)
    except AssertionError as error:
        record |= {"recovered": False, "error": str(error)}
    if not again:
        record["steps_lost"] = sum(line.get("steps_lost", 0) for line in run.faults()[logged:])
    return record | {"seconds": round(time.monotonic() - began, 2), "load": load}


def trials(run: Run, start: Callable[[], None], hurts: Hurts, done: list[Record], count: int) -> Iterator[Record]:
    """The missing trials, in turn, on one run, and then whether its steps showed what its seed says."""
    missing = {fault: count - sum(record.get("fault") == fault for record in done) for fault in hurts}
    if not any(left > 0 for left in missing.values()):
        return
    start()
    run.wait_for(lambda: run.step() >= RECOVERED_STEPS)
    while left := [fault for fault in missing if missing[fault] > 0]:
        for fault in left:
            missing[fault] -= 1
            record = trial(run, fault, hurts[fault], fault in RESTARTED)
            yield record
            if not record["recovered"]:
                run.kill_everything()
                start()
                run.progress(RECOVERED_STEPS)
    run.stop()
    yield {"run": run.path.name, **sequence(run)}


def hurt(storage: Path, done: list[Record], count: int) -> Iterator[Record]:
    """Faults that a run survives by itself."""
    run = Run(storage, "hurt", pool=SMALL_LOOK_AHEAD)
    yield from trials(run, run.start, IN_RUN, done, count)


def restarted(storage: Path, done: list[Record], count: int) -> Iterator[Record]:
    """Faults after which a run is started again."""
    run = Run(storage, "restarted", pool=SMALL_LOOK_AHEAD)
    yield from trials(run, run.start, RESTARTED, done, count)


def full(storage: Path, done: list[Record], count: int) -> Iterator[Record]:
    """Full memory and disk, of a generator and of a learner that renders its own tickets."""
    memory = {line.split(":")[0]: int(line.split()[1]) for line in Path("/proc/meminfo").read_text().splitlines()}
    threshold = 1 - (memory["MemAvailable"] - 5 * 2**20) / memory["MemTotal"]  # 5 GiB from here
    limits = {"RAY_memory_usage_threshold": f"{threshold:.3f}", "RAY_memory_monitor_refresh_ms": "100"}
    pool = Run(storage, "pool", pool={**SMALL_LOOK_AHEAD, "ticket_timeout_s": 60})
    inline = Run(storage, "inline", render_on="learners")
    fill: Hurts = {"generator out of memory": lambda run: run.order("fill the memory")}
    yield from trials(pool, lambda: pool.start(**limits), fill, done, count)
    fill = {
        "learner out of memory": lambda run: run.order("fill the memory"),
        "disk full": lambda run: run.fill_the_disk("learner"),
    }
    yield from trials(inline, lambda: inline.start(**limits), fill, done, count)


def nodes(storage: Path, done: list[Record], count: int) -> Iterator[Record]:
    """Nodes that are lost, at once or after a notice, and replaced by others."""
    cluster = Nodes()
    run = Run(storage, "nodes", pool={**WHOLE, **SMALL_LOOK_AHEAD}, learners=WHOLE)
    lose: Hurts = {
        "generator node lost": lambda run: cluster.lose(cluster.of(run, "generator")),
        "learner node lost": lambda run: cluster.lose(cluster.of(run, "learner")),
        "learner node lost after a notice": lambda run: cluster.lose_after_notice(cluster.of(run, "learner")),
    }
    try:
        yield from trials(run, lambda: cluster.start(run), lose, done, count)
    finally:
        cluster.cluster.shutdown()


def sequence(run: Run) -> Record:
    """Steps of the run, and how many of them are missing, recorded twice, or showed other data than they must."""
    lines = read(run.path / "batches.jsonl")
    steps = [line["step"] for line in lines]
    expected = {shown[0]: shown for shown in run.expected(max(steps))}
    return {
        "steps": max(steps),
        "missing": len(expected.keys() - set(steps)),
        "doubled": len(steps) - len(set(steps)),
        "different": sum(shown(line) != expected[line["step"]] for line in lines)
        + sum(fault["fault"] == "replayed differently" for fault in run.faults()),
    }


def goodput(storage: Path, done: list[Record], count: int) -> Iterator[Record]:
    """The share of the undisturbed speed that is left if a learner is killed at regular intervals."""
    if any("goodput" in record for record in done):
        return
    run = Run(storage, "goodput", pool=SMALL_LOOK_AHEAD)
    run.start()
    run.wait_for(lambda: run.step() >= RECOVERED_STEPS)
    undisturbed = speed(run, 60)
    for every, kills in GOODPUT_KILLS.items():
        first, began = run.step(), time.monotonic()
        for kill in range(1, kills + 1):
            run.hurt("learner", signal.SIGKILL)
            time.sleep(max(0.0, began + kill * every - time.monotonic()))
        rate = (run.step() - first) / (time.monotonic() - began)
        yield {"kill_every_s": every, "kills": kills, "goodput": round(rate / undisturbed, 3)}
    run.stop()
    yield {"run": run.path.name, **sequence(run)}


def slow(storage: Path, done: list[Record], count: int) -> Iterator[Record]:
    """The speed of an ordered stream with one slow generator out of three, and what it would be without waiting."""
    if any("slower" in record for record in done):
        return
    undisturbed = pace(Run(storage, "equal", **of_three(8)))
    for look_ahead in (1, 8):
        run = Run(storage, f"slow-{look_ahead}", **of_three(look_ahead))
        run.order("be slow")
        yield {
            "slower": SLOW_FACTOR,
            "generators": 3,
            "look_ahead": Plan.of(run.config).look_ahead,
            "measured": round(pace(run) / undisturbed, 3),
            "without_waiting": round((2 + 1 / SLOW_FACTOR) / 3, 3),
        }


def of_three(look_ahead_mib: int) -> Record:
    """Settings of a run with three generators, which sleep most of the time."""
    return {"slow_s": 0.25, "pool": {"num": 3, "look_ahead_mib": look_ahead_mib}}


def pace(run: Run) -> float:
    """Steps per second of a run, once its first look-ahead has been used."""
    plan = Plan.of(run.config)
    run.start()
    run.wait_for(lambda: run.step() >= 2 * plan.look_ahead * plan.ticket_steps, 400)
    rate = speed(run, 60)
    run.stop()
    return rate


def speed(run: Run, seconds: float) -> float:
    """Steps per second, measured over this many seconds."""
    first, began = run.step(), time.monotonic()
    time.sleep(seconds)
    return (run.step() - first) / (time.monotonic() - began)


def summary(records: list[Record]) -> Record:
    """For each fault: trials, recoveries, seconds (median, 95 %) and steps lost (median, maximum)."""
    by_fault = {}
    for fault in dict.fromkeys(record["fault"] for record in records if "fault" in record):
        of_fault = [record for record in records if record.get("fault") == fault]
        seconds = sorted(record["seconds"] for record in of_fault if record["recovered"]) or [float("nan")]
        lost = [record["steps_lost"] for record in of_fault if "steps_lost" in record]
        by_fault[fault] = {
            "trials": len(of_fault),
            "recovered": sum(record["recovered"] for record in of_fault),
            "seconds_median": round(statistics.median(seconds), 1),
            "seconds_95": seconds[min(len(seconds) - 1, int(0.95 * len(seconds)))],
            "steps_lost_median": statistics.median(lost) if lost else None,
            "steps_lost_most": max(lost, default=None),
        }
    return by_fault


PARTS = {part.__name__: part for part in (hurt, restarted, full, nodes, slow, goodput)}


def main() -> None:
    """Run the trials, and write the report after each, so that an interrupted benchmark keeps its results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    arguments = parser.parse_args()
    done: list[Record] = json.loads(arguments.out.read_text())["records"] if arguments.out.exists() else []
    try:
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
            for part in arguments.parts:
                for record in PARTS[part](Path(directory), done, arguments.trials):
                    done.append(record)
                    print(json.dumps(record), flush=True)
                    arguments.out.write_text(json.dumps(report(done), indent=1) + "\n")
    finally:
        while Run.started:
            Run.started.pop().kill_everything()


def report(records: list[Record]) -> Record:
    """The report: the machine, the settings, a summary, and all records."""
    return {
        "machine": {"cpus": os.cpu_count(), "python": platform.python_version()},
        "versions": {name: version(name) for name in ("ray", "torch")},
        "load_median": round(statistics.median([record["load"] for record in records if "load" in record] or [0.0]), 1),
        "checkpoint_every": 10,
        "ticket_timeout_s": 4,
        "hang_timeout_s": 8,
        "faults": summary(records),
        "slow": [record for record in records if "slower" in record],
        "goodput": [record for record in records if "goodput" in record],
        "sequences": [record for record in records if "run" in record],
        "records": records,
    }


if __name__ == "__main__":
    main()
