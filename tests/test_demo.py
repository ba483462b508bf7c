"""The page's HTML from invented answers; tests/integration drives the page in a browser."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from recbole_multdpo import demo
from recbole_multdpo.errors import DataError, MultDPOError
from recbole_multdpo.trained.recommender import Answer, Item, Recommendation


def recommender(name: str, result: dict[str, float]) -> Any:
    config = {"valid_metric": "NDCG@5", "dataset": "toy"}
    run = SimpleNamespace(name=name, config=config, result={"test_result": result})
    return SimpleNamespace(run=run)


def answer(*ids: str, user: str | None = None) -> Answer:
    items = [
        Recommendation(rank, name, f"<{name}>", -rank, None if user is None else name == "b")
        for rank, name in enumerate(ids, start=1)
    ]
    return Answer(user, [Item("x", "X & Y")], None, items)


def test_columns_mark_hits_and_unique_recommendations() -> None:
    runs = [recommender("LLMRec sft", {"ndcg@5": 0.1234}), recommender("EASE", {})]
    answers = {"LLMRec sft": answer("a", "b", user="7"), "EASE": answer("b", "c", user="7")}
    page = demo.side_by_side(runs, lambda asked: answers[asked.run.name])
    assert page.count("<section") == 2 and page.count("<li>") == 4
    assert "toy, test ndcg@5 0.123" in page and "knows: X &amp; Y" in page
    assert page.count("class='alone'>") == 2 and page.count("class='hit'>") == 2
    assert "&lt;a&gt;" in page and "<a>" not in page
    assert "✓" in page and "blue bar" in page


def test_error_of_a_run_is_shown_in_its_column() -> None:
    runs = [recommender("LLMRec sft", {}), recommender("EASE", {})]

    def ask(asked: Any) -> Answer:
        if asked.run.name == "EASE":
            raise DataError("no title like '<b>'")
        return answer("a")

    page = demo.side_by_side(runs, ask)
    assert "class='problem'>no title like &#x27;&lt;b&gt;&#x27;" in page and "<li>" in page
    assert "✓" not in page and "blue bar" not in page


def test_missing_gradio_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(MultDPOError, match=r"recbole-multdpo\[demo\]"):
        demo.make_page([])
    assert demo.main(["saved/nowhere"]) == 2
    assert "pip install" in capsys.readouterr().err
