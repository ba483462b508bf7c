"""Known test sets: colours against an obvious twin, equal and different sets, ids by accident."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from recbole_multdpo.runs import known_sets
from recbole_multdpo.runs.known_sets import (
    ROUNDS,
    SAMPLE,
    Fingerprint,
    Match,
    colours,
    compare,
    fingerprint,
    known,
    known_names,
    matches_of,
    recognised,
)

Pairs = list[tuple[str, str]]


def part(pairs: Pairs, users: list[str], items: list[str]) -> Any:
    """As much of RecBole's data set as a fingerprint needs; ids are numbered as in the lists."""
    tokens = {"u": np.array(["[PAD]", *users]), "i": np.array(["[PAD]", *items])}
    numbers = {f: {token: at for at, token in enumerate(tokens[f])} for f in tokens}
    return SimpleNamespace(
        uid_field="u",
        iid_field="i",
        id2token=lambda field, ids: tokens[field][ids],
        inter_feat={
            "u": torch.tensor([numbers["u"][user] for user, _ in pairs]),
            "i": torch.tensor([numbers["i"][item] for _, item in pairs]),
        },
    )


def made(n_users: int = 300, n_items: int = 80, seed: int = 0) -> dict[str, list[str]]:
    """The items of every user, in order."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 9, n_users)
    return {
        f"u{user}": [f"i{i}" for i in rng.choice(n_items, length, replace=False)]
        for user, length in enumerate(lengths)
    }


def found_in(lists: dict[str, list[str]], order: int = 0, tested: int | None = None) -> Fingerprint:
    """Leave-one-out; users and items numbered in an order of their own."""
    rng = np.random.default_rng(order)
    users = list(rng.permutation(list(lists)))
    items = list(rng.permutation(sorted({item for own in lists.values() for item in own})))
    train = [(u, item) for u, own in lists.items() for item in own[:-2]]
    valid = [(u, own[-2]) for u, own in lists.items()]
    test = [(u, own[-1]) for u, own in lists.items()]
    parts = [part(pairs, users, items) for pairs in (train, valid, test)]
    return fingerprint(parts, part(test[:tested], users, items))


def renamed(lists: dict[str, list[str]]) -> dict[str, list[str]]:
    return {f"reader-{u}": [f"B00{item}" for item in own] for u, own in lists.items()}


def turned(lists: dict[str, list[str]], n: int) -> dict[str, list[str]]:
    """The first n users with their last two items exchanged: the same sets of items."""
    return {
        u: [*own[:-2], own[-1], own[-2]] if at < n else own
        for at, (u, own) in enumerate(lists.items())
    }


def test_colours_are_those_of_the_obvious_refinement() -> None:
    """Equal where sorted tuples of neighbours are equal, and nowhere else."""
    rng = np.random.default_rng(1)
    pairs = np.unique(rng.integers(0, [[12], [9]], (2, 40)), axis=1)
    slow: dict[tuple[str, int], Any] = {}
    around = defaultdict(list)
    for user, item in pairs.T:
        around["user", user].append(("item", item))
        around["item", item].append(("user", user))
    slow = {node: (node[0], len(near)) for node, near in around.items()}
    for _ in range(ROUNDS):
        slow = {
            node: (slow[node], tuple(sorted((slow[each] for each in near), key=repr)))
            for node, near in around.items()
        }
    of_users, of_items = colours(*pairs)
    fast = {**{("user", u): of_users[u] for u in set(pairs[0])}}
    fast |= {("item", i): of_items[i] for i in set(pairs[1])}
    nodes = list(slow)
    for one in nodes:
        for other in nodes:
            assert (fast[one] == fast[other]) == (slow[one] == slow[other]), (one, other)


def test_colours_do_not_depend_on_numbers() -> None:
    pairs = np.unique(np.random.default_rng(2).integers(0, 30, (2, 200)), axis=1)
    new = np.random.default_rng(3).permutation(30)
    of_users, of_items = colours(*pairs)
    again_users, again_items = colours(new[pairs[0]], new[pairs[1]])
    assert np.array_equal(of_users, again_users[new[: len(of_users)]])
    assert np.array_equal(np.sort(of_items), np.sort(again_items))


def test_equal_sets() -> None:
    lists = made()
    one, other = found_in(lists), found_in(lists, order=1)
    assert compare("it", one, other) == Match("it", True, "ids", 300, 300)
    by_graph = compare("it", one, found_in(renamed(lists), order=2))
    assert by_graph is not None and by_graph.equal and by_graph.by == "graph"
    assert by_graph.n_same == by_graph.n_compared > 290  # users alike in everything are left out


@pytest.mark.parametrize("rename", [dict, renamed])
def test_different_test_items(rename: Any) -> None:
    lists = made()
    match = compare("it", found_in(lists), found_in(rename(turned(lists, 162)), order=1))
    assert match is not None and not match.equal
    assert match.by == ("ids" if rename is dict else "graph")
    assert match.n_same / match.n_compared == pytest.approx(1 - 162 / 300, abs=0.01)


def test_other_data_are_not_recognised() -> None:
    one = found_in(made())
    assert compare("it", one, found_in(made(seed=1))) is None  # the same ids by accident
    lists = made()
    lists["u0"] = [*lists["u0"], "one-more"]
    assert compare("it", one, found_in(renamed(lists))) is None  # not the same graph


def test_some_users() -> None:
    lists = made()
    assert compare("it", found_in(lists), found_in(lists, tested=120)) == Match(
        "it", False, "ids", 120, 120
    )


def test_a_sample_of_many_users_estimates_the_share() -> None:
    lists = made(3 * SAMPLE, 500)
    whole, half = found_in(lists), found_in(turned(lists, 3 * SAMPLE // 2), order=1)
    match = compare("it", whole, half)
    assert match is not None and match.n_compared == SAMPLE
    assert match.n_same / SAMPLE == pytest.approx(0.5, abs=0.04)


def test_files(tmp_path: Any) -> None:
    found = found_in(made())
    found.save(tmp_path / "it.npz")
    read = Fingerprint.read(tmp_path / "it.npz")
    assert compare("it", read, found) == Match("it", True, "ids", 300, 300)
    assert isinstance(read.ids, str) and read.n_users == 300
    folder = known_sets._folder()
    sizes = [file.stat().st_size for file in folder.glob("*.npz")]
    assert len(sizes) >= 2 and max(sizes) < 40_000


def test_runs_of_before_are_known_by_their_hash() -> None:
    name = known_names()[0]
    assert matches_of({"test_set": known(name).ids}) == [Match(name, True, "ids", 0, 0)]
    assert matches_of({"test_set": "0" * 16}) == matches_of({}) == []
    match = Match(name, False, "graph", 9, 4)
    assert matches_of({"known_test_sets": [vars(match)], "test_set": known(name).ids}) == [match]
    with pytest.raises(ValueError, match="equal"):
        matches_of({"known_test_sets": [{"name": "x"}]})


def test_the_known_sets_are_those_of_their_names() -> None:
    beauty = known("amazon-beauty-5core")
    assert (beauty.n_users, beauty.n_items, beauty.n_rows) == (22_363, 12_101, 198_502)
    assert len(beauty.id_users) == len(beauty.graph_users) == SAMPLE
    for name in known_names():
        assert compare(name, known(name), known(name)) is not None
        assert compare(name, known(name), replace(beauty, ids="", graph="")) is None or (
            name == "amazon-beauty-5core"
        )
    lists = made()
    users = list(lists)
    items = sorted({item for own in lists.values() for item in own})
    test = part([(u, own[-1]) for u, own in lists.items()], users, items)
    assert recognised([test, test, test], test) == {"known_test_sets": []}
