"""How the stream is dealt to learners whose number is known only when they start; no Ray is started."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import small
from ray.train import DataConfig

from genray import checkpoint, records, stream
from genray.config import Config
from genray.course import Course
from genray.placement import GENERATOR_NODE
from genray.plan import Plan
from genray.rundir import RunDirectory
from genray.shares import NUMBER_BYTES, Nothing, Shares, options


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return small(
        storage_path=str(tmp_path), stream={"batch_size": 12}, learners={"num_workers": [1, 3]}, training={"steps": 50}
    )


@pytest.fixture
def dealt(monkeypatch: pytest.MonkeyPatch) -> list[Course]:
    """The courses that were made blocks of."""
    found: list[Course] = []
    monkeypatch.setattr(stream, "blocks", lambda config, course: found.append(course) or "blocks")
    monkeypatch.setattr(DataConfig, "configure", lambda self, datasets, world_size, *args: [datasets] * world_size)
    return found


@pytest.mark.parametrize("learners", [1, 2, 3])
def test_the_tickets_are_those_of_as_many_learners_as_there_are(
    config: Config, dealt: list[Course], learners: int
) -> None:
    shards = Shares(config).configure({stream.NAME: None}, learners, None, None)  # type: ignore[dict-item]
    assert shards == [{stream.NAME: "blocks"}] * learners
    assert dealt == [Course(Plan.of(config, learners), 0)]


def test_they_begin_where_the_last_checkpoint_ends(
    config: Config, dealt: list[Course], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / checkpoint.STATE).write_text('{"step": 37}')
    monkeypatch.setattr(checkpoint, "last", lambda path: tmp_path if path == RunDirectory.of(config).path else None)
    Shares(config).configure({stream.NAME: None}, 2, None, None)  # type: ignore[dict-item]
    assert dealt == [Course(Plan.of(config, 2), 37)]


def test_the_numbers_of_all_tickets_fit_beside_the_look_ahead(config: Config) -> None:
    given: Any = Shares(config)._resolve_execution_options(stream.NAME)
    assert given.preserve_order
    for learners in (1, 2, 3):
        plan = Plan.of(config, learners)
        assert given.resource_limits.object_store_memory >= plan.look_ahead_bytes + NUMBER_BYTES * len(Course(plan))
    assert options(Course(Plan.of(config))).resource_limits == given.resource_limits


@pytest.mark.parametrize(("by_labels", "where"), [(True, GENERATOR_NODE), (False, None)])
def test_the_stream_stays_on_the_generators_nodes(
    config: Config, by_labels: bool, where: dict[str, str] | None
) -> None:
    given: Any = Shares(config, by_labels)._resolve_execution_options(stream.NAME)
    assert given.label_selector == where


def test_the_controller_is_noted_whenever_learners_start(config: Config) -> None:
    run = RunDirectory.of(config)
    run.path.mkdir()
    assert Nothing(config)() is None
    assert [line["role"] for line in records.read(run.processes)] == ["controller"]
