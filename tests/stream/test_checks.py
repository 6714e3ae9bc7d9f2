"""What a latent view, an objective and chosen classes ask of the generator, and what is said where it has it not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import small

from genray.config.errors import ConfigError
from genray.config.generator import BigGANGenerator
from genray.config.load import build
from genray.stream.checks import check_view
from genray.stream.plan import Plan
from genray.views import walk_files
from genray.views.generators import describe
from genray.views.pin import pinned


def told(options: dict[str, Any] | None = None, **sections: Any) -> str:
    """What is said of a run on a generator with latents of 4 numbers that must be refused."""
    with pytest.raises(ConfigError) as error:
        Plan.of(small(options, **sections))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ({"classes": [0, 3]}, "stream.classes must be of the classes of fakes:Fake, 0 to 2, got 3"),
        ({"classes": [-1]}, "stream.classes must be of the classes of fakes:Fake, 0 to 2, got -1"),
        ({"classes": []}, "stream.classes must name one class or more, each once, got []"),
        ({"classes": [1, 1]}, "stream.classes must name one class or more, each once, got [1, 1]"),
        ({"class_weights": [1, 2]}, "stream.class_weights must have a number for each of the 3 classes, got 2"),
        (
            {"classes": [0, 2], "class_weights": [1, 2, 3]},
            "stream.class_weights must have a number for each of the 2 classes, got 3",
        ),
        ({"class_weights": [0, 0, 0]}, "stream.class_weights must not be 0 for every class"),
        ({"class_weights": [1, -1, 0]}, "stream.class_weights.1 must be greater than or equal to 0, got -1"),
        ({"classes": 3}, "stream.classes must be a list, got 3"),
    ],
)
def test_classes_that_make_no_sense_are_refused(stream: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        Plan.of(small(stream=stream))
    assert str(error.value) == message


def test_a_generator_without_classes_has_none_to_choose_from() -> None:
    for name in ("classes", "class_weights"):
        with pytest.raises(ConfigError) as error:
            Plan.of(small({"num_classes": 0}, stream={name: [1]}))
        assert str(error.value).startswith(f"stream.{name} must not be given for a generator without classes, got [1")


@pytest.mark.parametrize("stream", [{"classes": [1]}, {"class_weights": [0, 1, 0]}])
def test_one_class_leaves_nothing_to_tell_apart(stream: dict[str, Any]) -> None:
    assert Plan.of(small(stream=stream)).num_classes == 3
    with pytest.raises(ConfigError) as error:
        Plan.of(small(stream=stream, objective={"kind": "supcon"}))
    assert str(error.value) == ("stream.classes must leave at least two classes for objective.kind = 'supcon', got one")


@pytest.mark.parametrize("slices", [[], [[0, 5]], [[2, 2]], [[3, 1]], [[2, 4], [0, 1]], [[0, 2], [1, 3]], [[-1, 2]]])
def test_slices_lie_within_the_latent_in_order(slices: list[list[int]]) -> None:
    assert told(view={"kind": "chunked", "slices": slices}) == (
        "view.slices must be [[start, stop], ...] in order within the 4 numbers of a latent of fakes:Fake, "
        f"got {slices}"
    )


def test_slices_may_touch_and_fill_the_latent() -> None:
    assert Plan.of(small(view={"kind": "chunked", "slices": [[0, 1], [1, 4]]})).rendered_views == 2


def test_chunked_views_draw_anew_without_classes_what_others_keep() -> None:
    view = {"kind": "chunked", "slices": [[0, 2]], "noise": {"kind": "independent"}}
    assert Plan.of(small({"num_classes": 0}, view=view)).num_classes == 0
    assert "view.kind must not be 'independent'" in told({"num_classes": 0}, view={"kind": "independent"})


def test_one_number_has_no_direction() -> None:
    noise = {"kind": "angular"}
    assert "view.slices must cover at least two numbers" in told(
        view={"kind": "chunked", "slices": [[3, 4]], "noise": noise}
    )
    assert Plan.of(small(view={"kind": "chunked", "slices": [[0, 1], [3, 4]], "noise": noise})).rendered_views == 2


def test_the_shipped_files_are_for_the_embedded_generator_alone() -> None:
    embedded = describe(BigGANGenerator())
    other = replace(embedded, name="package.module:factory")
    for kind in ("steered", "navigator"):
        config = build({"name": "x", "view": {"kind": kind}})
        check_view(config, embedded)
        with pytest.raises(ConfigError, match=r"must be learned for package\.module:factory, got 'digit-scenes' for"):
            check_view(config, other)


def test_what_is_missing_is_told_with_its_remedy(tmp_path: Path) -> None:
    assert told(view={"kind": "steered", "walks": str(tmp_path / "w.safetensors")}) == (
        f"view.walks must be a file that `genray steer` wrote, got '{tmp_path}/w.safetensors' (No such file or "
        f"directory); write one: genray steer PRESET --out {tmp_path}/w.safetensors"
    )
    assert told(view={"kind": "navigator", "file": "no.safetensors"}).endswith(
        "write one: genray navigate PRESET --out no.safetensors"
    )


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Learned views for latents of 24 numbers."""
    about, found = {"generator": "some", "latent_dim": 24}, {}
    for kind in (walk_files.WALKS, walk_files.NAVIGATOR):
        path = tmp_path / f"{kind.name}.safetensors"
        kind.write(path, {"zoom": np.ones(24)}, about)
        found[kind.name] = str(path)
    return found


def test_a_file_must_be_for_such_latents(files: dict[str, str]) -> None:
    for kind, field in (("steered", "walks"), ("navigator", "file")):
        name = files["walks" if kind == "steered" else "navigator"]
        assert told(view={"kind": kind, field: name}).startswith(
            f"view.{field} must be learned for latents of 4 numbers, those of fakes:Fake, got '{name}' for the 24 "
            "of some; genray "
        )


@pytest.fixture
def walks(tmp_path: Path) -> str:
    """A file of five walks for latents of 4 numbers."""
    path = tmp_path / "walks.safetensors"
    about = {"generator": "fakes:Fake", "latent_dim": 4}
    walk_files.WALKS.write(path, {name: np.ones(4) for name in ("zoom", "red", "green", "blue", "rotation")}, about)
    return str(path)


def test_walks_are_known_and_no_more_than_can_be_drawn(walks: str) -> None:
    assert told(view={"kind": "steered", "walks": walks, "names": ["zoom", "shift_z"]}) == (
        f"view.names must be of the walks in {walks} (blue, green, red, rotation, zoom), got 'shift_z'; genray "
        f"steer PRESET --out {walks} --walks shift_z learns another one"
    )
    for names, number in ((None, 5), ([], 0)):
        assert told(view={"kind": "steered", "walks": walks, "names": names}) == (
            f"view.names must be 1 to 4 walks, as many as a latent of fakes:Fake has numbers, got {number}"
        )
    assert Plan.of(small(view={"kind": "steered", "walks": walks, "names": ["zoom", "red"]})).rendered_views == 2


def test_a_navigators_anchors_have_one_neighbour(tmp_path: Path) -> None:
    layers = {"first.weight": np.ones((3, 4)), "first.bias": np.ones(3)}
    layers |= {"second.weight": np.ones((4, 3)), "second.bias": np.ones(4)}
    path = tmp_path / "n.safetensors"
    walk_files.NAVIGATOR.write(path, layers, {"generator": "fakes:Fake", "latent_dim": 4})
    view = {"kind": "navigator", "file": str(path)}
    assert Plan.of(small(view=view, stream={"num_neighbors": 1})).rendered_views == 2
    for name, value, most in (("num_views", 3, 2), ("num_neighbors", 4, 1)):
        assert told(view=view, stream={name: value}) == (
            f"stream.{name} must be {most} with view.kind = 'navigator', whose anchors have one neighbour each, "
            f"got {value}"
        )


def test_other_content_is_refused_once_a_run_has_begun(walks: str) -> None:
    config = small(view={"kind": "steered", "walks": walks, "names": ["zoom"]})
    begun = pinned(config)
    walk_files.WALKS.write(Path(walks), {"zoom": np.zeros(4)}, {"generator": "fakes:Fake", "latent_dim": 4})
    with pytest.raises(ConfigError, match=r"^view.walks must hold what it held when the run began \(SHA-256 [0-9a-f]"):
        Plan.of(build(begun.to_dict()))
    assert Plan.of(config).rendered_views == 2  # a run that has not
