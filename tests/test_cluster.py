"""What a run asks of a cluster, and what is said where it does not fit; no Ray is started."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import ray
from fakes import small

from genray import cluster
from genray.configure import load
from genray.fit import dry_run
from genray.settings import ConfigError

ON_CPUS = {"learners": {"num_gpus": 0}, "generators": {"num_gpus": 0}}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster of 4 CPUs and no GPU."""
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})


@pytest.mark.parametrize(
    ("sections", "cpus", "gpus"),
    [
        ({}, 1 + 1 + 1, 1 + 1),  # a learner, a generator, Ray Data itself
        ({"learners": {"num_workers": 2, "num_gpus": 0.5}}, 2 + 1 + 1, 2 * 0.5 + 1),
        ({"generators": {"num": [3, 8], "num_cpus": 2, "num_gpus": 0.5}}, 1 + 3 * 2 + 1, 1 + 3 * 0.5),
        ({"generators": {"num": 8, "mode": "inline"}, "learners": {"num_cpus": 2}}, 2, 1),
    ],
)
def test_a_request_is_the_least_that_a_run_needs(sections: dict[str, Any], cpus: float, gpus: float) -> None:
    request = cluster.Request.of(small(**sections))
    assert (request.cpus, request.gpus) == (cpus, gpus)


@pytest.mark.usefixtures("machine")
def test_a_run_that_fits_is_told_so() -> None:
    found = cluster.check_placement(small(**ON_CPUS), may_grow=False)
    assert found == "fits: the run needs 3 CPUs and 0 GPUs, the cluster has 4 CPUs and 0 GPUs"


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize(
    ("sections", "ask", "remedy"),
    [
        ({}, "3 CPUs and 2 GPUs", "set learners.num_gpus and generators.num_gpus to 0 to run on CPUs"),
        (
            {**ON_CPUS, "generators": {"num_gpus": 0, "num": [5, 6]}},
            "7 CPUs and 0 GPUs",
            "lower generators.num, generators.num_cpus, learners.num_workers or learners.num_cpus (Ray Data itself "
            "needs 1)",
        ),
    ],
)
def test_a_machine_alone_refuses_what_it_cannot_hold_and_a_cluster_waits(
    sections: dict[str, Any], ask: str, remedy: str
) -> None:
    with pytest.raises(ConfigError) as error:
        cluster.check_placement(small(**sections), may_grow=False)
    assert str(error.value) == (
        f"generators and learners must fit this machine (4 CPUs and 0 GPUs), got a request of {ask}; {remedy}"
    )
    said = cluster.check_placement(small(**sections), may_grow=True)
    assert said.startswith(f"does not fit yet: the run needs {ask}, ")


@pytest.mark.usefixtures("machine")
def test_a_dry_run_tells_what_follows_and_writes_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "joined", lambda address: nullcontext(False))
    said: list[str] = []
    config = load("demo", ["--name", "first", "--storage_path", str(tmp_path)])
    dry_run(config, say=said.append)
    told = {line[:14].strip(): line[15:] for line in said}
    assert {"generator", "views", "batch / step", "ticket", "run", "generators", "look-ahead"} <= told.keys()
    assert told["cluster"].startswith("fits: the run needs 2 CPUs")
    assert told["configuration"] == str(tmp_path / "first" / "config.json")
    assert load(str(tmp_path / "first")) == config
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["config.json", "run.lock"]
