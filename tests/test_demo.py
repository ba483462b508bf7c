"""The page's HTML from invented answers; tests/integration drives the page in a browser."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from recbole_multdpo import demo
from recbole_multdpo.errors import DataError, MultDPOError
from recbole_multdpo.trained.lookup import TitleIndex
from recbole_multdpo.trained.recommender import Answer, Item, Recommendation
from tests.comparison.test_colours import luminance


def recommender(name: str, result: dict[str, float]) -> Any:
    config = {"valid_metric": "NDCG@5", "dataset": "toy"}
    run = SimpleNamespace(name=name, config=config, result={"test_result": result})
    return SimpleNamespace(run=run, is_probability=name.startswith("LLMRec"))


def answer(*ids: str, user: str | None = None) -> Answer:
    items = [
        Recommendation(rank, name, f"<{name[0]}>", -rank, None if user is None else name == "b")
        for rank, name in enumerate(ids, start=1)
    ]
    return Answer(user, [Item("x", "X & Y")], None, items)


def test_columns_mark_hits_and_unique_recommendations() -> None:
    runs = [recommender("LLMRec sft", {"ndcg@5": 0.1234}), recommender("EASE", {})]
    answers = {"LLMRec sft": answer("a", "b", user="7"), "EASE": answer("b", "c", user="7")}
    page = demo.side_by_side(runs, lambda asked: (answers[asked.run.name], []))
    assert page.count("<section") == 2 and page.count("<li ") == 4
    assert "toy, test ndcg@5 0.123" in page and "knows: X &amp; Y" in page
    assert page.count("class='alone'>") == 2 and page.count("class='hit'>") == 2
    assert "&lt;a&gt;" in page and "<a>" not in page
    assert "✓" in page and "blue bar" in page
    # probabilities in per cent, for the language model only
    assert "37 %" in page and page.count("class='score'") == 2 and "Per cent" in page


def test_runs_of_one_name_have_the_name_of_their_folder() -> None:
    runs = [recommender(name, {}) for name in ("LLMRec sft", "EASE", "LLMRec sft")]
    for number, run in enumerate(runs):
        run.run.folder = Path(f"saved/run-{number}")
    page = demo.side_by_side(runs, lambda _: (answer("a"), []))
    headings = re.findall("<h3>(.*?)</h3>", page)
    assert headings == ["LLMRec sft, run-0", "EASE", "LLMRec sft, run-2"]


def test_error_of_a_run_is_shown_in_its_column() -> None:
    runs = [recommender("LLMRec sft", {}), recommender("EASE", {})]

    def ask(asked: Any) -> Any:
        if asked.run.name == "EASE":
            raise DataError("no title like '<b>'")
        return answer("a"), []

    page = demo.side_by_side(runs, ask)
    assert "class='problem'>no title like &#x27;&lt;b&gt;&#x27;" in page and "<li " in page
    assert "✓" not in page and "blue bar" not in page


def test_items_of_one_title_share_a_line() -> None:
    runs = [recommender("LLMRec sft", {})]
    page = demo.side_by_side(runs, lambda _: (answer("a", "b1", "b2", "c"), []))
    places = re.findall(r"<li value='(\d+)'>", page)
    assert places == ["1", "2", "4"] and "&lt;b&gt; (2 items)" in page


def test_one_unknown_title_does_not_blank_a_column() -> None:
    index = TitleIndex(["[PAD]", "Alien", "<Up>"], ["[PAD]", "1", "2"])
    asked: list[list[str]] = []

    def for_titles(titles: list[str], k: int, disliked: list[str]) -> Answer:
        asked.append(titles)
        return answer("a")

    run = recommender("LLMRec sft", {})
    run.titles, run.for_titles = index, for_titles
    page = demo.side_by_side([run], demo._for_titles(5, ["Alien", "<up", "Alein"]))
    assert asked == [["Alien", "<up"]] and "<li " in page
    assert "did you mean &#x27;Alien&#x27;?" in page and page.count("class='problem'") == 1
    page = demo.side_by_side([run], demo._for_titles(5, ["Alein", "U"]))
    assert len(asked) == 1 and "<li " not in page and "no title like &#x27;U&#x27;" in page


def test_disliked_titles_go_to_the_runs_that_read_them() -> None:
    index = TitleIndex(["[PAD]", "Alien", "<Up>"], ["[PAD]", "1", "2"])
    asked: list[list[str]] = []

    def for_titles(titles: list[str], k: int, disliked: list[str]) -> Answer:
        asked.append(disliked)
        found = answer("a")
        return replace(found, disliked=[Item("2", "<Up>")] if disliked else [])

    runs = [recommender("LLMRec sft", {}), recommender("EASE", {})]
    for run, reads in zip(runs, (True, False), strict=True):
        run.titles, run.for_titles, run.reads_disliked = index, for_titles, reads
    page = demo.side_by_side(runs, demo._for_titles(5, ["Alien"], ["<Up>", "Upp"]))
    assert asked == [["<Up>"], []]
    assert page.count("disliked: &lt;Up&gt;") == 1 and page.count("does not know what is") == 1
    assert page.count("did you mean &#x27;&lt;Up&gt;&#x27;?") == 2 and page.count("<li ") == 2


@pytest.mark.parametrize("rule", [".runs", ".dark .runs"])
def test_text_has_contrast_in_both_modes(rule: str) -> None:
    body = re.search(rf"^{re.escape(rule)} {{(.*?)}}", demo.STYLE, re.DOTALL | re.MULTILINE)
    assert body is not None
    colours = dict(re.findall(r"--(\w+): (#\w+)", body[1]))
    assert not set(re.findall(r"(#\w{3,6})", demo.STYLE.split(".run {")[1]))  # no others
    for name in ("text", "faint", "hit", "trouble"):
        light, dark = sorted(map(luminance, (colours[name], colours["behind"])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, name


def test_histories_are_in_one_order() -> None:
    runs = [recommender(name, {}) for name in ("LLMRec sft", "EASE")]
    x, y = Item("x", "X"), Item("y", "Y")
    answers = {
        "LLMRec sft": Answer(None, [x, y], None, []),
        "EASE": Answer(None, [Item("z", "Z"), y, x], None, []),
    }
    page = demo.side_by_side(runs, lambda asked: (answers[asked.run.name], []))
    assert "knows: X; Y<" in page and "knows: X; Y; Z<" in page


def test_missing_gradio_names_the_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "gradio", None)
    with pytest.raises(MultDPOError, match="Install it by: pip install .*(gradio|demo)"):
        demo.make_page([])
    assert demo.main(["saved/nowhere"]) == 2
    assert "pip install" in capsys.readouterr().err
