"""The page on Python, run as written: on a toy data set, and on a small model in a folder."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import recbole_multdpo
from recbole_multdpo import cli
from recbole_multdpo.comparison import runs
from recbole_multdpo.model.tiny import make_tiny_backbone
from tests.docs.markdown import ROOT, blocks
from tests.integration.toy import SMALL, write_toy

RUN, COMPARISON, SEARCH, ANSWERS = blocks(ROOT / "docs" / "python.md", "python")
START = recbole_multdpo.run  # the tests replace it


def executed(code: str) -> dict[str, Any]:
    namespace: dict[str, Any] = {}
    exec(compile(code, "example", "exec"), namespace)
    return namespace


@pytest.fixture
def small_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """`recbole_multdpo.run` on the toy data, with the settings of a small run."""
    own = dict(argument[2:].split("=", 1) for argument in SMALL)
    own |= {"item_text_fields": "[movie_title]", "item_year_field": "release_year"}
    own |= {
        "load_col": "{inter: [user_id, item_id, rating, timestamp]}",
        "data_path": write_toy(tmp_path),
    }
    own |= {"sft_cache_dir": tmp_path / "cache", "topk": [5, 10], "valid_metric": "ndcg@10"}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(runs, "run_in_subprocess", lambda argv, *_: cli.main(argv))

    def run(**settings: Any) -> Any:
        return START(**{**own, **settings, "dataset": "toy"})

    monkeypatch.setattr(recbole_multdpo, "run", run, raising=False)
    return run


@pytest.mark.integration
def test_a_run(small_runs: Callable[..., Any]) -> None:
    code = RUN.replace("Toy Story (1995)", "Red Moon 0")
    found = executed(code)
    assert found["answer"].rank == 1 and len(found["worst"]) == 5
    assert found["result"]["loss"] == "mult_dpo"


@pytest.mark.integration
def test_a_comparison(small_runs: Callable[..., Any]) -> None:
    found = executed(COMPARISON.replace("seeds=3", "seeds=1"))
    assert list(found["found"].table.index) == ["LLMRec sft", "LLMRec mult_dpo", "EASE"]
    assert found["best"].test["ndcg@10"] == pytest.approx(found["found"].table["ndcg@10"].max())


@pytest.fixture
def my_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lm, tokenizer = make_tiny_backbone([SEARCH, ANSWERS], hidden_size=32, num_heads=2, seed=0)
    lm.save_pretrained("my_model")
    tokenizer.save_pretrained("my_model")


def test_search(my_model: None) -> None:
    found = executed(SEARCH)
    levels = found["levels"]
    assert found["reference_logps"].shape == levels.shape == (2, 3)
    # policy and reference are equal, s = 0: N log |P ∪ Q| − log N! for N = 2 of 3, and 1 of 2
    expected = (math.log(9 / 2) + math.log(2)) / 2
    assert found["loss"].item() == pytest.approx(expected, abs=1e-5)
    assert any(weight.grad is not None and weight.grad.any() for weight in found["lm"].parameters())


def test_answers(my_model: None) -> None:
    found = executed(ANSWERS)
    assert found["loss"].shape == (1,) and sorted(found["ranking"][0].tolist()) == [0, 1, 2, 3]


@pytest.mark.parametrize("code", [SEARCH, ANSWERS])
def test_examples_have_ten_steps(code: str) -> None:
    statements = compile(code, "example", "exec", flags=1024).body  # ast.PyCF_ONLY_AST
    own = [each for each in statements if type(each).__name__ not in ("Import", "ImportFrom")]
    assert len(own) <= 10
