"""Preference losses: values derived by hand, identities, extremes, brute force."""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from recbole_multdpo.losses import LOSSES, preference_loss, rewards, set_masks, set_means
from recbole_multdpo.losses.preference import Loss

LEVELS = {  # one context that each loss accepts, with padding at the end
    "sft": [1, 1, 0, -1],
    "dpo": [1, 0, -1, -1],
    "s_dpo": [1, 0, 0, -1],
    "mult_dpo": [1, 1, 0, -1],
}


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


def loss_of(name, logratios, levels, beta=1.0):
    """Loss of one context given its log-ratios, through a reference of all zeros."""
    policy = double([logratios])
    return preference_loss(name, policy, torch.zeros_like(policy), torch.tensor([levels]), beta)


def marginal_plackett_luce(s, levels):
    """Equation (8) by enumeration: the probability that all positives precede every negative."""
    weights = [math.exp(value) for value in s]
    positives = [i for i, level in enumerate(levels) if level >= 1]
    negative_mass = sum(weights[i] for i, level in enumerate(levels) if level == 0)
    total = 0.0
    for order in itertools.permutations(positives):
        probability = 1.0
        for n, item in enumerate(order):
            probability *= weights[item] / (negative_mass + sum(weights[i] for i in order[n:]))
        total += probability
    return total


@st.composite
def contexts(draw, max_positives=5, max_negatives=4):
    """(log-ratios, levels, beta) of one context with at least one positive and one negative."""
    n, m, padding = draw(
        st.tuples(st.integers(1, max_positives), st.integers(1, max_negatives), st.integers(0, 2))
    )
    levels = draw(st.permutations([1] * n + [0] * m + [-1] * padding))
    value = st.floats(-8, 8, allow_nan=False)
    logratios = draw(st.lists(value, min_size=len(levels), max_size=len(levels)))
    return logratios, list(levels), draw(st.sampled_from([0.1, 0.5, 1.0, 2.0]))


# --------------------------------------------------------------------------------------------------
# values derived by hand


def test_dpo_value():
    """Weights 3 : 1, so σ(s_w − s_l) = 3/4, loss log(4/3); β = 2 gives 9 : 1, log(10/9)."""
    logratios = [math.log(3), 0.0]
    torch.testing.assert_close(loss_of("dpo", logratios, [1, 0]), double([math.log(4 / 3)]))
    torch.testing.assert_close(loss_of("dpo", logratios, [1, 0], 2.0), double([math.log(10 / 9)]))


def test_s_dpo_value():
    """Positive weight 3 against negatives 1 and 2: p = 3/6, loss log 2."""
    logratios = [0.0, math.log(3), math.log(2)]
    torch.testing.assert_close(loss_of("s_dpo", logratios, [0, 1, 0]), double([math.log(2)]))


def test_mult_dpo_value_holds_the_factorial():
    """Weights 1, 2 (positive), 3 (negative): p = 1/6 and 2/6; 2! · 1/6 · 2/6 = 1/9, loss log 9.

    Equation (8) for the same: 1/6 · 2/5 + 2/6 · 1/4 = 3/20, so the exact loss log(20/3) is lower.
    """
    logratios = [0.0, math.log(2), math.log(3)]
    loss = loss_of("mult_dpo", logratios, [1, 1, 0])
    torch.testing.assert_close(loss, double([math.log(9)]))
    assert marginal_plackett_luce(logratios, [1, 1, 0]) == pytest.approx(3 / 20)


def test_sft_is_the_mean_over_positives_without_reference_or_beta():
    """Positives −2 and −4: mean 3; the negative, the reference and beta play no part."""
    policy, levels = double([[-2.0, -4.0, -1.0]]), torch.tensor([[1, 1, 0]])
    for reference, beta in [(None, 1.0), (torch.full_like(policy, -9.0), 0.1)]:
        loss = preference_loss("sft", policy, reference, levels, beta)
        torch.testing.assert_close(loss, double([3.0]))


def test_log_ratio_is_policy_minus_reference():
    """Policy −1, −2 and reference −3, −2: s = 2, 0, loss log(1 + e^−2)."""
    loss = preference_loss(
        "dpo", double([[-1.0, -2.0]]), double([[-3.0, -2.0]]), torch.tensor([[1, 0]]), 1.0
    )
    torch.testing.assert_close(loss, double([math.log1p(math.exp(-2))]))


def test_higher_levels_count_as_positive():
    logratios = [0.3, -0.2, 0.9, 0.1]
    graded = loss_of("mult_dpo", logratios, [3, 1, 0, 0])
    torch.testing.assert_close(graded, loss_of("mult_dpo", logratios, [1, 1, 0, 0]))


# --------------------------------------------------------------------------------------------------
# identities


@given(contexts(max_positives=1))
def test_one_positive_makes_mult_dpo_s_dpo_and_cross_entropy(context):
    logratios, levels, beta = context
    mult = loss_of("mult_dpo", logratios, levels, beta)
    torch.testing.assert_close(mult, loss_of("s_dpo", logratios, levels, beta))
    valid = [beta * s for s, level in zip(logratios, levels, strict=True) if level >= 0]
    target = [level for level in levels if level >= 0].index(1)
    entropy = torch.nn.functional.cross_entropy(double([valid]), torch.tensor([target]))
    torch.testing.assert_close(mult[0], entropy)


@given(contexts(max_positives=1, max_negatives=1))
def test_one_negative_makes_s_dpo_dpo(context):
    logratios, levels, beta = context
    s_dpo = loss_of("s_dpo", logratios, levels, beta)
    torch.testing.assert_close(s_dpo, loss_of("dpo", logratios, levels, beta))


@given(contexts())
def test_mult_dpo_is_minus_log_of_the_multinomial(context):
    """−log(N! Π_P p_y), computed weight by weight."""
    logratios, levels, beta = context
    weights = [math.exp(beta * s) for s in logratios]
    total = sum(w for w, level in zip(weights, levels, strict=True) if level >= 0)
    shares = [w / total for w, level in zip(weights, levels, strict=True) if level >= 1]
    expected = -math.log(math.factorial(len(shares)) * math.prod(shares))
    torch.testing.assert_close(loss_of("mult_dpo", logratios, levels, beta), double([expected]))


@settings(max_examples=60)
@given(contexts())
def test_mult_dpo_bounds_the_marginal_plackett_luce(context):
    """Theorems 1 and 2: 0 <= L_MN − L_PL <= (N − 1) log(1 + W⁺/W⁻), L_PL by enumeration."""
    logratios, levels, beta = context
    s = [beta * value for value in logratios]
    gap = float(loss_of("mult_dpo", logratios, levels, beta)) + math.log(
        marginal_plackett_luce(s, levels)
    )
    masses = {0: 0.0, 1: 0.0, -1: 0.0}
    for value, level in zip(s, levels, strict=True):
        masses[level] += math.exp(value)
    n_positives = levels.count(1)
    assert -1e-9 <= gap <= (n_positives - 1) * math.log1p(masses[1] / masses[0]) + 1e-9


@given(contexts(), st.integers(0, 2**32 - 1), st.floats(-50, 50))
def test_order_and_common_shift_do_not_matter(context, seed, shift):
    logratios, levels, beta = context
    loss = loss_of("mult_dpo", logratios, levels, beta)
    order = torch.randperm(len(levels), generator=torch.Generator().manual_seed(seed)).tolist()
    permuted = loss_of("mult_dpo", [logratios[i] for i in order], [levels[i] for i in order], beta)
    torch.testing.assert_close(permuted, loss)
    torch.testing.assert_close(
        loss_of("mult_dpo", [value + shift for value in logratios], levels, beta), loss
    )


# --------------------------------------------------------------------------------------------------
# padding, extremes, gradients


def value_and_gradient(name, policy, reference, levels):
    policy = policy.clone().requires_grad_()
    loss = preference_loss(name, policy, reference, levels, 0.5)
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    return loss.detach(), gradient


@pytest.mark.parametrize("garbage", [0.0, -1e30, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_padding_has_no_influence_on_value_or_gradient(name, garbage):
    levels = torch.tensor([LEVELS[name]])
    valid = levels >= 0
    n_valid = int(valid.sum())
    policy, reference = double([[-3.0, -1.5, -2.0, -4.0]]), double([[-2.0, -2.5, -1.0, -3.0]])
    # the same context without its padding
    expected, expected_gradient = value_and_gradient(
        name, policy[:, :n_valid], reference[:, :n_valid], levels[:, :n_valid]
    )
    policy[~valid] = garbage
    reference[~valid] = -garbage
    loss, gradient = value_and_gradient(name, policy, reference, levels)
    torch.testing.assert_close(loss, expected, rtol=0, atol=0)
    torch.testing.assert_close(gradient[:, :n_valid], expected_gradient, rtol=0, atol=0)
    assert (gradient[~valid] == 0).all()
    assert (gradient[:, 0] != 0).all()  # control: a real candidate does receive a gradient


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("extreme", [[1e4, -1e4, -1e4], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4]])
def test_extreme_log_ratios_stay_finite(name, extreme):
    levels = torch.tensor([LEVELS[name]])
    policy = torch.tensor([[*extreme, 0.0]]).requires_grad_()
    loss = preference_loss(name, policy, torch.zeros(1, 4), levels, 1.0)
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


def test_well_separated_sets_keep_their_small_loss_and_wrong_ones_their_slope():
    """Gap 60: log(1 + e^−60) = e^−60 to first order. Gap −1e4: value 1e4, slope ∓1."""
    torch.testing.assert_close(
        loss_of("s_dpo", [60.0, 0.0], [1, 0]), double([math.exp(-60)]), rtol=1e-12, atol=0
    )
    for name in ("dpo", "s_dpo", "mult_dpo"):
        policy = double([[0.0, 1e4]])
        levels = torch.tensor([[1, 0]])
        loss, gradient = value_and_gradient(name, 2 * policy, torch.zeros_like(policy), levels)
        torch.testing.assert_close(loss, double([1e4]))
        torch.testing.assert_close(gradient, double([[-0.5, 0.5]]))  # beta is 0.5


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_match_finite_differences(name):
    levels = torch.tensor([LEVELS[name], LEVELS[name]])
    generator = torch.Generator().manual_seed(0)
    policy = torch.randn(2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    reference = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda logps: preference_loss(name, logps, reference, levels, 0.7), policy
    )


def test_mult_dpo_gradient_is_share_minus_hit():
    """dL/ds_y = N p_y − 1[y ∈ P]: weights 1, 2 | 3, N = 2 give (2/6 − 1, 4/6 − 1, 6/6), times β."""
    policy = double([[0.0, math.log(2) / 0.5, math.log(3) / 0.5]])
    _, gradient = value_and_gradient(
        "mult_dpo", policy, torch.zeros_like(policy), torch.tensor([[1, 1, 0]])
    )
    torch.testing.assert_close(gradient, 0.5 * double([[-2 / 3, -1 / 3, 1.0]]))


@pytest.mark.parametrize(
    ("given_dtype", "computed"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
@pytest.mark.parametrize("name", LOSSES)
def test_computes_in_float32_or_better(name, given_dtype, computed):
    """Every value is exact in bfloat16, so the result is that of float64 up to float32."""
    policy, levels = double([[-3.0, -1.5, -2.0, 0.0]]), torch.tensor([LEVELS[name]])
    reference = double([[-2.0, -2.5, -1.0, 0.0]])
    exact = preference_loss(name, policy, reference, levels, 0.3)
    loss = preference_loss(name, policy.to(given_dtype), reference.to(given_dtype), levels, 0.3)
    assert loss.dtype == computed
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)


def test_contexts_of_a_batch_are_independent():
    generator = torch.Generator().manual_seed(1)
    policy = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    reference = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    levels = torch.tensor([[1, 0, 0, -1], [1, 1, 1, 0], [-1, 0, 2, -1]])
    together = preference_loss("mult_dpo", policy, reference, levels, 0.5)
    assert together.shape == (3,)
    for i in range(3):
        alone = preference_loss(
            "mult_dpo", policy[i : i + 1], reference[i : i + 1], levels[i : i + 1], 0.5
        )
        torch.testing.assert_close(together[i : i + 1], alone)


# --------------------------------------------------------------------------------------------------
# what is refused


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("sft", [0, 0, -1]),
        ("dpo", [1, 1, 0]),
        ("dpo", [1, 0, 0]),
        ("s_dpo", [1, 1, 0]),
        ("s_dpo", [1, -1, -1]),
        ("mult_dpo", [1, 1, -1]),
        ("mult_dpo", [0, 0, -1]),
        ("mult_dpo", [-1, -1, -1]),
        ("mult_dpo", [1, 0, -2]),
    ],
)
def test_context_that_does_not_fit_the_loss_is_named(name, levels):
    fitting = LEVELS[name][:3]
    values = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=rf"context 1: loss '{name}'"):
        preference_loss(name, values, values, torch.tensor([fitting, levels]), 1.0)


@pytest.mark.parametrize("beta", [0.0, -0.1, math.nan, math.inf])
def test_beta_must_be_positive(beta):
    with pytest.raises(ValueError, match="beta"):
        loss_of("mult_dpo", [0.0, 0.0], [1, 0], beta)


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'mult_dpo'"):
        loss_of("multdpo", [0.0, 0.0], [1, 0])


def test_unknown_option_is_refused_and_known_ones_are_listed(monkeypatch):
    def with_option(logratios, levels, beta, *, margin=0.0):
        return logratios.sum(-1) + margin

    monkeypatch.setitem(LOSSES, "margin_loss", Loss(with_option, "many", "many", True))
    values, levels = torch.zeros(1, 2), torch.tensor([[1, 0]])
    assert float(preference_loss("margin_loss", values, values, levels, 1.0, margin=3.0)) == 3.0
    with pytest.raises(TypeError, match="no option 'gamma'; its options: margin"):
        preference_loss("margin_loss", values, values, levels, 1.0, gamma=1.0)
    with pytest.raises(TypeError, match="no option 'gamma'; its options: none"):
        preference_loss("mult_dpo", values, values, levels, 1.0, gamma=1.0)


def test_missing_reference_and_unequal_shapes_are_refused():
    values, levels = torch.zeros(1, 2), torch.tensor([[1, 0]])
    with pytest.raises(ValueError, match="reference_logps"):
        preference_loss("dpo", values, None, levels, 1.0)
    with pytest.raises(ValueError, match="equal shapes"):
        preference_loss("dpo", values, torch.zeros(1, 1), levels, 1.0)


# --------------------------------------------------------------------------------------------------
# helpers for logging


def test_rewards_and_set_means():
    """β = 0.5: rewards 0.5 · (1, −2, 4 | padding); positives (0.5, −1) mean −0.25, negative 2."""
    policy = double([[1.0, -2.0, 4.0, math.nan]]).requires_grad_()
    levels = torch.tensor([[1, 2, 0, -1]])
    values = rewards(policy, torch.zeros(1, 4), levels, 0.5)
    assert not values.requires_grad
    torch.testing.assert_close(values, double([[0.5, -1.0, 2.0, 0.0]]))
    positives, negatives = set_means(values, levels)
    torch.testing.assert_close(positives, double([-0.25]))
    torch.testing.assert_close(negatives, double([2.0]))


def test_set_means_of_an_empty_set_are_nan():
    positives, negatives = set_means(double([[1.0, 2.0]]), torch.tensor([[1, 1]]))
    assert positives.tolist() == [1.5]
    assert negatives.isnan().all()


def test_set_masks():
    positives, negatives = set_masks(torch.tensor([[2, 1, 0, -1]]))
    assert positives.tolist() == [[True, True, False, False]]
    assert negatives.tolist() == [[False, False, True, False]]
