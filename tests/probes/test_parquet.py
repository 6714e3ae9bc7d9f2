"""Parquet files as Hugging Face writes them."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
from worlds import NAMES, parquet, picture

from genray.config.errors import UserError
from genray.probes.data import load

TRAIN = [0, 1, 2, 2, 1, 0, 0, 1, 2, 2]


def same(image, name: str, row: int) -> bool:
    return np.array_equal(np.asarray(image), np.asarray(picture(name, row)))


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (
            ["data/train-00000-of-00002.parquet", "data/train-00001-of-00002.parquet"],
            "data/test-00000-of-00001.parquet",
        ),
        (["train/0000.parquet", "train/0001.parquet"], "validation/0000.parquet"),
        (["train-a.parquet", "train-b.parquet"], "test.parquet"),
    ],
    ids=["hub", "directories", "plain"],
)
@pytest.mark.parametrize("plain", [True, False], ids=["binary", "struct"])
def test_every_row_is_found_by_its_number(train, test, plain, tmp_path):
    parquet(tmp_path / train[0], TRAIN[:6], plain=plain)
    parquet(tmp_path / train[1], TRAIN[6:], first=6, plain=plain)
    parquet(tmp_path / test, [2, 0], first=50, plain=plain)
    data = load(str(tmp_path))
    assert (data.name, data.classes, data.val) == (tmp_path.name, NAMES, None)
    assert data.train.labels.tolist() == TRAIN
    for row in (9, 0, 5, 6, 3, 4):
        assert same(data.train.reader.image(row), NAMES[TRAIN[row]], row)
    assert same(data.test.reader.image(1), "blue", 51)


def test_choices_are_made_on_validation_where_test_is_there_too(tmp_path):
    for name, labels in (("train", TRAIN), ("validation", [0, 1]), ("test", [1, 2, 0])):
        parquet(tmp_path / f"{name}-00000-of-00001.parquet", labels)
    data = load(f"parquet:{tmp_path}")
    assert data.val is not None
    assert (len(data.val), len(data.test)) == (2, 3)
    parquet(tmp_path / "test-00000-of-00001.parquet", [-1, -1])  # a competition hides them
    hidden = load(f"parquet:file://{tmp_path}")
    assert (len(hidden.test), hidden.val) == (2, None)


def test_columns_of_other_names(tmp_path):
    for name in ("train", "test"):
        file = parquet(tmp_path / f"{name}.parquet", TRAIN, image="img", label="fine_label", names=None)
        table = pa.parquet.read_table(file).append_column("coarse_label", pa.array([0] * len(TRAIN), pa.int32()))
        pa.parquet.write_table(table, file)
    assert load(f"{tmp_path}#fine_label").train.labels.tolist() == TRAIN
    assert load(f"parquet:{tmp_path}#coarse_label").classes == ("0",)
    with pytest.raises(
        UserError,
        match=r"got '.*/train.parquet' with img \(struct.*\), fine_label .*; name the column of classes as "
        r"DIRECTORY#COLUMN$",
    ):
        load(str(tmp_path))


def test_what_parquet_files_lack_is_told(tmp_path):
    parquet(tmp_path / "train.parquet", TRAIN)
    with pytest.raises(UserError, match=r"files named train-….parquet and test-….*, got '.*' with train$"):
        load(str(tmp_path))
    parquet(tmp_path / "test.parquet", TRAIN, names=None)
    table = pa.parquet.read_table(tmp_path / "test.parquet")
    for changed, message in (
        (
            table.set_column(1, "label", pa.array([3] * 10)),
            r"the classes of test must be those of train in '.*', got 3",
        ),
        (table.rename_columns(["image", "classes"]), r"must all have the columns"),
        (
            table.drop_columns("image"),
            r"must all have the columns 'image' and 'label', got '.*/test.parquet' \('image'\)",
        ),
    ):
        pa.parquet.write_table(changed, tmp_path / "test.parquet")
        with pytest.raises(UserError, match=message):
            load(str(tmp_path))
    (tmp_path / "test.parquet").write_bytes(b"PAR0")
    with pytest.raises(UserError, match=r"got '.*/test.parquet' \("):
        load(str(tmp_path))
    with pytest.raises(UserError, match=r"--data must be a directory that can be read, got 'no://such'"):
        load("parquet:no://such")


def test_an_image_that_cannot_be_decoded_is_named(tmp_path):
    for name in ("train", "test"):
        parquet(tmp_path / f"{name}.parquet", TRAIN)
    table = pa.parquet.read_table(tmp_path / "train.parquet")
    content = table.column("image").to_pylist()
    content[5], content[6] = {"bytes": b"spoilt", "path": None}, {"bytes": None, "path": "elsewhere.png"}
    table = table.set_column(0, "image", pa.array(content))
    pa.parquet.write_table(table, tmp_path / "train.parquet", row_group_size=4)
    reader = load(str(tmp_path)).train.reader
    with pytest.raises(UserError, match=r"can be decoded, got row 1 of group 1 of .*/train.parquet \(no image"):
        reader.image(5)
    with pytest.raises(UserError, match=r"must be stored in the column 'image' itself, got none in row 2 of group 1"):
        reader.image(6)
    assert same(reader.image(7), NAMES[TRAIN[7]], 7)
