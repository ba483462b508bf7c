"""Sets, boundaries and orders that levels describe."""

import torch

from recbole_multdpo.losses.sets import argsort_by, boundaries, set_masks, set_means
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
