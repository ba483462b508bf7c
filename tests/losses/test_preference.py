"""`preference_loss`: properties of every loss, and rejected input."""

import inspect
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from recbole_multdpo.losses import LOSSES, Loss, preference_loss, rewards
from recbole_multdpo.losses.table import DATA_PARAMETERS, imported
from recbole_multdpo.settings.layers import properties_folder
from recbole_multdpo.settings.llmrec import ZERO_SHOT, LossName
from recbole_multdpo.settings.text import read_settings_file
from tests.losses.helpers import LEVELS, data_of, double, examples, loss_of, value_and_gradient

# averaging over lengths, or a supervised term, sees more than differences of log-ratios
MANY_POSITIVES = [name for name, loss in LOSSES.items() if loss.positives == "many"]
SHIFT_MATTERS = {"sft", "kto", "ipo", "simpo", "pro"}


def test_every_loss_is_a_setting_and_has_an_example_here():
    setting = TypeAdapter(LossName)
    for name in (ZERO_SHOT, *LOSSES):
        assert setting.validate_python(name) == name
    allowed = ", ".join(f"'{name}'" for name in (ZERO_SHOT, *LOSSES))
    with pytest.raises(ValidationError, match=allowed):
        setting.validate_python("dpo2")
    assert set(LEVELS) == set(LOSSES)


def test_options_are_settings_with_the_same_defaults():
    settings = read_settings_file(properties_folder() / "model/LLMRec.yaml")
    for loss in LOSSES.values():
        parameters = inspect.signature(imported(loss.function)).parameters
        keyword_only = {each.name for each in parameters.values() if each.kind is each.KEYWORD_ONLY}
        assert set(loss.options) == keyword_only - set(DATA_PARAMETERS)
        for option in loss.options:
            assert settings[option] == parameters[option].default, option


def test_log_ratio_is_policy_minus_reference():
    """Policy −1, −2 and reference −3, −2: s = 2, 0, loss log(1 + e^−2)."""
    loss = preference_loss(
        "dpo", double([[-1.0, -2.0]]), double([[-3.0, -2.0]]), torch.tensor([[1, 0]]), 1.0
    )
    torch.testing.assert_close(loss, double([math.log1p(math.exp(-2))]))


# --------------------------------------------------------------------------------------------------
# padding, order, extremes, gradients


@pytest.mark.parametrize("garbage", [0.0, -1e30, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", LOSSES)
def test_padding_has_no_influence_on_value_or_gradient(name, garbage):
    levels = torch.tensor([LEVELS[name]])
    valid = levels >= 0
    n_valid = int(valid.sum())
    policy, reference = double([[-3.0, -1.5, -2.0, -4.0]]), double([[-2.0, -2.5, -1.0, -3.0]])
    # the same example without its padding
    expected, expected_gradient = value_and_gradient(
        name,
        policy[:, :n_valid],
        reference[:, :n_valid],
        levels[:, :n_valid],
        **data_of(name, columns=slice(n_valid)),
    )
    policy[~valid] = garbage
    reference[~valid] = -garbage
    loss, gradient = value_and_gradient(name, policy, reference, levels, **data_of(name))
    torch.testing.assert_close(loss, expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient[:, :n_valid], expected_gradient, rtol=0, atol=1e-12)
    assert (gradient[~valid] == 0).all()
    assert (gradient[:, 0] != 0).all()  # control: a real candidate does receive a gradient


@pytest.mark.parametrize("name", LOSSES)
@given(seed=st.integers(0, 2**32 - 1), shift=st.floats(-50, 50))
def test_order_and_common_shift_do_not_matter(name, seed, shift):
    generator = torch.Generator().manual_seed(seed)
    levels, data = torch.tensor([LEVELS[name]]), data_of(name)
    policy = 3 * torch.randn(1, 4, generator=generator, dtype=torch.float64)
    reference = torch.zeros_like(policy)
    loss = preference_loss(name, policy, reference, levels, 0.7, **data)
    order = torch.randperm(4, generator=generator)
    permuted = {key: v[:, order] if key == "lengths" else v for key, v in data.items()}
    torch.testing.assert_close(
        preference_loss(name, policy[:, order], reference, levels[:, order], 0.7, **permuted), loss
    )
    shifted = preference_loss(name, policy + shift, reference, levels, 0.7, **data)
    if name not in SHIFT_MATTERS:
        torch.testing.assert_close(shifted, loss)
    elif abs(shift) > 1:  # control
        assert not torch.allclose(shifted, loss, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("extreme", [[1e4, -1e4, -1e4], [-1e4, 1e4, 1e4], [1e4, 1e4, 1e4]])
def test_extreme_log_ratios_stay_finite(name, extreme):
    levels = torch.tensor([LEVELS[name]])
    policy = torch.tensor([[*extreme, 0.0]]).requires_grad_()
    loss = preference_loss(name, policy, torch.zeros(1, 4), levels, 1.0, **data_of(name))
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    assert loss.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_match_finite_differences(name):
    levels = torch.tensor([LEVELS[name], LEVELS[name]])
    generator = torch.Generator().manual_seed(0)
    policy = torch.randn(2, 4, generator=generator, dtype=torch.float64).requires_grad_()
    reference = torch.randn(2, 4, generator=generator, dtype=torch.float64)
    data = data_of(name, n_examples=2)
    # the exact loss is differentiated before, not after, its rounding by the quadrature
    options = {"pl_nodes": 96} if "pl_nodes" in LOSSES[name].options else {}
    assert torch.autograd.gradcheck(
        lambda logps: preference_loss(name, logps, reference, levels, 0.7, **data, **options),
        policy,
    )


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
    data = data_of(name)
    exact = preference_loss(name, policy, reference, levels, 0.3, **data)
    loss = preference_loss(
        name, policy.to(given_dtype), reference.to(given_dtype), levels, 0.3, **data
    )
    assert loss.dtype == computed
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", MANY_POSITIVES)
def test_examples_of_a_batch_are_independent(name):
    generator = torch.Generator().manual_seed(1)
    policy = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    reference = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    levels = torch.tensor([[1, 0, 0, -1], [3, 1, 1, 0], [-1, 0, 2, -1]])
    data = {"lengths": torch.tensor([[1, 2, 3, 4]] * 3)} if LOSSES[name].needs_lengths else {}
    kl = {"kl": 0.25} if LOSSES[name].needs_kl else {}
    together = preference_loss(name, policy, reference, levels, 0.5, **data, **kl)
    assert together.shape == (3,)
    for i in range(3):
        one = slice(i, i + 1)
        alone = preference_loss(
            name,
            policy[one],
            reference[one],
            levels[one],
            0.5,
            **{key: value[one] for key, value in data.items()},
            **kl,
        )
        torch.testing.assert_close(together[one], alone)


@pytest.mark.parametrize("name", MANY_POSITIVES)
def test_levels_matter_for_losses_that_use_them(name):
    """The better of two positives scores lower: a loss with levels must have a larger gradient."""
    logratios, data = [-1.0, 2.0, 0.5, 0.0], data_of(name)
    graded = loss_of(name, logratios, [2, 1, 0, -1], **data)
    plain = loss_of(name, logratios, [1, 1, 0, -1], **data)
    assert (not torch.allclose(graded, plain)) == LOSSES[name].uses_levels


# --------------------------------------------------------------------------------------------------
# negatives of two levels: 0, and −2 below those

MANY_NEGATIVES = [name for name, loss in LOSSES.items() if loss.negatives == "many"]
BY_BOUNDARIES = ["mult2_dpo", "pl2_dpo", "lipo_bt"]


def two_level_example(name):
    """(log-ratios, positive levels, data without lengths) for two negatives of each level."""
    positives = [1] if LOSSES[name].positives == "one" else [2, 1]
    logratios = [0.3, -0.4][: len(positives)] + [0.9, -1.1, 0.2, 0.6]
    data = {"lengths": torch.tensor([[2, 3, 4, 5, 3, 2][: len(logratios)]]), "kl": 0.25}
    return logratios, positives, data


@pytest.mark.parametrize("name", MANY_NEGATIVES)
def test_lower_negatives_are_negatives_of_losses_without_levels(name):
    logratios, positives, data = two_level_example(name)
    lower = loss_of(name, logratios, [*positives, 0, 0, -2, -2], **data)
    alike = loss_of(name, logratios, [*positives, 0, 0, 0, 0], **data)
    only_lower = loss_of(name, logratios, [*positives, -2, -2, -2, -2], **data)
    ordered = name in (*BY_BOUNDARIES, "lipo_lambda")
    assert torch.allclose(lower, alike) != ordered
    if name != "lipo_lambda":  # whose gains depend on the levels' values
        torch.testing.assert_close(only_lower, alike)


@pytest.mark.parametrize("name", BY_BOUNDARIES)
def test_lower_negatives_are_one_more_boundary(name):
    """These losses depend on the order of levels only, so raising all levels changes nothing."""
    logratios, _, _ = two_level_example(name)
    found = loss_of(name, logratios, [2, 1, 0, 0, -2, -2])
    torch.testing.assert_close(found, loss_of(name, logratios, [3, 2, 1, 1, 0, 0]))


@pytest.mark.parametrize("name", BY_BOUNDARIES)
def test_an_example_without_one_of_the_levels_of_negatives_is_as_if_alone(name):
    rows = double([[0.3, -0.4, 0.9, -1.1], [0.5, 1.2, -0.2, 0.0], [0.1, -0.6, 0.8, 0.4]])
    levels = torch.tensor([[2, 1, 0, -2], [1, 0, 0, -1], [1, -2, -2, -1]])
    together = preference_loss(name, rows, torch.zeros_like(rows), levels, 1.0)
    for row, of, loss in zip(rows.tolist(), levels.tolist(), together, strict=True):
        n = len(of) - of.count(-1)
        torch.testing.assert_close(loss_of(name, row[:n], of[:n])[0], loss)


@pytest.mark.parametrize("name", MANY_NEGATIVES)
def test_padding_has_no_influence_with_lower_negatives(name):
    logratios, positives, data = two_level_example(name)
    levels = [*positives, 0, -2, -2, 0]
    plain = loss_of(name, logratios, levels, **data)
    data["lengths"] = torch.cat([torch.tensor([[0]]), data["lengths"], torch.tensor([[0]])], 1)
    padded = loss_of(name, [5.0, *logratios, math.nan], [-1, *levels, -1], **data)
    torch.testing.assert_close(padded, plain)


# --------------------------------------------------------------------------------------------------
# rejected input


@pytest.mark.parametrize(
    ("name", "levels"),
    [
        ("sft", [0, 0, -1]),
        ("dpo", [1, 1, 0]),
        ("dpo", [1, 0, 0]),
        ("ipo", [1, 0, 0]),
        ("simpo", [1, 1, 0]),
        ("kto", [1, -1, -1]),
        ("dmpo", [1, 1, 0]),
        ("s_dpo", [1, 1, 0]),
        ("s_dpo", [1, -1, -1]),
        ("lipo_bt", [0, 0, -1]),
        ("pl_dpo", [1, 1, -1]),
        ("mult_dpo", [1, 1, -1]),
        ("mult_dpo", [0, 0, -1]),
        ("mult_dpo", [-1, -1, -1]),
        ("mult_dpo", [1, 0, -3]),
    ],
)
def test_example_that_does_not_fit_the_loss_is_named(name, levels):
    fitting = LEVELS[name][:3]
    values, data = torch.zeros(2, 3), {"lengths": torch.ones(2, 3), "kl": 0.0}
    with pytest.raises(ValueError, match=rf"example 1: loss '{name}'"):
        preference_loss(name, values, values, torch.tensor([fitting, levels]), 1.0, **data)


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


def test_missing_data_and_unequal_shapes_are_refused():
    values, levels = torch.zeros(1, 2), torch.tensor([[1, 0]])
    with pytest.raises(ValueError, match="reference_logps"):
        preference_loss("dpo", values, None, levels, 1.0)
    with pytest.raises(ValueError, match="equal shapes"):
        preference_loss("dpo", values, torch.zeros(1, 1), levels, 1.0)
    with pytest.raises(ValueError, match="'simpo' needs lengths"):
        preference_loss("simpo", values, None, levels, 1.0)
    with pytest.raises(ValueError, match="lengths must be at least 1"):
        preference_loss("simpo", values, None, levels, 1.0, lengths=torch.tensor([[1, 0]]))
    with pytest.raises(ValueError, match="equal shapes.*lengths"):
        preference_loss("simpo", values, None, levels, 1.0, lengths=torch.tensor([[1]]))
    with pytest.raises(ValueError, match="'kto' needs kl"):
        preference_loss("kto", values, values, levels, 1.0)


def test_data_that_a_loss_does_not_need_is_ignored():
    values, levels = torch.zeros(1, 2), torch.tensor([[1, 0]])
    loss = preference_loss("dpo", values, values, levels, 1.0, lengths=torch.zeros(9), kl=3.0)
    torch.testing.assert_close(loss, torch.tensor([math.log(2)]))


# --------------------------------------------------------------------------------------------------
# helpers for logging


def test_rewards():
    """β = 0.5: rewards 0.5 · (1, −2, 4 | padding)."""
    policy = double([[1.0, -2.0, 4.0, math.nan]]).requires_grad_()
    values = rewards(policy, torch.zeros(1, 4), torch.tensor([[1, 2, 0, -1]]), 0.5)
    assert not values.requires_grad
    torch.testing.assert_close(values, double([[0.5, -1.0, 2.0, 0.0]]))


def test_rewards_without_a_reference_and_per_token():
    """β = 0.5 and items of 1, 2 and 4 tokens: 0.5 · (1, −2, 4), then divided by the lengths."""
    policy, levels = double([[1.0, -2.0, 4.0, math.nan]]), torch.tensor([[1, 2, 0, -1]])
    values = rewards(policy, None, levels, 0.5)
    torch.testing.assert_close(values, double([[0.5, -1.0, 2.0, 0.0]]))
    values = rewards(policy, None, levels, 0.5, torch.tensor([[1, 2, 4, 0]]))
    torch.testing.assert_close(values, double([[0.5, -0.5, 0.5, 0.0]]))


def test_the_losses_whose_rewards_are_per_token():
    assert [name for name in LOSSES if LOSSES[name].has_reward_per_token] == ["simpo", "pro"]


@given(examples(max_level=3))
def test_one_example_of_any_kind_is_accepted_by_the_losses_of_many(example):
    logratios, levels, beta = example
    data = {"lengths": torch.ones(1, len(levels)), "kl": 0.0}
    for name in MANY_POSITIVES:
        assert loss_of(name, logratios, levels, beta, **data).isfinite().all()
