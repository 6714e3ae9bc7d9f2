"""Nodes of a cluster that go, come, and give notice, while a run goes on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import Run
from nodes import NOTICE_S, WHOLE, Nodes

from genray import checkpoint

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    made = Nodes()
    yield made
    made.cluster.shutdown()


@pytest.mark.parametrize("role", ["generator", "learner"])
def test_a_node_that_is_lost_is_replaced(role: str, nodes: Nodes, tmp_path: Path) -> None:
    run = Run(tmp_path, f"lost-{role}", generators=WHOLE, learners=WHOLE)
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
    many = {**WHOLE, "num_workers": learners}
    run = Run(tmp_path, "notice", generators=WHOLE, learners=many, training={"checkpoint_every": 20_000})
    for _ in range(learners - 1):  # Ray Data needs a CPU of its own
        nodes.cluster.add_node(num_cpus=1)
    nodes.start(run)
    run.wait_for(lambda: run.step() >= 13)
    assert checkpoint.last(run.path) is None
    node = nodes.of(run, "learner")
    nodes.give_notice(node)
    saved = run.wait_for(lambda: checkpoint.last(run.path))
    step = checkpoint.read_step(saved)
    time.sleep(NOTICE_S)
    nodes.lose(node)
    run.progress(40)
    assert run.stop() == 75
    assert step > 0
    run.assert_exact(losses=learners == 1)


def test_learners_grow_and_shrink_with_the_cluster(nodes: Nodes, tmp_path: Path) -> None:
    nodes.cluster.add_node(num_cpus=2)  # a learner takes a node of two CPUs, which nothing else needs
    learners = {"num_gpus": 0, "num_cpus": 2, "num_workers": [1, 2], "resize_every_s": 5}
    run = Run(tmp_path, "elastic", generators=WHOLE, learners=learners)
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
    run.assert_exact(losses=False)


def test_a_pool_of_generators_follows_the_learners(nodes: Nodes, tmp_path: Path) -> None:
    for _ in range(3):
        nodes.cluster.add_node(num_cpus=1, num_gpus=1)
    generators = {"num": [1, 3], "num_gpus": 1, "num_cpus": 0.25, "look_ahead_mib": 4}
    run = Run(tmp_path, "pool", generators=generators, learners=WHOLE)
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
