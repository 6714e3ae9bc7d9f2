"""Counter-based randomness: every draw is a pure function of (seed, purpose, counter), so no generator state exists.

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
    """Ten rounds of Philox4x32: four words of counter to four random words, uint64 arrays holding 32 bits each."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0), p1 & _LOW
        c2, c3 = (p0 >> _HALF) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return c0, c1, c2, c3


def words(seed: int, purpose: str, index: np.ndarray, count: int, use: int | np.ndarray = 0) -> np.ndarray:
    """Random 32-bit words, the same for an index wherever and with whatever it is drawn.

    Args:
        seed: the run's seed.
        purpose: what the words are for; different purposes are independent of one another.
        index: the counters, int64 `[n]`, for example anchor ids.
        count: how many words each index needs.
        use: a second counter below 2**32, one or `[n]`, for example which view of the anchor.

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
    """Uniform numbers strictly between 0 and 1, float64 `[n, draws]`, keyed like `words`."""
    return (words(seed, purpose, index, draws, use) + 0.5) * 2.0**-32


def normal(u: np.ndarray) -> np.ndarray:
    """Uniform numbers in (0, 1) to a standard normal, by the inverse distribution function."""
    from scipy.special import ndtri  # not needed to read a configuration

    return ndtri(u)


def truncated_normal(u: np.ndarray) -> np.ndarray:
    """Uniform numbers in (0, 1) to a standard normal truncated at +-2."""
    return normal(_TAIL + (1 - 2 * _TAIL) * u)


def permutation(seed: int, epoch: int, position: np.ndarray, size: int) -> np.ndarray:
    """Where these positions of an epoch of `size` lie in its random order: a bijection of `range(size)`, no table kept.

    A Feistel network over the next power of four, walked until it lands inside (Black & Rogaway, CT-RSA 2002).
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
