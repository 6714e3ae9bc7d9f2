"""Probes of checkpoints beside the training, without Ray: what its task does, and when it is asked for."""

from types import SimpleNamespace

import cloudpickle
import pytest
import ray.train
import torch
from fakes import small
from ray.train import Checkpoint
from ray.train import ReportedCheckpointStatus as Status
from worlds import NAMES, folder, voc

from genray.cluster import placement
from genray.config.errors import ConfigError
from genray.learner import worker
from genray.learner.learner import Learner
from genray.learner.validation import CheckpointJudge, ValidationStopped, due, judge_checkpoint, validation_config
from genray.probes import labelled_images, svm
from genray.probes.features import features
from genray.probes.few_labels import few_labels
from genray.probes.knn import knn
from genray.probes.linear import linear_probe
from genray.probes.run_probes import dataset, probe_report
from genray.runs import faults, jsonl
from genray.stream.run import Run

MODEL = {"backbone": "resnet18", "model_args": {"layers": [1, 1, 0, 0], "channels": [8, 8, 8, 8]}, "projection": [8, 4]}


def run_of(tmp_path, **probe):
    section = {"data": "digit-scenes", "images": 200, "beside": ["knn", "linear", "few"], **probe}
    run = Run.of(small(storage_path=str(tmp_path / "runs"), model=MODEL, probe=section))
    run.directory.claim(run.config)
    return run


def checkpoint_of(run):
    """A checkpoint of step 6 whose weights are no fresh ones, and the learner that wrote it."""
    learner = Learner(run, 0, torch.device("cpu"))
    with torch.no_grad():
        for parameter in learner.encoder.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    checkpoint = run.directory.path / "checkpoint_6"
    checkpoint.mkdir()
    learner.step = 6
    learner.save(checkpoint)
    return Checkpoint.from_directory(checkpoint), learner


def test_a_checkpoint_is_judged_on_the_images_for_choices(tmp_path):
    run = run_of(tmp_path)
    checkpoint, learner = checkpoint_of(run)
    found = CheckpointJudge(run)(checkpoint)
    bank, judged = (dataset(run.config.probe, split) for split in ("train", "val"))
    x, seen = (features(learner.features, data.images, size=learner.policy.size) for data in (bank, judged))
    four = x, bank.labels, seen, judged.labels
    expected = {"knn": knn(*four, 10), "linear": linear_probe(*four), **dict(few_labels(*four))}
    assert found == {f"probe.digit-scenes-val.{name}": value for name, value in expected.items()}
    [line] = jsonl.read(run.directory.probes)
    assert line.pop("time") > 0
    assert line == {"step": 6, **found}
    assert not run.directory.faults.exists()


def test_images_of_a_directory_are_judged_too(tmp_path):
    data = str(folder(tmp_path / "colours", train=20, test=2))
    run = run_of(tmp_path, data=data, neighbors=3, images=100, beside=["knn"])
    checkpoint_of(run)
    step, found = judge_checkpoint(run, run.directory.path / "checkpoint_6")
    assert (step, list(found)) == (6, ["probe.colours-val.knn"])
    assert 0.3 < found["probe.colours-val.knn"] <= 1


def test_every_probe_can_be_made_of_a_checkpoint(tmp_path):
    run = run_of(tmp_path, images=100, beside=["knn", "sgd", "similarity"])
    checkpoint_of(run)
    _, found = judge_checkpoint(run, run.directory.path / "checkpoint_6")
    named = {name.removeprefix("probe.digit-scenes-val.") for name in found}
    assert named == {"knn", "sgd", "alignment", "uniformity"}


def test_images_that_show_several_classes_are_judged_too(tmp_path, monkeypatch):
    monkeypatch.setattr(svm, "COSTS", (0.1, 1.0))
    monkeypatch.setattr(labelled_images, "HELD_OUT_SHARE", 0.3)
    shown = [{name: [0]} for name in NAMES for _ in range(12)]
    data = str(voc(tmp_path / "voc", {"trainval": shown, "test": shown[::3]}))
    run = run_of(tmp_path, data=data, beside=["svm"])
    _, learner = checkpoint_of(run)
    _, found = judge_checkpoint(run, run.directory.path / "checkpoint_6")
    assert set(found) == {"probe.voc-val.svm", "probe.voc-val.svm.11-point"}
    assert all(0 < value <= 1 for value in found.values())
    report = probe_report({"trained": learner.features, "raw_pixels": None}, run.config.probe, size=learner.policy.size)
    assert report["raw_pixels"] == pytest.approx({"svm": 1.0, "svm.11-point": 1.0})
    assert set(report["trained"]) == {"svm", "svm.11-point"}
    assert worker.quick_probe(learner) is None


def test_what_goes_wrong_is_told_and_left_to_ray(tmp_path):
    run = run_of(tmp_path, data="/no/such")
    checkpoint, _ = checkpoint_of(run)
    with pytest.raises(Exception, match="which does not exist"):
        CheckpointJudge(run)(checkpoint)
    assert faults.counts(run.directory.faults) == {"probes failed": 1}
    assert not run.directory.probes.exists()


def test_a_run_that_is_to_stop_does_not_wait_for_them(tmp_path):
    run = run_of(tmp_path)
    checkpoint, _ = checkpoint_of(run)
    run.directory.stop.touch()
    with pytest.raises(ValidationStopped):
        CheckpointJudge(run)(checkpoint)
    assert not run.directory.faults.exists()


def test_they_are_due_when_none_is_waiting_and_not_at_the_end(tmp_path, monkeypatch):
    run = run_of(tmp_path)
    statuses = []

    def reported(consistency, timeout_s):
        assert (consistency, timeout_s) == (ray.train.CheckpointConsistencyMode.COMMITTED, 0)  # no learner waits
        return [SimpleNamespace(status=status) for status in statuses]

    monkeypatch.setattr(ray.train, "get_all_reported_checkpoints", reported)
    assert due(run.config, 5)
    statuses[:] = [Status.VALIDATED, Status.VALIDATION_FAILED, Status.VALIDATION_TIMEOUT, Status.COMMITTED]
    assert due(run.config, 5)
    statuses.append(Status.PENDING_VALIDATION)
    assert not due(run.config, 5)
    statuses.clear()
    assert not due(run.config, run.config.training.steps)
    assert not due(small(probe={"data": "digit-scenes"}), 5)


def test_ray_train_is_told_where_they_run_and_for_how_long(tmp_path):
    run = run_of(tmp_path, num_cpus=0.5, num_gpus=1, timeout_s=60)
    found = validation_config(run)
    assert cloudpickle.loads(cloudpickle.dumps(found)).fn.run == run  # as it travels to the controller
    assert found.ray_remote_kwargs == {"num_cpus": 0.5, "num_gpus": 1, "max_retries": -1}
    assert found.task_config.timeout_s == 60
    assert validation_config(Run.of(small())) is None


def test_the_cluster_must_have_room_for_them(tmp_path):
    run = run_of(tmp_path, num_cpus=2)
    without = sum(part.cpus * part.number for part in placement.parts(small(), labels=False))
    for cpus, fits in ((without + 2, True), (without + 1, False)):
        fleet = placement.Fleet([placement.NodeKind("node", cpus, 8, {}, count=1, limit=1)])
        if fits:
            assert placement.verdict(run.config, fleet).fits
        else:
            with pytest.raises(ConfigError, match=r"^generators and learners must fit the cluster"):
                placement.verdict(run.config, fleet)
    [probes] = [part for part in placement.parts(run.config, labels=True) if part.name == "probes"]
    assert probes.labels == placement.LEARNER_NODE
    told = validation_config(run, by_labels=True)
    assert told.ray_remote_kwargs["label_selector"] == placement.LEARNER_NODE
