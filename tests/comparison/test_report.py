"""The report's page and files, from invented results."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from recbole_multdpo.comparison.findings import find
from recbole_multdpo.comparison.origin import Origin
from recbole_multdpo.comparison.page import STYLE, _curves, as_html
from recbole_multdpo.comparison.report import write_report
from recbole_multdpo.comparison.results import Results
from tests.comparison.test_colours import luminance

METRICS = ("ndcg@5", "ndcg@10", "recall@5", "recall@10")
ORIGIN = Origin(
    dataset="toy & co",
    n_items=1682,
    protocol="positives: all",
    settings={"eval <args>": "x" * 300},
    date="2026-11-28",
    command="python run.py --note='<b>'",
    commands={"<Pop>": "y" * 300},
    versions={"torch": "2.13"},
    hardware="a CPU",
)


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
    assert parsed.tags.count("table") == 6 and parsed.tags.count("html") == 1
    assert page.count('id="figure') == 2
    assert "&lt;Pop&gt;" in page and "A &amp; B" in page and "&lt;out of memory&gt;" in page
    assert "Plotly.newPlot" in page and len(page) > 1_000_000  # the script is in the page


def test_choices_of_tuning_are_collapsed_below_the_table(results, tmp_path):
    chosen = "<Pop>: k=3 chosen among 4 by ndcg@10"
    page = as_html(results, find(results, "ndcg@10", None, {}, [chosen]))
    table, folded = page.index("<table "), page.index("&lt;Pop&gt;: k=3 chosen")
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
    page = as_html(alone, found, ORIGIN).partition("<script")[0]
    assert found.tests == [] and "nan" not in page and "± standard" not in page
    assert "&lt;Pop&gt;: ndcg@10" in page


def many(results, n):
    """The results with n systems; system 3 is the best, 4 the next, and so on."""
    pop = {k: v[v["system"] == "<Pop>"] for k, v in vars(results).items()}
    rng = np.random.default_rng(0)
    parts = {"metrics": [], "users": [], "runs": []}
    for number in range(n):
        for kind, table in pop.items():
            worse = 0.001 * ((number - 3) % n)
            noise = 1e-4 * rng.standard_normal(len(table))
            shifted = {name: table[name] - worse + noise for name in METRICS if name in table}
            parts[kind].append(table.assign(system=f"system {number}", **shifted))
    return Results(**{k: pd.concat(v, ignore_index=True) for k, v in parts.items()})


def test_the_first_lines_say_what_the_figures_are_of(results):
    found = find(results, "ndcg@10", None, {})
    page = as_html(results, found, ORIGIN)
    body = page.partition("<body>")[2]
    assert "<title>toy &amp; co: 2 systems by ndcg@10</title>" in page
    table = body.index("<table")
    for text in (
        "<h1>toy &amp; co: 2 systems by ndcg@10</h1>",
        "A &amp; B has the highest ndcg@10: 0.",
        "Next is &lt;Pop&gt;: 0.",
        "toy &amp; co: 1,682 items, 40 test users; positives: all; seeds 1, 2. "
        "Last run: 2026-11-28.",
        "python run.py --note=&#x27;&lt;b&gt;&#x27;",
        "torch 2.13",
        "eval &lt;args&gt;",
    ):
        assert 0 <= body.index(text) < table
    assert "over 2 seeds" in body and "<b>" not in body


def test_a_difference_is_told_as_better_minus_other(results):
    best = find(results, "ndcg@10", None, {}).headline
    assert "a difference of +0." in best and "(95 % interval over users +0." in best
    named = find(results, "ndcg@10", "<Pop>", {}).headline
    assert "The reference is <Pop>" in named and "a difference of +0." in named
    assert best.endswith("; significant).") and named.endswith("; significant).")


def test_many_systems_begin_with_the_best_and_the_reference(results):
    found = find(many(results, 20), "ndcg@10", "system 0", {})
    page = as_html(many(results, 20), found, ORIGIN)
    rows = page.partition("<tbody>")[2].split("<td>")
    assert [row.partition("<")[0] for row in rows[1:4]] == ["system 3", "system 4", "system 5"]
    drawn = _curves(many(results, 20), found, {"system 3"}).data
    assert [line.name for line in drawn if line.visible is True] == ["system 3"]
    looks = {(line.line.dash, line.marker.symbol) for line in drawn}
    assert len(looks) == len({line.line.color for line in drawn}) == 20
    shown = re.findall(r'"name":"(system \d+)","visible":true', page)
    figures = len(shown) // 2
    assert figures == 8 and {"system 3", "system 9", "system 0"} <= set(shown)
    assert "system 10" not in shown


def test_one_seed_has_no_error_bars(results):
    alone = Results(**{k: v[v["seed"] == 1] for k, v in vars(results).items()})
    lines = _curves(alone, find(alone, "ndcg@10", None, {}), set()).data
    assert all(line.error_y.array is None for line in lines)
    both = _curves(results, find(results, "ndcg@10", None, {}), set()).data
    assert all(len(line.error_y.array) == 2 for line in both)


def test_marks_of_the_terminal_are_explained(results, tmp_path):
    text = write_report(results, "ndcg@10", tmp_path, None, {}, (), ORIGIN)
    assert "0." in text and " ^" in text and "\n^ best, ' second. Mean ±" in text
    assert "* differs from A & B" in text
    assert json.loads((tmp_path / "results.json").read_text())["origin"]["dataset"] == "toy & co"


def test_colours_of_the_page_have_the_contrast_of_text():
    colours = set(re.findall(r"[^-]color: (#\w+)", STYLE))
    assert len(colours) >= 3 and set(re.findall(r"background: (#\w+)", STYLE)) == {"#ffffff"}
    assert all(1.05 / (luminance(text) + 0.05) >= 4.5 for text in colours)


def test_page_in_a_browser(results, tmp_path, browser_page):
    (tmp_path / "report.html").write_text(
        as_html(results, find(results, "ndcg@10", None, {}), ORIGIN)
    )
    page = browser_page.page
    page.context.set_offline(True)
    page.goto((tmp_path / "report.html").as_uri())
    page.wait_for_selector("#figure1 .main-svg")
    for figure in ("#figure0", "#figure1"):
        assert page.locator(f"{figure} .scatterlayer .trace").count() == 2
    page.locator("#figure0 .legendtoggle").first.click()  # hides the first system's line
    page.wait_for_function("document.querySelectorAll('#figure0 .scatterlayer .trace').length == 1")
    table = page.locator("details table")
    assert not table.is_visible()
    page.locator("summary").last.click()
    assert table.is_visible()
    page.locator("summary").first.click()  # the command, whose words are long
    page.set_viewport_size({"width": 360, "height": 700})
    page.wait_for_timeout(300)  # plots follow the window
    widths = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    scroll_width, client_width = page.evaluate(widths)
    assert scroll_width <= client_width
    assert browser_page.complaints == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in browser_page.requests)


def test_sorting_and_folding_in_a_browser(results, tmp_path, browser_page):
    found = find(many(results, 20), "ndcg@10", None, {})
    (tmp_path / "report.html").write_text(as_html(many(results, 20), found, ORIGIN))
    page = browser_page.page
    page.goto((tmp_path / "report.html").as_uri())
    rows = page.locator("table").first.locator("tbody tr")
    names = page.locator("table").first.locator("tbody tr:visible td:first-child")
    heads = page.locator("table").first.locator("th button")
    best = ["system 3", "system 4", "system 5"]
    assert names.all_inner_texts()[:3] == best and names.count() == 8 and rows.count() == 20
    heads.filter(has_text="ndcg@5").click()  # the best first
    assert names.all_inner_texts()[:3] == best
    heads.filter(has_text="ndcg@5").click()
    assert names.all_inner_texts()[:2] == ["system 2", "system 1"] and names.count() == 8
    heads.filter(has_text="system").click()
    assert names.all_inner_texts()[:3] == ["system 0", "system 1", "system 10"]
    page.get_by_role("button", name="Show all 20 rows").first.click()
    assert names.count() == 20
    assert browser_page.complaints == []


def test_page_without_script_has_all_rows(results, tmp_path, browser):
    found = find(many(results, 20), "ndcg@10", None, {})
    (tmp_path / "report.html").write_text(as_html(many(results, 20), found, ORIGIN))
    page = browser.new_page(java_script_enabled=False)
    page.goto((tmp_path / "report.html").as_uri())
    assert page.locator("table").first.locator("tbody tr:visible").count() == 20
    assert page.locator("button").count() == 0
    page.close()


def test_a_system_that_kept_its_first_stage_is_marked(results, tmp_path):
    for name in ("plain", "marked"):
        (tmp_path / name).mkdir()
    plain = write_report(results, "ndcg@10", tmp_path / "plain", None, {})
    assert "†" not in plain and "SFT kept" not in plain  # the control
    kept = [None, True, None, False]  # a model of RecBole has no preference training
    marked = Results(results.metrics, results.users, results.runs.assign(sft_kept=kept))
    text = write_report(marked, "ndcg@10", tmp_path / "marked", None, {})
    note = "whose weights are the result: A & B (1 of 2 seeds)."
    assert re.search(r"^A & B † +0\.", text, re.MULTILINE) and note in text
    assert "<Pop> †" not in text
    files = {path.name: path.read_text() for path in (tmp_path / "marked").iterdir()}
    assert "A & B †" in files["tables.md"] and "† SFT kept" in files["tables.md"]
    assert r"A \& B $^{\dagger}$" in files["tables.tex"]
    assert "<td>A &amp; B †</td>" in files["report.html"] and "† SFT kept" in files["report.html"]
    runs = pd.read_csv(tmp_path / "marked/runs.csv")
    pd.testing.assert_frame_equal(runs[results.metrics.columns], results.metrics)
    assert runs["sft_kept"].tolist()[1::2] == [True, False] and runs["sft_kept"].isna().sum() == 2
    content = json.loads(files["results.json"])
    assert [run["sft_kept"] for run in content["runs"]] == kept
    one_seed = Results(**{k: v[v["seed"] == 1] for k, v in vars(marked).items()})
    assert find(one_seed, "ndcg@10", None, {}).notes[0].endswith("the result: A & B.")
