"""Latent views: formulas that map an anchor's latent and random numbers to the latent of a neighbour.

Definitions: Jahanian, Puig, Tian, Isola, "Generative Models as a Data Source for Multiview Representation Learning"
(ICLR 2022), section 3, unless stated otherwise. Everything is computed element by element, never as a matrix product,
so that a row is bitwise the same in any batch.
"""

from __future__ import annotations

import numpy as np

from genray.config.view import (
    Angular,
    Chunked,
    Gaussian,
    Independent,
    LatentView,
    Navigator,
    Steered,
    Uniform,
    VariancePreserving,
)
from genray.views.random import normal, truncated_normal
from genray.views.walk_files import NAVIGATOR, WALKS

COLOURS = {"red", "green", "blue"}


def neighbour_latents(view: LatentView, z: np.ndarray, u: np.ndarray, truncation: float) -> np.ndarray:
    """The latent of one neighbour of each anchor.

    Args:
        view: the latent view.
        z: the anchors' latents, float64 `[n, d]`.
        u: fresh uniform numbers in (0, 1), `[n, d]`.
        truncation: the scale of the anchors' truncated normal.

    Returns:
        float64 `[n, d]`; z itself for a view that renders nothing new.
    """
    match view:
        case Independent():
            return truncation * truncated_normal(u)
        case Gaussian():
            return z + view.std * (truncated_normal(u) if view.truncated else normal(u))
        case Uniform():
            return z + 3**0.5 * view.std * (2 * u - 1)
        case Angular():
            moved = z + view.std * (truncated_normal(u) if view.truncated else normal(u))
            return moved * (_length(z) / _length(moved))
        case VariancePreserving():
            return (1 - view.beta) ** 0.5 * z + view.beta**0.5 * truncation * truncated_normal(u)
        case Chunked():
            columns = np.concatenate([np.arange(start, stop) for start, stop in view.slices])
            changed = z.copy()
            changed[:, columns] = neighbour_latents(view.noise, z[:, columns], u[:, columns], truncation)
            return changed
        case Steered():
            return _steered(view, z, u)
        case Navigator():
            return _navigated(view, z)
    return z


def shares_nothing(view: LatentView, latent_dim: int) -> bool:
    """Whether views draw all `latent_dim` numbers of their latent anew."""
    if isinstance(view, Chunked):
        changed = sum(stop - start for start, stop in view.slices)
        return view.noise.kind == "independent" and changed == latent_dim
    return isinstance(view, Independent)


def walks_of(view: Steered) -> dict[str, np.ndarray]:
    """The walks of a steered view by name, each `[d]`; raises ConfigError if their file cannot be used."""
    known = WALKS.read("view.walks", view.walks, view.sha256).tensors
    every = [name for name in known if name != "brightness" or not known.keys() >= COLOURS]
    return {name: known[name] for name in (every if view.names is None else view.names)}


def _steered(view: Steered, z: np.ndarray, u: np.ndarray) -> np.ndarray:
    walks = walks_of(view)
    amounts = view.scale * (2 * u[:, : len(walks)] - 1)
    for amount, walk in zip(amounts.T, walks.values(), strict=True):
        z = z + amount[:, None] * walk
    return z


def _navigated(view: Navigator, z: np.ndarray) -> np.ndarray:
    layers = NAVIGATOR.read("view.file", view.file, view.sha256).tensors
    hidden = np.maximum(_product(z, layers["first.weight"]) + layers["first.bias"], 0)
    return z + _product(hidden, layers["second.weight"]) + layers["second.bias"]


def _length(z: np.ndarray) -> np.ndarray:
    """Euclidean length of each row, `[n, 1]`; by `cumsum`, since the order in which `sum` adds depends on the shape."""
    return np.sqrt(np.cumsum(z * z, axis=1)[:, -1:])


def _product(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """`x @ weight.T` of `[n, a]` and `[b, a]`, summed in the same order for any n, unlike a matrix product."""
    total = np.zeros((len(x), len(weight)))
    for column, factors in zip(x.T, weight.T, strict=True):
        total += column[:, None] * factors
    return total
