"""Single values where lists are wanted."""

from __future__ import annotations

from typing import Any

import pytest

from recbole_multdpo.settings.config import load_config
from recbole_multdpo.settings.lists import with_lists


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"item_text_fields": "title"}, {"item_text_fields": ["title"]}),
        ({"item_text_fields": ["title"]}, {"item_text_fields": ["title"]}),
        ({"normalize_field": "age"}, {"normalize_field": ["age"]}),
        ({"alias_of_user_id": "friend"}, {"alias_of_user_id": ["friend"]}),
        (
            {"load_col": {"inter": "*", "item": "item_id"}},
            {"load_col": {"inter": "*", "item": ["item_id"]}},
        ),
        ({"unused_col": {"inter": "timestamp"}}, {"unused_col": {"inter": ["timestamp"]}}),
        ({"level_thresholds": 4}, {"level_thresholds": [4]}),
        # these take a single value by themselves, or are no lists
        ({"metrics": "NDCG", "topk": 10}, {"metrics": "NDCG", "topk": 10}),
        ({"assistant_weight": 3.0, "seed": 1}, {"assistant_weight": 3.0, "seed": 1}),
        ({"unknown": "a", "shuffle": True}, {"unknown": "a", "shuffle": True}),
        ({"numerical_features": {"a": "b"}}, {"numerical_features": {"a": "b"}}),
    ],
)
def test_only_what_must_be_a_list_becomes_one(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert with_lists(given) == expected


def test_from_the_command_line_and_python() -> None:
    line = load_config(["--model=LLMRec", "--dataset=ml-100k", "--item_text_fields=movie_title"])
    assert line["item_text_fields"] == ["movie_title"]
    settings = {"model": "EASE", "dataset": "ml-100k", "load_col": {"inter": "user_id"}}
    assert load_config([], config_dict=settings)["load_col"] == {"inter": ["user_id"]}
