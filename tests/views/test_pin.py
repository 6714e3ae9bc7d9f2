"""Files that a configuration names: a run gets them wherever it is resumed, with the content that it began with."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import small
from folders import folder, of_images

from genray.config.load import build
from genray.config.run import Config
from genray.views.latent_views import neighbour_latents
from genray.views.pin import pinned
from genray.views.sources.listing import listing
from genray.views.walk_files import NAVIGATOR, WALKS

ABOUT = {"generator": "x", "latent_dim": 4}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, which relative paths start from."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def config(**sections: Any) -> Config:
    return build({"name": "x", **sections})


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def walks(path: Path, length: float = 1.0) -> Path:
    WALKS.write(path, {"zoom": np.full(4, length)}, ABOUT)
    return path


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"view": {"kind": "none"}},
        {"view": {"kind": "uniform", "std": 0.5}},
        {"generator": {"kind": "custom", "target": "a:b"}},
        {"generator": {"kind": "diffusers", "model": "a/b", "prompts": ["c", "d"]}, "view": {"kind": "independent"}},
    ],
)
def test_what_names_no_file_stays_as_it_is(sections: dict[str, Any]) -> None:
    assert pinned(found := config(**sections)) is found


@pytest.mark.parametrize(
    "generator", [{"kind": "biggan"}, {"kind": "diffusers", "prompts": ["a cat"]}], ids=["biggan", "diffusers"]
)
def test_a_model_that_is_a_directory_is_named_by_its_absolute_path(generator: dict[str, Any], here: Path) -> None:
    def model(name: str) -> str:
        found = pinned(config(generator={**generator, "model": name}, view={"kind": "independent"}))
        assert pinned(found) is found
        return str(found.to_dict()["generator"]["model"])

    (here / "weights").mkdir()
    (here / "file").touch()
    assert model("weights") == str(here / "weights")
    for name in ("digit-scenes", "biggan-deep-128", "file", "other/weights"):  # names of published weights
        assert model(name) == name
    (here / "digit-scenes").mkdir()
    assert model("digit-scenes") == str(here / "digit-scenes")


@pytest.mark.parametrize(
    ("generator", "field", "digest"),
    [
        ({"kind": "exported", "path": "file"}, "path", "sha256"),
        ({"kind": "diffusers", "model": "a/b", "prompts_file": "file"}, "prompts_file", "prompts_sha256"),
    ],
)
def test_a_generators_file_is_pinned_by_path_and_content(
    generator: dict[str, Any], field: str, digest: str, here: Path
) -> None:
    def named(value: Config) -> tuple[Any, Any]:
        fields = value.to_dict()["generator"]
        return fields[field], fields[digest]

    begun = config(generator=generator, view={"kind": "independent"})
    later = pinned(begun)
    assert named(later) == (str(here / "file"), None)  # it may still come
    (here / "file").write_text("a cat\ntwo dogs\n")
    noted = pinned(begun)
    assert named(noted) == named(pinned(later)) == (str(here / "file"), sha256(here / "file"))
    (here / "file").write_text("an owl\n")
    assert pinned(noted) is noted


@pytest.mark.parametrize("kind", ["images", "mix"])
def test_a_folder_of_images_is_pinned_by_path_and_content(kind: str, here: Path) -> None:
    folder(here / "photos", {"a": 3, "b": 2})
    before = listing("photos").digest
    begun = of_images(Path("photos")) if kind == "images" else small(source={"kind": kind, "directory": "photos"})
    noted = pinned(begun).to_dict()["source"]
    assert (noted["directory"], noted["digest"]) == (str(here / "photos"), before)
    folder(here / "photos", {"c": 1})
    resumed = build({**begun.to_dict(), "source": noted})
    assert pinned(resumed) is resumed


def test_a_stored_stream_is_named_by_its_absolute_path(here: Path) -> None:
    found = pinned(config(source={"kind": "stored", "directory": "anchors"}, pool={"num_gpus": 0}))
    assert found.to_dict()["source"] == {"kind": "stored", "directory": str(here / "anchors")}
    assert pinned(found) is found


def test_a_learned_view_is_pinned_by_path_and_content(here: Path) -> None:
    later = pinned(config(view={"kind": "steered", "walks": "w.safetensors", "names": ["zoom"]}))
    path = here / "w.safetensors"
    assert later.to_dict()["view"] | {"scale": 1.0} == {
        "kind": "steered",
        "walks": str(path),
        "names": ["zoom"],
        "scale": 1.0,
        "sha256": None,
    }
    noted = pinned(later)
    assert noted is later
    walks(path)
    noted = pinned(later)
    assert noted.to_dict()["view"] == {**later.to_dict()["view"], "sha256": sha256(path)}
    z, u = np.ones((3, 4)), np.full((3, 4), 0.75)
    np.testing.assert_array_equal(neighbour_latents(noted.view, z, u, 1.0), neighbour_latents(later.view, z, u, 1.0))
    assert build(noted.to_dict()) == noted
    walks(path, 2.0)
    assert pinned(noted) is noted


def test_a_navigators_file_is_pinned_too(here: Path) -> None:
    NAVIGATOR.write(here / "n.safetensors", {"first.weight": np.ones((3, 4))}, ABOUT)
    view = pinned(config(view={"kind": "navigator", "file": "n.safetensors"})).to_dict()["view"]
    assert view == {
        "kind": "navigator",
        "file": str(here / "n.safetensors"),
        "sha256": sha256(here / "n.safetensors"),
    }


@pytest.mark.parametrize(("kind", "field"), [("steered", "walks"), ("navigator", "file")])
def test_the_shipped_views_keep_their_name_and_get_a_digest(kind: str, field: str) -> None:
    view = pinned(config(view={"kind": kind})).to_dict()["view"]
    assert view[field] == "digit-scenes"
    assert len(view["sha256"]) == 64
