"""Nodes of a cluster that go, come, and give notice, while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import COMPARABLE, COMPARABLE_RTOL, Run
from nodes import WHOLE, Nodes

from genray.runs import checkpoint

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]
SAVE_EVERY_S = 15
"""Seconds between two checkpoints while a node is about to be taken away, as docs/faults.md has it."""


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.cluster.shutdown()


@pytest.mark.parametrize("role", ["generator", "learner"])
def test_a_node_that_is_lost_is_replaced(role: str, nodes: Nodes, tmp_path: Path) -> None:
    run = Run(tmp_path, f"lost-{role}", pool=WHOLE, learners=WHOLE)
    nodes.start(run)
    run.wait_for(lambda: run.step() >= 13)
    nodes.lose(nodes.of(run, role))
    run.progress(40)
    assert run.stop() == 75
    run.assert_exact()


@pytest.mark.parametrize("learners", [1, 2])
def test_a_node_that_gives_notice_costs_no_more_than_its_last_seconds(
    learners: int, nodes: Nodes, tmp_path: Path
) -> None:
    """The notice is long enough for three checkpoints; without any but the first all of its steps would be lost."""
    notice_s = round(2.5 * SAVE_EVERY_S)
    settings = {"learners": {**WHOLE, "num_workers": learners}, "training": {"checkpoint_every": 20_000}, **COMPARABLE}
    run = Run(tmp_path, "notice", slow_s=0.5, pool=WHOLE, **settings)
    for _ in range(learners - 1):  # Ray Data needs a CPU of its own
        nodes.cluster.add_node(num_cpus=1)
    nodes.start(run)
    run.wait_for(lambda: run.step() >= 13)
    assert checkpoint.last(run.path) is None
    node, first, saved = nodes.of(run, "learner"), run.step(), [0]
    nodes.give_notice(node, notice_s)
    began = time.monotonic()
    while (passed := time.monotonic() - began) < notice_s - 1:
        if (step := run.wait_for(lambda: checkpoint.last_step(run.path))) > saved[-1]:
            saved.append(step)
        time.sleep(0.5)
    made = run.step()
    nodes.lose(node)
    run.progress(40)
    assert run.stop() == 75
    assert len(saved) - 1 == 3
    in_time = (SAVE_EVERY_S + 3) * (made - first) / passed
    assert made - saved[-1] <= in_time < made - saved[1]
    assert {fault["fault"] for fault in run.faults()} <= {"node taken away after its notice"}  # it is no failure
    run.assert_exact(COMPARABLE_RTOL)


def test_learners_grow_and_shrink_with_the_cluster(nodes: Nodes, tmp_path: Path) -> None:
    nodes.cluster.add_node(num_cpus=2)  # a learner takes a node of two CPUs, which nothing else needs
    learners = {"num_gpus": 0, "num_cpus": 2, "num_workers": [1, 2], "resize_every_s": 5}
    run = Run(tmp_path, "elastic", slow_s=0.2, pool=WHOLE, learners=learners, **COMPARABLE)
    nodes.start(run)

    def working(number: int) -> bool:
        return bool(run.batches()) and run.batches()[-1]["learners"] == number

    run.wait_for(lambda: run.step() >= 13)
    assert working(1)
    another = nodes.cluster.add_node(num_cpus=2)
    run.wait_for(lambda: working(2))
    run.progress(20)
    nodes.cluster.remove_node(another, allow_graceful=False)
    run.wait_for(lambda: working(1))
    run.progress(20)
    assert run.stop() == 75
    run.assert_exact(COMPARABLE_RTOL)


def test_a_pool_of_generators_follows_the_learners(nodes: Nodes, tmp_path: Path) -> None:
    for _ in range(3):
        nodes.cluster.add_node(num_cpus=1, num_gpus=1)
    pool = {"num": [1, 3], "num_gpus": 1, "num_cpus": 0.25, "look_ahead_mib": 4}
    run = Run(tmp_path, "pool", pool=pool, learners=WHOLE)
    pace = run.orders / "slow_s"

    def renders(number: int) -> bool:
        return len(run.pids("generator")) == number

    pace.write_text("0.5")  # three of them are still too slow
    nodes.start(run)
    run.wait_for(lambda: renders(3))
    pace.write_text("0")  # one is faster than the learner
    run.wait_for(lambda: renders(1))
    pace.write_text("0.5")
    run.wait_for(lambda: renders(3))
    run.progress()
    assert run.stop() == 75
    run.assert_exact()
