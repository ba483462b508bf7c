"""Prompts in parts, and grouping examples by length."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_multdpo.data.batch import Prompts, length_buckets

PROMPTS = Prompts(torch.tensor([[1, 2, 3, 0], [4, 0, 0, 0], [5, 6, 0, 0]]), torch.tensor([3, 1, 2]))


def test_prompts_in_parts():
    parts = PROMPTS.split(2)
    assert [len(part) for part in parts] == [2, 1]
    assert parts[1].ids.tolist() == [[5, 6, 0, 0]] and parts[1].lengths.tolist() == [2]
    assert parts[1].trimmed().ids.tolist() == [[5, 6]]
    assert PROMPTS.trimmed().width == 3
    assert parts[0].ids.data_ptr() == PROMPTS.ids.data_ptr()  # no copy


def test_chosen_prompts_keep_their_padding():
    for rows in (torch.tensor([2, 0]), torch.tensor([True, False, True])):
        chosen = PROMPTS.select(rows)
        assert chosen.width == 4
        assert sorted(zip(chosen.lengths.tolist(), chosen.ids.tolist(), strict=True)) == [
            (2, [5, 6, 0, 0]),
            (3, [1, 2, 3, 0]),
        ]


@pytest.mark.parametrize("length", [0, 5])
def test_lengths_outside_the_table_are_refused(length):
    with pytest.raises(ValueError, match="1 to 4"):
        Prompts(PROMPTS.ids, torch.tensor([3, length, 2]))


@pytest.mark.parametrize(
    ("max_rows", "max_tokens", "expected"),
    [
        (6, 0, [[3, 0, 4, 2, 5, 1]]),
        (4, 0, [[3, 0, 4, 2], [5, 1]]),
        # 90 alone; 70 + 70 are 140; 40 + 38 are 2 of 80 short, with 20 more 22 of 120
        (6, 140, [[3], [0, 4], [2, 5], [1]]),
        (1, 140, [[3], [0], [4], [2], [5], [1]]),
        (6, 79, [[3], [0], [4], [2], [5], [1]]),
        # room for three, but 90 + 70 are 20 of 180 short
        (6, 300, [[3], [0, 4], [2, 5], [1]]),
    ],
)
def test_by_hand(max_rows, max_tokens, expected):
    lengths = torch.tensor([70, 20, 40, 90, 70, 38])
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
        filled = sum(lengths[row] for row in rows)
        assert not max_tokens or filled >= 0.9 * len(rows) * longest - 1e-4
