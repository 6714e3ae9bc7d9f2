"""What labelled images are called, and where they are found."""

import numpy as np
import pytest
from worlds import folder, voc

from genray.config.errors import ConfigError, UserError
from genray.config.load import build
from genray.config.load import load as load_config
from genray.config.probe import Probe, data_title, parse_data_name, with_absolute_path
from genray.config.rules import check
from genray.config.run import Config
from genray.probes import data
from genray.probes.data import load


def test_digit_scenes_are_those_that_runs_are_judged_on():
    from genray.probes.run_probes import dataset

    found = load("digit-scenes", images=300)
    probe = Probe(data="digit-scenes", images=300)
    for split, name in ((found.train, "train"), (found.val, "val"), (found.test, "test")):
        assert split.pixels is dataset(probe, name).images
        assert split.labels.tolist() == dataset(probe, name).labels.tolist()
    assert not found.may_mirror  # a mirrored digit is another sign
    image = found.train.reader.image(7)
    assert image.size == (32, 32)
    assert [image.getpixel((3, 5))[c] for c in range(3)] == found.train.pixels[7, :, 5, 3].tolist()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("digit-scenes", ("digit-scenes", "", "")),
        ("some/where", ("path", "some/where", "")),
        ("torchvision:CIFAR10:/data/x:y", ("torchvision", "/data/x:y", "CIFAR10")),
        ("parquet:s3://bucket/set#fine_label", ("parquet", "s3://bucket/set", "fine_label")),
        ("s3://bucket/set", ("path", "s3://bucket/set", "")),
        ("voc:/data/VOC2007", ("voc", "/data/VOC2007", "")),
        ("./odd:name", ("path", "./odd:name", "")),
    ],
)
def test_names_are_taken_apart(text, named):
    assert parse_data_name(text) == named


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("digit-scene", "--data must be digit-scenes, .*, got 'digit-scene'; did you mean 'digit-scenes'?"),
        ("no/such", "--data must be digit-scenes, .*, got 'no/such', which does not exist"),
        ("torchvison:CIFAR10:.", "--data must be digit-scenes, .*; did you mean torchvision:?"),
        ("torchvision:CIFAR10", "--data must be torchvision:NAME:DIRECTORY, got 'torchvision:CIFAR10'"),
        ("imagenet:.", "--data must be digit-scenes, .*, got 'imagenet:.'"),
    ],
)
def test_what_names_nothing_is_told(text, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as told:
        load(text)
    start, _, end = message.partition(".*")
    assert str(told.value).startswith(start)
    assert str(told.value).endswith(end)


def test_a_title_is_the_name_of_what_is_found(tmp_path):
    folder(tmp_path / "plain", train=1, test=1)
    for text in (f"{tmp_path}/plain", f"folder:{tmp_path}/plain/"):
        assert data_title(text) == load(text).name == "plain"
    assert data_title("digit-scenes") == load("digit-scenes").name
    assert data_title("torchvision:CIFAR10:/data") == "CIFAR10"
    assert data_title("parquet:s3://bucket/set#label") == "set"


def test_a_run_keeps_absolute_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text, kept in {
        "digit-scenes": "digit-scenes",
        "here": f"{tmp_path}/here",
        "torchvision:CIFAR10:here": f"torchvision:CIFAR10:{tmp_path}/here",
        "parquet:here#label": f"parquet:{tmp_path}/here#label",
        "parquet:s3://bucket/here": "parquet:s3://bucket/here",
    }.items():
        assert with_absolute_path(text) == kept
        assert load_config("demo", ["--probe.data", text, "--name", "x"]).probe.data == kept


@pytest.mark.parametrize(
    ("probe", "message"),
    [
        ({"data": "torchvison:A:b"}, "probe.data must be digit-scenes, .*; did you mean torchvision:?"),
        ({"beside": ["knn"]}, "probe.data must name labelled images for the probes of probe.beside, got none; .*"),
    ],
)
def test_settings_that_name_nothing_are_refused(probe, message):
    with pytest.raises(ConfigError) as told:
        build({"name": "x", "probe": probe})
    start, _, end = message.partition(".*")
    assert str(told.value).startswith(start)
    assert str(told.value).endswith(end)
    check(Config(name="x", probe=Probe(data="/no/such/directory", beside=("few",))))  # looked for when it is needed


def test_a_run_is_refused_before_it_starts_where_it_could_not_be_judged(tmp_path):
    data.check(Probe())
    data.check(Probe(data=str(folder(tmp_path / "good", train=1, test=1))))
    with pytest.raises(UserError, match=r"^probe.data must be .*, got '/no/such', which does not exist$"):
        data.check(Probe(data="/no/such"))
    shown = [{"red": [0]}] * 12
    several = str(voc(tmp_path / "voc", {"trainval": shown, "test": shown}))
    data.check(Probe(data=several, beside=("svm", "similarity")))
    with pytest.raises(UserError, match=r"^probe.beside must be of svm, similarity for multi-label images"):
        data.check(Probe(data=several, beside=("knn",)))
    with pytest.raises(UserError, match=r"^probe.beside must be of knn, .* for images with one label each, got 'svm'"):
        data.check(Probe(data="digit-scenes", images=100, beside=("svm",)))


def test_few_labels_need_as_many_of_each_class(tmp_path):
    root = str(folder(tmp_path / "colours", train=60, val=1))
    data.check(Probe(data=root, beside=("few",)))
    small = str(folder(tmp_path / "fewer", train=6, test=1))
    with pytest.raises(
        UserError,
        match=r"^probe.images must leave 10 training images of each class .*, got 4000, which leaves [3-6] of \w+;",
    ):
        data.check(Probe(data=small, beside=("few",)))
    data.check(Probe(data=small, beside=("linear",)))


def test_a_run_is_judged_on_the_images_for_choices_while_it_lasts(tmp_path):
    root = str(folder(tmp_path / "colours", train=60, val=50, test=3))
    found = data.during_training(Probe(data=root, images=120))
    assert (found.name, found.val) == ("colours-val", None)
    assert np.bincount(found.train.labels).tolist() == [40, 40, 40]
    assert np.bincount(found.test.labels).tolist() == [40, 40, 40]  # of val
    whole = data.of_run(Probe(data=root, images=120))
    assert len(whole.test) == 9
    digits = data.during_training(Probe(data="digit-scenes", images=100))
    assert (len(digits.train), len(digits.test)) == (100, 1000)
    assert digits.test is data.of_run(Probe(data="digit-scenes", images=100)).val
