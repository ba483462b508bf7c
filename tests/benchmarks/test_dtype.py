"""The two types side by side: both make the same steps and rank the same users."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.dtype import main, ndcg, shared


def test_ndcg_by_hand() -> None:
    lists = torch.tensor([[7, 5, 0], [1, 2, 3]])
    answers = torch.tensor([[5, 9], [4, 0]])
    discount = 1 / torch.tensor(3.0).log2()
    assert ndcg(lists, answers) == pytest.approx(float(discount / (1 + discount)) / 2)


def test_items_of_both_lists_are_counted() -> None:
    row = shared("lists", torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 9], [4, 3]]))
    assert (row.ours, row.ratio) == (0.75, 0.75)


def test_both_sides_do_the_same_work(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    main(
        [
            *("--backbone=tiny", "--steps=2", "--users=2", "--batch=2", f"--json={file}"),
            *("--settings", "--tiny_num_layers=1", "--tiny_hidden_size=32", "--num_negatives=8"),
        ]
    )
    written = json.loads(file.read_text())
    assert written["hardware"]["dtype"] == "bfloat16 against float32"
    rows = {row["name"]: row for row in written["rows"]}
    for stage in ("sft", "mult_dpo"):
        assert rows[f"{stage} step, 2 examples"]["ours"] > 0
        last = rows[f"{stage} loss, last step"]
        assert last["ours"] != last["other"]  # two types
        assert last["ratio"] == pytest.approx(1, abs=0.02)
    first = rows["mult_dpo loss, first step"]
    assert first["ours"] == first["other"]  # log-ratios are 0 there
    whole = rows["ranking, K 20: float32, search and whole trie: items in both lists"]
    assert whole["ours"] == 1
    apart = rows["ranking, K 20: float32, scores of these two apart"]
    assert apart["ours"] < 1e-4
