"""Shared helpers of the loss tests: one example per loss, and a hypothesis strategy."""

import math

import torch
from hypothesis import strategies as st

from recbole_multdpo.losses import LOSSES, preference_loss

# one example that each loss accepts, with padding at the end
LEVELS = {
    "sft": [1, 1, 0, -1],
    "dpo": [1, 0, -1, -1],
    "ipo": [1, 0, -1, -1],
    "simpo": [1, 0, -1, -1],
    "kto": [1, 1, 0, -1],
    "dmpo": [1, 0, 0, -1],
    "s_dpo": [1, 0, 0, -1],
    "lipo_bt": [2, 1, 0, -1],
    "lipo_lambda": [2, 1, 0, -1],
    "pro": [2, 1, 0, -1],
    "kpo": [2, 1, 0, -1],
    "mult_dpo": [1, 1, 0, -1],
    "mult2_dpo": [2, 1, 0, -1],
    "pl_dpo": [1, 1, 0, -1],
    "pl2_dpo": [2, 1, 0, -1],
}
LENGTHS = [2, 3, 4, 0]  # tokens of the items of such an example


def double(rows):
    return torch.tensor(rows, dtype=torch.float64)


def data_of(name, n_examples=1, columns=slice(None)):
    """The lengths and KL estimate that a loss needs, for examples of `LEVELS`."""
    data = {}
    if LOSSES[name].needs_lengths:
        data["lengths"] = torch.tensor([LENGTHS] * n_examples)[:, columns]
    if LOSSES[name].needs_kl:
        data["kl"] = 0.25
    return data


def loss_of(name, logratios, levels, beta=1.0, **options):
    """Loss of one example given its log-ratios, through a reference of all zeros."""
    policy = double([logratios])
    reference = torch.zeros_like(policy)
    return preference_loss(name, policy, reference, torch.tensor([levels]), beta, **options)


def value_and_gradient(name, policy, reference, levels, beta=0.5, **options):
    policy = policy.clone().requires_grad_()
    loss = preference_loss(name, policy, reference, levels, beta, **options)
    (gradient,) = torch.autograd.grad(loss.sum(), policy)
    return loss.detach(), gradient


def masses(s, levels):
    """Sum of exp(s) of each level."""
    return {
        level: sum(math.exp(v) for v, found in zip(s, levels, strict=True) if found == level)
        for level in set(levels)
    }


@st.composite
def examples(draw, max_positives=5, max_negatives=4, max_level=1):
    """(log-ratios, levels, beta) of one example with at least one positive and one negative."""
    n, m, padding = draw(
        st.tuples(st.integers(1, max_positives), st.integers(1, max_negatives), st.integers(0, 2))
    )
    graded = draw(st.lists(st.integers(1, max_level), min_size=n, max_size=n))
    levels = draw(st.permutations(graded + [0] * m + [-1] * padding))
    value = st.floats(-8, 8, allow_nan=False)
    logratios = draw(st.lists(value, min_size=len(levels), max_size=len(levels)))
    return logratios, list(levels), draw(st.sampled_from([0.1, 0.5, 1.0, 2.0]))
