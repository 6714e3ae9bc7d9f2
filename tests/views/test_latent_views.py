"""Latent views: their distributions, and that each is a function of its arguments alone, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from genray.config.errors import ConfigError
from genray.config.view import (
    Angular,
    Chunked,
    Gaussian,
    Independent,
    Navigator,
    NoiseView,
    NoLatentView,
    Steered,
    Uniform,
    VariancePreserving,
    View,
)
from genray.views import walk_files
from genray.views.anchors import Anchors
from genray.views.latent_views import neighbour_latents, shares_nothing, walks_of
from genray.views.random import normal, truncated_normal, uniforms

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
    walk_files.WALKS.write(directory / "walks.safetensors", walks, about)
    shapes = {"first.weight": (40, D), "first.bias": (40,), "second.weight": (D, 40), "second.bias": (D,)}
    layers = {name: draw.standard_normal(shape) for name, shape in shapes.items()}
    walk_files.NAVIGATOR.write(directory / "navigator.safetensors", layers, about)
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


def test_without_a_latent_view_the_neighbour_is_the_anchor() -> None:
    np.testing.assert_array_equal(neighbour_latents(NoLatentView(), Z, U, 0.7), Z)


def test_a_view_is_a_function_of_each_row_alone(view: View) -> None:
    z, u = Z.copy(), U.copy()
    whole = neighbour_latents(view, z, u, 0.7)
    np.testing.assert_array_equal(z, Z)  # its arguments stay what they are
    np.testing.assert_array_equal(u, U)
    assert whole.dtype == np.float64
    assert whole.shape == (N, D)
    assert not (whole == Z).all(1).any()
    for rows in (slice(7, 8), slice(100, 117), slice(None, None, -3)):
        np.testing.assert_array_equal(neighbour_latents(view, Z[rows], U[rows], 0.7), whole[rows])
    np.testing.assert_array_equal(neighbour_latents(view, np.asfortranarray(Z), np.asfortranarray(U), 0.7), whole)


@pytest.mark.parametrize("std", [0.1, 1.0])
def test_uniform_views_lie_in_a_box_of_matched_spread(std: float) -> None:
    w = neighbour_latents(Uniform(std=std), Z, U, 1.0) - Z
    assert np.abs(w).max() <= 3**0.5 * std
    assert np.abs(w).max() > 0.999 * 3**0.5 * std
    assert w.mean() == pytest.approx(0, abs=0.01 * std)
    assert w.std() == pytest.approx(std, rel=0.005)
    assert (w**4).mean() / std**4 == pytest.approx(9 / 5, rel=0.01)  # a normal has 3
    assert abs(correlation(Z, w)) < 0.01


@pytest.mark.parametrize("truncated", [True, False])
def test_angular_views_keep_the_length_of_their_own_anchor(truncated: bool) -> None:
    moved = neighbour_latents(Angular(std=0.5, truncated=truncated), Z, U, 1.0)
    np.testing.assert_allclose(np.linalg.norm(moved, axis=1), np.linalg.norm(Z, axis=1), rtol=1e-12)
    assert np.linalg.norm(Z, axis=1).std() > 0.3  # one length for all would be seen
    w = 0.5 * (truncated_normal(U) if truncated else normal(U))
    cosines = ((Z + w) * moved).sum(1) / np.linalg.norm(Z + w, axis=1) / np.linalg.norm(moved, axis=1)
    np.testing.assert_allclose(cosines, 1, rtol=1e-12)  # the direction is that of z + w


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("truncation", [1.0, 0.4])
def test_variance_preserving_views_spread_as_anchors_do(beta: float, truncation: float) -> None:
    z = truncation * Z
    moved = neighbour_latents(VariancePreserving(beta=beta), z, U, truncation)
    assert moved.std() == pytest.approx(truncation * SPREAD, rel=0.01)
    assert moved.mean() == pytest.approx(0, abs=0.01)
    assert correlation(z, moved) == pytest.approx((1 - beta) ** 0.5, abs=0.01)


def test_the_variance_that_gaussian_views_add_is_what_it_does_not() -> None:
    assert neighbour_latents(Gaussian(), Z, U, 1.0).std() == pytest.approx(2**0.5 * SPREAD, rel=0.01)


@pytest.mark.parametrize("noise", [Gaussian(), Uniform(), Angular(), VariancePreserving(), Independent()])
def test_chunked_views_change_their_slices_as_the_other_view_would(noise: Any) -> None:
    moved = neighbour_latents(Chunked(slices=((2, 5), (5, 9), (20, 24)), noise=noise), Z, U, 0.8)
    changed = np.r_[2:9, 20:24]
    kept = np.setdiff1d(np.arange(D), changed)
    assert moved[:, kept].tobytes() == Z[:, kept].tobytes()
    assert not (moved[:, changed] == Z[:, changed]).any()
    np.testing.assert_array_equal(moved[:, changed], neighbour_latents(noise, Z[:, changed], U[:, changed], 0.8))


def test_steered_views_take_a_part_of_every_walk(files: dict[str, str]) -> None:
    walks = walk_files.WALKS.read("view.walks", files["walks"]).tensors
    assert list(walks) == ["rotation", "shift_x", "zoom"]
    moved = neighbour_latents(Steered(walks=files["walks"]), Z, U, 1.0) - Z
    amounts, residual, *_ = np.linalg.lstsq(np.stack(list(walks.values())).T, moved.T, rcond=None)
    assert residual.max() < 1e-20
    np.testing.assert_allclose(amounts.T, 2 * U[:, :3] - 1, atol=1e-9)
    assert np.abs(amounts).max() <= 1
    assert amounts.std() == pytest.approx(3**-0.5, rel=0.01)


def test_steered_views_take_the_walks_that_are_named(files: dict[str, str]) -> None:
    walks = walk_files.WALKS.read("view.walks", files["walks"]).tensors
    moved = neighbour_latents(Steered(walks=files["walks"], names=("zoom", "shift_x"), scale=0.5), Z, U, 1.0)
    amounts = 0.5 * (2 * U - 1)
    np.testing.assert_allclose(moved, Z + amounts[:, :1] * walks["zoom"] + amounts[:, 1:2] * walks["shift_x"])


def test_a_navigator_is_its_network(files: dict[str, str]) -> None:
    layers = walk_files.NAVIGATOR.read("view.file", files["navigator"]).tensors
    hidden = (Z @ layers["first.weight"].T + layers["first.bias"]).clip(0)
    expected = Z + hidden @ layers["second.weight"].T + layers["second.bias"]
    moved = neighbour_latents(Navigator(file=files["navigator"]), Z, U, 1.0)
    np.testing.assert_allclose(moved, expected, rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(neighbour_latents(Navigator(file=files["navigator"]), Z, 1 - U, 0.5), moved)


def test_the_noise_does_not_follow_the_truncation_but_a_draw_of_the_prior_does() -> None:
    for truncation, correlation in ((1.0, 0.707), (0.4, 0.371)):
        z = truncation * truncated_normal(U)
        moved = neighbour_latents(Gaussian(), z, V, truncation)
        assert np.corrcoef(z.ravel(), moved.ravel())[0, 1] == pytest.approx(correlation, abs=0.02)
        beta = 0.5
        spread = neighbour_latents(VariancePreserving(beta=beta), z, V, truncation)
        assert np.corrcoef(z.ravel(), spread.ravel())[0, 1] == pytest.approx(0.5**0.5, abs=0.02)
        assert np.abs(spread).max() < 2 * ((1 - beta) ** 0.5 + beta**0.5) * truncation


def test_the_colours_are_moved_once() -> None:
    assert set(walks_of(Steered())) == {"zoom", "shift_x", "shift_y", "rotation", "red", "green", "blue"}
    assert set(walks_of(Steered(names=("brightness", "zoom")))) == {"brightness", "zoom"}


def test_a_file_of_other_content_than_was_pinned_is_not_used(tmp_path: Path) -> None:
    file = tmp_path / "walks.safetensors"
    about = {"generator": "fakes:Fake", "latent_dim": 4}
    walk_files.WALKS.write(file, {"zoom": np.ones(4)}, about)
    path, sha256 = walk_files.WALKS.pinned(str(file))
    view = Steered(walks=path, sha256=sha256)
    walk_files.WALKS.write(file, {"zoom": np.zeros(4)}, about)
    with pytest.raises(ConfigError, match="must hold what it held"):  # where a generator is started again
        neighbour_latents(view, Z[:1, :4], U[:1, :4], 1.0)
    np.testing.assert_array_equal(neighbour_latents(Steered(walks=path), Z[:1, :4], U[:1, :4], 1.0), Z[:1, :4])


def test_only_a_view_that_draws_the_whole_latent_anew_shares_nothing() -> None:
    def chunked(*slices: tuple[int, int], noise: NoiseView) -> Chunked:
        return Chunked(slices=slices, noise=noise)

    assert shares_nothing(Independent(), 4)
    assert shares_nothing(chunked((0, 1), (1, 4), noise=Independent()), 4)
    assert not shares_nothing(chunked((0, 3), noise=Independent()), 4)
    assert not shares_nothing(chunked((0, 4), noise=Gaussian()), 4)
    assert not shares_nothing(Gaussian(), 4)
    assert not shares_nothing(NoLatentView(), 4)
