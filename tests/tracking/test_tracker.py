"""Real MLflow stores and a real server; the file takes its time from importing MLflow and creating a database."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from former import former_parameters
from PIL import Image

from genray.config import load
from genray.config.run import Config
from genray.runs import jsonl, previews
from genray.runs.directory import RunDirectory
from genray.runs.jsonl import tail
from genray.stream.plan import Plan
from genray.tracking import described, mlflow_store, preview_images
from genray.tracking.described import parameters
from genray.tracking.tracker import Tracker


def make(storage: Path, name: str, **values: Any) -> tuple[Config, Path]:
    run_directory = storage / name
    run_directory.mkdir(parents=True)
    return load.build({"name": name, "storage_path": str(storage), **values}), run_directory


def write(run_directory: Path, steps: range, **extra: Any) -> None:
    with RunDirectory(run_directory).metrics.open("a") as file:
        for step in steps:
            record = {"step": step, "anchors": 128 * step, "time": 1.7e9 + step, "loss": 9 / (step + 1), "lr": 0.1}
            file.write(json.dumps(record | extra) + "\n")


def picture(path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (30, 20), "teal").save(path)


def history(client: Any, run_directory: Path, key: str = "loss") -> list[int]:
    """The steps MLflow holds, in the order of their times, each as often as it is there."""
    run_id = json.loads((run_directory / "mlflow.json").read_text())["run_id"]
    return [metric.step for metric in client.get_metric_history(run_id, key)]


def eventually(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A whole run in a new store, and everything that was printed meanwhile."""
    storage = tmp_path_factory.mktemp("runs")
    args = {"note": "x" * 7000, "odd@key": "", "empty": {}}
    settings, run_directory = make(storage, "first", model={"model_args": args}, stream={"num_neighbors": 5})
    write(run_directory, range(300), knn=0.5, view_age_s=None, note="text")
    for step in (0, 200):
        picture(previews.path_of(run_directory / "previews", step))
    for look in (0, 1):
        busy = {"step": 0, "time": 1.7e9 + 10 * look, "system/cpu_utilization_percentage": 50.0 + look}
        jsonl.append(RunDirectory(run_directory).system, busy)
    RunDirectory(run_directory).probes.write_text(
        json.dumps({"step": 100, "time": 1.7e9, "probe.digits.linear": 0.75}) + "\n"
    )
    (run_directory / "pictures").mkdir()
    (run_directory / "pictures" / "step 1.png").write_bytes(b"picture")
    (run_directory / "config.json").write_text("{}")
    warnings: list[str] = []
    printed = io.StringIO()
    with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
        began = time.monotonic()
        tracker = Tracker(settings, run_directory, warnings.append, on_page=warnings.append, plan=Plan.of(settings))
        tracker.artifact(run_directory / "config.json")
        tracker.artifact(run_directory / "pictures", "pictures")
        tracker.artifact(run_directory / "nowhere.png")
        tracker.summary({"linear": 0.875}, {"advice": "more generators"})
        started = time.monotonic() - began
        messages = tracker.close("FINISHED", 120)
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{storage / 'mlflow.db'}")
    run = client.get_run(json.loads((run_directory / "mlflow.json").read_text())["run_id"])
    return SimpleNamespace(**locals())


def test_a_run_does_not_wait_for_mlflow_and_hears_nothing_of_it(first: SimpleNamespace) -> None:
    assert first.started < 1
    assert first.printed.getvalue() == ""
    assert first.warnings == []


def test_run_is_named_tagged_and_finished(first: SimpleNamespace) -> None:
    assert first.run.info.run_name == "first"
    assert first.run.info.status == "FINISHED"
    assert first.client.get_experiment(first.run.info.experiment_id).name == "genray"
    tags = first.run.data.tags
    assert (tags["generator"], tags["view"], tags["objective"]) == ("digit-scenes", "gaussian", "simclr")
    assert tags["ray.version"].startswith("2.")
    assert "ray.submission_id" not in tags
    assert tags["advice"] == "more generators"
    assert (tags["kind"], tags["world.learners"], tags["world.generators"]) == ("run", "1", "1")
    experiment = first.client.get_experiment(first.run.info.experiment_id)
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"


def test_probes_and_nodes_are_on_the_same_axis(first: SimpleNamespace) -> None:
    [found] = first.client.get_metric_history(first.run.info.run_id, "probe.digits.linear")
    assert (found.step, found.value) == (100, 0.75)
    looks = first.client.get_metric_history(first.run.info.run_id, "system/cpu_utilization_percentage")
    assert [(look.step, look.value) for look in looks] == [(0, 50.0), (0, 51.0)], "a look is lost while no step is made"


def test_what_went_in_is_listed(first: SimpleNamespace) -> None:
    [views] = first.run.inputs.dataset_inputs
    assert (views.dataset.name, views.tags[0].value) == ("digit-scenes", "training")
    source = json.loads(views.dataset.source)
    assert (source["seed"], source["tickets"], source["anchors"]) == (0, [0, 2500], [0, 2_560_000])
    assert len(source["weights"]) == 64


def test_grids_of_views_have_their_steps(first: SimpleNamespace) -> None:
    assert preview_images.logged_steps(first.client, first.run.info.run_id) == {0, 200}
    assert first.run.data.tags["mlflow.loggedImages"] == "True"


def test_parameters_are_flat_and_complete(first: SimpleNamespace) -> None:
    logged = first.run.data.params
    assert logged == parameters(first.settings)
    assert logged["optimizer.lr"] == "0.03"
    assert logged["stream.num_neighbors"] == "5"
    assert logged["stream.num_anchors"] == "null"
    assert logged["model.projection"] == "[2048, 128]"
    assert logged["model.model_args.empty"] == "{}"
    assert len(logged["model.model_args.note"]) == 6000

    def leaves(values: dict[str, Any]) -> int:
        return sum(leaves(value) if isinstance(value, dict) and value else 1 for value in values.values())

    assert len(logged) == leaves(first.settings.to_dict()) - 1  # the name


def test_passwords_of_an_address_stay_out(tmp_path: Path) -> None:
    settings, _ = make(tmp_path, "secret", tracking={"uri": "postgresql://me:p@ss@host/db"})
    assert parameters(settings)["tracking.uri"] == "postgresql://host/db"


def test_every_number_is_recorded_once_with_its_time(first: SimpleNamespace) -> None:
    beside = {"probe.digits.linear", "system/cpu_utilization_percentage"}
    assert set(first.run.data.metrics) == {"loss", "lr", "knn", "linear"} | beside
    losses = first.client.get_metric_history(first.run.info.run_id, "loss")
    assert [metric.step for metric in losses] == list(range(300))
    assert losses[7].value == 9 / 8
    assert losses[7].timestamp == 1_700_000_007_000
    (linear,) = first.client.get_metric_history(first.run.info.run_id, "linear")
    assert (linear.step, linear.value) == (299, 0.875)


def test_artifacts_arrive_beside_the_runs_and_a_missing_one_is_named(first: SimpleNamespace) -> None:
    at = first.storage / "mlartifacts" / first.run.info.run_id / "artifacts"
    assert (at / "config.json").read_text() == "{}"
    assert (at / "pictures" / "step 1.png").read_bytes() == b"picture"
    (message,) = first.messages
    assert "nowhere.png" in message


def test_url_of_a_store_is_a_command(first: SimpleNamespace) -> None:
    assert first.tracker.url() == f"mlflow ui --backend-store-uri sqlite:///{first.storage}/mlflow.db"


def test_resumed_run_records_no_step_twice(first: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(described, "origin", lambda: {"mlflow.source.git.commit": "one"})
    settings, run_directory = make(first.storage, "resumed")
    write(run_directory, range(50))
    assert Tracker(settings, run_directory, pytest.fail).close("KILLED", 60) == []
    run_id = json.loads((run_directory / "mlflow.json").read_text())["run_id"]
    assert first.client.get_run(run_id).info.status == "KILLED"

    # What a driver had sent when it was killed, and what its learners repeated from the last checkpoint.
    first.client.log_metric(run_id, "loss", 1.0, step=50, timestamp=1_700_000_050_000)
    write(run_directory, range(50, 51))
    write(run_directory, range(30, 80))
    again = load.build({**settings.to_dict(), "learners": {"num_workers": 2}})
    monkeypatch.setattr(described, "origin", lambda: {"mlflow.source.git.commit": "two"})
    tracker = Tracker(again, run_directory, pytest.fail)
    eventually(lambda: first.client.get_run(run_id).info.status == "RUNNING")
    write(run_directory, range(70, 90), knn=0.5)  # and once more while it follows the file
    assert tracker.close("FINISHED", 60) == []
    assert history(first.client, run_directory) == list(range(90))
    assert history(first.client, run_directory, "lr") == list(range(90))
    assert history(first.client, run_directory, "knn") == list(range(70, 90))
    run = first.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["learners.num_workers"] == "1"
    assert run.data.tags["changed.learners.num_workers"] == "2"

    [start] = children(first.client, run)
    assert [found.data.tags["mlflow.source.git.commit"] for found in (run, start)] == ["one", "two"]
    assert (start.info.run_name, start.info.status) == ("resumed, start 2", "FINISHED")
    told = {key: start.data.tags[key] for key in ("kind", "first_step", "last_step", "world.learners")}
    assert told == {"kind": "start", "first_step": "50", "last_step": "89", "world.learners": "2"}
    assert start.data.params == parameters(again)

    third = Tracker(settings, run_directory, pytest.fail)  # and after a kill, which leaves a start open
    eventually(lambda: len(children(first.client, run)) == 2)
    first.client.update_run(start.info.run_id, status="RUNNING")
    assert third.close("KILLED", 60) == []
    Tracker(settings, run_directory, pytest.fail).close("FINISHED", 60)
    assert [(found.info.run_name[-1], found.info.status) for found in children(first.client, run)] == [
        ("2", "KILLED"),
        ("3", "KILLED"),
        ("4", "FINISHED"),
    ]


@pytest.mark.parametrize("changed", [{}, {"num": 2}], ids=["as it was", "changed"])
def test_a_resumed_run_of_an_earlier_version_keeps_its_parameters(
    first: SimpleNamespace, changed: dict[str, int]
) -> None:
    """They stand there under former names: those are neither new ones nor changes."""
    settings, run_directory = make(first.storage, f"earlier {len(changed)}", render_on="learners")
    write(run_directory, range(5))
    recorded = former_parameters(parameters(settings))
    assert recorded["generators.num"] == parameters(settings)["pool.num"] == "1"
    run_id = first.client.create_run(first.run.info.experiment_id, run_name=settings.name).info.run_id
    described.log_params_and_tags(first.client, run_id, recorded, described.tags(settings))
    mlflow_store.remember_run(RunDirectory(run_directory), run_id, mlflow_store.address(settings))

    again = load.build({**settings.to_dict(), "pool": changed})
    assert Tracker(again, run_directory, pytest.fail).close("FINISHED", 60) == []
    run = first.client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params == recorded
    tags = {key: value for key, value in run.data.tags.items() if key.startswith("changed.")}
    assert tags == {f"changed.pool.{name}": str(value) for name, value in changed.items()}
    [start] = children(first.client, run)
    assert start.data.params == parameters(again)


def children(client: Any, run: Any) -> list[Any]:
    """The runs below one, the earliest first."""
    below = f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    return list(client.search_runs([run.info.experiment_id], below, order_by=["start_time ASC"]))


def test_runs_of_a_sweep_are_its_children(first: SimpleNamespace) -> None:
    settings, directory = make(first.storage, "sweep")
    parent = Tracker(settings, directory, pytest.fail, described.SWEEP, {"seed": 0, "sweep.seed": "0, 1"})
    eventually(lambda: (directory / "mlflow.json").exists())
    below = {"sweep": "sweep", "model": None}
    for name in ("sweep-0", "sweep-1"):
        child, run_directory = make(first.storage, name, tracking=below)
        write(run_directory, range(2))
        assert Tracker(child, run_directory, pytest.fail).close("FINISHED", 60) == []
    assert parent.close("FINISHED", 60) == []
    run = first.client.get_run(json.loads((directory / "mlflow.json").read_text())["run_id"])
    assert (run.data.tags["kind"], run.data.params["sweep.seed"]) == ("sweep", "0, 1")
    assert not run.inputs.dataset_inputs
    assert [found.info.run_name for found in children(first.client, run)] == ["sweep-0", "sweep-1"]
    assert {found.data.tags["sweep"] for found in children(first.client, run)} == {"sweep"}


def test_deleted_run_is_begun_anew(first: SimpleNamespace) -> None:
    settings, run_directory = make(first.storage, "deleted")
    write(run_directory, range(3))
    assert Tracker(settings, run_directory, pytest.fail).close("FAILED", 60) == []
    before = json.loads((run_directory / "mlflow.json").read_text())["run_id"]
    first.client.delete_run(before)
    assert Tracker(settings, run_directory, pytest.fail).close("FINISHED", 60) == []
    assert json.loads((run_directory / "mlflow.json").read_text())["run_id"] != before
    assert history(first.client, run_directory) == [0, 1, 2]


def test_more_metrics_than_a_batch_takes(first: SimpleNamespace) -> None:
    settings, run_directory = make(first.storage, "many")
    write(run_directory, range(2501))
    assert Tracker(settings, run_directory, pytest.fail).close("FINISHED", 60) == []
    assert history(first.client, run_directory) == list(range(2501))


def test_dead_server_costs_one_warning_and_the_time_allowed(tmp_path: Path, free_port: int) -> None:
    uri = f"http://me:secret@127.0.0.1:{free_port}"
    settings, run_directory = make(tmp_path, "dead", tracking={"uri": uri})
    write(run_directory, range(12))
    warnings: list[str] = []
    tracker = Tracker(settings, run_directory, warnings.append)
    tracker.artifact(RunDirectory(run_directory).metrics)
    tracker.artifact(run_directory)
    eventually(lambda: bool(warnings))
    began = time.monotonic()
    (message,) = tracker.close("FINISHED", 3)
    assert time.monotonic() - began < 5
    assert "12 metric records and up to 2 artifacts" in message
    assert str(run_directory) in message
    (warning,) = warnings
    assert "\n" not in warning
    assert len(warning) < 300
    assert "secret" not in warning + message + tracker.url()


def test_outages_lose_and_repeat_nothing(
    first: SimpleNamespace, free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that is not there yet, then is, then hangs (so that requests both fail and are done later), then is."""
    from mlflow import MlflowClient

    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    monkeypatch.setattr("genray.tracking.tracker.MAX_RETRY_DELAY_S", 1.0)
    connect = mlflow_store.connect
    connections: list[float] = []

    def counted(uri: str) -> Any:
        connections.append(time.monotonic())
        return connect(uri)

    monkeypatch.setattr(mlflow_store, "connect", counted)
    uri = f"http://127.0.0.1:{free_port}"
    settings, run_directory = make(tmp_path, "outage", tracking={"uri": uri, "experiment": "on a server"})
    write(run_directory, range(20))
    warnings: list[str] = []
    pages: list[str] = []
    tracker = Tracker(settings, run_directory, warnings.append, on_page=pages.append)
    tracker.artifact(RunDirectory(run_directory).metrics)
    eventually(lambda: bool(warnings))
    assert pages == []

    database = tmp_path / "server.db"
    database.write_bytes((first.storage / "mlflow.db").read_bytes())  # saves the seconds of creating one
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    with serve(free_port, database, tmp_path / "artifacts") as group:
        eventually(lambda: (run_directory / "mlflow.json").exists() and history(client, run_directory) == [*range(20)])
        before = len(connections)
        os.killpg(group, signal.SIGSTOP)
        write(run_directory, range(20, 40))
        time.sleep(5.5)  # the call and its one retry run into the time limit
        os.killpg(group, signal.SIGCONT)
        write(run_directory, range(40, 60))
        assert tracker.close("FINISHED", 60) == []
        run_id = json.loads((run_directory / "mlflow.json").read_text())["run_id"]
        run = client.get_run(run_id)
        assert tracker.url() == f"{uri}/#/experiments/{run.info.experiment_id}/runs/{run_id}"
        assert pages == [tracker.url()]  # once, however often it connects
        assert run.info.status == "FINISHED"
        assert history(client, run_directory) == list(range(60))
        assert len(connections) > before, "no call failed while the server hung"
        assert len(warnings) == 1
        assert len(list((tmp_path / "artifacts").rglob("metrics.jsonl"))) == 1


@contextlib.contextmanager
def serve(port: int, database: Path, artifacts: Path) -> Iterator[int]:
    """A real `mlflow server` while the block runs; gives its process group."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{database}", "--artifacts-destination", str(artifacts)]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (artifacts.parent / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
        try:
            yield server.pid
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def test_switched_off_it_does_nothing(tmp_path: Path) -> None:
    settings, run_directory = make(tmp_path, "off", tracking={"mlflow": False})
    write(run_directory, range(3))
    threads = threading.active_count()
    tracker = Tracker(settings, run_directory, pytest.fail)
    tracker.artifact(run_directory)
    tracker.summary({"knn": 0.5}, {})
    assert threading.active_count() == threads
    assert tracker.close("FINISHED", 1) == []
    assert tracker.url() == ""
    assert [path.name for path in tmp_path.rglob("*")] == ["off", "metrics.jsonl"]


def test_tail_waits_for_the_file_and_for_whole_lines(tmp_path: Path) -> None:
    path, stop = RunDirectory(tmp_path).metrics, threading.Event()
    batches = tail(path, stop, poll_s=0)
    assert next(batches) == []
    with path.open("w") as file:
        file.write('{"step": 1, "time": 1}\n{"step": 2, ')
        file.flush()
        assert next(batches) == [{"step": 1, "time": 1}]
        assert next(batches) == []
        file.write('"time": 2}\n')
        file.flush()
        assert next(batches) == [{"step": 2, "time": 2}]
        file.write('{"step": 3, {"step": 4, "time": 4}\n\n17\n{"step": 5}\n{"step": 6, "time": 6}\n')  # a killed writer
        file.flush()
    assert next(batches) == [{"step": 6, "time": 6}]
    with path.open("a") as file:
        file.write('{"step": 7, "time": 7}\n')
    stop.set()
    assert list(batches) == [[{"step": 7, "time": 7}]]
