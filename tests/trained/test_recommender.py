"""Recommendations as people read them."""

from __future__ import annotations

from recbole_multdpo.recommend import as_text
from recbole_multdpo.trained.recommender import Answer, Recommendation, one_per_text

RANKED = [
    Recommendation(1, "a", "Alien", -1.0, False),
    Recommendation(2, "b", "Chasing Amy", -2.0, False),
    Recommendation(3, "c", "Chasing Amy", -2.0, True),
    Recommendation(4, "d", "Up", -3.0, False),
]


def test_items_of_one_title_share_a_line() -> None:
    rows = one_per_text(RANKED)
    assert [(item.rank, item.id, n) for item, n in rows] == [(1, "a", 1), (2, "b", 2), (4, "d", 1)]
    assert [item.in_test for item, _ in rows] == [False, True, False]
    answer = Answer("7", [], None, RANKED)
    lines = as_text(answer).splitlines()
    assert len(lines) == 4 and lines[2].endswith("* in the test part  (2 items of this title)")
    assert [item["id"] for item in answer.as_dict()["recommendations"]] == ["a", "b", "c", "d"]
