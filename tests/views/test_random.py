"""Counter-based randomness: the published Philox vectors, and what a draw may and may not depend on."""

import numpy as np
import pytest

from genray.views.random import normal, permutation, philox, truncated_normal, uniforms, words


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_known_answers(counter: str, key: str, expected: str) -> None:
    lanes = [np.array([int(word, 16)] * 2, dtype=np.uint64) for word in counter.split()]
    k0, k1 = (int(word, 16) for word in key.split())
    drawn = philox((lanes[0], lanes[1], lanes[2], lanes[3]), (k0, k1))
    assert [[f"{word:08x}" for word in lane] for lane in drawn] == [[word] * 2 for word in expected.split()]


def test_a_draw_does_not_depend_on_what_is_drawn_with_it() -> None:
    index, use = np.arange(40), np.arange(40) % 3
    whole = words(7, "test", index, 6, use=use)
    order = np.argsort(whole[:, 0])
    np.testing.assert_array_equal(words(7, "test", index[order], 6, use=use[order]), whole[order])
    alone = np.concatenate([words(7, "test", index[i : i + 1], 6, use=int(use[i])) for i in range(40)])
    np.testing.assert_array_equal(alone, whole)
    np.testing.assert_array_equal(words(7, "test", index, 3, use=use), whole[:, :3])  # nor on how many are taken


def test_everything_that_keys_a_draw_changes_it() -> None:
    index = np.arange(1000)
    draws = {
        "base": uniforms(0, "a", index, 5),
        "seed": uniforms(1, "a", index, 5),
        "purpose": uniforms(0, "b", index, 5),
        "use": uniforms(0, "a", index, 5, use=1),
        "index": uniforms(0, "a", index + 1000, 5),
        "index above 2**32": uniforms(0, "a", index + 2**32, 5),
        "index above 2**40": uniforms(0, "a", index + 2**40, 5),
    }
    table = np.corrcoef(np.stack([drawn.ravel() for drawn in draws.values()]))
    assert np.abs(table - np.eye(len(draws))).max() < 5 / np.sqrt(5000)


def test_a_large_index_draws_alike_in_any_company() -> None:
    large = np.array([2**32 + 5, 2**53 + 1, 2**62], dtype=np.int64)
    np.testing.assert_array_equal(words(0, "a", np.append(large, 5), 2)[:3], words(0, "a", large, 2))


def test_uniforms_are_uniform_and_open() -> None:
    drawn = uniforms(3, "test", np.arange(20_000), 8)
    assert drawn.dtype == np.float64
    counts = np.histogram(drawn, bins=64, range=(0, 1))[0]
    expected = drawn.size / 64
    assert ((counts - expected) ** 2 / expected).sum() < 63 + 5 * np.sqrt(2 * 63)  # chi-squared, five deviations
    assert np.abs(np.corrcoef(drawn.T) - np.eye(8)).max() < 5 / np.sqrt(20_000)
    lowest, highest = (0 + 0.5) * 2.0**-32, (2**32 - 1 + 0.5) * 2.0**-32  # what the smallest and largest word give
    assert 0 < lowest <= drawn.min()
    assert drawn.max() <= highest < 1


def test_normals_are_quantiles() -> None:
    u = np.array([0.0013498980316301, 0.1586552539314571, 0.5, 0.9772498680518208])
    np.testing.assert_allclose(normal(u), [-3, -1, 0, 2], atol=1e-6)
    np.testing.assert_allclose(truncated_normal(np.array([0.0, 0.25, 0.5, 1.0])), [-2, -0.6391, 0, 2], atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 15, 16, 17, 64, 1000, 65_537])
def test_a_permutation_takes_each_place_once(size: int) -> None:
    for epoch in range(2):
        np.testing.assert_array_equal(np.sort(permutation(0, epoch, np.arange(size), size)), np.arange(size))


def test_a_permutation_is_the_same_in_pieces() -> None:
    whole = permutation(5, 2, np.arange(777), 777)
    pieces = [permutation(5, 2, np.arange(a, min(a + 100, 777)), 777) for a in range(0, 777, 100)]
    np.testing.assert_array_equal(np.concatenate(pieces), whole)
    np.testing.assert_array_equal(permutation(5, 2, np.array([776, 3, 3]), 777), whole[[776, 3, 3]])


def test_permutations_look_unrelated() -> None:
    """Another epoch, another seed and the identity agree in about one place, as random orders do."""
    orders = [np.arange(1000)] + [
        permutation(seed, epoch, np.arange(1000), 1000) for seed in (0, 1) for epoch in (0, 1)
    ]
    for i in range(len(orders)):
        for j in range(i):
            assert (orders[i] == orders[j]).sum() < 10
            assert abs(np.corrcoef(orders[i], orders[j])[0, 1]) < 5 / np.sqrt(1000)


def test_small_permutations_reach_every_order() -> None:
    orders = {tuple(permutation(0, epoch, np.arange(3), 3)) for epoch in range(200)}
    assert len(orders) == 6
