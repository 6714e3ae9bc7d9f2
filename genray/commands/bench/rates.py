"""The figures of a bench: rates of both sides, their efficiencies, the advice, and the table."""

from __future__ import annotations

import math
from typing import Any

from genray.config.run import Config
from genray.learner.balance import advice

Rates = dict[str, float]
"""What is measured, by name: most of it in anchors per second."""

MAX_PHASE_TICKETS = 150
"""Tickets of a learner in one phase at most, unless a minimum for each generator requires more."""


def efficiencies(rates: Rates, learners: int, devices: int) -> Rates:
    """How close the parts come to what they could do, as shares.

    `overlap`: both sides together, of the slower side alone. `transport`: the stream without training, of the
    generators alone. `share`: of all devices' time, the part that rendering and training alone would take.
    """
    generators = rates["generators"] * rates["generator"]
    return {
        "overlap": rates["together"] / min(generators, rates["learner"]),
        "transport": rates["stream"] / generators,
        "share": rates["together"] * (1 / rates["generator"] + learners / rates["learner"]) / devices,
    }


def devices(config: Config, cpus: float) -> int:
    """GPUs of both sides together, and a CPU core for each process without a GPU, as far as there are cores."""
    sides = [
        (config.pool.bounds.most, config.pool.num_gpus),
        (config.learners.bounds.most, config.learners.num_gpus),
    ]
    gpus = math.ceil(sum(number * share for number, share in sides) - 1e-6)
    return gpus + min(round(cpus), sum(number for number, share in sides if not share))


def bench_advice(rates: Rates, learners: int, reuse: int) -> str:
    """Which side is the bottleneck, and whether learners would better render themselves."""
    useful = rates["learner"] / rates["generator"] / reuse
    bottleneck = advice("pool", rates["generators"], useful, learners, reuse)
    if "inline" not in rates:
        return bottleneck
    ratio = rates["inline"] / rates["together"]
    if ratio > 1:
        return f"{bottleneck}; render_on = 'learners' is {ratio:.2f} times as fast and needs no separate generators"
    return f"{bottleneck}; render_on = 'learners' reaches {ratio:.2f} of it"


TABLE_ROWS = {
    "generator": "one generator alone, anchors/s",
    "learner": "learners alone, anchors/s",
    "stream": "stream without training, anchors/s",
    "together": "together, anchors/s",
    "inline": "learners render themselves, anchors/s",
    "blocks_per_s": "stream without training, blocks/s",
    "mib_per_s": "stream without training, MiB/s",
    "overlap": "overlap: together / slower side alone",
    "transport": "transport: stream / generators alone",
    "share": "share of the devices' time that is used",
}
"""Rows of the table, for what was measured, with their titles."""


def table(result: dict[str, Any]) -> list[str]:
    """A bench's result as lines for the user: each figure with its spread."""
    lines = [f"{'':46}{'median':>10}{'least':>10}{'most':>10}"]
    for key, text in TABLE_ROWS.items():
        if key not in result["median"]:
            continue
        values = (result[name][key] for name in ("median", "least", "most"))
        lines.append(f"{text:46}" + "".join(f"{value:10.3f}" if value < 10 else f"{value:10.0f}" for value in values))
    empty = result["empty_stream"]
    lines.append(f"{'stream without rendering, blocks/s':46}{empty['blocks_per_s']:10.1f}")
    lines.append(f"{'stream without rendering, MiB/s':46}{empty['mib_per_s']:10.0f}")
    return [*lines, result["advice"]]
