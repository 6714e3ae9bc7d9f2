"""What `genray bench` makes of its measurements; what measures is a whole run, in commands/test_train.py."""

from __future__ import annotations

import pytest
from fakes import small

from genray.commands.bench.bench import bench_config
from genray.commands.bench.rates import bench_advice, devices, efficiencies, table
from genray.stream.plan import Plan

RATES = {"generators": 2, "generator": 100.0, "learner": 300.0, "stream": 190.0, "together": 180.0, "inline": 100.0}


def test_efficiencies_are_shares_of_what_the_parts_could_do() -> None:
    found = efficiencies(RATES, 1, 3)
    assert found["overlap"] == 180 / 200  # of the generators, which are the slower side
    assert found["transport"] == 190 / 200
    assert found["share"] == pytest.approx((2 * 180 / 200 + 180 / 300) / 3)  # two devices render, one trains
    slow = efficiencies({**RATES, "learner": 150.0, "together": 120.0}, 1, 3)
    assert slow["overlap"] == 120 / 150


def test_all_of_the_time_is_used_where_even_sides_overlap_and_where_one_device_takes_turns() -> None:
    apart = {**RATES, "generators": 1, "learner": 100.0, "together": 100.0}
    assert efficiencies(apart, 1, 2)["share"] == 1
    in_turn = {**RATES, "generators": 1, "learner": 100.0, "together": 50.0}
    assert efficiencies(in_turn, 1, 1)["share"] == 1


@pytest.mark.parametrize(
    ("generators", "learners", "cpus", "number"),
    [
        ((1, 0), (1, 0), 2, 2),
        ((4, 0), (1, 0), 2, 2),
        ((3, 1), (2, 1), 64, 5),
        ((1, 0.5), (1, 0.5), 16, 1),
        ((2, 0), (1, 1), 16, 3),
    ],
)
def test_devices_are_counted(
    generators: tuple[int, float], learners: tuple[int, float], cpus: int, number: int
) -> None:
    config = small(
        pool={"num": generators[0], "num_gpus": generators[1]},
        learners={"num_workers": learners[0], "num_gpus": learners[1]},
    )
    assert devices(config, cpus) == number


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ({}, "the learners could use 3.0 generators, there are 2"),
        ({"learner": 100.0}, "1.0 generators would do, there are 2"),
        ({"inline": 90.0}, "render_on = 'learners' reaches 0.50 of it"),
        ({"inline": 360.0}, "render_on = 'learners' is 2.00 times as fast"),
    ],
)
def test_the_advice_names_the_bottleneck_and_the_faster_mode(rates: dict[str, float], told: str) -> None:
    assert told in bench_advice({**RATES, **rates}, 1, 1)


def test_the_advice_counts_what_is_used_again() -> None:
    assert "1.5 generators would do, there are 2" in bench_advice(RATES, 1, 2)
    fewer = {name: rate for name, rate in RATES.items() if name != "inline"}
    assert "inline" not in bench_advice(fewer, 1, 1)


def test_the_table_shows_each_figure_with_its_spread() -> None:
    rates = {**RATES, **efficiencies(RATES, 1, 3), "blocks_per_s": 2.5, "mib_per_s": 1234.0}
    found = {
        "median": rates,
        "least": {key: value / 2 for key, value in rates.items()},
        "most": {key: 2 * value for key, value in rates.items()},
        "empty_stream": {"blocks_per_s": 41.25, "mib_per_s": 99.0},
        "advice": "the advice",
    }
    lines = table(found)
    assert lines[0].split() == ["median", "least", "most"]
    assert "together, anchors/s                                  180        90       360" in lines
    assert "overlap: together / slower side alone              0.900     0.450     1.800" in lines
    assert "stream without rendering, blocks/s                  41.2" in lines
    assert lines[-1] == "the advice"
    for values in (found[name] for name in ("median", "least", "most")):
        del values["inline"]
    assert table(found) == [line for line in lines if "render themselves" not in line]


def test_what_is_measured_is_the_run_with_all_it_may_have() -> None:
    config = small(
        stream={"batch_size": 12, "ticket_batches": 2, "reuse": 3},
        render_on="learners",
        pool={"num": [1, 4], "look_ahead_mib": 4096},
        learners={"num_workers": [1, 3]},
    )
    found = bench_config(config, 2)
    assert (found.render_on, found.pool.num, found.learners.num_workers) == ("pool", 4, 3)
    assert (found.stream.reuse, found.tracking.mlflow) == (1, False)
    assert found.name != config.name
    plan = Plan.of(found)
    assert 3 * (4 + 3) * plan.ticket_bytes <= plan.look_ahead_bytes < 3 * (4 + 3) * plan.ticket_bytes + 2**20
    assert found.generator == config.generator
    assert found.model == config.model
