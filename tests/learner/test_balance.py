"""Which side is the bottleneck: against numbers worked out by hand, and against runs simulated with a known answer."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from fakes import small

from genray.learner import balance
from genray.learner.balance import Measurements, advice, bottleneck
from genray.stream.plan import Plan
from genray.stream.renderer import Renderer
from genray.stream.tickets import Course
from genray.views.types import Block


def block(anchors: int = 6, views: int = 2, render_s: float = 1.5, age_s: float = 0.0, generator: str = "a") -> Block:
    return {
        "views": np.zeros((anchors, views, 3, 8, 8), np.uint8),
        "render_s": np.full(anchors, render_s),
        "created_at": np.full(anchors, time.time() - age_s),
        "generator": np.full(anchors, generator),
    }


def test_blocks_are_counted_as_they_arrive() -> None:
    measured = Measurements()
    measured.arrived(block(age_s=10, generator="a"))
    measured.arrived(block(anchors=4, views=1, render_s=0.5, age_s=5, generator="b"))
    measured.arrived(block(age_s=1, generator="a"))
    assert (measured.blocks, measured.images, measured.render_s) == (3, 6 * 2 + 4 + 6 * 2, 3.5)
    assert measured.mib == pytest.approx(28 * 3 * 8 * 8 / 1024**2)
    assert measured.age_s == pytest.approx(16, abs=0.5)
    assert measured.generators == ["a", "b"]
    assert (measured.steps, measured.seconds) == (0, {})


def test_a_rendered_block_is_counted() -> None:
    config = small()
    renderer = Renderer(config, "cpu")
    before = time.time()
    made = renderer.block(Course(Plan.of(config)).ticket(0))
    measured = Measurements()
    measured.arrived(made)
    assert (measured.blocks, measured.images, measured.mib) == (1, 16, 16 * 3 * 8 * 8 / 1024**2)
    assert 0 < measured.render_s == made["render_s"][0]
    assert 0 <= measured.age_s <= time.time() - before
    assert measured.generators == [renderer.identity]


def test_measurements_may_be_sent_as_json() -> None:
    measured = Measurements(steps=3, seconds={"wait": 1.5})
    measured.arrived(block())
    measured.arrived(block(generator="b"))
    assert Measurements(**json.loads(json.dumps(measured.to_dict()))) == measured


ONE = Measurements(
    steps=4,
    seconds={"wait": 2, "copy": 0.5, "augment": 0.5, "forward_backward": 4, "optimizer": 0.6, "other": 0.4},
    blocks=2,
    images=64,
    mib=6.0,
    render_s=12.0,
    age_s=5.0,
    generators=["a", "b"],
)
OTHER = Measurements(
    steps=4,
    seconds={"wait": 4, "forward_backward": 8},
    blocks=1,
    images=36,
    mib=4.0,
    render_s=8.0,
    age_s=4.0,
    generators=["b", "c"],
)


def test_one_learner_by_hand() -> None:
    """4 steps of 32 views in 8 s, 2 s of them waited; 12 s of rendering arrived in 2 blocks."""
    assert balance.metrics([ONE], 32, 3) == pytest.approx(
        {
            "images_per_s": 16,
            "data_wait": 0.25,
            "step_ms.wait": 500,
            "step_ms.copy": 125,
            "step_ms.augment": 125,
            "step_ms.forward_backward": 1000,
            "step_ms.optimizer": 150,
            "step_ms.other": 100,
            "rendered_per_s": 8,
            "generators": 3,
            "generator_busy": 0.5,
            "generators_useful": 2,
            "view_age_s": 2.5,
            "mib_ahead": 1.875,
        }
    )


def test_two_learners_by_hand() -> None:
    """4 steps of 32 views in 10 s on average, 3 s of them waited; 20 s of rendering arrived in 3 blocks."""
    assert balance.metrics([ONE, OTHER], 32, 1) == pytest.approx(
        {
            "images_per_s": 12.8,
            "data_wait": 0.3,
            "step_ms.wait": 750,
            "step_ms.copy": 62.5,
            "step_ms.augment": 62.5,
            "step_ms.forward_backward": 1500,
            "step_ms.optimizer": 75,
            "step_ms.other": 50,
            "rendered_per_s": 10,
            "generators": 3,
            "generator_busy": 2 / 3,
            "generators_useful": 20 / 7,
            "view_age_s": 3,
            "mib_ahead": 3,
        }
    )


@pytest.mark.parametrize(("fewest", "generators", "busy"), [(1, 2, 0.75), (2, 2, 0.75), (6, 6, 0.25)])
def test_generators_are_those_seen_or_the_fewest_that_there_are(fewest: int, generators: int, busy: float) -> None:
    found = balance.metrics([ONE], 32, fewest)
    assert (found["generators"], found["generator_busy"], found["generators_useful"]) == (generators, busy, 2)


def test_generators_are_never_more_than_busy() -> None:
    """What arrives in a window may have been rendered before it."""
    found = balance.metrics(
        [Measurements(steps=1, seconds={"other": 2.0}, blocks=1, render_s=9.0, generators=["a"])], 1, 1
    )
    assert (found["generator_busy"], found["generators_useful"]) == (1, 4.5)


def test_without_a_block_only_the_learners_are_measured() -> None:
    measured = Measurements(steps=2, seconds={"wait": 1.0, "optimizer": 3.0})
    found = balance.metrics([measured, measured], 32, 3)
    assert found.pop("images_per_s") == 16
    assert found.pop("data_wait") == 0.25
    assert found == {f"step_ms.{name}": {"wait": 500, "optimizer": 1500}.get(name, 0) for name in balance.PHASES}


def test_a_block_of_one_learner_is_enough() -> None:
    found = balance.metrics([ONE, Measurements(steps=4, seconds={"wait": 4, "other": 4})], 32, 1)
    assert (found["generators"], found["view_age_s"], found["generators_useful"]) == (2, 2.5, 12 / 5)


def test_learners_that_did_nothing_but_wait_can_use_any_number() -> None:
    found = balance.metrics(
        [Measurements(steps=1, seconds={"wait": 2.0}, blocks=1, render_s=1.0, generators=["a"])], 8, 1
    )
    assert found["data_wait"] == 1
    assert bottleneck(1000, found["generators_useful"]) == "generators"


def simulated(generators: int, learners: int = 1, render_s: float = 2.5, step_s: float = 1.0) -> list[Measurements]:
    """Each learner makes a step of each of its blocks; at most 12 blocks are rendered ahead. The start is left out."""
    ahead, blocks, begin = 12, 600, 200
    free, ends = [0.0] * generators, [0.0] * learners
    found = [Measurements(seconds={"wait": 0.0, "forward_backward": 0.0}) for _ in range(learners)]
    taken: list[float] = []
    for number in range(blocks * learners):
        generator, learner = free.index(min(free)), number % learners
        room = taken[number - ahead] if number >= ahead else 0.0
        free[generator] = ready = max(free[generator], room) + render_s
        taken.append(max(ready, ends[learner]))
        if number >= begin * learners:
            measured = found[learner]
            measured.steps += 1
            measured.blocks += 1
            measured.images += 8
            measured.mib += 2.0
            measured.render_s += render_s
            measured.age_s += taken[-1] - ready
            measured.seconds["wait"] += taken[-1] - ends[learner]
            measured.seconds["forward_backward"] += step_s
            measured.generators = sorted({*measured.generators, str(generator)})
        ends[learner] = taken[-1] + step_s
    return found


@pytest.mark.parametrize(
    ("generators", "data_wait", "busy", "side"),
    [
        (1, 0.6, 1.0, "generators"),  # a block each 2.5 s
        (2, 0.2, 1.0, "generators"),
        (3, 0.0, 2.5 / 3, "learners"),
        (5, 0.0, 0.5, "learners"),
        (10, 0.0, 0.25, "learners"),
    ],
)
def test_the_generators_that_are_useful_are_known_with_any_number_of_them(
    generators: int, data_wait: float, busy: float, side: str
) -> None:
    """A learner that needs 1 s for a block and generators that need 2.5 s: 2.5 keep up with it."""
    found = balance.metrics(simulated(generators), 8, 1)
    assert found["generators"] == generators
    assert found["generators_useful"] == pytest.approx(2.5)
    assert found["data_wait"] == pytest.approx(data_wait, abs=0.01)
    assert found["generator_busy"] == pytest.approx(busy, abs=0.01)
    assert found["images_per_s"] == found["rendered_per_s"] == pytest.approx(8 * (1 - data_wait), rel=0.01)
    assert bottleneck(found["generators"], found["generators_useful"]) == side


@pytest.mark.parametrize(("generators", "side"), [(4, "generators"), (5, "neither"), (6, "learners")])
def test_twice_the_learners_have_use_for_twice_the_generators(generators: int, side: str) -> None:
    found = balance.metrics(simulated(generators, learners=2), 8, 1)
    assert found["generators_useful"] == pytest.approx(5)
    assert found["rendered_per_s"] == pytest.approx(16 * min(1, generators / 5), rel=0.01)
    assert bottleneck(found["generators"], found["generators_useful"]) == side


def test_what_lies_ready_is_told_without_looking() -> None:
    """Of the 12 blocks that are begun but not taken, 2.5 are being rendered; with a slow generator, none is ready."""
    assert balance.metrics(simulated(6), 8, 1)["mib_ahead"] == pytest.approx(2 * (12 - 2.5), rel=0.01)
    assert balance.metrics(simulated(1), 8, 1)["mib_ahead"] == pytest.approx(0, abs=0.01)


@pytest.mark.parametrize(
    ("generators", "useful", "side"),
    [
        (2, 2.0, "neither"),
        (2, 2.19, "neither"),
        (2, 2.21, "generators"),
        (2, 40.0, "generators"),
        (2.19, 2.0, "neither"),
        (2.21, 2.0, "learners"),
        (40, 2.0, "learners"),
    ],
)
def test_the_sides_are_even_within_a_tenth(generators: float, useful: float, side: str) -> None:
    assert bottleneck(generators, useful) == side


@pytest.mark.parametrize(
    ("render_on", "generators", "useful", "learners", "reuse", "sentence"),
    [
        (
            "learners",
            1,
            0.25,
            1,
            1,
            "each learner renders for 20% of its time; on separate devices, 0.2 generators would keep up with "
            "1 learner",
        ),
        (
            "learners",
            2,
            6.0,
            2,
            1,
            "each learner renders for 75% of its time; on separate devices, 6.0 generators would keep up with "
            "2 learners",
        ),
        (
            "pool",
            2.0,
            5.0,
            1,
            1,
            "generators are the bottleneck: the learners could use 5.0 generators, there are 2 "
            "(or use each view 3 times instead of 1: stream.reuse, in a new run)",
        ),
        (
            "pool",
            1,
            2.0,
            4,
            3,
            "generators are the bottleneck: the learners could use 2.0 generators, there is 1 "
            "(or use each view 6 times instead of 3: stream.reuse, in a new run)",
        ),
        (
            "pool",
            4,
            1.6,
            1,
            1,
            "learners are the bottleneck: 1.6 generators would do, there are 4, "
            "which could feed 2.5 learners instead of 1",
        ),
        (
            "pool",
            1,
            0.5,
            2,
            1,
            "learners are the bottleneck: 0.5 generators would do, there is 1, "
            "which could feed 4.0 learners instead of 2",
        ),
        ("pool", 3, 2.9, 1, 1, "generators and learners are balanced: 2.9 generators would do, there are 3"),
        ("pool", 1, 1.04, 2, 2, "generators and learners are balanced: 1.0 generators would do, there is 1"),
        ("pool", 2.5, 2.5, 1, 1, "generators and learners are balanced: 2.5 generators would do, there are 2.5"),
    ],
)
def test_advice_is_a_sentence(
    render_on: str, generators: float, useful: float, learners: float, reuse: int, sentence: str
) -> None:
    assert advice(render_on, generators, useful, learners, reuse) == sentence


def test_a_run_is_judged_by_the_time_in_which_its_learners_did_not_wait() -> None:
    def record(step: int, busy_ms: float, **found: float) -> dict[str, float]:
        return {"step": step, "step_ms.wait": 1000.0, "step_ms.augment": busy_ms, **found}

    records = [record(10, 5.0, generators_useful=8.0), record(20, 5.0, generators_useful=2.0), record(30, 10.0)]
    assert balance.mean_generators_useful(records) == pytest.approx((50 * 8 + 50 * 2) / 200)
    assert balance.mean_generators_useful(records, after=10) == pytest.approx(50 * 2 / 150)
    assert balance.mean_generators_useful(records, after=30) == 0
