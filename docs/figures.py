"""Write measured figures into README.md and the pages of docs/, so that none is typed by hand.

    python docs/figures.py [runs/NAME/report.json]

A block stands between `<!-- NAME -->` and `<!-- /NAME -->`. Those of the demo, in README.md and
docs/getting-started.md, are filled from a run's report if one is given; the others from the report next to the embedded
generator's weights and from those of benchmarks/. The same reports give the same pages.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from genray.commands.bench.rates import TABLE_ROWS, bench_advice

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import plots  # noqa: E402

GENERATOR = ROOT / "genray/views/generators/assets/digit_scenes/report.json"


def demo(report: dict[str, Any]) -> str:
    """The result of a run: what its encoder is worth, and how long it took."""
    machine = report["hardware"]
    lines = [
        "| accuracy on unseen digit scenes | kNN | linear probe |",
        "|---|---:|---:|",
        *(
            f"| {name.replace('_', ' ')} | {found['knn']:.1%} | {found['linear']:.1%} |"
            for name, found in report["probes"].items()
        ),
        "",
        f"From the command to the report: {report['seconds_total']:.0f} s for {report['steps']} steps, on "
        f"{machine['cpus']:g} CPU cores and {machine['gpus']:g} GPUs.",
    ]
    return "\n".join(lines)


def demo_speed(report: dict[str, Any]) -> str:
    """Where the time of a run went."""
    first, machine = report["seconds_to_first_step"], report["hardware"]
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in first.items() if name != "total")
    versions = ", ".join(f"{name} {report['versions'][name]}" for name in ("python", "torch", "ray"))
    lines = [
        "| | |",
        "|---|---|",
        f"| start to the final report | {report['seconds_total']:.0f} s, {report['steps']} steps |",
        f"| start to the first step | {first['total']:.0f} s ({parts}) |",
        f"| while training, median | {report['images_per_s']:,.0f} images/s, "
        f"data wait {report['data_wait']:.0%}, generators busy {report['generator_busy']:.0%} |",
        f"| machine | {machine['cpus']:g} CPU cores, {machine['gpus']:g} GPUs |",
        f"| versions, seed | {versions}; {report['seed']} |",
    ]
    return "\n".join(lines)


def generator(report: dict[str, Any]) -> str:
    """How the embedded generator was trained, and how good it is."""
    training, quality = report["training"], report["quality"]
    rows = {
        "parameters": f"{training['parameters']:,}",
        "training": f"{training['steps']:,} steps of {training['batch']}, {training['seconds'] / 60:.0f} minutes "
        f"({training['device']}, torch {training['torch']}, seed {training['seed']})",
        "images that show the requested class": f"{quality['recognised_as_intended']:.1%}",
        "their gaussian neighbours (std 1) that do": (
            f"{quality['recognised_as_intended_gaussian_neighbours_std_1']:.1%}"
        ),
        "the judging classifier, on real validation scenes": f"{quality['classifier_on_real_validation_scenes']:.1%}",
        "distance between two images of a class, generated and real": f"{quality['diversity_generated']:.3f} and "
        f"{quality['diversity_real']:.3f} (root mean square, pixels in 0 to 1)",
        "error against the scene of the same latent": f"{quality['mean_absolute_error_grey_levels']:.1f} grey levels",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


AGAIN = "learners restart from the last checkpoint"
FRESH = "a fresh process renders the ticket again; the learners do not notice"
RESUMES = "the next start resumes"
FAULTS: list[tuple[str, str | None, str, str]] = [
    ("a generator is killed, or exits in the middle of a block", "generator killed", FRESH, "generators ●"),
    ("a generator raises", "generator raises", FRESH, "generators ●"),
    ("a generator renders NaN or a constant image", "generator renders NaN", FRESH, "generators ●"),
    ("a generator hangs (SIGSTOP)", "generator hangs", f"killed, then {FRESH}", "generators ●"),
    ("a ticket fails in every process", None, "the run ends with the ticket's number and its error", "generators ●"),
    ("a generator cannot be created", None, "refused at once, with its own message", "train ●"),
    ("a generator dies while it loads, every time", None, "the run ends with the error", "resources"),
    ("a learner is killed", "learner killed", AGAIN, "learners ●"),
    ("a learner hangs (SIGSTOP)", "learner hangs", f"noticed after `hang_timeout_s`, then {AGAIN}", "learners ●"),
    ("the split coordinator of Ray Data is killed", "split coordinator killed", AGAIN, "learners ●"),
    (
        "the controller of Ray Train is killed",
        "controller killed",
        "it is started again, and the learners from the last checkpoint",
        "learners ●",
    ),
    ("the whole process tree is killed", "everything killed, started again", RESUMES, "resume ●"),
    (
        "the command is killed, but its processes survive",
        "driver killed, started again",
        "the next start ends them by pid and start time, and resumes",
        "resume ●",
    ),
    ("SIGTERM, Ctrl-C", None, "a checkpoint at the next step; exit code 75 or 130", "all of them ●"),
    ("`ray job stop`", None, "the same, with `RAY_JOB_STOP_WAIT_TIME_S`", "jobs"),
    ("the head of the cluster is killed", None, RESUMES, "resources"),
    ("a node with a generator is lost", "generator node lost", FRESH, "cluster"),
    ("a node with a learner is lost", "learner node lost", AGAIN, "cluster"),
    (
        "a node gives notice that it will go",
        "learner node lost after a notice",
        "checkpoints until it is gone, then a restart",
        "cluster",
    ),
    (
        "nodes come and go, `num_workers = [min, max]`",
        None,
        "more or fewer learners; each step shows the same anchors",
        "cluster",
    ),
    ("learners fail again and again", None, "the run ends after `max_failures` without a new checkpoint", "resources"),
    ("memory runs out in a generator", "generator out of memory", f"Ray kills it; {FRESH}", "resources"),
    ("memory runs out in a learner", "learner out of memory", f"Ray kills it; {AGAIN}", "resources"),
    ("the disk is full, a checkpoint is cut short", "disk full", "never loaded; the one before it is", "resources"),
    ("the object store is full", None, "the generators are held back; nothing is spilled", "resources"),
    ("MLflow is away for a while", None, "training continues; what MLflow missed is written later", "resources"),
]
"""What happens, its name in benchmarks/faults.json, what is promised, its test in tests/faults or tests/commands."""


def faults(report: dict[str, Any]) -> str:
    """What each fault costs a run."""
    found, machine = report["faults"], report["machine"]
    rows = ["| what happens | what is promised | recovered | seconds, median (95 %) | repeated steps | test |"]
    rows.append("|---|---|---:|---:|---:|---|")
    for what, name, promise, test in FAULTS:
        measured = " | | "
        if name in found:
            of = found[name]
            measured = f"{of['recovered']} of {of['trials']} | {of['seconds_median']:.0f} ({of['seconds_95']:.0f}) | "
            if of["steps_lost_most"] is not None:
                measured += f"{of['steps_lost_median']:g}, at most {of['steps_lost_most']}"
        rows.append(f"| {what} | {promise} | {measured} | {test} |")
    sequences = report["sequences"]
    steps = sum(of["steps"] for of in sequences)
    wrong = ", ".join(f"{sum(of[key] for of in sequences)} {key}" for key in ("missing", "doubled", "different"))
    rows += [
        "",
        f"Measured on {machine['cpus']} CPU cores (load {report['load_median']}), Ray {report['versions']['ray']}, "
        f"small runs with a checkpoint every {report['checkpoint_every']} steps, `ticket_timeout_s` "
        f"{report['ticket_timeout_s']}, `hang_timeout_s` {report['hang_timeout_s']}. The seconds count until the "
        "run was ahead of where it had been; most of them go to new processes that import torch. All "
        f"{steps:,} steps of these runs were compared with what their seeds determine: {wrong}.",
    ]
    if goodput := report["goodput"]:
        told = ", ".join(f"{of['goodput']:.0%} with a kill every {of['kill_every_s']} s" for of in goodput)
        rows += ["", f"What is left of the undisturbed speed when learners are killed: {told}."]
    if slow := report["slow"]:
        first = slow[0]
        told = " and ".join(f"{of['measured']:.0%} with a look-ahead of {of['look_ahead']} tickets" for of in slow)
        rows += [
            "",
            "The stream is ordered, so a merely slow generator holds it up unless the look-ahead covers for it. "
            f"With one of {first['generators']} generators {first['slower']} times slower, "
            f"{first['without_waiting']:.0%} of the speed would be left if nothing waited for it; measured: {told}.",
        ]
    return "\n".join(rows)


def scaling(report: dict[str, Any]) -> str:
    """What a stream costs, with simulated generators and learners."""
    lines, told = [], []
    if found := report.get("overlap"):
        lines = ["Speed as a share of that of the slower side alone; the other side is 1.5 times faster:", ""]
        sides = ("generators slower", "learners slower")
        columns = [f"{number}, {side}" for number in ("1 learner", "2 learners") for side in sides]
        lines += [f"| generators | {' | '.join(columns)} | CPU per block |", "|---:|---:|---:|---:|---:|---:|"]
        for generators in sorted({of["generators"] for of in found}):
            here = [of for of in found if of["generators"] == generators]
            row = [
                _spread([of["efficiency"] for of in here if (of["learners"], of["slower"]) == (learners, slower)], 3)
                for learners in (1, 2)
                for slower in ("generators", "learners")
            ]
            cpu_ms = 1000 * statistics.median(of["cpu_s_per_block"] for of in here)
            lines.append(f"| {generators} | {' | '.join(row)} | {cpu_ms:.0f} ms |")
        lines.append("")
    if many := report.get("many"):
        large = ", ".join(f"{of['efficiency']:.3f} with {of['generators']}" for of in many)
        last = many[-1]
        told.append(
            f"With 4 learners, measured once each: {large} generators. Everything but these {last['generators']} and "
            f"the learners takes {last['memory_mib'] / 1024:.1f} GiB of memory and "
            f"{1000 * last['cpu_s_per_block']:.0f} ms of CPU per block."
        )
    if turns := report.get("balance"):
        told.append(
            f"With both sides equally fast, the stream has {_spread([of['ratio'] for of in turns])} times the speed of "
            "one process that renders and trains in turn; 2 is the limit."
        )
    if ceilings := report.get("ceiling"):
        rates = {mib: [of["blocks_per_s"] for of in ceilings if of["mib"] == mib] for mib in _each(ceilings, "mib")}
        told.append(
            "The most that one stream can move, where rendering costs nothing: "
            + ", ".join(f"{_spread(rate, 0)} blocks/s of {mib:g} MiB" for mib, rate in rates.items())
            + "."
        )
    if long := report.get("long"):
        first, last = long[0], long[-1]
        told.append(
            f"In a stream of {last['blocks']:,} small blocks, each of the first thousand takes "
            f"{1000 * first['s_per_block']:.0f} ms and each of the last {1000 * last['s_per_block']:.0f} ms, with "
            f"{1000 * first['cpu_s_per_block']:.0f} and {1000 * last['cpu_s_per_block']:.0f} ms of CPU outside "
            f"generators and learners. Ray Data keeps a record of each block (ray-project/ray#66016), which takes "
            f"{1024 * (last['memory_mib'] - first['memory_mib']) / (last['blocks'] - first['blocks']):.0f} KiB."
        )
    machine = report["machine"]
    told.append(f"Measured on {machine['cpus']} CPU cores, Ray {report['versions']['ray']}.")
    if set(report) >= plots.SCALING_PARTS:
        told.append("\n\n![Efficiency, what one stream can move, a long stream](scaling.png)")
    return "\n".join([*lines, " ".join(told)])


def side_by_side(report: dict[str, Any]) -> str:
    """The same training fed in other ways."""
    ways, names = (
        report["ways"],
        {
            "genray": "genray: generator and learner, one processor each",
            "in turn": "one process that renders, then trains, on all processors",
            "loader": "a DataLoader whose worker renders",
            "files": "PNG files, once written",
        },
    )
    lines = ["| way | anchors/s | genray / this way |", "|---|---:|---:|"]
    for way, text in names.items():
        rate, over = ways["anchors_per_s"][way], ways["genray_over"].get(way)
        lines.append(f"| {text} | {_range(rate, 0)} | {_range(over, 2) if over else ''} |")
    over = ways["genray_over"]["files, written first"]
    lines.append(f"| PNG files, first epoch, writing included | | {_range(over, 2)} |")
    written = [of["files"] for of in ways["rounds"]]
    size = statistics.median(of["bytes_per_anchor"] for of in written)
    speed = statistics.median(of["written_per_s"] for of in written)
    epochs = [of["ahead_after_epochs"] for of in written]
    ahead = "never" if None in epochs else f"after {statistics.median(epochs):.1f} epochs"
    sizes = "; ".join(
        f"{of['anchors']} anchors {_range(of['genray_over_loader'], 2)}, "
        f"{of['blocks_per_s']['genray']['median']:.1f} blocks/s"
        for of in report.get("sizes", [])
    )
    told = [
        f"The files take {size / 1024:.1f} KiB per anchor. All processors together write {speed:.0f} anchors a second, "
        f"and reading the same files again and again overtakes rendering new images {ahead}. A generator and a learner "
        f"that run at the same time with nothing between them show what this machine allows: "
        f"{_range(ways['apart_over_in_turn'], 2)} times the speed of one process. genray reaches "
        f"{_range(ways['genray_over_apart'], 2)} of that. All processes but generator and learner take "
        f"{ways['overhead']['median']:.1%} of the machine, the one that schedules the stream "
        f"{ways['scheduling']['median']:.1%}; the others are Ray's own and cost the same however much is rendered."
    ]
    if sizes:
        told.append(f"As a share of the speed of a DataLoader, by the size of a ticket in batches of 16: {sizes}.")
    machine, versions = report["machine"], report["versions"]
    told.append(
        f"Preset `{ways['preset']}` on {machine['cpus']} CPU cores, torch {versions['torch']}, Ray {versions['ray']}."
    )
    return "\n".join([*lines, "", " ".join(told)])


def bench(report: dict[str, Any]) -> str:
    """What `genray bench` found."""
    lines = ["| | median (least to most) |", "|---|---:|"]
    for key, text in TABLE_ROWS.items():
        of = {name: report[name][key] for name in ("median", "least", "most")}
        lines.append(f"| {text} | {_range(of, 2 if of['median'] < 10 else 0)} |")
    lines.append(f"| stream without rendering, blocks/s | {report['empty_stream']['blocks_per_s']:.0f} |")
    machine = report["hardware"]
    advice = bench_advice(report["median"], learners=1, reuse=1)  # of the demo, in today's words
    lines += ["", f"On {machine['cpus']:g} CPU cores, {machine['gpus']:g} GPUs: {advice}."]
    return "\n".join(lines)


PUBLISHED_WIDTH = 128
"""Channels of the published networks."""


def biggan(report: dict[str, Any]) -> str:
    """The package's BigGAN-deep and genray's, by option."""
    return "\n\n".join(_biggan(run) for run in report["runs"] if run["width"] == PUBLISHED_WIDTH)


def _biggan(run: dict[str, Any]) -> str:
    """One size on one device."""
    stock, ours, gpu = run["ways"]["stock"], run["ways"]["float32"], run["device"] != "CPU"
    copied = statistics.median(run["copy_bytes_per_s"])
    multiplied = {name: statistics.median(rates) for name, rates in run["matmul_macs_per_s"].items()}
    columns = [
        "images/s",
        "× stock",
        "grey levels off, trained weights",
        "random weights",
        "MiB",
        "bytes",
        "arithmetic",
    ]
    lines = [
        f"| {run['size']} px, {run['device']} | {' | '.join(columns)} |",
        f"|---{'|---:' * len(columns)}|",
    ]
    for name, of in run["ways"].items():
        rate = statistics.median(of["images_per_s"])
        cells = [f"{rate:,.0f}" if rate >= 100 else f"{rate:.2f}", "" if of is stock else _spread(of["over_stock"])]
        for off in (of.get("error"), of.get("error_random")):
            cells.append(f"{off['mean']:.3f}, {off['percentile_99.9']}, {off['max']}" if off else "")
        cells.append(f"{of['memory_bytes'] / 2**20:,.0f}" if of["memory_bytes"] else "")
        if of["bytes"]:
            cells.append(f"{rate * of['bytes'] / copied:.0%}")
        else:
            cells.append("")
        cells.append(f"{rate * of['macs'] / multiplied[of['precision']]:.0%}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    peaks = ", ".join(
        f"{rate / 1e9:,.0f} billion multiply-adds a second in {name}" for name, rate in multiplied.items()
    )
    lines += [
        "",
        f"{run['micro_batch']} images at once, torch {run['versions']['torch']}"
        + ("" if gpu else f", {run['threads']} threads")
        + (", the package's convolutions with TF32, as torch has them" if stock["precision"] == "tf32" else "")
        + f". Per image the package takes {stock['macs'] / 1e9:.1f} billion multiply-adds and "
        f"{stock['bytes'] / 1e6:.0f} MB read and written, genray {ours['macs'] / 1e9:.1f} and "
        f"{ours['bytes'] / 1e6:.0f}. This device copies at {copied / 1e9:,.0f} GB/s and reaches {peaks} in a matrix "
        "product.",
    ]
    return "\n".join(lines)


def _each(records: list[dict[str, Any]], key: str) -> list[Any]:
    """Its values, each once, in order."""
    return list(dict.fromkeys(record[key] for record in records))


def _spread(values: list[float], digits: int = 2) -> str:
    return _range({"median": statistics.median(values), "least": min(values), "most": max(values)}, digits)


def _range(found: dict[str, float], digits: int) -> str:
    return "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(found["median"], found["least"], found["most"], d=digits)


def fill(text: str, name: str, content: str) -> str:
    """The text with this content between the markers of a block; raises ValueError where there is no such block."""
    filled, count = re.subn(
        rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)",
        lambda found: found[1] + content + found[2],
        text,
        flags=re.DOTALL,
    )
    if count != 1:
        raise ValueError(f"the text must hold the block <!-- {name} --> once, got it {count} times")
    return filled


REPORTS = {
    generator: GENERATOR,
    faults: ROOT / "benchmarks/faults.json",
    scaling: ROOT / "benchmarks/scaling.json",
    side_by_side: ROOT / "benchmarks/side_by_side.json",
    bench: ROOT / "benchmarks/bench-demo.json",
    biggan: ROOT / "benchmarks/generator.json",
}
"""The blocks, and the files that they are made from."""

PAGES = {"generators.md": [generator], "faults.md": [faults], "performance.md": [scaling, bench, side_by_side, biggan]}
"""The blocks of each page of docs/."""

OF_THE_DEMO = {ROOT / "README.md": demo, ROOT / "docs/getting-started.md": demo_speed}
"""The pages that show a run of the demo, and their blocks."""


def written(name: str) -> str:
    """A page with every block that there is a report for."""
    text = (ROOT / "docs" / name).read_text()
    for block in PAGES[name]:
        if REPORTS[block].exists():
            text = fill(text, block.__name__, block(json.loads(REPORTS[block].read_text())))
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, nargs="?", help="report.json of a finished demo")
    args = parser.parse_args()
    if args.report:
        report = json.loads(args.report.read_text())
        for page, block in OF_THE_DEMO.items():
            page.write_text(fill(page.read_text(), block.__name__, block(report)))
    for name in PAGES:
        (ROOT / "docs" / name).write_text(written(name))


if __name__ == "__main__":
    main()
