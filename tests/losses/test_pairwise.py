"""Losses of pairs: values derived by hand, identities, and double loops."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from recbole_multdpo.losses import preference_loss
from tests.losses.helpers import double, examples, loss_of, value_and_gradient

LOG3 = math.log(3)


def test_dpo_value():
    """Weights 3 : 1, so σ(s_w − s_l) = 3/4, loss log(4/3); β = 2 gives 9 : 1, log(10/9)."""
    torch.testing.assert_close(loss_of("dpo", [LOG3, 0.0], [1, 0]), double([math.log(4 / 3)]))
    torch.testing.assert_close(loss_of("dpo", [LOG3, 0.0], [1, 0], 2.0), double([math.log(10 / 9)]))


def test_dpo_with_smoothed_labels():
    """σ(Δ) = 3/4: −0.9 log(3/4) − 0.1 log(1/4); the loss is least where σ(Δ) = 1 − ε."""
    smoothed = {"dpo_label_smoothing": 0.1}
    expected = -0.9 * math.log(3 / 4) - 0.1 * math.log(1 / 4)
    torch.testing.assert_close(loss_of("dpo", [LOG3, 0.0], [1, 0], **smoothed), double([expected]))
    rows = double([[math.log(9), 0.0]]), double([[0.0, 0.0]]), torch.tensor([[1, 0]])
    _, gradient = value_and_gradient("dpo", *rows, 1.0, **smoothed)
    torch.testing.assert_close(gradient, double([[0.0, 0.0]]))
    _, gradient = value_and_gradient("dpo", *rows, 1.0)
    assert gradient[0, 0] < 0  # without, the positive is still pushed up


def test_ipo_value():
    """Log-ratios 6 and 2. Over 3 and 2 tokens h = 2 − 1 = 1, β = 0.25: (1 − 2)² = 1.

    Summed, h = 4: (4 − 2)² = 4.
    """
    lengths = torch.tensor([[3, 2]])
    mean = loss_of("ipo", [6.0, 2.0], [1, 0], 0.25, lengths=lengths)
    torch.testing.assert_close(mean, double([1.0]))
    total = loss_of("ipo", [6.0, 2.0], [1, 0], 0.25, lengths=lengths, ipo_length_average=False)
    torch.testing.assert_close(total, double([4.0]))


def test_ipo_pushes_back_beyond_its_target():
    """The target of h is 1/(2β) = 1; from 3 the positive's slope is 2 (3 − 1), upward loss."""
    _, gradient = value_and_gradient(
        "ipo",
        double([[3.0, 0.0]]),
        double([[0.0, 0.0]]),
        torch.tensor([[1, 0]]),
        lengths=torch.tensor([[1, 1]]),
    )
    torch.testing.assert_close(gradient, double([[4.0, -4.0]]))


def test_simpo_value():
    """Per token −1 and −2 nats; β = 2, γ = 0.5: −log σ(2 · 1 − 0.5). The reference is ignored."""
    policy, levels, lengths = double([[-3.0, -4.0]]), torch.tensor([[1, 0]]), torch.tensor([[3, 2]])
    for reference in (None, torch.full_like(policy, 7.0)):
        loss = preference_loss(
            "simpo", policy, reference, levels, 2.0, lengths=lengths, simpo_gamma=0.5
        )
        torch.testing.assert_close(loss, double([math.log1p(math.exp(-1.5))]))


def test_dmpo_value():
    """Positive log 3; negatives log 9 and −log 9, mean 0: σ = 3/4, loss log(4/3)."""
    loss = loss_of("dmpo", [LOG3, 2 * LOG3, -2 * LOG3], [1, 0, 0])
    torch.testing.assert_close(loss, double([math.log(4 / 3)]))


@given(examples(max_positives=1, max_negatives=1))
def test_one_negative_makes_dmpo_and_both_lipo_bt_dpo(example):
    logratios, levels, beta = example
    dpo = loss_of("dpo", logratios, levels, beta)
    torch.testing.assert_close(loss_of("dmpo", logratios, levels, beta), dpo)
    for pairs in ("sum", "mean"):
        torch.testing.assert_close(
            loss_of("lipo_bt", logratios, levels, beta, lipo_pairs=pairs), dpo
        )


@given(examples(max_negatives=4, max_positives=1))
def test_dmpo_is_at_most_the_mean_of_its_pairs(example):
    """Jensen: −log σ is convex, so its value at the mean difference is at most its mean."""
    logratios, levels, beta = example
    mean = loss_of("lipo_bt", logratios, levels, beta, lipo_pairs="mean")
    assert loss_of("dmpo", logratios, levels, beta) <= mean + 1e-12


def test_lipo_bt_value():
    """s = log 3 and 0 above 0: log(4/3) + log 2, or half of it; with levels 2 > 1 a pair more."""
    pairs = [math.log(4 / 3), math.log(2)]
    torch.testing.assert_close(
        loss_of("lipo_bt", [LOG3, 0.0, 0.0], [1, 1, 0]), double([sum(pairs)])
    )
    mean = loss_of("lipo_bt", [LOG3, 0.0, 0.0], [1, 1, 0], lipo_pairs="mean")
    torch.testing.assert_close(mean, double([sum(pairs) / 2]))
    graded = loss_of("lipo_bt", [LOG3, 0.0, 0.0], [2, 1, 0])
    torch.testing.assert_close(graded, double([sum(pairs) + math.log(4 / 3)]))


def test_lipo_lambda_value():
    """Ranks by s: negative 1, positives 2 and 3. Gains differ by 2^1 − 2^0 = 1.

    Discounts 1/log2(2) = 1, 1/log2(3), 1/log2(4) = 1/2: the pairs weigh 1 − 1/log2(3) and 1/2.
    """
    loss = loss_of("lipo_lambda", [0.0, -LOG3, LOG3], [1, 1, 0])
    weights = [1 - 1 / math.log2(3), 1 / 2]
    pairs = [math.log(1 + 3), math.log(1 + 9)]
    expected = sum(w * p for w, p in zip(weights, pairs, strict=True))
    torch.testing.assert_close(loss, double([expected]))


@given(examples(max_level=3))
def test_lipo_by_double_loops(example):
    logratios, levels, beta = example
    s = [beta * value for value in logratios]
    valid = [i for i, level in enumerate(levels) if level >= 0]
    ranked = sorted(valid, key=lambda i: (-s[i], levels[i], i))
    rank = {item: place for place, item in enumerate(ranked, 1)}
    plain, weighed = [], []
    for i in valid:
        for j in valid:
            if levels[i] > levels[j]:
                plain.append(math.log1p(math.exp(s[j] - s[i])))
                gain = abs(2 ** levels[i] - 2 ** levels[j])
                discount = abs(1 / math.log2(1 + rank[i]) - 1 / math.log2(1 + rank[j]))
                weighed.append(gain * discount * plain[-1])
    for name, terms in (("lipo_bt", plain), ("lipo_lambda", weighed)):
        torch.testing.assert_close(loss_of(name, logratios, levels, beta), double([sum(terms)]))
        mean = loss_of(name, logratios, levels, beta, lipo_pairs="mean")
        torch.testing.assert_close(mean, double([sum(terms) / len(terms)]))


@pytest.mark.parametrize("name", ["lipo_bt", "lipo_lambda"])
def test_lipo_compares_no_two_of_the_lowest_level(name):
    """Negatives in their hundreds: gradients are those of all pairs, and no tensor holds them."""
    torch.manual_seed(0)
    levels = torch.zeros(2, 300, dtype=torch.long)
    levels[0, :3], levels[1, 5:7], levels[1, 9], levels[1, 20:] = 1, 2, -2, -1
    logratios = torch.randn(levels.shape, dtype=torch.float64)
    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            found = function(*args, **(kwargs or {}))
            sizes.append(found.numel() if isinstance(found, torch.Tensor) else 0)
            return found

    with Sizes():
        value, gradient = value_and_gradient(name, logratios, torch.zeros_like(logratios), levels)
    # the second example has 19 candidates above its one of level -2
    assert max(sizes) == 2 * 19 * 300

    s = (0.5 * logratios).requires_grad_()
    order = torch.where(levels == -1, -math.inf, s.detach())
    ranks = 1 + (order[:, None, :] > order[:, :, None]).sum(-1)  # no ties
    weights = (2.0 ** levels[:, :, None] - 2.0 ** levels[:, None, :]).abs()
    discounts = 1 / torch.log2(1 + ranks.double())
    weights = weights * (discounts[:, :, None] - discounts[:, None, :]).abs()
    pairs = torch.nn.functional.softplus(s[:, None, :] - s[:, :, None])
    if name == "lipo_lambda":
        pairs = pairs * weights
    is_pair = (levels[:, :, None] > levels[:, None, :]) & (levels != -1)[:, None, :]
    expected = (pairs * (is_pair & (levels != -1)[:, :, None])).sum((1, 2))
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, 0.5 * torch.autograd.grad(expected.sum(), s)[0])


def test_lipo_lambda_trains_at_the_first_step():
    """All log-ratios are 0 then; ties rank the positives last, so every pair has weight > 0."""
    zeros = torch.zeros(1, 3, dtype=torch.float64)
    _, gradient = value_and_gradient("lipo_lambda", zeros, zeros, torch.tensor([[1, 0, 0]]))
    # ranks 3, 1, 2 and σ(0) = 1/2, times β = 1/2
    far, near = 1 - 1 / 2, 1 / math.log2(3) - 1 / 2
    torch.testing.assert_close(gradient, double([[-(far + near), far, near]]) / 4)


@pytest.mark.parametrize("name", ["dpo", "dmpo", "lipo_bt"])
@given(gap=st.floats(0, 600))
def test_small_losses_of_well_separated_pairs_are_not_lost(name, gap):
    """log(1 + e^−gap) to a relative 1e-12, where exp followed by log would give 0."""
    loss = loss_of(name, [gap, 0.0], [1, 0])
    expected = math.log1p(math.exp(-gap))
    torch.testing.assert_close(loss, double([expected]), rtol=1e-12, atol=0)
