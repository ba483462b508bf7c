"""The measured gap and its bounds: values by hand, their order, and sums over levels."""

import math

import pytest
import torch
from hypothesis import given

from recbole_multdpo.losses import bounds
from recbole_multdpo.losses.loss_bounds import NODES
from tests.losses.helpers import double, examples, loss_of, masses
from tests.losses.plackett_luce_reference import by_permutations


def bounds_of(logratios, levels, beta=1.0, **options):
    policy = double([logratios])
    return bounds(policy, torch.zeros_like(policy), torch.tensor([levels]), beta, **options)


def test_values():
    """Weights 1, 2 (positive), 3 (negative): L_MN = log 9, L_PL = log(20/3), gap log(27/20).

    W = 6: after the 1 remain 5, lower log(6/5); after the 2 remain 4, upper log(6/4); Corollary 1
    gives log(6/3).
    """
    found = bounds_of([0.0, math.log(2), math.log(3)], [1, 1, 0])
    expected = {
        "multinomial": 9,
        "exact": 20 / 3,
        "gap": 27 / 20,
        "sorted_lower": 6 / 5,
        "sorted_upper": 6 / 4,
        "corollary": 6 / 3,
        "log_positive_mass": 3,
        "log_negative_mass": 3,
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(found, name), double([math.log(value)]), msg=name)
    assert found.n_positives.tolist() == [2]


@pytest.mark.parametrize("use_levels", [False, True])
@given(example=examples(max_level=3))
def test_bounds_are_ordered(use_levels, example):
    found = bounds_of(*example, use_levels=use_levels)
    chain = [
        torch.zeros(1, dtype=torch.float64),
        found.sorted_lower,
        found.gap,
        found.sorted_upper,
        found.corollary,
    ]
    for below, above in zip(chain, chain[1:], strict=False):
        assert (below <= above + 1e-10).all()


@given(examples(max_level=3))
def test_losses_are_those_that_are_trained(example):
    logratios, levels, beta = example
    for use_levels, names in ((False, ("mult_dpo", "pl_dpo")), (True, ("mult2_dpo", "pl2_dpo"))):
        found = bounds_of(logratios, levels, beta, use_levels=use_levels)
        multinomial, exact = (loss_of(name, logratios, levels, beta) for name in names)
        torch.testing.assert_close(found.multinomial, multinomial)
        fine = loss_of(names[1], logratios, levels, beta, pl_nodes=NODES)
        torch.testing.assert_close(found.exact, fine, rtol=1e-7, atol=1e-8)
        # fewer nodes when training: docs/losses.md measures 5e-8 at most, where P is close to 1
        torch.testing.assert_close(found.exact, exact, rtol=1e-7, atol=5e-8)


@given(examples(max_positives=4))
def test_gap_by_enumeration_and_masses(example):
    logratios, levels, beta = example
    s = [beta * value for value in logratios]
    found, mass, n = bounds_of(logratios, levels, beta), masses(s, levels), levels.count(1)
    exact = -math.log(by_permutations(s, levels))
    torch.testing.assert_close(found.gap, found.multinomial - exact, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.log_positive_mass, double([math.log(mass[1])]))
    torch.testing.assert_close(found.log_negative_mass, double([math.log(mass[0])]))
    torch.testing.assert_close(found.corollary, double([(n - 1) * math.log1p(mass[1] / mass[0])]))


def test_more_negative_mass_tightens_the_gap():
    gaps = [float(bounds_of([0.5, 0.0, -0.5, x], [1, 1, 1, 0]).gap) for x in (-4, -2, 0, 2, 4)]
    assert gaps == sorted(gaps, reverse=True) and gaps[0] > 10 * gaps[-1]


def test_one_positive_has_no_gap():
    found = bounds_of([2.0, 0.0, 1.0], [1, 0, 0])
    for name in ("gap", "sorted_lower", "sorted_upper", "corollary"):
        torch.testing.assert_close(getattr(found, name), double([0.0]), rtol=0, atol=1e-10)


def test_corollary_2_sums_over_boundaries_and_a_missing_level_vanishes():
    """Weights 1, 1 (level 2), 1 (level 1), 2 (negative): log(1 + 2/3) + 0; without the level 1
    log(1 + 2/2), in the same batch."""
    policy = double([[0.0, 0.0, 0.0, math.log(2)], [0.0, 0.0, math.nan, math.log(2)]])
    levels = torch.tensor([[2, 2, 1, 0], [2, 2, -1, 0]])
    found = bounds(policy, torch.zeros(2, 4), levels, 1.0, use_levels=True)
    torch.testing.assert_close(found.corollary, double([math.log(5 / 3), math.log(2)]))


def test_float32_inputs_are_computed_in_float64_and_extremes_stay_ordered():
    policy = torch.tensor([[3e3, -2e3, 1e3, 0.0], [-3e3, -2e3, 10.0, 20.0]], requires_grad=True)
    levels = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0]])
    found = bounds(policy, torch.zeros(2, 4), levels, 1.0)
    assert found.gap.dtype == torch.float64 and not found.gap.requires_grad
    assert (found.gap >= -1e-8).all() and (found.gap <= found.sorted_upper + 1e-8).all()
    assert (found.sorted_upper <= found.corollary + 1e-8).all()
