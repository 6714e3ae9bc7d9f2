"""How the stream is dealt to learners whose number is known only when they start; no Ray is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import small
from ray.train import DataConfig

from genray.cluster.placement import GENERATOR_NODE
from genray.runs import checkpoint, filenames, jsonl
from genray.stream import pool
from genray.stream.plan import Plan
from genray.stream.run import Run
from genray.stream.shares import NUMBER_BYTES, DatasetPlaceholder, Shares, options
from genray.stream.tickets import Course


@pytest.fixture
def run(tmp_path: Path) -> Run:
    stream, learners, training = {"batch_size": 12}, {"num_workers": [1, 3]}, {"steps": 50}
    return Run.of(small(storage_path=str(tmp_path), stream=stream, learners=learners, training=training))


@pytest.fixture
def dealt(monkeypatch: pytest.MonkeyPatch) -> list[Course]:
    """The courses that were made blocks of."""
    found: list[Course] = []

    def blocks(run: Run, course: Course) -> str:
        assert run.plan == course.plan
        found.append(course)
        return "blocks"

    monkeypatch.setattr(pool, "blocks", blocks)
    monkeypatch.setattr(DataConfig, "configure", lambda self, datasets, world_size, *args: [datasets] * world_size)
    return found


@pytest.mark.parametrize("learners", [1, 2, 3])
def test_the_tickets_are_those_of_as_many_learners_as_there_are(run: Run, dealt: list[Course], learners: int) -> None:
    shards = Shares(run).configure({pool.DATASET_NAME: None}, learners, None, None)  # type: ignore[dict-item]
    assert shards == [{pool.DATASET_NAME: "blocks"}] * learners
    assert dealt == [Course(Plan.of(run.config, learners), 0)]


def test_they_begin_where_the_last_checkpoint_ends(
    run: Run, dealt: list[Course], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / filenames.CHECKPOINT_STATE).write_text('{"step": 37}')
    monkeypatch.setattr(checkpoint, "last", lambda path: tmp_path if path == run.directory.path else None)
    Shares(run).configure({pool.DATASET_NAME: None}, 2, None, None)  # type: ignore[dict-item]
    assert dealt == [Course(Plan.of(run.config, 2), 37)]


def test_the_numbers_of_all_tickets_fit_beside_the_look_ahead(run: Run) -> None:
    given: Any = Shares(run)._resolve_execution_options(pool.DATASET_NAME)
    assert given.preserve_order
    for learners in (1, 2, 3):
        plan = Plan.of(run.config, learners)
        assert given.resource_limits.object_store_memory >= plan.look_ahead_bytes + NUMBER_BYTES * len(Course(plan))
    assert options(Course(Plan.of(run.config))).resource_limits == given.resource_limits


@pytest.mark.parametrize(("by_labels", "where"), [(True, GENERATOR_NODE), (False, None)])
def test_the_stream_stays_on_the_generators_nodes(run: Run, by_labels: bool, where: dict[str, str] | None) -> None:
    given: Any = Shares(run, by_labels)._resolve_execution_options(pool.DATASET_NAME)
    assert given.label_selector == where


def test_the_controller_is_noted_whenever_learners_start(run: Run) -> None:
    run.directory.path.mkdir()
    assert DatasetPlaceholder(run)() is None
    assert [line["role"] for line in jsonl.read(run.directory.processes)] == ["controller"]
