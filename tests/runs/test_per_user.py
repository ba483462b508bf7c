"""Popular items and the others in the metrics of single users, counted by hand."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.evaluator.metrics import TailPercentage

from recbole_multdpo.runs.per_user import (
    describe_tested_users,
    head_items,
    read_per_user,
    write_per_user,
)

COUNTS = np.array([0, 5, 1, 9, 0, 2, 2])  # training rows of items 0 ([PAD]) to 6


@pytest.mark.parametrize(
    ("ratio", "head"),
    [
        (0.8, [3]),  # five items with rows, the tail has four
        (0.4, [1, 3, 6]),  # rows 1, 2: items 2 and 5; equal rows by id
        (2, [1, 3]),  # more than two rows
        (None, [1, 3, 5, 6]),  # RecBole's 0.1, at least one item
        (1.0, []),
    ],
)
def test_head_is_what_recbole_does_not_call_tail(ratio: float | None, head: list[int]) -> None:
    found = np.flatnonzero(head_items(COUNTS, ratio)).tolist()
    assert found == head
    config = {"topk": [1], "metric_decimal_place": 4, "tail_ratio": ratio}
    metric = TailPercentage(config)
    counts = {item: int(count) for item, count in enumerate(COUNTS) if count}
    tail = metric.get_tail(np.array([list(counts)]), counts)[0]
    assert [item for item, flag in zip(counts, tail, strict=True) if not flag] == head


def dataset(users: list[int], items: list[int]) -> SimpleNamespace:
    feat = {"user": torch.tensor(users), "item": torch.tensor(items)}
    return SimpleNamespace(
        uid_field="user",
        iid_field="item",
        inter_feat=feat,
        user_num=4,
        item_num=7,
        id2token=lambda field, ids: np.array([f"u{i}" for i in ids]),
    )


def evaluator(items: list[list[int]], hits: list[list[int]], n: list[int]) -> SimpleNamespace:
    return SimpleNamespace(
        values={},
        n_positives=np.array(n),
        hits=np.array(hits, dtype=bool),
        items=np.array(items),
        config={"topk": [1, 3], "tail_ratio": 2},
    )


def test_recall_of_head_and_tail(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """Head: items 1 and 3. User 2 likes 3, 1 (head) and 5 (tail), user 1 likes 2 (tail)."""
    train = dataset([3] * 19, np.repeat(np.arange(7), COUNTS).tolist())
    test = dataset([2, 2, 2, 1, 1], [3, 1, 5, 2, 2])
    loader = SimpleNamespace(_dataset=test, uid_list=torch.tensor([2, 1]))
    found = evaluator([[3, 6, 5], [1, 2, 4]], [[1, 0, 1], [0, 1, 0]], [3, 1])
    write_per_user(tmp_path / "per_user.csv", found, loader, train)  # type: ignore[arg-type]
    rows = read_per_user(tmp_path / "per_user.csv").set_index("user")
    assert rows.loc["u2", "recall_head@1"] == 0.5 and rows.loc["u2", "recall_head@3"] == 0.5
    assert rows.loc["u2", "recall_tail@1"] == 0 and rows.loc["u2", "recall_tail@3"] == 1
    assert rows.loc["u1", "recall_tail@1"] == 0 and rows.loc["u1", "recall_tail@3"] == 1
    assert pd.isna(rows.loc["u1", "recall_head@3"])  # likes no popular item


def test_events_of_sequential_models(tmp_path) -> None:  # type: ignore[no-untyped-def]
    """A row per event: item 3 (head) is found, item 5 (tail) is not."""
    train = dataset([3] * 19, np.repeat(np.arange(7), COUNTS).tolist())
    loader = SimpleNamespace(_dataset=dataset([2, 2], [3, 5]))
    found = evaluator([[1, 3, 2], [1, 3, 2]], [[0, 1, 0], [0, 0, 0]], [1, 1])
    write_per_user(tmp_path / "per_user.csv", found, loader, train)  # type: ignore[arg-type]
    rows = read_per_user(tmp_path / "per_user.csv")
    assert list(rows["user"]) == ["u2", "u2"]
    assert rows["recall_head@3"].tolist()[0] == 1 and rows["recall_tail@3"].tolist()[1] == 0
    assert rows["recall_tail@3"].isna().tolist() == [True, False]


def test_nothing_is_said_where_no_metric_collects_items(tmp_path) -> None:  # type: ignore[no-untyped-def]
    test = dataset([2], [3])
    found = evaluator([[3, 6, 5]], [[1, 0, 1]], [1])
    found.items = None
    loader = SimpleNamespace(_dataset=test, uid_list=torch.tensor([2]))
    write_per_user(tmp_path / "per_user.csv", found, loader, test)  # type: ignore[arg-type]
    assert list(read_per_user(tmp_path / "per_user.csv")) == ["user", "n_train", "n_test"]


@pytest.mark.parametrize(
    ("hits", "margin"), [([1.0, 0.0], {"hit@1": 1.96 * 0.5}), ([0.0, 0.0], None), ([1.0], None)]
)
def test_equal_values_of_the_tested_users_give_no_interval(
    hits: list[float], margin: dict[str, float] | None
) -> None:
    """An interval of +- 0 after a test without a hit would claim certainty."""

    def users(n: int) -> SimpleNamespace:
        return SimpleNamespace(uid_field="user", inter_feat={"user": torch.arange(n)})

    tested = SimpleNamespace(config={"valid_metric": "Hit@1"}, values={"hit@1": np.array(hits)})
    loader = SimpleNamespace(_dataset=users(len(hits)))
    described = describe_tested_users(tested, users(3), loader)  # type: ignore[arg-type]
    assert described.get("test_margin") == (margin and pytest.approx(margin))
