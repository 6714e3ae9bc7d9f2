"""torchvision's data sets, in files as their downloads leave them."""

import hashlib
import pickle

import numpy as np
import pytest
import scipy.io
from PIL import Image
from torchvision import datasets

from genray.config.errors import UserError
from genray.probes import torchvision_data
from genray.probes.data import load


@pytest.fixture(autouse=True)
def fresh():
    torchvision_data.opened.cache_clear()


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """A small CIFAR-10: two batches to learn from, one to judge on."""
    base = tmp_path / datasets.CIFAR10.base_folder
    base.mkdir()
    random = np.random.default_rng(0)

    def written(name: str, content: dict) -> list[str]:
        (base / name).write_bytes(pickle.dumps(content))
        return [name, hashlib.md5((base / name).read_bytes()).hexdigest()]

    def batch(n: int) -> dict:
        return {"data": random.integers(0, 256, (n, 3072), dtype=np.uint8), "labels": [i % 10 for i in range(n)]}

    monkeypatch.setattr(datasets.CIFAR10, "train_list", [written(f"data_batch_{i}", batch(20)) for i in (1, 2)])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [written("test_batch", batch(10))])
    filename, md5 = written("batches.meta", {"label_names": [f"class {i}" for i in range(10)]})
    monkeypatch.setattr(datasets.CIFAR10, "meta", {"filename": filename, "key": "label_names", "md5": md5})
    return tmp_path


def test_a_data_set_with_train_and_test(cifar):
    data = load(f"torchvision:CIFAR10:{cifar}")
    assert (data.name, data.classes[3], data.val, data.may_mirror) == ("CIFAR10", "class 3", None, True)
    for split, train in ((data.train, True), (data.test, False)):
        theirs = datasets.CIFAR10(cifar, train=train)
        assert split.labels.tolist() == theirs.targets
        assert np.array_equal(np.asarray(split.reader.image(7)), np.asarray(theirs[7][0]))


def test_a_reader_opens_the_data_set_where_it_is_used(cifar):
    reader = load(f"torchvision:CIFAR10:{cifar}").train.reader
    assert len(pickle.dumps(reader)) < 500
    torchvision_data.opened.cache_clear()  # as in another process
    assert pickle.loads(pickle.dumps(reader)).image(0).size == (32, 32)


def test_a_data_set_with_named_splits(tmp_path, monkeypatch):
    monkeypatch.setattr("torchvision.datasets.svhn.check_integrity", lambda *arguments: True)
    for split in ("train", "test"):
        content = {"X": np.zeros((32, 32, 3, 5), dtype=np.uint8), "y": np.array([[1], [2], [10], [3], [1]])}
        scipy.io.savemat(tmp_path / f"{split}_32x32.mat", content)
    data = load(f"torchvision:SVHN:{tmp_path}")
    assert data.train.labels.tolist() == [1, 2, 0, 3, 1]
    assert (data.classes, data.val, data.may_mirror) == (("0", "1", "2", "3"), None, False)


def test_a_data_set_with_a_split_for_choices(tmp_path):
    base = tmp_path / "dtd" / "dtd"
    (base / "labels").mkdir(parents=True)
    for number, split in enumerate(("train", "val", "test"), start=1):
        names = [f"{kind}/{split}{row}.jpg" for kind in ("banded", "dotted") for row in range(number)]
        (base / "labels" / f"{split}1.txt").write_text("\n".join(names) + "\n")
        for name in names:
            (base / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            Image.new("L", (9, 9), 50 * number).save(base / "images" / name)
    data = load(f"torchvision:DTD:{tmp_path}")
    assert data.val is not None
    assert [len(split) for split in (data.train, data.val, data.test)] == [2, 4, 6]
    assert data.classes == ("banded", "dotted")
    assert data.test.reader.image(0).mode == "RGB"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("CIFAR01", r"must name one of torchvision's data sets, got 'CIFAR01'; did you mean 'CIFAR10'\?"),
        (
            "CIFAR10",
            r"must be the directory that torchvision's CIFAR10 was downloaded to, got '.*' \(Dataset not found",
        ),
        ("EuroSAT", r"must have a training and a test split, got 'EuroSAT'"),
        ("VOCDetection", r"must have a training and a test split, got 'VOCDetection'"),
    ],
)
def test_what_cannot_be_opened_is_told(name, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load(f"torchvision:{name}:{tmp_path}")
    assert not list(tmp_path.iterdir())  # nothing is downloaded
