"""PRO and KPO: values derived by hand, and the source of the order."""

import itertools
import math

import torch
from hypothesis import given

from recbole_multdpo.losses import preference_loss
from tests.losses.helpers import double, examples, loss_of
from tests.losses.plackett_luce_reference import by_permutations

LOG = {n: math.log(n) for n in (2, 3)}


def test_kpo_value():
    """Weights 3, 2 (positive) and 1: 3/6 and 2/3, loss log 3; only the first place: log 2."""
    logratios, levels = [LOG[3], LOG[2], 0.0], [1, 1, 0]
    torch.testing.assert_close(loss_of("kpo", logratios, levels), double([math.log(3)]))
    torch.testing.assert_close(loss_of("kpo", logratios, levels, kpo_k=1), double([math.log(2)]))
    torch.testing.assert_close(loss_of("kpo", logratios, levels, kpo_k=9), double([math.log(3)]))


def test_order_by_levels_comes_before_the_policy():
    """Weights 2 (level 2), 3 (level 1), 1: 2/6 and 3/4, loss log 4."""
    loss = loss_of("kpo", [LOG[3], LOG[2], 0.0], [1, 2, 0])
    torch.testing.assert_close(loss, double([math.log(4)]))


def test_order_as_sampled_is_that_of_the_columns():
    """Weights 2, 3, 1 in this order: 2/6 and 3/4; the policy would put 3 first: 3/6 and 2/3."""
    logratios, levels = [LOG[2], LOG[3], 0.0], [1, 1, 0]
    sampled = loss_of("kpo", logratios, levels, list_order="sampled")
    torch.testing.assert_close(sampled, double([math.log(4)]))
    torch.testing.assert_close(loss_of("kpo", logratios, levels), double([math.log(3)]))


@given(examples(max_positives=4))
def test_the_likelihoods_of_all_orders_sum_to_the_marginal(example):
    """Equation (8): every order of the positives, as sampled, has its KPO likelihood."""
    logratios, levels, beta = example
    positives = [i for i, level in enumerate(levels) if level == 1]
    rest = [i for i, level in enumerate(levels) if level != 1]
    total = 0.0
    for order in itertools.permutations(positives):
        columns = [*order, *rest]
        loss = loss_of(
            "kpo",
            [logratios[i] for i in columns],
            [levels[i] for i in columns],
            beta,
            list_order="sampled",
        )
        total += math.exp(-float(loss))
    expected = by_permutations([beta * value for value in logratios], levels)
    assert math.isclose(total, expected, rel_tol=1e-9)


@given(examples(max_positives=1))
def test_one_positive_makes_kpo_s_dpo(example):
    logratios, levels, beta = example
    torch.testing.assert_close(
        loss_of("kpo", logratios, levels, beta), loss_of("s_dpo", logratios, levels, beta)
    )


def test_pro_value():
    """Per token log 2, log 3 (positive) and 0, the items being of 2, 1 and 3 tokens.

    The policy's order is 3, 2: 3/6 and 2/3, log 3; supervised: 0.1 · 2² · (−log 3), of the first
    item's sum. With levels the order is 2, 3: 2/6 and 3/4, and the first item's sum is 2 log 2.
    """
    logps, lengths = double([[2 * LOG[2], LOG[3], 0.0]]), torch.tensor([[2, 1, 3]])
    for levels, expected in {
        (1, 1, 0): math.log(3) - 0.4 * LOG[3],
        (2, 1, 0): math.log(4) - 0.4 * 2 * LOG[2],
    }.items():
        loss = preference_loss(
            "pro", logps, None, torch.tensor([levels]), 1.0, lengths=lengths, pro_sft_weight=0.1
        )
        torch.testing.assert_close(loss, double([expected]))


@given(examples())
def test_pro_without_its_supervised_term_is_kpo_of_token_means(example):
    logratios, levels, beta = example
    lengths = torch.arange(1, len(levels) + 1)[None]
    means = [value / n for n, value in enumerate(logratios, 1)]
    pro = loss_of("pro", logratios, levels, beta, lengths=lengths, pro_sft_weight=0.0)
    torch.testing.assert_close(pro, loss_of("kpo", means, levels, beta))
