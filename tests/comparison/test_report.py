"""The report's page and files, from invented results."""

import json
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from recbole_multdpo.comparison.report import as_html, find, write_report
from recbole_multdpo.comparison.results import Results

METRICS = ("ndcg@5", "ndcg@10", "recall@5", "recall@10")


@pytest.fixture
def results():
    """Forty users, two seeds; `A & B` is better than `<Pop>` for every user."""
    rng = np.random.default_rng(0)
    users, metrics, runs = [], [], []
    for seed in (1, 2):
        for system, level in (("<Pop>", 0.2), ("A & B", 0.6)):
            values = level + 0.05 * rng.standard_normal((40, len(METRICS)))
            ids = {"system": system, "seed": seed}
            users += [
                {**ids, "user": f"u{i}", "n_train": i + 1, "n_test": 1}
                | dict(zip(METRICS, row, strict=True))
                | {"averagepopularity@10": 3.0, "recall_head@10": 0.5, "recall_tail@10": level}
                for i, row in enumerate(values)
            ]
            means = dict(zip(METRICS, values.mean(0), strict=True))
            metrics.append({**ids, **means, "averagepopularity@10": 3.0, "giniindex@10": 0.5})
            runs.append({**ids, "seconds": 1.0, "test_set": f"{seed}"})
    return Results(pd.DataFrame(metrics), pd.DataFrame(users), pd.DataFrame(runs))


class Page(HTMLParser):
    """Collects the tags of a page and what they load."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.loaded = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.loaded += [value for name, value in attrs if name in ("src", "href")]


def test_main_tables_and_tests(results):
    found = find(results, "ndcg@10", None, {})
    assert found.reference == "A & B"
    assert found.accuracy.columns == ["ndcg@5", "ndcg@10", "recall@10"]
    assert found.beyond.columns == ["averagepopularity@10", "giniindex@10"]
    assert found.history.columns == ["1-10", "11-20", "21-30", "31-40"]
    assert found.popularity.columns == ["recall@10, head", "recall@10, tail"]
    assert [row[1].mean for row in found.popularity.cells] == pytest.approx([0.2, 0.6])
    assert [test.metric for test in found.tests] == found.accuracy.columns
    assert all(test.significant and test.difference < -0.3 for test in found.tests)
    pop, best = found.accuracy.cells
    assert [cell.rank for cell in pop] == [2, 2, 2] and all(cell.differs for cell in pop)
    assert [cell.rank for cell in best] == [1, 1, 1] and not any(cell.differs for cell in best)


def test_baseline_given_or_without_result(results):
    assert find(results, "ndcg@10", "<Pop>", {}).reference == "<Pop>"
    found = find(results, "ndcg@10", "EASE", {"EASE-seed1": "no memory"})
    assert found.reference == "A & B"
    assert found.notes == ["EASE has no result: the best system takes its place as reference."]


def test_page_is_self_contained(results):
    page = as_html(results, find(results, "ndcg@10", None, {"BPR-seed1": "<out of memory>"}))
    parsed = Page(page)
    assert parsed.loaded == []
    assert parsed.tags.count("table") == 6
    assert page.count('id="figure') == 2
    assert "&lt;Pop&gt;" in page and "A &amp; B" in page and "&lt;out of memory&gt;" in page
    assert "Plotly.newPlot" in page and len(page) > 1_000_000  # the script is in the page


def test_choices_of_tuning_are_collapsed_below_the_table(results, tmp_path):
    chosen = "<Pop>: k=3 chosen among 4 by ndcg@10"
    page = as_html(results, find(results, "ndcg@10", None, {}, [chosen]))
    table, folded = page.index("<table>"), page.index("&lt;Pop&gt;: k=3 chosen")
    assert table < folded and page.rindex("<details>", 0, folded) > page.index("</table>")
    assert "class='note'" not in page
    assert chosen in write_report(results, "ndcg@10", tmp_path, None, {}, [chosen])
    assert rf"\{chosen}" in (tmp_path / "tables.md").read_text()  # no HTML
    assert json.loads((tmp_path / "results.json").read_text())["choices"] == [chosen]


def test_files(results, tmp_path):
    text = write_report(results, "ndcg@10", tmp_path, None, {"BPR-seed1": "no memory"})
    assert "failed: BPR-seed1: no memory" in text and "report.html" in text
    names = "tables.md tables.tex runs.csv significance.csv results.json report.html".split()
    assert {path.name for path in tmp_path.iterdir()} == set(names)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "runs.csv"), results.metrics)
    tests = pd.read_csv(tmp_path / "significance.csv")
    assert list(tests["system"]) == ["<Pop>"] * 3 and (tests["t_holm"] < 0.001).all()


def test_a_single_run(results):
    alone = Results(
        results.metrics.iloc[:1],
        results.users[(results.users["system"] == "<Pop>") & (results.users["seed"] == 1)],
        results.runs.iloc[:1],
    )
    found = find(alone, "ndcg@10", None, {})
    assert found.tests == [] and "nan" not in as_html(alone, found).partition("<script")[0]


def test_page_in_a_browser(results, tmp_path, browser_page):
    (tmp_path / "report.html").write_text(as_html(results, find(results, "ndcg@10", None, {})))
    page = browser_page.page
    page.context.set_offline(True)
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("#figure1 .main-svg")
    assert page.locator("#figure0 .scatterlayer .trace").count() == 2
    assert page.locator("#figure1 .barlayer .trace").count() == 2
    page.locator("#figure0 .legendtoggle").first.click()  # hides the first system's line
    page.wait_for_function("document.querySelectorAll('#figure0 .scatterlayer .trace').length == 1")
    table = page.locator("details table")
    assert not table.is_visible()
    page.locator("summary").click()
    assert table.is_visible()
    page.set_viewport_size({"width": 360, "height": 700})
    page.wait_for_timeout(300)  # plots follow the window
    widths = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scroll_width, client_width = page.evaluate(widths)
    assert scroll_width <= client_width
    assert browser_page.complaints == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in browser_page.requests)
