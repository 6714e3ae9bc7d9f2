"""Compares ways to feed the same training: `python benchmarks/side_by_side.py [--parts ways sizes]`.

    genray    generators render into the stream, the learner trains from it
    in turn   one process renders a ticket, then trains on it, and so on
    loader    a PyTorch DataLoader whose workers render the tickets
    files     the reference code's way: PNG files are written first, then read by a DataLoader with ImageFolder
    apart     generator and learner run at the same time without a connection; the rate is that of the slower one

All ways have the same generator, learner and number of steps, each in a process tree of its own. They take turns, and
are measured in anchors per second after a warm-up. Ratios are taken within a round. The last way trains on one block
only: it shows what this machine allows any way with one CPU core for each side. `sizes` compares the first and the
third way with larger and larger tickets.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - Ray's own name

from feeding import READY_TICKETS, SKIPPED_TICKETS, WARM_UP_TICKETS, WAYS

from genray.config.load import build, load
from genray.stream.plan import MIB, Plan

Record = dict[str, Any]
MIN_ANCHORS = 3200
"""Anchors of each measurement of `sizes` at least."""


def one(arguments: argparse.Namespace) -> None:
    """Measure one way, and print the result as the last line."""
    config = build(json.loads(Path(arguments.preset).read_text()))
    print(json.dumps(WAYS[arguments.way](config, arguments.tickets, arguments.workers)))


def main() -> None:
    """Run the parts, and write the report after each round."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("preset", nargs="?", default="demo")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--way", choices=WAYS, help="measure only this way, and print the result")
    parser.add_argument("--tickets", type=int, default=20)
    parser.add_argument("--workers", type=int, default=1, help="number of generators, and of workers of a DataLoader")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    arguments = parser.parse_args()
    if arguments.way:
        return one(arguments)
    report: Record = json.loads(arguments.out.read_text()) if arguments.out.exists() else {}
    report |= {"workers": arguments.workers}
    report |= {"machine": {"cpus": os.cpu_count(), "python": platform.python_version()}}
    report |= {"versions": {name: version(name) for name in ("genray", "ray", "torch", "torchvision")}}
    for part in arguments.parts:
        for result in PARTS[part](arguments):
            report[part] = result
            arguments.out.write_text(json.dumps(report, indent=1) + "\n")


def ways(arguments: argparse.Namespace) -> Iterator[Record]:
    """All ways, with the preset's tickets."""
    for rounds in take_turns(arguments, list(WAYS), arguments.tickets):
        rates = {way: [results[way]["anchors_per_s"] for results in rounds] for way in WAYS}
        ratios = {way: ratio(rates["genray"], rates[way]) for way in ("in turn", "loader", "files")}
        for results in rounds:
            files = results["files"]
            saved = 1 / results["genray"]["anchors_per_s"] - 1 / files["anchors_per_s"]  # seconds per anchor and epoch
            files["ahead_after_epochs"] = 1 / files["written_per_s"] / saved if saved > 0 else None
            files["first_epoch"] = 1 / (1 / files["written_per_s"] + 1 / files["anchors_per_s"])
        first = [results["files"]["first_epoch"] for results in rounds]
        yield {
            "preset": arguments.preset,
            "tickets": arguments.tickets,
            "overhead": spread([results["genray"]["overhead"] for results in rounds]),
            "scheduling": spread([results["genray"]["scheduling"] for results in rounds]),
            "anchors_per_s": {way: spread(values) for way, values in rates.items()},
            "genray_over": {**ratios, "files, written first": ratio(rates["genray"], first)},
            "apart_over_in_turn": ratio(rates["apart"], rates["in turn"]),
            "genray_over_apart": ratio(rates["genray"], rates["apart"]),
            "rounds": rounds,
        }


def sizes(arguments: argparse.Namespace) -> Iterator[list[Record]]:
    """The stream and a DataLoader, with tickets of more and more batches of 16 anchors."""
    done: list[Record] = []
    for batches in (1, 4, 16):
        tickets, rounds = max(arguments.tickets, MIN_ANCHORS // (16 * batches)), []
        overrides = ["--stream.batch_size", "16", "--stream.ticket_batches", str(batches)]
        for rounds in take_turns(arguments, ["genray", "loader"], tickets, overrides):  # noqa: B007
            pass
        rates = {way: [results[way]["anchors_per_s"] for results in rounds] for way in ("genray", "loader")}
        done.append(
            {
                "preset": arguments.preset,
                "anchors": 16 * batches,
                "genray_over_loader": ratio(rates["genray"], rates["loader"]),
                "blocks_per_s": {
                    way: spread([rate / 16 / batches for rate in values]) for way, values in rates.items()
                },
                "rounds": rounds,
            }
        )
        yield done


PARTS = {part.__name__: part for part in (ways, sizes)}


def take_turns(
    arguments: argparse.Namespace, names: list[str], tickets: int, overrides: Sequence[str] = ()
) -> Iterator[list[dict[str, Record]]]:
    """The results of all rounds so far, after each round; every second round takes the ways in reverse order."""
    rounds: list[dict[str, Record]] = []
    with tempfile.TemporaryDirectory() as directory:
        config = load(arguments.preset, overrides)
        values = config.to_dict() | {"name": "side", "storage_path": directory}
        # No more than needed: every ticket costs the stream a little, even if it is never used.
        steps = (SKIPPED_TICKETS + WARM_UP_TICKETS + tickets + SKIPPED_TICKETS) * Plan.of(config, 1).ticket_steps
        values["training"] |= {"steps": steps, "warmup_steps": 0, "checkpoint_every": steps}
        # On CPUs only, with one thread for each process, except where one process does everything.
        values["render_on"] = "pool"
        values["pool"] |= {"num": arguments.workers, "num_gpus": 0, "num_cpus": 0.5}
        values["pool"] |= {"look_ahead_mib": -(-READY_TICKETS * Plan.of(config).ticket_bytes // MIB)}
        values["learners"] |= {"num_workers": 1, "num_gpus": 0, "num_cpus": 0.5}
        values["tracking"] |= {"mlflow": False}
        file = Path(directory) / "side.json"
        file.write_text(json.dumps(values))
        for number in range(arguments.repeats):
            results = {}
            for way in names if number % 2 == 0 else reversed(names):
                command = [sys.executable, __file__, str(file), "--way", way, "--tickets", str(tickets)]
                command += ["--workers", str(arguments.workers)]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
                results[way] = json.loads(done.stdout.splitlines()[-1]) | {"load": os.getloadavg()[0]}
            shutil.rmtree(Path(directory) / "side", ignore_errors=True)
            rounds.append(results)
            print(json.dumps(results), flush=True)
            yield rounds


def ratio(ours: list[float], theirs: list[float]) -> Record:
    """Spread of the ratio within each round."""
    return spread([one / other for one, other in zip(ours, theirs, strict=True)])


def spread(values: list[float]) -> Record:
    """Median, minimum and maximum."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


if __name__ == "__main__":
    main()
