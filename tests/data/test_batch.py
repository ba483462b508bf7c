"""Grouping contexts by length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_multdpo.data.batch import length_buckets


@pytest.mark.parametrize(
    ("max_rows", "max_tokens", "expected"),
    [
        (6, 0, [[3, 0, 4, 2, 5, 1]]),
        (4, 0, [[3, 0, 4, 2], [5, 1]]),
        # 9 alone is 9 tokens; 7 + 7 are 14; 3 x 4 are 12, of which 2 are padding
        (6, 14, [[3], [0, 4], [2, 5, 1]]),
        (2, 14, [[3], [0, 4], [2, 5], [1]]),
        (6, 6, [[3], [0], [4], [2], [5, 1]]),
    ],
)
def test_by_hand(max_rows, max_tokens, expected):
    lengths = torch.tensor([7, 2, 4, 9, 7, 3])
    groups = length_buckets(lengths, max_rows=max_rows, max_tokens=max_tokens)
    assert [rows.tolist() for rows in groups] == expected


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=40),
    st.integers(1, 10),
    st.integers(0, 200),
)
def test_every_row_once_and_within_the_limits(lengths, max_rows, max_tokens):
    groups = length_buckets(torch.tensor(lengths), max_rows=max_rows, max_tokens=max_tokens)
    assert sorted(row for rows in groups for row in rows.tolist()) == list(range(len(lengths)))
    for rows in groups:
        longest = max(lengths[row] for row in rows)
        assert 1 <= len(rows) <= max_rows
        assert len(rows) == 1 or not max_tokens or len(rows) * longest <= max_tokens
