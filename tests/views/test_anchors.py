"""Anchors and latent views: the paper's distributions, and what each view is a function of."""

from dataclasses import replace

import numpy as np
import pytest
from fakes import small

from genray.config.view import Gaussian, Independent, NoLatentView, View
from genray.stream.renderer import Renderer
from genray.views.anchors import Anchors, anchors_of
from genray.views.generators import describe
from genray.views.random import uniforms

POSITION = np.arange(4000)
ENDLESS = Anchors(seed=1, latent_dim=64, num_classes=10)


def pair(view: View, anchors: Anchors = ENDLESS) -> tuple[np.ndarray, np.ndarray]:
    """z and z' of many anchors."""
    views = anchors.views(POSITION, view, 2)
    return views[:, 0].astype(np.float64), views[:, 1].astype(np.float64)


def test_anchors_are_truncated_normal() -> None:
    z = ENDLESS.latents(POSITION)
    assert np.abs(z).max() <= 2
    assert np.abs(z).max() > 1.99
    assert z.mean() == pytest.approx(0, abs=0.01)
    assert z.std() == pytest.approx(0.8796, abs=0.005)
    scaled = Anchors(seed=1, latent_dim=64, num_classes=10, truncation=0.4)
    np.testing.assert_allclose(scaled.latents(POSITION), 0.4 * z)


@pytest.mark.parametrize(("std", "correlation", "spread"), [(1.0, 0.707, 1.244), (0.2, 0.981, 0.897)])
def test_gaussian_views_have_the_papers_moments(std: float, correlation: float, spread: float) -> None:
    z, neighbour = pair(Gaussian(std=std))
    w = neighbour - z
    assert w.std() == pytest.approx(0.88 * std, rel=0.01)
    assert np.abs(w).max() <= 2 * std + 1e-6
    assert np.corrcoef(z.ravel(), neighbour.ravel())[0, 1] == pytest.approx(correlation, abs=0.005)
    assert neighbour.std() == pytest.approx(spread, abs=0.01)
    assert (np.abs(neighbour).max() > 2) == (std > 0.1)  # z' is not truncated again


def test_untruncated_gaussian_views_have_tails() -> None:
    z, neighbour = pair(Gaussian(std=1.1, truncated=False))
    w = neighbour - z
    assert w.std() == pytest.approx(1.1, rel=0.01)
    assert (np.abs(w) > 2.2).mean() == pytest.approx(0.0455, abs=0.003)


@pytest.mark.parametrize("truncation", [1.0, 0.5])
def test_independent_views_share_the_class_alone(truncation: float) -> None:
    anchors = Anchors(seed=1, latent_dim=64, num_classes=10, truncation=truncation)
    z, neighbour = pair(Independent(), anchors)
    assert abs(np.corrcoef(z.ravel(), neighbour.ravel())[0, 1]) < 0.01
    assert neighbour.std() == pytest.approx(0.8796 * truncation, rel=0.01)
    assert np.abs(neighbour).max() <= 2 * truncation


def test_no_latent_view_is_rendered_once() -> None:
    views = ENDLESS.views(POSITION[:5], NoLatentView(), 4)
    assert views.shape == (5, 1, 64)
    np.testing.assert_array_equal(views[:, 0], ENDLESS.latents(POSITION[:5]).astype(np.float32))


def test_views_are_a_function_of_seed_and_position() -> None:
    anchors = Anchors(seed=2, latent_dim=8, num_classes=0, num_anchors=30, num_neighbors=5)
    position = np.arange(100)
    whole = anchors.views(position, Gaussian(), 3)
    assert whole.dtype == np.float32
    assert whole.shape == (100, 3, 8)
    np.testing.assert_array_equal(anchors.views(position[63:41:-1], Gaussian(), 3), whole[63:41:-1])
    other = Anchors(seed=3, latent_dim=8, num_classes=0, num_anchors=30, num_neighbors=5)
    assert not (other.views(position, Gaussian(), 3) == whole).all((1, 2)).any()


def test_labels_are_uniform_and_independent_of_the_latents() -> None:
    labels = ENDLESS.labels(POSITION)
    assert labels.dtype == np.int64
    counts = np.bincount(labels, minlength=10)
    assert len(counts) == 10
    assert ((counts - 400) ** 2 / 400).sum() < 9 + 5 * np.sqrt(18)  # chi-squared, five deviations
    assert abs(np.corrcoef(labels, ENDLESS.latents(POSITION)[:, 0])[0, 1]) < 5 / np.sqrt(len(POSITION))
    without = Anchors(seed=1, latent_dim=64, num_classes=0).labels(POSITION[:3])
    assert without.dtype == np.int64
    assert without.tolist() == [-1, -1, -1]


@pytest.mark.parametrize("number", [1, 2, 3, 7, 10, 100, 999, 1000])
def test_equal_weights_are_no_weights_at_all(number: int) -> None:
    anchors = Anchors(seed=4, latent_dim=1, num_classes=number)
    labels = anchors.labels(POSITION)
    np.testing.assert_array_equal(labels, np.floor(uniforms(4, "label", POSITION, 1)[:, 0] * number))
    for changed in (
        {"class_weights": (0.3,) * number},
        {"classes": tuple(range(number))},
        {"classes": tuple(range(number)), "class_weights": (7.0,) * number},
    ):
        np.testing.assert_array_equal(replace(anchors, **changed).labels(POSITION), labels)  # type: ignore[arg-type]


def test_a_subset_of_the_classes_is_shown_equally() -> None:
    labels = replace(ENDLESS, classes=(7, 0, 3)).labels(POSITION)
    assert labels.dtype == np.int64
    counts = np.bincount(labels, minlength=10)
    assert counts.nonzero()[0].tolist() == [0, 3, 7]
    expected = len(POSITION) / 3
    assert ((counts[[0, 3, 7]] - expected) ** 2 / expected).sum() < 2 + 5 * np.sqrt(4)


@pytest.mark.parametrize("unit", [1.0, 1e-30, 1e30])
def test_classes_are_shown_as_often_as_their_weights_say(unit: float) -> None:
    weights = (5 * unit, 0.0, 1 * unit, 4 * unit, 0.0)
    anchors = replace(ENDLESS, classes=(2, 9, 4, 0, 1), class_weights=weights)
    position = np.arange(20_000)
    labels = anchors.labels(position)
    counts = np.bincount(labels, minlength=10)
    assert counts[[1, 9]].sum() == 0
    for label, share in {2: 0.5, 4: 0.1, 0: 0.4}.items():
        assert counts[label] == pytest.approx(share * 20_000, abs=5 * np.sqrt(20_000 * share * (1 - share)))
    np.testing.assert_array_equal(anchors.labels(position[500:300:-7]), labels[500:300:-7])


def test_the_latents_do_not_depend_on_the_classes() -> None:
    chosen = replace(ENDLESS, classes=(1, 2), class_weights=(1.0, 2.0))
    np.testing.assert_array_equal(chosen.latents(POSITION), ENDLESS.latents(POSITION))


def test_a_run_shows_the_classes_that_are_configured() -> None:
    shown = Renderer(small(stream={"classes": [2, 0], "class_weights": [1, 3]}), "cpu").block_at(np.arange(400))
    assert not (shown["label"] == 1).any()
    assert np.mean(shown["label"] == 0) == pytest.approx(0.75, abs=0.1)


def test_an_endless_population_never_shows_an_anchor_again() -> None:
    anchor, epoch = ENDLESS.at(np.array([0, 7, 2**40]))
    assert anchor.tolist() == [0, 7, 2**40]
    assert epoch.tolist() == [0, 0, 0]


def test_a_finite_population_is_shown_once_in_each_epoch() -> None:
    anchors = Anchors(seed=0, latent_dim=4, num_classes=0, num_anchors=50)
    anchor, epoch = anchors.at(np.arange(150))
    np.testing.assert_array_equal(epoch, np.repeat([0, 1, 2], 50))
    orders = anchor.reshape(3, 50)
    np.testing.assert_array_equal(np.sort(orders, 1), np.tile(np.arange(50), (3, 1)))
    assert not (orders[0] == orders[1]).all()
    assert not (orders[1] == orders[2]).all()
    across, epochs = anchors.at(np.arange(45, 55))  # a ticket may cross into the next epoch
    np.testing.assert_array_equal(across, anchor[45:55])
    np.testing.assert_array_equal(epochs, epoch[45:55])


def shown(anchors: Anchors, epochs: int, num_views: int) -> np.ndarray:
    """Latents that each anchor showed, by epoch: `[anchor, epoch, view, d]`."""
    n = anchors.num_anchors or 0
    position = np.arange(epochs * n)
    views = anchors.views(position, Gaussian(), num_views)
    order = np.lexsort((position, anchors.at(position)[0]))
    return views[order].reshape(n, epochs, num_views, -1)


@pytest.mark.parametrize("num_views", [2, 3])
@pytest.mark.parametrize("num_neighbors", [2, 5])
def test_a_finite_pool_of_neighbours_holds_so_many(num_neighbors: int, num_views: int) -> None:
    anchors = Anchors(seed=0, latent_dim=4, num_classes=0, num_anchors=6, num_neighbors=num_neighbors)
    for showings in shown(anchors, 30, num_views):
        assert len(np.unique(showings[:, 0], axis=0)) == 1  # the anchor itself stays
        assert len(np.unique(showings[:, 1:].reshape(-1, 4), axis=0)) == num_neighbors
        for showing in showings:
            assert len(np.unique(showing, axis=0)) == num_views


def test_one_neighbour_is_always_the_same() -> None:
    anchors = Anchors(seed=0, latent_dim=4, num_classes=0, num_anchors=6, num_neighbors=1)
    showings = shown(anchors, 5, 2)
    np.testing.assert_array_equal(showings, np.broadcast_to(showings[:, :1], showings.shape))


def test_neighbours_of_an_anchor_are_picked_alike() -> None:
    anchors = Anchors(seed=0, latent_dim=4, num_classes=0, num_anchors=2, num_neighbors=4)
    epoch = np.arange(4000)
    counts = np.bincount(anchors.neighbour(np.zeros_like(epoch), epoch, 1, 2), minlength=4)
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_endless_neighbours_never_come_back() -> None:
    anchors = Anchors(seed=0, latent_dim=4, num_classes=0, num_anchors=6)
    for showings in shown(anchors, 20, 3):
        assert len(np.unique(showings[:, 1:].reshape(-1, 4), axis=0)) == 20 * 2


def test_noise_belongs_to_the_view_and_not_to_the_showing() -> None:
    """Where the same neighbour is shown again, so is its noise; other views have other noise."""
    anchors = Anchors(seed=0, latent_dim=4, num_classes=0, num_anchors=6, num_neighbors=3)
    position = np.arange(6 * 15)
    seeds, latents = anchors.seeds(position, Gaussian(), 3), anchors.views(position, Gaussian(), 3)
    assert seeds.dtype == np.int64
    assert seeds.min() >= 0
    pairs = {(int(seed), latent.tobytes()) for seed, latent in zip(seeds.ravel(), latents.reshape(-1, 4), strict=True)}
    assert len(pairs) == len({seed for seed, _ in pairs}) == 6 * (1 + 3)
    assert anchors.seeds(position, NoLatentView(), 3).shape == (90, 1)


def test_the_population_is_the_configured_one() -> None:
    config = small(seed=9, generator={"truncation": 0.5}, stream={"num_anchors": 100, "num_neighbors": 5})
    anchors = anchors_of(config, describe(config.generator))
    assert (anchors.seed, anchors.latent_dim, anchors.num_classes) == (9, 4, 3)
    assert (anchors.truncation, anchors.num_anchors, anchors.num_neighbors) == (0.5, 100, 5)
