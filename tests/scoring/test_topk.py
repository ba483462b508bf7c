"""The common rule for ties: descending scores, then ascending item id; −inf is never ranked."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_multdpo.errors import TrainingError
from recbole_multdpo.scoring.topk import stable_topk

NEVER = -math.inf


def test_ties_at_every_place_go_to_the_lower_id():
    scores = torch.tensor([[NEVER, 2.0, 5.0, 2.0, 5.0, 2.0], [NEVER, 1.0, 1.0, 1.0, 3.0, 1.0]])
    items, values = stable_topk(scores, 3)
    assert items.tolist() == [[2, 4, 1], [4, 1, 2]]
    assert values.tolist() == [[5.0, 5.0, 2.0], [3.0, 1.0, 1.0]]


def test_missing_places_are_item_zero_at_minus_infinity():
    scores = torch.tensor([[NEVER, NEVER, 4.0], [NEVER, NEVER, NEVER]])
    for k in (2, 5):
        items, values = stable_topk(scores, k)
        assert items.tolist() == [[2] + [0] * (k - 1), [0] * k]
        assert values.tolist() == [[4.0] + [NEVER] * (k - 1), [NEVER] * k]


@given(st.data())
def test_agrees_with_sorting_pairs(data):
    n, k = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 15))
    value = st.sampled_from([NEVER, -3.0, -1.0, 0.0, 2.0])
    rows = data.draw(st.lists(st.lists(value, min_size=n, max_size=n), min_size=1, max_size=4))
    scores = torch.tensor([[NEVER, *row] for row in rows], dtype=torch.float64)
    items, values = stable_topk(scores, k)
    for row, got_items, got_values in zip(rows, items.tolist(), values.tolist(), strict=True):
        ranked = sorted((-score, item) for item, score in enumerate(row, 1) if score > NEVER)[:k]
        filler = k - len(ranked)
        assert got_items == [item for _, item in ranked] + [0] * filler
        assert got_values == [-negated for negated, _ in ranked] + [NEVER] * filler


def test_nan_and_k_below_one_are_refused():
    with pytest.raises(TrainingError, match="NaN"):
        stable_topk(torch.tensor([[NEVER, 1.0, math.nan]]), 1)
    with pytest.raises(ValueError, match="k=0"):
        stable_topk(torch.zeros(1, 2), 0)
