"""The probes that a run makes itself."""

import pytest
import torch

from genray.config.probe import Probe
from genray.probes.features import features
from genray.probes.knn import knn
from genray.probes.linear import linear_probe
from genray.probes.run_probes import QuickProbe, dataset, probe_report
from genray.views.augment import MEAN, STD

PROBE = Probe(data="digit-scenes", images=400)


def test_a_report_holds_both_scores_of_every_encoder(encoder):
    probe = Probe(data="digit-scenes", images=300, neighbors=5)
    report = probe_report({"untrained": encoder, "raw_pixels": None}, probe, split="val")
    assert list(report) == ["untrained", "raw_pixels"]
    bank, judged = dataset(probe, "train"), dataset(probe, "val")
    a, b = features(encoder, bank.images), features(encoder, judged.images)
    assert report["untrained"]["knn"] == pytest.approx(knn(a, bank.labels, b, judged.labels, 5))
    assert report["untrained"]["linear"] == pytest.approx(linear_probe(a, bank.labels, b, judged.labels))
    assert 0.1 < report["raw_pixels"]["knn"] < 0.5
    assert QuickProbe(probe)(encoder) == report["untrained"]["knn"]


def test_the_report_of_an_encoder_that_sees_the_class_is_perfect():
    labels = {}
    for split in ("train", "test"):
        data = dataset(PROBE, split)
        labels |= {image.numpy().tobytes(): int(label) for image, label in zip(data.images, data.labels, strict=True)}
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]

    def oracle(batch: torch.Tensor) -> torch.Tensor:
        pixels = ((batch * std + mean) * 255).round().to(torch.uint8)
        return torch.eye(10)[[labels[image.numpy().tobytes()] for image in pixels]]

    assert probe_report({"oracle": oracle}, PROBE)["oracle"] == {"knn": 1.0, "linear": 1.0}


def test_the_splits_judge_on_digits_that_nothing_was_learnt_from():
    sizes = {split: len(dataset(PROBE, split).images) for split in ("train", "val", "test")}
    assert sizes == {"train": 400, "val": 1000, "test": 2388}
    assert dataset(PROBE, "val") is dataset(PROBE, "val")
