"""A sweep's processes: here small programs in the place of `genray train`, which leave what it would."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genray.cli.main import main
from genray.cluster import ray_cluster
from genray.cluster.placement import Fleet, NodeKind
from genray.commands import sweep, sweep_space
from genray.config.errors import ConfigError, RunFailed
from genray.config.run import Config
from genray.runs import jsonl
from genray.runs.directory import RunDirectory
from genray.views.pin import pinned
from genray.views.walk_files import WALKS

TRAIN = """
import json, os, sys, time
from pathlib import Path
values = json.loads(Path(sys.argv[1]).read_text())
directory = Path(values["storage_path"]) / values["name"]
directory.mkdir(exist_ok=True)
(directory / "config.json").write_text(json.dumps(values))
(directory / "metrics.jsonl").touch()
with (directory / "starts").open("a") as file:
    file.write(f"{time.time()} {' '.join(sys.argv[2:])}\\n")
std, seed = values["view"]["std"], values["seed"]
if std == 3 and not (directory / "mended").exists():
    sys.exit("genray: it went wrong")
if std == 4:
    time.sleep(60)
time.sleep(0.3)
probes = {"trained": {"linear": std / 2 + seed / 100}, "untrained": {"linear": 0.1}}
numbers = dict.fromkeys(("images_per_s", "data_wait", "generator_busy"))
report = {"probes": probes, "faults": {}, "seconds_total": 1.0, "seconds_to_first_step": {}, **numbers}
(directory / "report.json").write_text(json.dumps(report))
with (directory / "starts").open("a") as file:
    file.write(f"{time.time()}\\n")
"""


@pytest.fixture
def train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "train.py"
    program.write_text(TRAIN)
    monkeypatch.setattr(sweep, "TRAIN", (sys.executable, str(program)))
    monkeypatch.setattr(sweep, "POLL_S", 0.02)
    return program


def configs(storage: Path, stds: list[float], seeds: list[int]) -> list[Config]:
    (storage / "runs").mkdir(exist_ok=True)
    chosen = sweep_space.combinations({"view.std": stds, "seed": seeds})
    return sweep_space.children(
        "demo", "all", chosen, [f"--storage_path={storage / 'runs'}", "--tracking.mlflow=false"]
    )


def starts(config: Config) -> list[str]:
    return (RunDirectory.of(config).path / "starts").read_text().splitlines()


def test_every_run_is_trained_and_compared(train: Path, tmp_path: Path) -> None:
    runs, said = configs(tmp_path, [0.5, 1], [0, 2]), []
    outcome = sweep.sweep("all", runs, say=said.append)
    assert list(outcome.reports) == [config.name for config in runs]
    assert not outcome.failed
    assert "4/4  all-std=1-seed=2 finished" in "\n".join(said)
    table = [re.split(r"\s{2,}", line) for line in said[-5:]]
    assert table[1:3] == [["0.5", "2", "26.0% ± 1.4"], ["1.0", "2", "51.0% ± 1.4"]]
    assert table[3] == ["untrained", "4", "10.0% ± 0.0"]
    directory = tmp_path / "runs" / "all"
    assert (directory / "compare.txt").read_text().splitlines() == said[-5:]
    assert (directory / "compare.png").read_bytes().startswith(b"\x89PNG")
    times = [float(line.split()[0]) for config in runs for line in starts(config)]
    assert times == sorted(times), "they were to be trained one after the other"


def test_the_same_sweep_again_does_what_is_left(train: Path, tmp_path: Path) -> None:
    runs = configs(tmp_path, [0.5, 3], [0, 1])
    outcome = sweep.sweep("all", runs, say=lambda line: None)
    assert list(outcome.failed) == ["all-std=3-seed=0", "all-std=3-seed=1"]
    with pytest.raises(
        RunFailed, match=r"2 of 4 runs failed, the first all-std=3-seed=0: genray: it went wrong \(.*log\)"
    ):
        sweep.raise_if_failed(outcome)
    for config in runs[2:]:
        (RunDirectory.of(config).path / "mended").touch()
    again = sweep.sweep("all", [*runs, *configs(tmp_path, [0.7], [0])], say=lambda line: None)
    assert not again.failed
    assert len(again.reports) == 5
    assert len(starts(runs[0])) == 2, "a run that has finished was started again"
    assert len(starts(runs[2])) == 3
    noted = jsonl.read(tmp_path / "runs" / "all" / "metrics.jsonl")
    steps = [line["step"] for line in noted]
    assert steps == [*range(1, 10)], "MLflow takes each step once"  # four runs, two of them again, and five
    assert [(line["runs.finished"], line["runs.failed"]) for line in (noted[3], noted[-1])] == [(2, 2), (5, 0)]


def test_runs_with_other_settings_are_not_taken_for_those_of_the_sweep(train: Path, tmp_path: Path) -> None:
    [config] = configs(tmp_path, [0.5], [0])
    sweep.sweep("all", [config], say=lambda line: None)
    other = replace(config, training=replace(config.training, steps=4000))
    with pytest.raises(ConfigError, match=r"training\.steps was 400, is 4000"):
        sweep.sweep("all", [other], say=lambda line: None)
    assert sweep.sweep("all", [config], say=lambda line: None).reports


def test_runs_with_files_are_those_of_the_same_sweep_again(tmp_path: Path) -> None:
    """A run pins the files that its configuration names, so the sweep must do so too."""
    walks = tmp_path / "w.safetensors"
    overrides = [f"--storage_path={tmp_path}", "--view.kind=steered", f"--view.walks={walks}"]

    def write(walk: np.ndarray) -> list[Config]:
        WALKS.write(walks, {"zoom": walk}, {"generator": "digit-scenes", "latent_dim": 32})
        return sweep_space.children("demo", "all", [{"seed": 0}], overrides)

    [config] = write(np.ones(32))
    run = RunDirectory.of(config)
    run.claim(pinned(config))
    run.metrics.touch()
    run.refuse_changes(write(np.ones(32))[0])
    with pytest.raises(ConfigError, match=r"view\.sha256 was"):
        sweep.sweep("all", write(np.zeros(32)), say=lambda line: None)


def test_the_sweep_has_the_settings_that_its_runs_share_and_those_that_they_do_not(tmp_path: Path) -> None:
    found = sweep.settings_of(configs(tmp_path, [0.5, 1], [0, 2]))
    assert found["sweep.view.std"] == "0.5, 1.0"
    assert found["sweep.seed"] == "0, 2"
    assert found["objective.kind"] == "simclr"
    assert "view.std" not in found


def test_a_run_that_mlflow_lacks_is_started_to_deliver_it(train: Path, tmp_path: Path) -> None:
    [config] = configs(tmp_path, [0.5], [0])
    sweep.sweep("all", [config], say=lambda line: None)
    RunDirectory.of(config).undelivered.touch()
    sweep.sweep("all", [config], say=lambda line: None)
    assert len(starts(config)) == 4


def test_several_go_on_at_a_time_in_one_cluster(train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs = configs(tmp_path, [0.5, 1], [0, 1])
    monkeypatch.setattr(sweep, "room", lambda *asked: contextlib.nullcontext((2, "10.0.0.1:6379")))
    outcome = sweep.sweep("all", runs, parallel=2, say=lambda line: None)
    assert len(outcome.reports) == 4
    spans = [[float(line.split()[0]) for line in starts(config)] for config in runs]
    assert spans[1][0] < spans[0][1], "the second was to begin before the first had ended"
    assert min(spans[2][0], spans[3][0]) > min(spans[0][1], spans[1][1])
    assert starts(runs[0])[0].endswith(" --address 10.0.0.1:6379")


def test_as_many_at_a_time_as_have_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from types import SimpleNamespace

    import ray

    @contextlib.contextmanager
    def joined(address: str | None) -> Any:
        yield address is not None

    monkeypatch.setattr(ray_cluster, "joined", joined)
    fleet = Fleet([NodeKind("node", 5, 0, {}, count=1, limit=1, head=True)])
    monkeypatch.setattr(ray_cluster, "fleet", lambda autoscaling: fleet)
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="here:1"))
    runs, said = configs(tmp_path, [1.0], [0]), []  # each needs 2 CPUs
    with sweep.room(runs, 3, None, said.append) as (most, address):
        assert (most, address) == (2, "here:1")
    assert said == ["2 at a time: the cluster has 5 CPUs and 0 GPUs"]
    with sweep.room(runs, 3, "head:6379", said.append) as found:
        assert found == (3, "head:6379")  # it may grow
    with sweep.room(runs, 1, None, said.append) as found:
        assert found == (1, None)


def test_a_sweep_that_is_stopped_stops_its_runs(train: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]); import test_sweep as t;"
        "from genray.commands import sweep; from genray.config.errors import RunStopped;"
        "sweep.TRAIN = (sys.executable, sys.argv[2])\n"
        "try: sweep.sweep('all', t.configs(Path(sys.argv[3]), [4], [0, 1]))\n"
        "except RunStopped as stopped: print(stopped, stopped.interrupted)"
    )
    command = [sys.executable, "-c", code, str(Path(__file__).parent), str(train), str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    first, second = configs(tmp_path, [4], [0, 1])
    deadline = time.monotonic() + 60
    while not (RunDirectory.of(first).path / "starts").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert said.splitlines()[-1] == "all was stopped; the same command resumes it False"
    assert not RunDirectory.of(second).path.exists()
    running = [Path(f"/proc/{pid}/cmdline") for pid in os.listdir("/proc") if pid.isdigit()]
    assert not any(str(train).encode() in path.read_bytes() for path in running if path.exists())


def test_what_cannot_be_a_sweep_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match="must have runs"):
        sweep.sweep("all", [])
    [config] = configs(tmp_path, [1.0], [0])
    run = RunDirectory.of(replace(config, name="all"))
    run.path.mkdir()
    run.config.write_text(json.dumps(config.to_dict()))
    with pytest.raises(ConfigError, match="--name must be new for a sweep, got 'all', which is a run"):
        sweep.sweep("all", [config])
    with pytest.raises(SystemExit):
        main(["sweep", "demo", "--name", "all", "--draws", "0"])
    assert "--draws must be at least 1, got 0" in capsys.readouterr().err


def test_a_dry_run_names_the_runs(capsys: pytest.CaptureFixture[str]) -> None:
    main(["sweep", "demo", "--name", "a", "--grid", "view.std=0.5,1", "seed=0,1", "--dry-run"])
    assert capsys.readouterr().out.split() == [
        "a-std=0.5-seed=0",
        "a-std=0.5-seed=1",
        "a-std=1-seed=0",
        "a-std=1-seed=1",
    ]
