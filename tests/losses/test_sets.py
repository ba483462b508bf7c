"""Sets, boundaries and orders that levels describe."""

import math

import pytest
import torch

from recbole_multdpo.losses.sets import (
    argsort_by,
    boundaries,
    reward_accuracies,
    set_masks,
    set_means,
)
from tests.losses.helpers import double


def test_set_masks():
    positives, negatives = set_masks(torch.tensor([[2, 1, 0, -1, -2]]))
    assert positives.tolist() == [[True, True, False, False, False]]
    assert negatives.tolist() == [[False, False, True, False, True]]


def test_set_means():
    positives, negatives = set_means(double([[0.5, -1.0, 2.0, 0.0]]), torch.tensor([[1, 2, 0, -1]]))
    torch.testing.assert_close(positives, double([-0.25]))
    torch.testing.assert_close(negatives, double([2.0]))


def test_set_means_of_an_empty_set_are_nan():
    positives, negatives = set_means(double([[1.0, 2.0]]), torch.tensor([[1, 1]]))
    assert positives.tolist() == [1.5]
    assert negatives.isnan().all()


@pytest.mark.parametrize(
    ("rewards", "levels", "expected"),
    [
        ([1.0, 0.0], [1, 0], 1),
        ([0.0, 1.0], [1, 0], 0),
        ([0.5, 0.5], [1, 0], 0),  # a tie is not ordered right
        ([3.0, 1.0, 2.0, 0.0], [1, 1, 0, 0], 3 / 4),
        ([3.0, 1.0, 2.0, 0.0], [2, 1, 0, -2], 3 / 4),  # every level above 0 is positive
        ([3.0, 1.0, 2.0, -9.0], [1, 1, 0, -1], 1 / 2),  # padding is no negative
        ([math.nan, 1.0, 2.0, 0.5], [-1, 1, 0, 0], 1 / 2),
        ([-1.0, -2.0, 0.0, -3.0, -3.0], [0, 3, -2, -2, 0], 2 / 4),
        ([-math.inf, -math.inf], [1, 0], 0),
    ],
)
def test_reward_accuracies_by_hand(rewards, levels, expected):
    assert reward_accuracies(double([rewards]), torch.tensor([levels])).tolist() == [expected]


def pairs_in_order(rewards, levels):
    """The same one pair after the other."""
    pairs = [
        positive > negative
        for positive, level in zip(rewards, levels, strict=True)
        for negative, other in zip(rewards, levels, strict=True)
        if level >= 1 and other in (0, -2)
    ]
    return sum(pairs) / len(pairs)


def test_reward_accuracies_equal_a_count_of_pairs():
    generator = torch.Generator().manual_seed(0)
    levels = torch.randint(-2, 4, (200, 9), generator=generator)
    levels[:, 0], levels[:, 5] = 1, 0
    rewards = torch.randint(-3, 4, levels.shape, generator=generator).double()  # with ties
    rows = zip(rewards.tolist(), levels.tolist(), strict=True)
    expected = double([pairs_in_order(*row) for row in rows])
    found = reward_accuracies(rewards, levels).double()
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    # control: with ties counted, or without the negatives of level -2, the counts are others
    negated = 1 - reward_accuracies(-rewards, levels).double()
    assert (negated - expected).abs().max() > 0.1
    fewer = torch.where(levels == -2, -1, levels)
    assert (reward_accuracies(rewards, fewer).double() - expected).abs().max() > 0.1


def test_reward_accuracy_of_an_example_without_pairs_is_nan():
    assert reward_accuracies(double([[1.0, 2.0]]), torch.tensor([[1, -1]])).isnan().all()


def test_boundaries_pass_over_levels_that_no_example_has():
    levels = torch.tensor([[5, 2, 0, -1], [0, 2, 0, 2]])
    found = [(group.tolist(), lower.tolist()) for group, lower in boundaries(levels)]
    no, yes = False, True
    assert found == [
        ([[no, yes, no, no], [no, yes, no, yes]], [[no, no, yes, no], [yes, no, yes, no]]),
        ([[yes, no, no, no], [no, no, no, no]], [[no, yes, yes, no], [yes, yes, yes, yes]]),
    ]


def test_argsort_by_takes_later_keys_and_then_the_columns_for_ties():
    first, second = torch.tensor([[1, 0, 1, 1]]), torch.tensor([[5.0, 9.0, 4.0, 5.0]])
    assert argsort_by(first, second).tolist() == [[1, 2, 0, 3]]
    assert argsort_by(first).tolist() == [[1, 0, 2, 3]]
