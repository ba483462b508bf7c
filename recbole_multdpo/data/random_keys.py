"""Counter-based random numbers: a key depends on its coordinates, not on earlier draws.

Every draw of the training data is addressed by (seed, epoch, stream, example, index). The numbers
are therefore the same in any batch, in any order and on any number of processes. They are also
vectorised over the coordinates, which NumPy's generators (one stream per object) are not. The
mixing function is the finaliser of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), applied to each
coordinate and again after adding it to the key.
"""

from __future__ import annotations

import numpy as np

_GAMMA = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """SplitMix64's finaliser, in place, which is twice as fast as with new arrays."""
    shifted = x >> np.uint64(30)
    x ^= shifted
    x *= np.uint64(0xBF58476D1CE4E5B9)
    x ^= np.right_shift(x, np.uint64(27), out=shifted)
    x *= np.uint64(0x94D049BB133111EB)
    x ^= np.right_shift(x, np.uint64(31), out=shifted)
    return x


def random_keys(*coordinates: int | np.ndarray) -> np.ndarray:
    """Uniform uint64 keys, one per element of the broadcast integer `coordinates`.

    Coordinates are taken modulo 2^64, so −1 is 2^64 − 1. Their order and number matter: (1, 2),
    (2, 1) and (1, 2, 0) have unrelated keys. Coordinates that differ in exactly one value never
    share a key.

    Returns:
        uint64 of the broadcast shape, at least one-dimensional.

    Raises:
        OverflowError: a Python integer beyond 64 bits.
    """
    key = np.zeros(1, dtype=np.uint64)
    with np.errstate(over="ignore"):  # arithmetic modulo 2^64 is the point
        for coordinate in coordinates:
            mixed = _mix(np.atleast_1d(coordinate).astype(np.uint64) + _GAMMA)
            key = _mix(key + (mixed + _GAMMA))
    return key


def random_uniforms(*coordinates: int | np.ndarray) -> np.ndarray:
    """Uniform float64 in [0, 1) from the keys' upper 53 bits."""
    uniforms = (random_keys(*coordinates) >> np.uint64(11)).astype(np.float64)
    uniforms *= 2.0**-53
    return uniforms
