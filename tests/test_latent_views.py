"""Latent views: their distributions, and that each is a function of its arguments alone, row by row."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import small

from genray import learned
from genray.config import BigGANGenerator, Config
from genray.configure import build
from genray.generators import describe
from genray.latent_views import (
    Angular,
    Chunked,
    Gaussian,
    Independent,
    Navigator,
    Steered,
    Uniform,
    VariancePreserving,
    View,
)
from genray.latents import Anchors
from genray.plan import Plan
from genray.random import normal, truncated_normal, uniforms
from genray.settings import ConfigError

N, D = 4000, 24
SPREAD = 0.8796  # standard deviation of the truncated normal
Z = Anchors(seed=1, latent_dim=D, num_classes=0).latents(np.arange(N))
U = uniforms(1, "test", np.arange(N), D)
V = uniforms(1, "views", np.arange(N), D)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A file of two walks and one of a navigator, for latents of 24 numbers."""
    directory, draw = tmp_path_factory.mktemp("learned"), np.random.default_rng(0)
    about = {"generator": "some", "latent_dim": D}
    walks = {name: draw.standard_normal(D) for name in ("zoom", "shift_x", "rotation")}
    learned.WALKS.write(directory / "walks.safetensors", walks, about)
    shapes = {"first.weight": (40, D), "first.bias": (40,), "second.weight": (D, 40), "second.bias": (D,)}
    layers = {name: draw.standard_normal(shape) for name, shape in shapes.items()}
    learned.NAVIGATOR.write(directory / "navigator.safetensors", layers, about)
    return {kind: str(directory / f"{kind}.safetensors") for kind in ("walks", "navigator")}


@pytest.fixture(params=range(9))
def view(request: pytest.FixtureRequest, files: dict[str, str]) -> View:
    slices = ((0, 3), (10, 17))
    return (
        Independent(),
        Gaussian(std=0.5),
        Uniform(std=0.5),
        Angular(),
        VariancePreserving(),
        Chunked(slices=slices, noise=Angular()),
        Chunked(slices=slices, noise=Gaussian(truncated=False)),
        Steered(walks=files["walks"]),
        Navigator(file=files["navigator"]),
    )[request.param]


def test_a_view_is_a_function_of_each_row_alone(view: View) -> None:
    z, u = Z.copy(), U.copy()
    whole = view(z, u, 0.7)
    np.testing.assert_array_equal(z, Z)  # its arguments stay what they are
    np.testing.assert_array_equal(u, U)
    assert whole.dtype == np.float64
    assert whole.shape == (N, D)
    assert not (whole == Z).all(1).any()
    for rows in (slice(7, 8), slice(100, 117), slice(None, None, -3)):
        np.testing.assert_array_equal(view(Z[rows], U[rows], 0.7), whole[rows])
    np.testing.assert_array_equal(view(np.asfortranarray(Z), np.asfortranarray(U), 0.7), whole)


@pytest.mark.parametrize("std", [0.1, 1.0])
def test_uniform_views_lie_in_a_box_of_matched_spread(std: float) -> None:
    w = Uniform(std=std)(Z, U, 1.0) - Z
    assert np.abs(w).max() <= 3**0.5 * std
    assert np.abs(w).max() > 0.999 * 3**0.5 * std
    assert w.mean() == pytest.approx(0, abs=0.01 * std)
    assert w.std() == pytest.approx(std, rel=0.005)
    assert (w**4).mean() / std**4 == pytest.approx(9 / 5, rel=0.01)  # a normal has 3
    assert abs(correlation(Z, w)) < 0.01


@pytest.mark.parametrize("truncated", [True, False])
def test_angular_views_keep_the_length_of_their_own_anchor(truncated: bool) -> None:
    moved = Angular(std=0.5, truncated=truncated)(Z, U, 1.0)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), np.linalg.norm(Z, axis=1), rtol=1e-12)
    assert np.linalg.norm(Z, axis=1).std() > 0.3  # one length for all would be seen
    w = 0.5 * (truncated_normal(U) if truncated else normal(U))
    cosines = ((Z + w) * moved).sum(1) / np.linalg.norm(Z + w, axis=1) / np.linalg.norm(moved, axis=1)
    np.testing.assert_allclose(cosines, 1, rtol=1e-12)  # the direction is that of z + w


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("truncation", [1.0, 0.4])
def test_variance_preserving_views_spread_as_anchors_do(beta: float, truncation: float) -> None:
    z = truncation * Z
    moved = VariancePreserving(beta=beta)(z, U, truncation)
    assert moved.std() == pytest.approx(truncation * SPREAD, rel=0.01)
    assert moved.mean() == pytest.approx(0, abs=0.01)
    assert correlation(z, moved) == pytest.approx((1 - beta) ** 0.5, abs=0.01)


def test_the_variance_that_gaussian_views_add_is_what_it_does_not() -> None:
    assert Gaussian()(Z, U, 1.0).std() == pytest.approx(2**0.5 * SPREAD, rel=0.01)


@pytest.mark.parametrize("noise", [Gaussian(), Uniform(), Angular(), VariancePreserving(), Independent()])
def test_chunked_views_change_their_slices_as_the_other_view_would(noise: Any) -> None:
    moved = Chunked(slices=((2, 5), (5, 9), (20, 24)), noise=noise)(Z, U, 0.8)
    changed = np.r_[2:9, 20:24]
    kept = np.setdiff1d(np.arange(D), changed)
    assert moved[:, kept].tobytes() == Z[:, kept].tobytes()
    assert not (moved[:, changed] == Z[:, changed]).any()
    np.testing.assert_array_equal(moved[:, changed], noise(Z[:, changed], U[:, changed], 0.8))


def test_steered_views_take_a_part_of_every_walk(files: dict[str, str]) -> None:
    walks = learned.WALKS.read("view.walks", files["walks"]).tensors
    assert list(walks) == ["rotation", "shift_x", "zoom"]
    moved = Steered(walks=files["walks"])(Z, U, 1.0) - Z
    amounts, residual, *_ = np.linalg.lstsq(np.stack(list(walks.values())).T, moved.T, rcond=None)
    assert residual.max() < 1e-20
    np.testing.assert_allclose(amounts.T, 2 * U[:, :3] - 1, atol=1e-9)
    assert np.abs(amounts).max() <= 1
    assert amounts.std() == pytest.approx(3**-0.5, rel=0.01)


def test_steered_views_take_the_walks_that_are_named(files: dict[str, str]) -> None:
    walks = learned.WALKS.read("view.walks", files["walks"]).tensors
    moved = Steered(walks=files["walks"], names=("zoom", "shift_x"), scale=0.5)(Z, U, 1.0)
    amounts = 0.5 * (2 * U - 1)
    np.testing.assert_allclose(moved, Z + amounts[:, :1] * walks["zoom"] + amounts[:, 1:2] * walks["shift_x"])


def test_a_navigator_is_its_network(files: dict[str, str]) -> None:
    layers = learned.NAVIGATOR.read("view.file", files["navigator"]).tensors
    hidden = (Z @ layers["first.weight"].T + layers["first.bias"]).clip(0)
    expected = Z + hidden @ layers["second.weight"].T + layers["second.bias"]
    moved = Navigator(file=files["navigator"])(Z, U, 1.0)
    np.testing.assert_allclose(moved, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(Navigator(file=files["navigator"])(Z, 1 - U, 0.5), moved)


def told(options: dict[str, Any] | None = None, **sections: Any) -> str:
    """What is said of a run on a generator with latents of 4 numbers that must be refused."""
    with pytest.raises(ConfigError) as error:
        Plan.of(small(options, **sections))
    assert "\n" not in str(error.value)
    return str(error.value)


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
    assert "view.slices must be of two numbers at least" in told(
        view={"kind": "chunked", "slices": [[3, 4]], "noise": noise}
    )
    assert Plan.of(small(view={"kind": "chunked", "slices": [[0, 1], [3, 4]], "noise": noise})).rendered_views == 2


def test_the_noise_does_not_follow_the_truncation_but_a_draw_of_the_prior_does() -> None:
    for truncation, correlation in ((1.0, 0.707), (0.4, 0.371)):
        z = truncation * truncated_normal(U)
        moved = Gaussian()(z, V, truncation)
        assert np.corrcoef(z.ravel(), moved.ravel())[0, 1] == pytest.approx(correlation, abs=0.02)
        beta = 0.5
        spread = VariancePreserving(beta=beta)(z, V, truncation)
        assert np.corrcoef(z.ravel(), spread.ravel())[0, 1] == pytest.approx(0.5**0.5, abs=0.02)
        assert np.abs(spread).max() < 2 * ((1 - beta) ** 0.5 + beta**0.5) * truncation


def test_the_colours_are_moved_once() -> None:
    every = Steered()._walks()
    assert set(every) == {"zoom", "shift_x", "shift_y", "rotation", "red", "green", "blue"}
    assert set(Steered(names=("brightness", "zoom"))._walks()) == {"brightness", "zoom"}


def test_the_shipped_files_are_for_the_embedded_generator_alone() -> None:
    embedded = describe(BigGANGenerator())
    other = replace(embedded, name="package.module:factory")
    for kind in ("steered", "navigator"):
        view = build({"name": "x", "view": {"kind": kind}}).view
        view.check(Config(name="x").stream, embedded)
        with pytest.raises(ConfigError, match=r"must be learned for package\.module:factory, got 'digit-scenes' for"):
            view.check(Config(name="x").stream, other)


def test_what_is_missing_is_told_with_its_remedy(tmp_path: Path) -> None:
    assert told(view={"kind": "steered", "walks": str(tmp_path / "w.safetensors")}) == (
        f"view.walks must be a file that `genray steer` wrote, got '{tmp_path}/w.safetensors' (No such file or "
        f"directory); write one: genray steer PRESET --out {tmp_path}/w.safetensors"
    )
    assert told(view={"kind": "navigator", "file": "no.safetensors"}).endswith(
        "write one: genray navigate PRESET --out no.safetensors"
    )


def test_a_file_must_be_for_such_latents(files: dict[str, str]) -> None:
    for kind, field in (("steered", "walks"), ("navigator", "file")):
        name = files["walks" if kind == "steered" else "navigator"]
        assert told(view={"kind": kind, field: name}).startswith(
            f"view.{field} must be learned for latents of 4 numbers, as fakes:Fake has them, got '{name}' for the 24 "
            "of some; genray "
        )


@pytest.fixture
def walks(tmp_path: Path) -> str:
    """A file of five walks for latents of 4 numbers."""
    path = tmp_path / "walks.safetensors"
    about = {"generator": "fakes:Fake", "latent_dim": 4}
    learned.WALKS.write(path, {name: np.ones(4) for name in ("zoom", "red", "green", "blue", "rotation")}, about)
    return str(path)


def test_walks_are_known_and_no_more_than_can_be_drawn(walks: str) -> None:
    assert told(view={"kind": "steered", "walks": walks, "names": ["zoom", "shift_z"]}) == (
        f"view.names must be of the walks in {walks} (blue, green, red, rotation, zoom), got 'shift_z'; another one is "
        f"learned by genray steer PRESET --out {walks} --walks shift_z"
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
    learned.NAVIGATOR.write(path, layers, {"generator": "fakes:Fake", "latent_dim": 4})
    view = {"kind": "navigator", "file": str(path)}
    assert Plan.of(small(view=view, stream={"num_neighbors": 1})).rendered_views == 2
    for name, value, most in (("num_views", 3, 2), ("num_neighbors", 4, 1)):
        assert told(view=view, stream={name: value}) == (
            f"stream.{name} must be {most} with view.kind = 'navigator', whose anchors have one neighbour each, "
            f"got {value}"
        )


def test_files_are_named_for_good_by_path_and_content(walks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(walks).parent)
    view = Steered(walks="walks.safetensors", names=("zoom",)).settled()
    assert (view.walks, view.names) == (walks, ("zoom",))
    assert view.sha256 is not None
    assert view.settled() == view
    np.testing.assert_array_equal(
        view(Z[:3, :4], U[:3, :4], 1.0), Steered(walks=walks, names=("zoom",))(Z[:3, :4], U[:3, :4], 1.0)
    )
    assert Steered(walks="later.safetensors").settled() == Steered(walks=str(Path(walks).parent / "later.safetensors"))
    assert Gaussian().settled() == Gaussian()


def test_other_content_is_refused_once_a_run_has_begun(walks: str) -> None:
    config = small(view={"kind": "steered", "walks": walks, "names": ["zoom"]})
    begun = Config(**{**vars(config), "view": config.view.settled()})
    learned.WALKS.write(Path(walks), {"zoom": np.zeros(4)}, {"generator": "fakes:Fake", "latent_dim": 4})
    with pytest.raises(ConfigError, match=r"^view.walks must hold what it held when the run began \(SHA-256 [0-9a-f]"):
        Plan.of(build(begun.to_dict()))
    with pytest.raises(ConfigError, match="must hold what it held"):  # where a generator is started again
        begun.view(Z[:1, :4], U[:1, :4], 1.0)
    assert Plan.of(config).rendered_views == 2  # a run that has not
