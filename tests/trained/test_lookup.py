"""Lookup of typed titles and users, and suggestions."""

from __future__ import annotations

import pytest

from recbole_multdpo.errors import DataError
from recbole_multdpo.trained.lookup import TitleIndex, find_users, title_key

TITLES = [
    "[PAD]",
    "Usual Suspects, The",
    "Star Wars",
    "Alien",
    "Alien Nation",
    "Hamlet (1948)",
    "Hamlet (1996)",
    "It",
    "Schindler's List",
    "Chasing Amy",
    "Chasing Amy",
    "Up, The",
    "Up",
]


@pytest.fixture
def index() -> TitleIndex:
    return TitleIndex(TITLES, ["[PAD]", *(f"m{number}" for number in range(1, len(TITLES)))])


@pytest.mark.parametrize(
    ("typed", "title"),
    [
        ("Usual Suspects, The", "Usual Suspects, The"),
        ("the usual suspects", "Usual Suspects, The"),
        ("  star   wars ", "Star Wars"),
        ("Star Wars (1977)", "Star Wars"),
        ("Hamlet (1996)", "Hamlet (1996)"),
        ("schindlers list", "Schindler's List"),
        ("alien", "Alien"),
        ("id:m4", "Alien Nation"),
    ],
)
def test_title_is_found_despite_spelling(index: TitleIndex, typed: str, title: str) -> None:
    assert TITLES[index.find(typed)] == title


def test_articles_alone_are_words() -> None:
    assert title_key("It") == "it" and title_key("The The") == "the" and title_key("A") == "a"


@pytest.mark.parametrize(
    ("typed", "message"),
    [
        ("Star Warts", "did you mean 'Star Wars'?"),
        ("nation", "did you mean 'Alien Nation'"),
        ("Hamlet", "did you mean 'Hamlet (1948)' or 'Hamlet (1996)'?"),
        ("the up", "several titles; choose one: id:m11 (Up, The), id:m12 (Up)"),
        ("id:m99", "no item has the id 'm99' (near: m9"),
        ("qqqq", "no title like 'qqqq' in the catalogue"),
        ("", "no title like '' in the catalogue"),
    ],
)
def test_unknown_title_names_the_nearest(index: TitleIndex, typed: str, message: str) -> None:
    with pytest.raises(DataError) as error:
        index.find(typed)
    assert message in str(error.value)


def test_items_of_one_text_are_one_title(index: TitleIndex) -> None:
    assert index.find("chasing amy") == 9 and index.find("id:m10") == 10
    assert index.same_text([10, 2]) == [9, 10, 2]


def test_several_titles_all_problems_at_once(index: TitleIndex) -> None:
    assert index.find_all(["alien", "Star Wars", "ALIEN"]) == [3, 2]
    with pytest.raises(DataError, match="'Alienn'.*\n.*'Star Warz'"):
        index.find_all(["Alienn", "It", "Star Warz"])
    with pytest.raises(DataError, match="at least one"):
        index.find_all([])


def test_titles_in_a_text(index: TitleIndex) -> None:
    assert index.mentioned_in("I saw Alien Nation, it was no Star Wars.") == [4, 2]
    assert index.mentioned_in("Alien, then Alien Nation (and Alien again); Hamlets") == [3, 4]
    assert index.mentioned_in("is it aliens?") == []
    assert index.mentioned_in("Chasing Amy!") == [9]


def test_users() -> None:
    known = ["[PAD]", "10", "11", "20"]
    assert find_users(["20", "10", "20"], known, "toy") == [3, 1, 3]
    with pytest.raises(DataError, match=r"2 of 3 users are not in toy: '1' \(near: 11, 10\); 'x'"):
        find_users(["1", "11", "x"], known, "toy")
    with pytest.raises(DataError, match=r"'\[PAD\]'"):
        find_users(["[PAD]"], known, "toy")
    with pytest.raises(DataError, match="5 of 5 .* and 2 more"):
        find_users(["a", "b", "c", "d", "e"], known, "toy")
    with pytest.raises(DataError, match="no user is given"):
        find_users([], known, "toy")
