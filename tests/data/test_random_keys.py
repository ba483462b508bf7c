"""Counter-based random numbers: independence of their coordinates, uniformity, shapes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recbole_multdpo.data.random_keys import random_keys, random_uniforms

coordinate = st.integers(0, 2**63 - 1)


def test_values_are_fixed():
    """Runs must be repeatable across releases: a changed mixing function must fail a test."""
    assert random_keys(2020, 0, 1, 7)[0] == np.uint64(11493578929234652186)


def test_order_number_and_value_of_coordinates_matter():
    """All coordinate tuples of length 1 to 4 over 0 ... 5 have different keys."""
    keys = []
    for length in range(1, 5):
        grid = np.meshgrid(*[np.arange(6)] * length, indexing="ij")
        keys.append(random_keys(*(axis.ravel() for axis in grid)))
    keys = np.concatenate(keys)
    assert len(keys) == 6 + 36 + 216 + 1296
    assert len(np.unique(keys)) == len(keys)


def test_a_single_varying_coordinate_never_repeats_a_key():
    keys = random_keys(3, np.arange(200_000), 5)
    assert len(np.unique(keys)) == len(keys)


@given(st.lists(coordinate, min_size=1, max_size=4))
def test_scalars_and_arrays_agree(coordinates):
    """A key does not depend on the other elements of an array."""
    beside = [np.array([value ^ 1, value]) for value in coordinates]
    assert random_keys(*coordinates)[0] == random_keys(*beside)[1]


def test_coordinates_broadcast():
    keys = random_keys(1, np.arange(3)[:, None], np.arange(4))
    assert keys.shape == (3, 4) and keys.dtype == np.uint64
    assert keys[2, 1] == random_keys(1, 2, 1)[0]
    assert random_keys(1).shape == (1,)


def test_negative_coordinates_count_modulo_two_to_the_64():
    assert random_keys(-1)[0] == random_keys(2**64 - 1)[0]
    assert random_keys(np.array([-5]))[0] == random_keys(2**64 - 5)[0]
    assert random_keys(-1)[0] != random_keys(1)[0]
    with pytest.raises(OverflowError):
        random_keys(2**64)


@settings(max_examples=15)
@given(st.tuples(coordinate, coordinate))
def test_uniforms_lie_in_the_unit_interval(coordinates):
    uniforms = random_uniforms(*coordinates, np.arange(100))
    assert uniforms.dtype == np.float64
    assert (uniforms >= 0).all() and (uniforms < 1).all()


def test_the_largest_key_stays_below_one(monkeypatch):
    """key / 2^64 in float64 would round up to 1."""
    top = np.array([2**64 - 1], dtype=np.uint64)
    monkeypatch.setattr("recbole_multdpo.data.random_keys.random_keys", lambda *_: top)
    assert random_uniforms(0)[0] == 1 - 2.0**-53
    assert top[0] / 2.0**64 == 1.0


@pytest.mark.parametrize("varying", range(3))
def test_uniforms_are_uniform_in_each_coordinate(varying):
    """Chi-square over 64 cells. Control: the test rejects numbers that are slightly too small."""
    coordinates = [11, 12, 13]
    coordinates[varying] = np.arange(64_000)
    uniforms = random_uniforms(*coordinates)
    cells = np.bincount((uniforms * 64).astype(int), minlength=64)
    assert stats.chisquare(cells).pvalue > 0.001
    skewed = np.bincount((uniforms**1.05 * 64).astype(int), minlength=64)
    assert stats.chisquare(skewed).pvalue < 1e-6


def test_neighbours_are_uncorrelated():
    """Each of the 64 bits is set half the time, and flips half the time between neighbours."""
    keys = random_keys(7, np.arange(20_000))
    bits = (keys[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
    # 64 means of 20,000 fair bits: four and a half standard deviations are 0.016
    np.testing.assert_allclose(bits.mean(0), 0.5, atol=0.016)
    np.testing.assert_allclose((bits[1:] ^ bits[:-1]).mean(0), 0.5, atol=0.016)
