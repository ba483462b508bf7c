"""The integral of the exact set-wise likelihood against enumeration, mpmath and closed forms."""

import itertools
import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_multdpo.losses.plackett_luce import DEFAULT_NODES, set_preference_logp
from tests.losses.helpers import double
from tests.losses.plackett_luce_reference import (
    by_permutations,
    logp_by_inclusion_exclusion,
    logp_of_rationals,
)

FINE = 128  # nodes at which float64 shows no error of the quadrature any more


def logp_of(a, nodes=FINE, dtype=torch.float64):
    """log P_PL of positives at a against one negative at 0."""
    s = torch.tensor([[*a, 0.0]], dtype=dtype)
    positives = torch.tensor([[True] * len(a) + [False]])
    return set_preference_logp(s, positives, ~positives, nodes)


def gradient_of(a, nodes=FINE, dtype=torch.float64):
    s = torch.tensor([[*a, 0.0]], dtype=dtype, requires_grad=True)
    positives = torch.tensor([[True] * len(a) + [False]])
    value = set_preference_logp(s, positives, ~positives, nodes)
    return torch.autograd.grad(value.sum(), s)[0][0]


@pytest.mark.parametrize("n", range(1, 9))
def test_equals_the_sum_over_permutations(n):
    generator = torch.Generator().manual_seed(n)
    s = 2 * torch.randn(3, n + 2, generator=generator, dtype=torch.float64)
    positives = torch.tensor([[True] * n + [False] * 2] * 3)
    logp = set_preference_logp(s, positives, ~positives, FINE)
    rows = s.tolist() if n <= 6 else s[:1].tolist()
    expected = double([math.log(by_permutations(row, [1] * n + [0] * 2)) for row in rows])
    torch.testing.assert_close(logp[: len(rows)], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nodes", [DEFAULT_NODES, FINE])
@pytest.mark.parametrize("n", [1, 2, 5, 20, 100, 200])
def test_equals_exact_rational_arithmetic(n, nodes):
    """Weights k/30 with k drawn from 1 to 12, none of them rounded before the logarithm."""
    rng = random.Random(n)
    numerators = [rng.randint(1, 12) for _ in range(n)]
    expected = logp_of_rationals(numerators, 30)
    found = logp_of([math.log(k / 30) for k in numerators], nodes)
    tolerance = 1e-12 if nodes == FINE else 1e-9
    torch.testing.assert_close(found, double([expected]), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("low", [-80, -20, 60])
@pytest.mark.parametrize("n", [2, 20, 200])
def test_equals_high_precision_inclusion_exclusion_at_spread_weights(n, low):
    a = [float(low)] * (n // 2) + [80.0] * (n - n // 2)
    zeros = max(-low, 0) * n / 4.6  # P is about e^(low n/2)
    expected = logp_by_inclusion_exclusion(a, digits=int(zeros) + 2 * n + 50)
    torch.testing.assert_close(logp_of(a), double([expected]), rtol=1e-12, atol=1e-12)
    single = logp_of(a, DEFAULT_NODES, torch.float32).double()
    torch.testing.assert_close(single, double([expected]), rtol=1e-6, atol=1e-6)


def test_all_different_weights_at_spread_80():
    rng = random.Random(0)
    a = [rng.uniform(-80, 80) for _ in range(10)]
    expected = logp_by_inclusion_exclusion(a, digits=400)
    torch.testing.assert_close(logp_of(a), double([expected]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("n", [1, 7, 50, 200])
@pytest.mark.parametrize("r", [1e-3, 0.5, 1.0, 40.0])
def test_equal_weights_have_a_closed_form(n, r):
    """∫ (1 − u^r)^N du = N! / Π_{k=1..N} (k + 1/r), a Beta integral."""
    expected = math.lgamma(n + 1) + math.lgamma(1 + 1 / r) - math.lgamma(n + 1 + 1 / r)
    torch.testing.assert_close(
        logp_of([math.log(r)] * n), double([expected]), rtol=1e-10, atol=1e-10
    )


def test_gradient_of_equal_weights():
    """By the closed form d log P/dr = Σ_k 1/(r (1 + r k)), shared by N items, times dr/da = r."""
    n, r = 20, 0.3
    each = sum(1 / (1 + r * k) for k in range(1, n + 1)) / n
    gradient = gradient_of([math.log(r)] * n)
    torch.testing.assert_close(gradient[:-1], double([each] * n), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient[-1], double(-n * each), rtol=1e-12, atol=0)


def test_gradient_matches_high_precision_differences():
    """Central differences of 1e-30 in 120 digits, at weights spread over ±60."""
    import mpmath

    a = [-60.0, -3.0, 0.5, 2.0, 60.0]
    expected = []
    with mpmath.workdps(200):
        step = mpmath.mpf(10) ** -30
        for i in range(len(a)):
            values = []
            for sign in (1, -1):
                moved = [mpmath.mpf(v) + sign * step * (j == i) for j, v in enumerate(a)]
                r = [mpmath.exp(v) for v in moved]
                total = mpmath.mpf(0)
                for taken in itertools.product((0, 1), repeat=len(a)):
                    mass = sum(weight for weight, k in zip(r, taken, strict=True) if k)
                    total += (-1) ** sum(taken) / (1 + mass)
                values.append(mpmath.log(total))
            expected.append(float((values[0] - values[1]) / (2 * step)))
    torch.testing.assert_close(gradient_of(a)[:-1], double(expected), rtol=1e-11, atol=1e-12)
    single = gradient_of(a, DEFAULT_NODES, torch.float32)[:-1].double()
    torch.testing.assert_close(single, double(expected), rtol=0, atol=2e-5)


def test_gradcheck_through_a_batch_of_different_sizes():
    generator = torch.Generator().manual_seed(3)
    s = (2 * torch.randn(4, 6, generator=generator, dtype=torch.float64)).requires_grad_()
    positives = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 1, 0, 0, 1, 0], [1, 0, 0, 0, 0, 0], [0] * 6])
    negatives = torch.tensor([[0, 0, 0, 1, 1, 1], [1, 0, 0, 1, 0, 0], [0, 1, 0, 0, 0, 0], [1] * 6])
    assert torch.autograd.gradcheck(
        lambda s: set_preference_logp(s, positives.bool(), negatives.bool(), FINE), s
    )


def test_an_empty_set_is_certain_and_has_no_gradient():
    s = torch.zeros(2, 2, requires_grad=True)
    positives = torch.tensor([[False, False], [True, True]])
    negatives = torch.tensor([[True, True], [False, False]])
    logp = set_preference_logp(s, positives, negatives)
    assert logp.tolist() == [0.0, 0.0]
    assert torch.autograd.grad(logp.sum(), s)[0].tolist() == [[0.0, 0.0]] * 2


def test_padding_of_a_batch_changes_nothing():
    """A row with two positives, batched with a row of six, equals the row alone."""
    generator = torch.Generator().manual_seed(4)
    s = torch.randn(2, 9, generator=generator, dtype=torch.float64)
    positives = torch.tensor([[True, False] * 2 + [False] * 5, [True] * 6 + [False] * 3])
    both = set_preference_logp(s, positives, ~positives)
    for row in ([0], [1]):
        alone = set_preference_logp(s[row], positives[row], ~positives[row])
        torch.testing.assert_close(both[row], alone, rtol=1e-13, atol=1e-13)


@settings(max_examples=40)
@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=30),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_is_a_probability_with_slopes_between_0_and_1(a, dtype):
    tolerance = 1e-5 if dtype == torch.float32 else 1e-7
    assert float(logp_of(a, DEFAULT_NODES, dtype)) <= tolerance
    gradient = gradient_of(a, DEFAULT_NODES, dtype)
    assert (gradient[:-1] >= 0).all() and (gradient[:-1] <= 1 + tolerance).all()
    # only differences count: positives and negatives pull equally
    torch.testing.assert_close(gradient[-1], -gradient[:-1].sum(), rtol=1e-4, atol=1e-5)


def test_more_nodes_mean_less_error():
    """Half the default has a visible error, so the comparisons above can fail."""
    exact = logp_of([0.0] * 5)
    errors = [float((logp_of([0.0] * 5, k) - exact).abs()) for k in (8, 16, 24, 48)]
    assert errors[0] > 1e-5 > errors[2] > 1e-9 > errors[3]
    assert errors == sorted(errors, reverse=True)
