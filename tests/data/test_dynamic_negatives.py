"""Draws by given weights: distribution, exclusion, small catalogues, and invalid calls."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_multdpo.data import dynamic_negatives
from recbole_multdpo.data.dynamic_negatives import DynamicNegatives
from tests.data.test_sampler import KNOWN, N_USERS, POPULARITY, UNIFORM, p_value, user_items


def drawn_by(known, log_weights, m, *, seed=17, epoch=3):
    """Negatives [n_users, m] of all users, drawn by log_weights [n_users, n_items]."""
    negatives = DynamicNegatives(known, log_weights.shape[1], m)
    users = np.arange(len(known.counts))
    negatives.start_epoch(epoch)
    negatives.draw(users, log_weights, seed=seed)
    return negatives.sample(users, m, seed=seed, epoch=epoch)


def log_weights_of(weights):
    with np.errstate(divide="ignore"):
        return np.broadcast_to(np.log(weights), (N_USERS, len(weights)))


@pytest.fixture(scope="module")
def many_users():
    return user_items(*[KNOWN] * N_USERS)


@pytest.mark.parametrize("weights", [UNIFORM, POPULARITY], ids=["uniform", "unequal"])
def test_drawn_pairs_follow_the_categorical_without_replacement(many_users, weights):
    """The first two negatives of 20,000 users against w_i / W · w_j / (W − w_i)."""
    assert p_value(drawn_by(many_users, log_weights_of(weights), 2), weights) > 0.001


def test_the_chi_square_test_sees_a_small_bias(many_users):
    """Control: the test rejects one weight that is a fifth too large."""
    drawn = drawn_by(many_users, log_weights_of([*UNIFORM[:-1], 1.2]), 2)
    assert p_value(drawn, UNIFORM) < 1e-4


def test_a_constant_and_huge_log_weights_change_nothing():
    """exp(±5000) is not representable in floating point."""
    known = user_items([], [1])
    log_weights = np.array([[0.0, 1.0, 2.0, 3.0, 0.5]] * 2)
    plain = drawn_by(known, log_weights, 3)
    assert (drawn_by(known, log_weights + 5000, 3) == plain).all()
    assert (drawn_by(known, log_weights - 5000, 3) == plain).all()
    # gaps of 1000 nats make the order equal to the order of the weights
    steep = drawn_by(known, 1000 * log_weights, 3)
    assert steep.tolist() == [[3, 2, 1], [3, 2, 4]]


@st.composite
def draws(draw):
    """(known items per user, log-weights [n_users, n_items], number of negatives)."""
    n_items = draw(st.integers(2, 12))
    item = st.integers(1, n_items - 1)
    known = draw(st.lists(st.lists(item, unique=True), min_size=1, max_size=4))
    value = st.sampled_from([-np.inf, -700.0, 0.0, 2.0, 900.0])
    row = st.lists(value, min_size=n_items, max_size=n_items)
    log_weights = np.array([draw(row) for _ in known])
    return known, log_weights, draw(st.integers(1, 14))


@settings(max_examples=200)
@given(draws())
def test_negatives_are_unknown_distinct_and_as_many_as_there_are(case):
    known, log_weights, m = case
    drawn = drawn_by(user_items(*known), log_weights, m)
    for user, items in enumerate(known):
        allowed = {i for i in range(1, log_weights.shape[1]) if log_weights[user, i] > -np.inf}
        allowed -= set(items)
        negatives = [item for item in drawn[user].tolist() if item]
        assert set(negatives) <= allowed
        assert len(set(negatives)) == len(negatives) == min(m, len(allowed))
        assert drawn[user].tolist() == negatives + [0] * (m - len(negatives))


def test_the_draw_depends_on_seed_epoch_and_user_and_not_on_the_batch():
    known = user_items([], [], [])
    log_weights = np.zeros((3, 500))
    together = drawn_by(known, log_weights, 20)
    negatives = DynamicNegatives(known, 500, 20)
    negatives.start_epoch(3)
    for users in (np.array([2]), np.array([1, 0])):
        negatives.draw(users, log_weights[users], seed=17)
    assert (negatives.sample(np.arange(3), 20, seed=17, epoch=3) == together).all()
    for other in (
        drawn_by(known, log_weights, 20, seed=18),
        drawn_by(known, log_weights, 20, epoch=4),
        together[::-1],
    ):
        assert (other == together).mean() < 0.5


def test_the_pool_is_a_uniform_draw_from_a_separate_stream():
    """With the pool's random numbers the draw from it would not be uniform."""
    known = user_items([1, 2])
    negatives = DynamicNegatives(known, 40, 5)
    pool = negatives.pool(np.array([0]), 10, seed=1, epoch=0)[0]
    assert len(set(pool.tolist())) == 10 and not {0, 1, 2} & set(pool.tolist())
    streams = {dynamic_negatives.DYNAMIC_STREAM, 1, 2, 3, 4, 5}
    assert len(streams) == 6


def test_the_smallest_random_number_draws_an_item_and_no_excluded_one(monkeypatch):
    """All clocks ring at 0: the allowed items are drawn in order, the excluded ones are not."""
    monkeypatch.setattr(
        dynamic_negatives,
        "random_uniforms",
        lambda *c: np.zeros(np.broadcast_shapes(*map(np.shape, c))),
    )
    log_weights = np.array([[5.0, 1.0, -np.inf, 2.0, 0.0]])
    assert drawn_by(user_items([1]), log_weights, 3).tolist() == [[3, 4, 0]]


def test_negatives_that_were_not_drawn_are_refused():
    negatives = DynamicNegatives(user_items([1], [2]), 6, 2)
    users = np.array([0, 1])
    with pytest.raises(ValueError, match="epoch 0 have not been drawn"):
        negatives.sample(users, 2, seed=0, epoch=0)
    negatives.start_epoch(0)
    negatives.draw(users[:1], np.zeros((1, 6)), seed=0)
    assert negatives.sample(users[:1], 2, seed=0, epoch=0).all()
    with pytest.raises(ValueError, match="epoch 0 have not been drawn"):
        negatives.sample(users, 2, seed=0, epoch=0)
    with pytest.raises(ValueError, match="epoch 1 have not been drawn"):
        negatives.sample(users[:1], 2, seed=0, epoch=1)
    with pytest.raises(ValueError, match="3 negatives, but only 2 were drawn"):
        negatives.sample(users[:1], 3, seed=0, epoch=0)
    negatives.start_epoch(1)
    with pytest.raises(ValueError, match="epoch 1 have not been drawn"):
        negatives.sample(users[:1], 2, seed=0, epoch=1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_must_be_weights(value):
    negatives = DynamicNegatives(user_items([1]), 3, 1)
    negatives.start_epoch(0)
    with pytest.raises(ValueError, match="finite or -inf"):
        negatives.draw(np.array([0]), np.array([[0.0, 0.0, value]]), seed=0)
