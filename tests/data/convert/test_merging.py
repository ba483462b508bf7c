"""Merging of rows into one list per reader."""

import random

import pytest

from recbole_multdpo.data.convert.merging import merge_rows


def rows_and_lists(rng, n_readers=60, length=20, size=8, step=1):
    """Shuffled windows of random lists, and the lists."""
    lists = [rng.sample(range(500), length) for _ in range(n_readers)]
    rows = [one[a : a + size] for one in lists for a in range(0, length - size + 1, step)]
    rng.shuffle(rows)
    return rows, lists


def check_places(rows, readers):
    """Check the position of every row in its reader's list."""
    for one, members in zip(readers.lists, readers.rows, strict=True):
        for row in members:
            assert [one[place] for place in readers.places[row]] == rows[row]


@pytest.mark.parametrize("step", [1, 2, 4])
def test_windows_become_the_lists_they_were_cut_from(step):
    rows, lists = rows_and_lists(random.Random(0), step=step)
    readers = merge_rows(rows, [None] * len(rows))
    assert sorted(readers.lists) == sorted(lists)
    assert readers.contradicting == []
    assert sorted(row for members in readers.rows for row in members) == list(range(len(rows)))
    assert [min(members) for members in readers.rows] == sorted(map(min, readers.rows))
    check_places(rows, readers)


def test_prefixes_become_the_longest_of_them():
    rng = random.Random(0)
    lists = [rng.sample(range(500), 12) for _ in range(60)]
    rows = [one[:n] for one in lists for n in range(2, 13)]
    rng.shuffle(rows)
    readers = merge_rows(rows, [None] * len(rows))
    assert sorted(readers.lists) == sorted(lists)
    check_places(rows, readers)


def test_rows_without_an_overlap_stay_apart():
    rows = [random.Random(n).sample(range(500), 9) for n in range(50)]
    readers = merge_rows(rows, [None] * len(rows))
    assert readers.lists == rows
    assert readers.rows == [[n] for n in range(50)]


def test_of_two_contradicting_continuations_one_is_kept():
    beginnings = [[0, 1, 2, 3, 4], [9, 0, 1, 2, 3, 4], [8, 9, 0, 1, 2, 3, 4]]
    rows = [*beginnings, [1, 2, 3, 4, 6, 7, 50], [1, 2, 3, 4, 6, 7, 60, 61], [70, 71]]
    readers = merge_rows(rows, [None] * len(rows), min_overlap=4)
    assert readers.lists == [[8, 9, 0, 1, 2, 3, 4, 6, 7, 50], [70, 71]]
    assert readers.rows == [[0, 1, 2, 3], [5]]
    assert readers.contradicting == [4]
    check_places(rows, readers)


def test_a_key_joins_overlapping_rows_and_then_the_others():
    rows = [[5, 6, 7], [1, 2], [6, 7, 8], [9, 6, 10], [1, 2]]
    readers = merge_rows(rows, ["a", None, "a", "a", None])
    assert readers.lists == [[5, 6, 7, 8, 9, 10], [1, 2], [1, 2]]
    assert readers.rows == [[0, 2, 3], [1], [4]]
    assert readers.places == [[0, 1, 2], [0, 1], [1, 2, 3], [4, 1, 5], [0, 1]]
    shuffled = merge_rows([[3, 4, 5], [1, 2, 3], [5, 6]], [7, 7, 7])
    assert shuffled.lists == [[1, 2, 3, 4, 5, 6]]


def test_keys_of_their_own_do_not_hide_an_overlap():
    rows, lists = rows_and_lists(random.Random(0))
    readers = merge_rows(rows, list(range(len(rows))))
    assert sorted(readers.lists) == sorted(lists)
