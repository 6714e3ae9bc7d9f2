"""What probes found of a run is kept with it and sent to its MLflow run."""

import pytest
from fakes import small
from mlflow import MlflowClient

from genray.probes.metrics import metrics_of
from genray.runs import jsonl
from genray.runs.directory import RunDirectory
from genray.tracking.probe_results import record_results
from genray.tracking.tracker import Tracker

FOUND = {"knn": 0.5, "few.5": 0.25}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run with an MLflow run of its own; a store is slow to make."""
    storage = tmp_path_factory.mktemp("runs")
    config = small(storage_path=str(storage))
    run = RunDirectory.of(config)
    run.claim(config)
    jsonl.append(run.metrics, {"step": 3, "time": 1.0, "loss": 2.0})
    jsonl.append(run.probes, {"step": 2, "time": 1.0, "probe.x-val.knn": 0.125})
    tracker = Tracker(config, run.path, pytest.fail)
    assert tracker.close("FINISHED", 60) == []
    return config, run


def histories(run, *keys):
    client = MlflowClient(f"sqlite:///{run.path.parent / 'mlflow.db'}")
    [found] = client.search_runs([client.get_experiment_by_name("genray").experiment_id])
    points = {
        key: [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, key)] for key in keys
    }
    return found, points


def test_names_are_such_as_mlflow_takes():
    assert metrics_of("CIFAR10", FOUND) == {"probe.CIFAR10.knn": 0.5, "probe.CIFAR10.few.5": 0.25}
    assert list(metrics_of("my data (1)", {"knn": 1.0})) == ["probe.my_data__1_.knn"]


def test_what_was_found_beside_the_training_is_sent_with_it(finished):
    _, run = finished
    _, points = histories(run, "loss", "probe.x-val.knn")
    assert points == {"loss": [(3, 2.0)], "probe.x-val.knn": [(2, 0.125)]}


def test_what_is_found_after_a_run_is_added_to_it(finished):
    config, run = finished
    said = record_results(config, run.path, 3, "CIFAR10", FOUND, {"neighbors": 20})
    assert said == f"recorded in {run.probes} and in MLflow"
    assert {"step": 3, "probe.CIFAR10.knn": 0.5, "probe.CIFAR10.few.5": 0.25}.items() <= jsonl.last(run.probes).items()
    found, points = histories(run, "probe.CIFAR10.knn", "probe.CIFAR10.few.5")
    assert points == {"probe.CIFAR10.knn": [(3, 0.5)], "probe.CIFAR10.few.5": [(3, 0.25)]}
    assert found.info.status == "FINISHED"
    settings = found.data.tags["probe.CIFAR10.settings"]
    assert settings == jsonl.last(run.probes)["probe.CIFAR10.settings"] == '{"neighbors": 20}'


def test_a_run_in_progress_sends_them_itself(tmp_path):
    config = small(storage_path=str(tmp_path))
    run = RunDirectory.of(config)
    run.claim(config)
    with run.locked():
        assert (
            record_results(config, run.path, 3, "x", FOUND)
            == f"recorded in {run.probes}, and sent to MLflow by the run"
        )
    assert not (tmp_path / "mlflow.db").exists()


def test_mlflow_out_of_reach_is_no_error(tmp_path):
    config = small(storage_path=str(tmp_path), tracking={"uri": "http://127.0.0.1:9"})
    run = RunDirectory.of(config)
    run.claim(config)
    (run.path / "mlflow.json").write_text('{"run_id": "a", "uri": "http://127.0.0.1:9"}')
    assert "; MLflow does not record it (" in record_results(config, run.path, 3, "x", FOUND)
    assert len(jsonl.read(run.probes)) == 1
    off = small(storage_path=str(tmp_path), tracking={"mlflow": False})
    assert record_results(off, run.path, 4, "x", FOUND) == f"recorded in {run.probes}"
