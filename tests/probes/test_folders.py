"""Directories of images, sorted by class and in Pascal VOC's layout."""

import shutil

import numpy as np
import pytest
from torchvision.datasets import ImageFolder
from worlds import NAMES, folder, picture, voc

from genray.config.errors import UserError
from genray.probes.data import load


def test_a_folder_is_read_as_torchvision_reads_it(tmp_path):
    root = folder(tmp_path / "plain", train=3, val=2)
    data = load(str(root))
    assert (data.name, data.classes, data.multi_label, data.val) == ("plain", NAMES, False, None)
    for split, name in ((data.train, "train"), (data.test, "val")):
        theirs = ImageFolder(root / name)
        assert split.labels.tolist() == theirs.targets
        for row in range(len(split)):
            assert np.array_equal(np.asarray(split.reader.image(row)), np.asarray(theirs[row][0]))


def test_choices_are_made_on_val_where_test_is_there_too(tmp_path):
    data = load(f"folder:{folder(tmp_path, train=3, validation=2, test=1)}")
    assert (len(data.train), len(data.test)) == (9, 3)
    assert data.val is not None
    assert len(data.val) == 6
    assert data.for_choices() == (data.train, data.val)


def test_what_a_folder_lacks_is_told(tmp_path):
    root = folder(tmp_path / "only", train=1)
    with pytest.raises(
        UserError, match=r"must be in train/CLASS/ and in test/CLASS/ or val/CLASS/, got '.*/only', which has train/$"
    ):
        load(str(root))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"'.*/empty', which has none of them$"):
        load(str(tmp_path / "empty"))
    folder(root, test=1)
    shutil.rmtree(root / "test" / "red")
    with pytest.raises(
        UserError, match=r"^the classes of test must be those of train in '.*/only', got one that lacks 'red'$"
    ):
        load(str(root))
    (root / "test" / "red").mkdir()
    (root / "test" / "red" / "notes.txt").write_text("no image")
    with pytest.raises(UserError, match=r"^each class must have images .*, got none in '.*/only/test/red'$"):
        load(str(root))
    shutil.rmtree(root)
    (root / "train").mkdir(parents=True)
    (root / "test").mkdir()
    with pytest.raises(
        UserError, match=r"/only/(train|test)' must hold a directory of images for each class, got none$"
    ):
        load(str(root))


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    data = load(str(folder(tmp_path, train=2, test=1)))
    (tmp_path / "train" / "green" / "001.png").write_bytes(b"spoilt")
    with pytest.raises(UserError, match=r"must be files that can be decoded, got .*/train/green/001.png \("):
        data.train.reader.image(3)


def shown():
    """Two splits; in the second image blue is difficult, in the third only one of two reds is."""
    return {
        "trainval": [{"red": [0]}, {"green": [0], "blue": [1]}, {"red": [1, 0], "blue": [0]}],
        "test": [{"blue": [0]}, {"red": [1]}],
    }


@pytest.mark.parametrize("below", ["", "VOC2007", "VOCdevkit/VOC2007"])
def test_voc_is_read_with_what_counts_neither_way(below, tmp_path):
    voc(tmp_path / "data" / below if below else tmp_path / "VOC2007", shown())
    data = load(str(tmp_path / "data" if below else tmp_path / "VOC2007"))
    assert (data.name, data.classes, data.multi_label) == ("VOC2007", NAMES, True)
    assert data.train.labels.tolist() == [[-1, -1, 1], [0, 1, -1], [1, -1, 1]]
    assert data.test.labels.tolist() == [[1, -1, -1], [-1, -1, 0]]
    assert data.test.reader.image(0).size == picture("blue", 0).size


def test_what_voc_lacks_is_told(tmp_path):
    root = voc(tmp_path, shown())
    (root / "Annotations" / "000001.xml").write_text("<annotation>")
    with pytest.raises(UserError, match=r"VOC's annotations must be readable XML, got '.*/Annotations/000001.xml'"):
        load(f"voc:{root}")
    (root / "ImageSets" / "Main" / "test.txt").write_text("\n")
    with pytest.raises(UserError, match=r"must list its images in '.*/test.txt', got an empty file"):
        load(f"voc:{root}")
    (root / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(UserError, match=r"must list its images in '.*/test.txt', which cannot be read \(No such file"):
        load(f"voc:{root}")
    other = voc(tmp_path / "other", {"trainval": [{"red": [0]}], "test": [{"green": [0]}]})
    with pytest.raises(
        UserError, match=r"^the classes of test must be those of train in '.*', got one that has 'green'$"
    ):
        load(str(other))
