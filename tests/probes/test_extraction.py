"""Features of images that are read as they are needed, by this process and by Ray Data."""

import numpy as np
import pytest
import torch
from torch import nn
from worlds import folder, parquet

from genray.cluster import ray_cluster
from genray.config.errors import UserError
from genray.probes import extraction
from genray.probes.backbones import Backbone
from genray.probes.crops import Geometry
from genray.probes.data import load
from genray.probes.extraction import BackboneActor, LocalExtractor, RayExtractor, all_features
from genray.probes.features import features
from genray.probes.shown_images import ShownImages, decode_batch

SIZE = 12


def backbone() -> Backbone:
    """A small network whose modes differ, with statistics that are not ImageNet's."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
    return Backbone("small", module, Geometry(SIZE, SIZE + 2), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6)).to("cpu")


def by_hand(showing: ShownImages, judge: Backbone) -> torch.Tensor:
    """One image after the other."""
    found = []
    for position in range(len(showing)):
        image = torch.from_numpy(np.array(next(iter(showing.images(np.array([position])))))) / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (judge.mean, judge.std))
        found.append(judge(((image - mean) / std)[None])[0])
    return torch.stack(found)


@pytest.fixture
def data(tmp_path):
    return load(str(folder(tmp_path, train=4, test=2)))


def test_this_process_makes_what_one_image_after_the_other_gives(data, monkeypatch):
    monkeypatch.setattr(extraction, "ENCODE_BATCH", 5)  # the last batch is shorter
    judge = backbone()
    for showing in (
        ShownImages(data.train, judge.geometry),
        ShownImages(data.train, judge.geometry, crops=2, shuffled=True, may_mirror=True, seed=3),
    ):
        expected = by_hand(showing, judge)
        parts = list(LocalExtractor()(showing, judge))
        assert np.array_equal(np.concatenate([positions for positions, _ in parts]), np.arange(len(showing)))
        torch.testing.assert_close(torch.cat([part for _, part in parts]), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(all_features(showing, judge, LocalExtractor()), expected, rtol=1e-4, atol=1e-5)


def test_a_task_and_an_actor_make_the_same(data):
    judge = backbone()
    showing = ShownImages(data.train, judge.geometry, crops=1)
    batch = decode_batch({"id": np.array([3, 8, 5])}, showing)
    found = BackboneActor(judge, "cpu")(batch)
    assert found["position"].tolist() == [3, 8, 5]
    torch.testing.assert_close(
        torch.from_numpy(found["features"]), by_hand(showing, judge)[[3, 8, 5]], rtol=1e-4, atol=1e-5
    )


def test_images_in_memory_are_encoded_as_a_run_encodes_them():
    scenes, judge = load("digit-scenes", images=100), backbone()
    judge.mean, judge.std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

    class Never(LocalExtractor):
        def __call__(self, showing, backbone):
            raise AssertionError("they are not read again")

    found = all_features(ShownImages(scenes.train, judge.geometry), judge, Never())
    assert torch.equal(found.cpu(), features(judge, scenes.train.pixels, size=SIZE).cpu())
    crops = all_features(ShownImages(scenes.train.pick(np.arange(7)), judge.geometry, crops=1), judge, LocalExtractor())
    assert crops.shape == (7, 24)


@pytest.mark.ray
def test_ray_data_makes_the_same(tmp_path, monkeypatch):
    """Tasks that decode, an actor with the backbone, blocks in order; and an image that cannot be decoded."""
    monkeypatch.setattr(extraction, "DECODE_BLOCK", 7)
    monkeypatch.setattr(extraction, "ENCODE_BATCH", 4)
    data = load(str(folder(tmp_path / "files", train=6, test=1)))
    for name in ("train", "test"):
        parquet(tmp_path / "table" / f"{name}.parquet", [0, 1, 2, 1, 0, 2])
    table = load(str(tmp_path / "table"))
    judge = backbone()
    shown = (
        ShownImages(data.train, judge.geometry),
        ShownImages(data.train, judge.geometry, crops=2, shuffled=True, seed=1),
        ShownImages(table.train, judge.geometry),
    )
    with ray_cluster.joined():
        on_ray = RayExtractor(num_gpus=0)
        for showing in shown:
            positions, parts = zip(*on_ray(showing, judge), strict=True)
            assert np.array_equal(np.concatenate(positions), np.arange(len(showing)))
            torch.testing.assert_close(torch.cat(parts), by_hand(showing, judge), rtol=1e-4, atol=1e-5)
        (tmp_path / "files" / "train" / "green" / "003.png").write_bytes(b"spoilt")
        with pytest.raises(
            UserError, match=r"^labelled images must be files that can be decoded, got .*/green/003.png"
        ):
            list(on_ray(shown[0], judge))
