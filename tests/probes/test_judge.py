"""Every probe of backbones on labelled images, as `genray evaluate` makes them."""

import numpy as np
import pytest
import torch
from worlds import NAMES, folder, voc

from genray.config.errors import UserError
from genray.config.probe import MULTI_LABEL_PROBES, SINGLE_LABEL_PROBES, Probe
from genray.learner.load import open_run
from genray.probes import svm
from genray.probes.backbones import Backbone
from genray.probes.backbones import load as load_backbone
from genray.probes.data import load
from genray.probes.extraction import LocalExtractor
from genray.probes.few_labels import few_labels
from genray.probes.judge import PROBES, ProbeSettings, judge, table
from genray.probes.knn import knn
from genray.probes.linear import linear_probe
from genray.probes.run_probes import probe_report
from genray.probes.sgd import LinearSGD


def pixels() -> Backbone:
    return load_backbone("pixels", open_run)


def test_every_probe_of_images_of_one_class(tmp_path):
    data = load(str(folder(tmp_path / "colours", train=12, test=5)))
    settings = ProbeSettings(neighbors=3, shots=(1, 4), draws=3, sgd=LinearSGD(epochs=6, lr=0.01), seed=4)
    said = []
    found = judge([pixels()], data, list(SINGLE_LABEL_PROBES), settings, LocalExtractor(), said.append)
    assert said == [f"pixels: {name} on colours" for name in SINGLE_LABEL_PROBES]
    assert found["data"] == {"name": "colours", "train": 36, "test": 15, "classes": 3}
    assert found["settings"]["sgd"]["epochs"] == 6
    metrics = found["backbones"]["pixels"]
    accuracies = {"knn", "linear", "few.1", "few.1.std", "few.4", "few.4.std", "sgd"}
    assert set(metrics) == accuracies | {"alignment", "uniformity"}
    assert all(metrics[name] == 1.0 for name in ("knn", "linear", "few.1", "few.4", "sgd"))  # colours are easily told
    assert 0 < metrics["alignment"] < 1
    assert -4 < metrics["uniformity"] < 0
    again = judge([pixels()], data, list(SINGLE_LABEL_PROBES), settings, LocalExtractor())
    assert again["backbones"] == found["backbones"]


def test_images_that_show_several_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(svm, "COSTS", (0.1, 1.0))
    images = [{name: [0]} for name in NAMES for _ in range(4)]
    data = load(str(voc(tmp_path, {"trainval": images, "test": images[::2]})))
    found = judge([pixels()], data, (), ProbeSettings(), LocalExtractor())["backbones"]["pixels"]
    assert found == pytest.approx({"svm": 1.0, "svm.11-point": 1.0})
    assert set(PROBES) == {*SINGLE_LABEL_PROBES, *MULTI_LABEL_PROBES}
    with pytest.raises(UserError, match=r"^--probe must be of svm, similarity for multi-label images, got 'knn'"):
        judge([pixels()], data, ("svm", "knn"), ProbeSettings(), LocalExtractor())
    with pytest.raises(UserError, match=r"for images with one label each, got 'svm' on digit-scenes$"):
        load("digit-scenes").check_suits(["svm"], "--probe")


def test_digit_scenes_are_judged_as_a_run_judges_them():
    probe = Probe(data="digit-scenes", images=300)
    data = load("digit-scenes", images=300)
    raw = probe_report({"raw_pixels": None}, probe)["raw_pixels"]
    found = judge([pixels()], data, (), ProbeSettings(), LocalExtractor())["backbones"]["pixels"]
    assert found == raw


def test_each_probe_gets_the_features_and_its_settings(tmp_path):
    data = load("digit-scenes", images=300)
    settings = ProbeSettings(neighbors=4, shots=(2,), draws=2, seed=9)
    found = judge([pixels()], data, ("few", "knn", "linear"), settings, LocalExtractor())["backbones"]["pixels"]
    x, judged = (pixels().features(split.pixels) for split in (data.train, data.test))
    four = x, torch.from_numpy(data.train.labels), judged, torch.from_numpy(data.test.labels)
    assert found["knn"] == pytest.approx(knn(*four, 4), abs=2e-3)
    assert found["linear"] == pytest.approx(linear_probe(*four), abs=2e-3)
    expected = dict(few_labels(*four, shots=(2,), draws=2, seed=9))
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=2e-3)
    assert list(found) == ["few.2", "few.2.std", "knn", "linear"]


def test_more_neighbours_than_images_are_refused():
    with pytest.raises(
        UserError, match=r"^--neighbors must be at most the number of training images \(100\), got 101$"
    ):
        judge([pixels()], load("digit-scenes", images=100), ("knn",), ProbeSettings(neighbors=101), LocalExtractor())


def test_a_table_shows_accuracies_in_percent_with_their_spread():
    metrics = {"knn": 0.5, "few.5": 0.421, "few.5.std": 0.0149, "uniformity": -3.14159}
    found = {
        "data": {"name": "x", "train": 5000, "test": 100, "classes": 10},
        "backbones": {"runs/first": metrics, "pixels": {**metrics, "knn": 1.0}},
    }
    assert table(found) == [
        "x: 5,000 training images, 100 test images, 10 classes",
        "backbone       knn       few.5  uniformity",
        "runs/first   50.0%  42.1% ±1.5      -3.142",
        "pixels      100.0%  42.1% ±1.5      -3.142",
    ]
    assert np.isfinite(list(metrics.values())).all()
