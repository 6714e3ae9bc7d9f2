"""Write measured figures into README.md, so that none is typed by hand.

    python docs/figures.py runs/NAME/report.json

Fills the block `<!-- demo -->` … `<!-- /demo -->` from a run's report, and the block `<!-- generator -->` …
`<!-- /generator -->` from the report beside the embedded generator's weights. The same reports give the same README.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
GENERATOR = ROOT / "genray/generators/assets/digit_scenes/report.json"


def demo(report: dict[str, Any]) -> str:
    """The result of a run: probes, start-up, length and speed."""
    first = report["seconds_to_first_step"]
    parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in first.items() if name != "total")
    machine = report["hardware"]
    versions = ", ".join(f"{name} {report['versions'][name]}" for name in ("python", "torch", "ray"))
    lines = [
        "| accuracy on unseen digit scenes | kNN | linear probe |",
        "|---|---:|---:|",
        *(
            f"| {name.replace('_', ' ')} | {found['knn']:.1%} | {found['linear']:.1%} |"
            for name, found in report["probes"].items()
        ),
        "",
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
        "images that show the class asked for": f"{quality['recognised_as_intended']:.1%}",
        "their gaussian neighbours (std 1) that do": (
            f"{quality['recognised_as_intended_gaussian_neighbours_std_1']:.1%}"
        ),
        "the judging classifier, on real validation scenes": f"{quality['classifier_on_real_validation_scenes']:.1%}",
        "distance between two images of a class, generated and real": f"{quality['diversity_generated']:.3f} and "
        f"{quality['diversity_real']:.3f} (root mean square, pixels in 0 to 1)",
        "error against the scene of the same latent": f"{quality['mean_absolute_error_grey_levels']:.1f} grey levels",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())])


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, help="report.json of a finished demo")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    args = parser.parse_args()
    text = fill(args.readme.read_text(), "demo", demo(json.loads(args.report.read_text())))
    if GENERATOR.exists():
        text = fill(text, "generator", generator(json.loads(GENERATOR.read_text())))
    args.readme.write_text(text)


if __name__ == "__main__":
    main()
