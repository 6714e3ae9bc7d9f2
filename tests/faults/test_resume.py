"""A run whose whole process tree is killed, at any step, and that is started again."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from harness import COMPARABLE, COMPARABLE_RTOL, Run, shown
from mlflow import MlflowClient

pytestmark = pytest.mark.ray


def shared_memory() -> int:
    """Bytes in use in /dev/shm."""
    found = os.statvfs("/dev/shm")
    return (found.f_blocks - found.f_bfree) * found.f_frsize


def test_a_run_killed_at_arbitrary_steps_shows_the_same_as_one_that_was_not(tmp_path: Path) -> None:
    store, memory = f"sqlite:///{tmp_path}/mlflow.db", shared_memory()
    run = Run(tmp_path, "resumed", tracking={"mlflow": True, "uri": store}, training={"log_every": 7})
    run.start()
    run.wait_for(lambda: run.step() >= 1)  # before the first checkpoint, as a rule
    run.kill_everything()
    run.start()
    run.wait_for(lambda: run.step() >= 13)
    orphans = run.tree()
    for pid in (*run.pids("learner"), *run.pids("generator")):
        os.kill(pid, signal.SIGSTOP)  # these do not notice that their driver is gone
    run.kill_driver()
    run.start("--pool.num", "2")  # another number of generators shows the same
    run.wait_for(lambda: run.step() >= 33)
    assert not {pid: title for pid, title in orphans.items() if alive(pid)}
    assert run.stop() == 75  # with a checkpoint in the middle of a window, six times of seven
    assert "processes left by an earlier start of resumed" in run.said
    run.start("--render_on", "learners")  # and so do learners that render themselves
    run.wait_for(lambda: run.step() >= 53)
    assert run.stop() == 75
    assert run.assert_exact() >= 53
    assert shared_memory() <= memory + 2**20

    client = MlflowClient(store)
    (experiment,) = [found for found in client.search_experiments() if found.name == "genray"]
    (record,) = client.search_runs([experiment.experiment_id], "tags.kind = 'run'")
    history = client.get_metric_history(record.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(r["step"], r["loss"]) for r in run.metrics()]


@pytest.mark.slow
def test_a_run_goes_on_with_another_number_of_learners_from_any_step(tmp_path: Path) -> None:
    run = Run(tmp_path, "learners", **COMPARABLE)
    for learners in ("1", "2", "1"):
        run.start("--learners.num_workers", learners)
        run.progress(31)
        assert run.stop() == 75
    found = [line["learners"] for line in run.batches()]
    assert (found[0], found[-1], set(found)) == (1, 1, {1, 2})
    run.assert_exact(COMPARABLE_RTOL)


def test_a_run_that_uses_its_blocks_again_goes_on_within_a_window(tmp_path: Path) -> None:
    """A window of 5 steps is shown three times; a ticket has 2."""
    run = Run(tmp_path, "reuse", stream={"reuse": 3, "reuse_window": 5}, training={"checkpoint_every": 4})
    run.start()
    run.wait_for(lambda: run.step() >= 18)
    run.kill_everything()
    run.start()
    run.wait_for(lambda: run.step() >= 40)
    assert run.stop() == 75
    found, metrics = run.batches(), run.metrics()
    alone = run.alone(metrics[-1]["step"])
    seen = [line for record in alone for line in record["batches"]]
    assert found[: len(seen)] == seen
    assert [line["step"] for line in found] == list(range(1, len(found) + 1))
    np.testing.assert_allclose([r["loss"] for r in metrics], [r["loss"] for r in alone], rtol=1e-3)


@pytest.mark.slow
def test_a_run_that_uses_its_blocks_again_shows_the_same_with_another_number_of_learners(tmp_path: Path) -> None:
    run = Run(tmp_path, "reused", stream={"reuse": 3, "reuse_window": 5}, **COMPARABLE)
    for learners in ("1", "2", "1"):
        run.start("--learners.num_workers", learners)
        run.progress(31)
        assert run.stop() == 75
    found, metrics = run.batches(), run.metrics()
    assert {line["learners"] for line in found} == {1, 2}
    alone = run.alone(found[-1]["step"])
    seen = [line for record in alone for line in record["batches"]]
    assert [shown(line) for line in found] == [shown(line) for line in seen][: len(found)]
    reference = [record["loss"] for record in alone][: len(metrics)]
    np.testing.assert_allclose([record["loss"] for record in metrics], reference, rtol=COMPARABLE_RTOL)


def alive(pid: int) -> bool:
    """Whether a process runs, and does not only wait to be reaped."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
