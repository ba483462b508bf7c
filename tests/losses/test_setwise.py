"""Losses of sets: values derived by hand, identities, bounds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_multdpo.losses import preference_loss
from tests.losses.helpers import double, examples, loss_of, masses, value_and_gradient
from tests.losses.plackett_luce_reference import by_permutations

LOG = {n: math.log(n) for n in (2, 3)}


def test_sft_is_the_mean_over_positives_without_reference_or_beta():
    """Positives −2 and −4: mean 3; the negative, the reference and beta play no part."""
    policy, levels = double([[-2.0, -4.0, -1.0]]), torch.tensor([[1, 1, 0]])
    for reference, beta in [(None, 1.0), (torch.full_like(policy, -9.0), 0.1)]:
        loss = preference_loss("sft", policy, reference, levels, beta)
        torch.testing.assert_close(loss, double([3.0]))


def test_s_dpo_value():
    """Positive weight 3 against negatives 1 and 2: p = 3/6, loss log 2."""
    loss = loss_of("s_dpo", [0.0, LOG[3], LOG[2]], [0, 1, 0])
    torch.testing.assert_close(loss, double([math.log(2)]))


def test_mult_dpo_and_pl_dpo_values():
    """Weights 1, 2 (positive), 3 (negative): p = 1/6 and 2/6; 2! · 1/6 · 2/6 = 1/9, loss log 9.

    Equation (8) for the same: 1/6 · 2/5 + 2/6 · 1/4 = 3/20, so the exact loss log(20/3) is lower.
    """
    logratios, levels = [0.0, LOG[2], LOG[3]], [1, 1, 0]
    torch.testing.assert_close(loss_of("mult_dpo", logratios, levels), double([math.log(9)]))
    exact = loss_of("pl_dpo", logratios, levels, pl_nodes=128)
    torch.testing.assert_close(exact, double([math.log(20 / 3)]), rtol=1e-13, atol=0)


def test_values_of_three_levels():
    """Weights 1 (level 3), 2 and 1 (level 1), 3 (negative).

    Against 2 + 1 + 3 the best has 1/7. The other two: 2! · 2/6 · 1/6 = 1/9, or exactly
    2/6 · 1/4 + 1/6 · 2/5 = 3/20. Losses log 63 and log(140/3).
    """
    logratios, levels = [LOG[3], LOG[2], 0.0, 0.0], [0, 1, 3, 1]
    torch.testing.assert_close(loss_of("mult2_dpo", logratios, levels), double([math.log(63)]))
    exact = loss_of("pl2_dpo", logratios, levels, pl_nodes=128)
    torch.testing.assert_close(exact, double([math.log(140 / 3)]), rtol=1e-13, atol=0)


@pytest.mark.parametrize(("plain", "graded"), [("mult_dpo", "mult2_dpo"), ("pl_dpo", "pl2_dpo")])
@given(example=examples(max_level=3))
def test_two_levels_are_two_sets_and_two_sets_ignore_levels(plain, graded, example):
    logratios, levels, beta = example
    merged = [min(level, 1) for level in levels]
    loss = loss_of(plain, logratios, levels, beta)
    torch.testing.assert_close(loss_of(plain, logratios, merged, beta), loss)
    torch.testing.assert_close(loss_of(graded, logratios, merged, beta), loss)


@pytest.mark.parametrize(("plain", "graded"), [("mult_dpo", "mult2_dpo"), ("pl_dpo", "pl2_dpo")])
@given(example=examples(max_level=3))
def test_levels_are_the_sum_over_boundaries(plain, graded, example):
    """Each level against all lower ones as an example of its own."""
    logratios, levels, beta = example
    expected = 0.0
    for level in sorted(set(levels) - {-1, 0}):
        cut = [1 if other == level else 0 if 0 <= other < level else -1 for other in levels]
        expected += float(loss_of(plain, logratios, cut, beta))
    torch.testing.assert_close(
        loss_of(graded, logratios, levels, beta), double([expected]), rtol=1e-9, atol=1e-9
    )


@given(examples(max_positives=1))
def test_one_positive_makes_all_of_them_softmax_cross_entropy(example):
    logratios, levels, beta = example
    valid = [beta * s for s, level in zip(logratios, levels, strict=True) if level >= 0]
    target = [level for level in levels if level >= 0].index(1)
    entropy = torch.nn.functional.cross_entropy(double([valid]), torch.tensor([target]))
    for name in ("s_dpo", "mult_dpo", "mult2_dpo"):
        torch.testing.assert_close(loss_of(name, logratios, levels, beta)[0], entropy)
    for name in ("pl_dpo", "pl2_dpo"):
        exact = loss_of(name, logratios, levels, beta, pl_nodes=128)[0]
        torch.testing.assert_close(exact, entropy, rtol=1e-12, atol=1e-12)


@given(examples(max_positives=1, max_negatives=1))
def test_one_negative_makes_s_dpo_dpo(example):
    logratios, levels, beta = example
    s_dpo = loss_of("s_dpo", logratios, levels, beta)
    torch.testing.assert_close(s_dpo, loss_of("dpo", logratios, levels, beta))


@given(examples())
def test_mult_dpo_is_minus_log_of_the_multinomial(example):
    """−log(N! Π_P p_y), computed weight by weight."""
    logratios, levels, beta = example
    weights = [math.exp(beta * s) for s in logratios]
    total = sum(w for w, level in zip(weights, levels, strict=True) if level >= 0)
    shares = [w / total for w, level in zip(weights, levels, strict=True) if level >= 1]
    expected = -math.log(math.factorial(len(shares)) * math.prod(shares))
    torch.testing.assert_close(loss_of("mult_dpo", logratios, levels, beta), double([expected]))


@settings(max_examples=60)
@given(examples())
def test_mult_dpo_lies_between_the_exact_loss_and_its_bound(example):
    """Theorems 1 and 2: L_PL <= L_MN <= L_PL + (N − 1) log(1 + W⁺/W⁻), L_PL by enumeration too."""
    logratios, levels, beta = example
    s = [beta * value for value in logratios]
    exact = float(loss_of("pl_dpo", logratios, levels, beta))
    assert math.isclose(exact, -math.log(by_permutations(s, levels)), rel_tol=1e-8, abs_tol=1e-8)
    gap = float(loss_of("mult_dpo", logratios, levels, beta)) - exact
    mass = masses(s, levels)
    assert -1e-8 <= gap <= (levels.count(1) - 1) * math.log1p(mass[1] / mass[0]) + 1e-8


@given(examples(max_negatives=3), st.floats(-8, 8))
def test_another_negative_raises_the_exact_loss(example, value):
    logratios, levels, beta = example
    fewer = loss_of("pl_dpo", logratios, levels, beta)
    assert loss_of("pl_dpo", [*logratios, value], [*levels, 0], beta) >= fewer - 1e-9


def test_well_separated_sets_keep_their_small_loss_and_wrong_ones_their_slope():
    """Gap 60: log(1 + e^−60) = e^−60 to first order. Gap −1e4: value 1e4, slope ∓1."""
    torch.testing.assert_close(
        loss_of("s_dpo", [60.0, 0.0], [1, 0]), double([math.exp(-60)]), rtol=1e-12, atol=0
    )
    for name in ("dpo", "s_dpo", "mult_dpo", "pl_dpo"):
        policy, levels = double([[0.0, 1e4]]), torch.tensor([[1, 0]])
        loss, gradient = value_and_gradient(name, 2 * policy, torch.zeros_like(policy), levels)
        torch.testing.assert_close(loss, double([1e4]))
        torch.testing.assert_close(gradient, double([[-0.5, 0.5]]))  # beta is 0.5


def test_mult_dpo_gradient_is_share_minus_hit():
    """dL/ds_y = N p_y − 1[y ∈ P]: weights 1, 2 | 3, N = 2 give (2/6 − 1, 4/6 − 1, 6/6), times β."""
    policy = double([[0.0, LOG[2] / 0.5, LOG[3] / 0.5]])
    _, gradient = value_and_gradient(
        "mult_dpo", policy, torch.zeros_like(policy), torch.tensor([[1, 1, 0]])
    )
    torch.testing.assert_close(gradient, 0.5 * double([[-2 / 3, -1 / 3, 1.0]]))
