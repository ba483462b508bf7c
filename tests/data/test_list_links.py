"""Pieces of one list, distinguished from unrelated lists of similar taste."""

import gzip
import json
import os
import random
from collections import defaultdict
from operator import itemgetter
from pathlib import Path

import numpy as np
import pytest

from recbole_multdpo.data.list_links import LONGEST_RUN, find_links

REAL = Path(os.environ.get("MULTDPO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def windows(rng, n_readers, length, size, step=1, n_titles=400):
    """Windows of random lists, shuffled, and the reader of each."""
    rows = []
    for reader in range(n_readers):
        titles = rng.sample(range(n_titles), length)
        rows += [(titles[a : a + size], reader) for a in range(0, length - size + 1, step)]
    rng.shuffle(rows)
    return [row for row, _ in rows], [reader for _, reader in rows]


def prefixes(rng, n_readers, length, shortest):
    """Growing prefixes of random lists, and the reader of each."""
    lists = [rng.sample(range(400), length) for _ in range(n_readers)]
    rows = [(one[:n], reader) for reader, one in enumerate(lists) for n in range(shortest, length)]
    rng.shuffle(rows)
    return [row for row, _ in rows], [reader for _, reader in rows]


def plain_fits(lists, shortest):
    """Slow reference: all pairs (first, second, offset, overlap) that fit by `shortest` or more."""
    found = set()
    for a, first in enumerate(lists):
        for b, second in enumerate(lists):
            for offset in range(len(first) if a != b else 0):
                overlap = min(len(first) - offset, len(second))
                swapped = offset == 0 and (len(first), b) < (len(second), a)
                if overlap >= shortest and not swapped:
                    if first[offset : offset + overlap] == second[:overlap]:
                        found.add((a, b, offset, overlap))
    return found


def as_set(links):
    columns = np.stack([links.first, links.second, links.offset, links.overlap], axis=1)
    return {*map(tuple, columns.tolist())}


@pytest.mark.parametrize(
    "rows",
    [
        lambda rng: windows(rng, 40, 20, 11),
        lambda rng: windows(rng, 40, 20, 5, step=3),
        lambda rng: windows(rng, 60, 12, 4),
        lambda rng: windows(rng, 3, 30, 11, step=2),
        lambda rng: windows(rng, 20, 60, 40, step=7),
        lambda rng: prefixes(rng, 40, 12, 4),
        lambda rng: prefixes(rng, 40, 12, 2),
    ],
    ids=["windows", "stride", "short", "few", "long", "prefixes", "from-two"],
)
def test_pieces_of_one_list_are_linked_and_no_others(rows):
    lists, readers = rows(random.Random(0))
    links = find_links(lists)
    assert links.min_overlap is not None
    assert all(readers[a] == readers[b] for a, b, *_ in as_set(links))
    group = list(range(len(lists)))
    for a, b, *_ in as_set(links):
        group = [group[a] if g == group[b] else g for g in group]
    n_groups = len(set(group))
    # a short run may occur elsewhere by chance, and then links no lists
    assert n_groups <= len(set(readers)) * 1.05


@pytest.mark.parametrize("min_overlap", [2, 3, 5, 30])
def test_links_are_those_of_the_plain_search(min_overlap):
    rng = random.Random(1)
    lists, _ = windows(rng, 10, 45, 33, step=2, n_titles=10**6)  # nothing is popular
    lists += windows(rng, 10, 9, 4, n_titles=10**6)[0]
    assert as_set(find_links(lists, min_overlap)) == plain_fits(lists, min_overlap)


def test_equal_lists_are_linked_to_the_first_of_them():
    lists = [[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4], [1, 2, 3, 4]]
    assert as_set(find_links(lists, 3)) == {(0, 2, 0, 4), (0, 3, 0, 4)}
    assert as_set(find_links(lists)) == set()  # four lists are too little evidence


def test_empty_and_short_lists():
    for lists in ([], [[]], [[1]], [[], [1], [1, 2]], [[1]] * 5):
        assert find_links(lists).min_overlap is None
    assert as_set(find_links([[1], [1, 2]], 1)) == {(1, 0, 0, 1)}


def test_a_popular_series_links_nobody():
    rng = random.Random(2)
    series = list(range(400, 407))
    strangers = []
    for _ in range(300):
        titles, at = rng.sample(range(400), 8), rng.randrange(9)
        strangers.append(titles[:at] + series + titles[at:])
    assert sum(one[-7:] == series for one in strangers) > 20  # many end and begin with it
    assert sum(one[:7] == series for one in strangers) > 20
    assert len(find_links(strangers).first) == 0
    assert len(find_links(strangers, 4).first) == 0
    pieces, readers = windows(rng, 50, 20, 15)
    found = find_links(strangers + pieces)
    n = len(strangers)
    assert found.first.min() >= n and found.second.min() >= n
    assert all(readers[a - n] == readers[b - n] for a, b, *_ in as_set(found))


@pytest.mark.parametrize(
    ("n_titles", "n_users", "size"), [(30, 20, 6), (50, 100, 8), (400, 120, 12)]
)
def test_random_lists_are_not_linked(n_titles, n_users, size):
    for seed in range(30):
        rng = random.Random(seed)
        assert not len(
            find_links([rng.sample(range(n_titles), size) for _ in range(n_users)]).first
        )


def test_chance_expectation_matches_unrelated_lists():
    """Unrelated lists with common series: accidental fits are as many as expected, not trusted."""
    rng = random.Random(3)
    after = {title: rng.sample(range(2000), 3) for title in range(2000)}
    lists = []
    for _ in range(4000):
        one = [rng.randrange(2000)]
        while len(one) < 11:
            one.append(rng.choice(after[one[-1]]))
        lists.append(one)
    links = find_links(lists)
    assert links.min_overlap is None
    for level in links.levels[2:5]:
        assert level.links > 10
        assert level.links == pytest.approx(level.expected, rel=0.5)


def sample_rows():
    path = REAL / "goodreads-sprec" / "train.json.gz"
    if not path.is_file():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    numbers: dict[str, int] = {}
    with gzip.open(path) as file:
        rows = [row["input"].split('"', 1)[1].rsplit('"', 1)[0] for row in json.load(file)]
    with gzip.open(path) as file:
        answers = [row["output"].strip()[1:-1] for row in json.load(file)]
    return [
        [numbers.setdefault(" ".join(t.split()), len(numbers)) for t in [*r.split('", "'), answer]]
        for r, answer in zip(rows, answers, strict=True)
    ]


def test_windows_of_the_goodreads_sample_and_its_controls():
    rows = sample_rows()
    found = find_links(rows)
    assert found.min_overlap == 3
    assert {level.overlap: level.links for level in found.levels} == {
        **{2: 119, 3: 123, 4: 123, 5: 176, 6: 180, 7: 140, 8: 171, 9: 177, 10: 180},
        **{11: 0, LONGEST_RUN: 0},
    }
    assert sum(level.expected for level in found.levels[1:]) < 6
    rng = random.Random(0)
    titles = [title for row in rows for title in row]
    following = defaultdict(list)
    for row in rows:
        for one, after in zip(row, row[1:], strict=False):
            following[one].append(after)

    def chain(row):
        made = row[:1]
        while len(made) < len(row):
            choice = [t for t in following[made[-1]] if t not in made]
            made.append(rng.choice(choice or titles))
        return made

    def rotated(row):
        at = rng.randrange(len(row))
        return row[at:] + row[:at]

    for control in (
        [rng.sample(row, len(row)) for row in rows],
        [[rng.choice(titles) for _ in row] for row in rows],
        [chain(row) for row in rows],
        [rotated(row) for row in rows],
    ):
        assert len(find_links(control).first) == 0


@pytest.mark.parametrize(
    "path",
    [
        "amazon-beauty-5core/amazon-beauty-5core.inter.gz",
        "lastfm-colakg/lastfm-colakg.train.inter.gz",
    ],
)
def test_people_of_real_data_are_not_linked(path):
    path = REAL / path
    if not path.is_file():
        pytest.skip("needs ../shared/data, which is not part of the repository")
    with gzip.open(path, "rt", encoding="utf-8") as file:
        lines = [line.split("\t") for line in file][1:]
    assert no_links(lines)


def test_people_of_ml_100k_are_not_linked(ml_100k_rows):
    assert no_links(ml_100k_rows)


def no_links(rows):
    """True if the users' lists in order of time (the last column, if numbers) have no links."""
    by_time = itemgetter(0)  # ties keep the order of the file
    lists = defaultdict(list)
    numbers: dict[str, int] = {}
    for place, (user, item, *rest) in enumerate(rows):
        time = float(rest[-1]) if rest and rest[-1].strip().replace(".", "").isdigit() else place
        lists[user].append((time, numbers.setdefault(item, len(numbers))))
    return (
        len(
            find_links(
                [[item for _, item in sorted(one, key=by_time)] for one in lists.values()]
            ).first
        )
        == 0
    )


@pytest.fixture
def ml_100k_rows():
    import recbole

    path = Path(recbole.__file__).parent / "dataset_example" / "ml-100k" / "ml-100k.inter"
    return [line.split("\t") for line in path.read_text().splitlines()[1:]]


def test_large_data_are_searched_in_seconds():
    rng = np.random.default_rng(0)
    items = (rng.pareto(1.0, 400_000) * 20).astype(int) % 5000  # popular ones at the head
    links = find_links(np.split(items, 4000))
    assert len(links.first) == 0
