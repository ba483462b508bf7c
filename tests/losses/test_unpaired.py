"""KTO and its KL estimate."""

import math

import torch

from recbole_multdpo.losses import kl_estimate
from tests.losses.helpers import double, loss_of


def test_kto_value():
    """z = 0, β = 1: positives log 3, 0 give 1/4 + 1/2; negative log 3 gives 3/4, times N/M = 2."""
    logratios, levels = [math.log(3), 0.0, math.log(3)], [1, 1, 0]
    torch.testing.assert_close(loss_of("kto", logratios, levels, kl=0.0), double([2.25]))
    weighed = loss_of(
        "kto", logratios, levels, kl=0.0, kto_desirable_weight=2.0, kto_undesirable_weight=1.0
    )
    torch.testing.assert_close(weighed, double([3.0]))


def test_kto_measures_from_the_divergence():
    """Log-ratios and z moved together change nothing; z alone does."""
    plain = loss_of("kto", [1.0, -1.0], [1, 0], kl=0.0)
    torch.testing.assert_close(loss_of("kto", [3.0, 1.0], [1, 0], kl=2.0), plain)
    assert not torch.allclose(loss_of("kto", [1.0, -1.0], [1, 0], kl=2.0), plain)


def test_negatives_weigh_as_much_as_positives_whatever_their_number():
    few = loss_of("kto", [1.0, -1.0], [1, 0], kl=0.5)
    many = loss_of("kto", [1.0] + [-1.0] * 7, [1] + [0] * 7, kl=0.5)
    torch.testing.assert_close(many, few)


def test_kl_estimate():
    """Log-ratios 1 and −0.5: mean 0.25. A negative mean is clamped to 0."""
    policy = double([-1.0, -2.5]).requires_grad_()
    estimate = kl_estimate(policy, double([-2.0, -2.0]))
    assert not estimate.requires_grad
    torch.testing.assert_close(estimate, double(0.25))
    assert kl_estimate(double([-3.0]), double([-2.0])) == 0
    low = torch.tensor([-1.0], dtype=torch.bfloat16)
    assert kl_estimate(low, torch.zeros(1)).dtype == torch.float32
