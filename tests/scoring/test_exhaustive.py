"""Exhaustive ranking with a table of scores: chunks, exclusion and ties."""

import math

import pytest
import torch

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.scoring.exhaustive import exhaustive_topk

TABLE = torch.tensor([-9.0, -3.0, -1.0, -2.0, -1.0, -4.0])  # by item id; entry 0 must never be read


def table_score(prompts, candidates):
    """User u adds u to every score, so that swapped rows would be noticed."""
    assert (candidates > 0).all()
    return TABLE[candidates] + prompts.ids[:, :1]


@pytest.mark.parametrize("items_per_chunk", [1, 2, 100])
def test_ranks_the_whole_catalogue(items_per_chunk):
    excluded = torch.zeros(2, 6, dtype=torch.bool)
    excluded[1, [2, 5]] = True
    result = exhaustive_topk(
        table_score,
        Prompts(torch.tensor([[0], [10]]), torch.tensor([1, 1])),
        excluded,
        4,
        n_items=6,
        items_per_chunk=items_per_chunk,
    )
    assert result.items.tolist() == [[2, 4, 3, 1], [4, 3, 1, 0]]
    assert result.scores.tolist() == [[-1.0, -1.0, -2.0, -3.0], [9.0, 8.0, 7.0, -math.inf]]
    assert result.expanded.tolist() == [0, 0]


def test_without_exclusion():
    prompts = Prompts(torch.tensor([[0]]), torch.tensor([1]))
    result = exhaustive_topk(table_score, prompts, None, 1, n_items=6)
    assert result.items.tolist() == [[2]]
