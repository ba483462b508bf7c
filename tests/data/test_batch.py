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
    ("max_rows", "max_tokens", "part_tokens", "expected"),
    [
        # sorted: 90 70 70 40 38 20; cutting behind 90 saves 40 tokens, before 20 it saves 20
        (6, 0, 40, [[3, 0, 4], [2, 5, 1]]),
        (6, 0, 39, [[3], [0, 4], [2, 5, 1]]),
        (6, 0, 19, [[3], [0, 4], [2, 5], [1]]),
        (6, 0, 0, [[3], [0, 4], [2], [5], [1]]),
        (6, 0, 1000, [[3, 0, 4, 2, 5, 1]]),
        (4, 0, 1000, [[3, 0, 4], [2, 5, 1]]),
        (1, 0, 1000, [[3], [0], [4], [2], [5], [1]]),
        # 3 * 70 would be too many; the longest fits into no part and is one of its own
        (6, 140, 1000, [[3], [0, 4], [2, 5, 1]]),
        (6, 79, 1000, [[3], [0], [4], [2], [5, 1]]),
        (6, 39, 1000, [[3], [0], [4], [2], [5], [1]]),
    ],
)
def test_buckets_by_hand(max_rows, max_tokens, part_tokens, expected):
    lengths = torch.tensor([70, 20, 40, 90, 70, 38])
    groups = length_buckets(
        lengths, max_rows=max_rows, max_tokens=max_tokens, part_tokens=part_tokens
    )
    assert [rows.tolist() for rows in groups] == expected


def every_cut(lengths):
    """All ways to cut a list into parts."""
    yield [lengths]
    for size in range(1, len(lengths)):
        for rest in every_cut(lengths[size:]):
            yield [lengths[:size], *rest]


@given(
    st.lists(st.integers(1, 50), min_size=1, max_size=9),
    st.integers(1, 10),
    st.integers(0, 200),
    st.integers(0, 60),
)
def test_no_other_buckets_cost_less(lengths, max_rows, max_tokens, part_tokens):
    """Every row once, within the limits, and at the least cost of all ways to cut."""
    groups = length_buckets(
        torch.tensor(lengths), max_rows=max_rows, max_tokens=max_tokens, part_tokens=part_tokens
    )
    assert sorted(row for rows in groups for row in rows.tolist()) == list(range(len(lengths)))

    def cost(parts):
        return sum(len(part) * max(part) + part_tokens for part in parts)

    def fits(part):
        few = not max_tokens or len(part) == 1 or len(part) * max(part) <= max_tokens
        return few and len(part) <= max_rows

    found = [[lengths[row] for row in rows] for rows in groups]
    ways = [w for w in every_cut(sorted(lengths, reverse=True)) if all(map(fits, w))]
    assert found in ways and cost(found) == min(map(cost, ways))
