"""Counter-based random numbers: every draw is a pure function of (seed, purpose, counter); there is no state.

Philox4x32-10 of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC 2011), vectorised over counters.
"""

from __future__ import annotations

import hashlib

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)
_TAIL = 0.02275013194817921  # the standard normal distribution function at -2
Words = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def philox(counter: Words, key: tuple[int, int]) -> Words:
    """Ten rounds of Philox4x32: maps four counter words to four random words, uint64 arrays of 32-bit values."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0), p1 & _LOW
        c2, c3 = (p0 >> _HALF) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(seed: int, purpose: str, index: np.ndarray, count: int, use: int | np.ndarray = 0) -> np.ndarray:
    """Random 32-bit words; those of an index do not depend on what else is drawn with it.

    Args:
        seed: the run's seed.
        purpose: what the words are for; different purposes are independent.
        index: the counters, int64 `[n]`, for example anchor ids.
        count: words per index.
        use: a second counter below 2**32, one number or `[n]`, for example the view of the anchor.

    Returns:
        uint64 `[n, count]`, each below 2**32.
    """
    digest = hashlib.blake2b(f"{seed}/{purpose}".encode(), digest_size=8).digest()
    key = (int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little"))
    position = np.asarray(index, dtype=np.int64).astype(np.uint64)[:, None]
    second = np.broadcast_to(np.asarray(use, dtype=np.uint64).reshape(-1, 1), position.shape)
    block = np.arange(-(-count // 4), dtype=np.uint64)[None]
    lanes = np.broadcast_arrays(block, second, position & _LOW, position >> _HALF)
    drawn = np.stack(philox((lanes[0], lanes[1], lanes[2], lanes[3]), key), axis=2)
    return drawn.reshape(len(position), 4 * block.size)[:, :count]


def uniforms(seed: int, purpose: str, index: np.ndarray, draws: int, use: int | np.ndarray = 0) -> np.ndarray:
    """Uniform numbers strictly between 0 and 1, float64 `[n, draws]`, with the arguments of `words`."""
    return (words(seed, purpose, index, draws, use) + 0.5) * 2.0**-32


def normal(u: np.ndarray) -> np.ndarray:
    """Standard normal numbers from uniform ones in (0, 1), by the inverse distribution function."""
    from scipy.special import ndtri  # not needed to read a configuration

    return ndtri(u)


def truncated_normal(u: np.ndarray) -> np.ndarray:
    """Standard normal numbers truncated at +-2, from uniform ones in (0, 1)."""
    return normal(_TAIL + (1 - 2 * _TAIL) * u)


def permutation(seed: int, epoch: int, position: np.ndarray, size: int) -> np.ndarray:
    """The items at these positions of a shuffled epoch: a bijection of `range(size)`, computed without a table.

    A Feistel network over the next power of four, iterated until the value is below `size` (Black & Rogaway, CT-RSA
    2002).
    """
    half = max(1, -(-(size - 1).bit_length() // 2))
    mask, shift = np.int64(2**half - 1), np.int64(half)
    value = np.asarray(position, dtype=np.int64).copy()
    outside = np.ones(len(value), dtype=bool)
    while outside.any():
        left, right = value[outside] >> shift, value[outside] & mask
        for turn in range(6):
            mixed = words(seed, f"order.{epoch}", right, 1, use=turn)[:, 0].astype(np.int64)
            left, right = right, left ^ (mixed & mask)
        value[outside] = (left << shift) | right
        outside = value >= size
    return value
