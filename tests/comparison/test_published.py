"""Published figures stand beside ours where protocol and test items fit, and nowhere else."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from scipy import stats

from recbole_multdpo import cli
from recbole_multdpo.comparison.runs import run_comparison
from recbole_multdpo.comparison.significance import detectable_difference
from recbole_multdpo.runs import known_sets
from recbole_multdpo.runs.known_sets import fingerprint, known, known_names, known_text
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.settings.layers import protocol_names
from recbole_multdpo.settings.text import read_settings_file
from tests.integration.toy import classical_arguments, write_toy

LOO = "--protocol=leave_one_out"
FILLERS = [f"i{item}" for item in range(9)]
FIGURES = {
    "title": "Toy's Best",
    "protocol": "leave_one_out",
    "caution": "Toys only.",
    "sources": {"a": {"where": "a <table>"}, "b": {"where": "a page", "doubt": "another order"}},
    "published": [
        {"system": "Old|Rec", "source": "a", "ndcg@5": 0.0123, "recall@5": 0.0234},
        {"system": "New", "source": "b", "ndcg@5": 0.9, "recall@99": 0.5},
    ],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture
def toy_is_known(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test items of the toy data under `leave_one_out` are a published set."""
    folder = tmp_path / "test_sets"
    folder.mkdir()
    monkeypatch.setattr(known_sets, "_folder", lambda: folder)
    known.cache_clear()
    argv = classical_arguments("Pop", data, tmp_path / "x", LOO)
    _, parts = load_parts(load_config(argv))
    fingerprint(parts, parts[2]).save(folder / "toy-best.npz")
    (folder / "toy-best.yaml").write_text(yaml.safe_dump(FIGURES))
    yield folder
    known.cache_clear()


def compared(data: Path, folder: Path, *extra: str, models: str = "Pop,ItemKNN") -> dict[str, Any]:
    argv = classical_arguments(models, data, folder, *extra)
    assert run_comparison(argv, cli.main) == 0
    return json.loads((folder / "results.json").read_text())


def test_beside_ours(data: Path, toy_is_known: Path, tmp_path: Path) -> None:
    folder = tmp_path / "fits"
    found = compared(data, folder, LOO, models="Pop,ItemKNN,GRU4Rec")  # a sequential model too
    assert found["test_items"] == [
        "Test items: equal to Toy's Best (by the ids of the data files)."
    ]
    assert [row["system"] for row in found["published"]] == ["Old|Rec", "New"]
    assert found["systems"].keys() == {"Pop", "ItemKNN", "GRU4Rec"}  # neither ranked nor tested
    assert not any("New" in str(test) for test in found["significance"])
    page, tables = (folder / "report.html").read_text(), (folder / "tables.md").read_text()
    assert "Published of Toy&#x27;s Best, neither ranked nor tested" in page
    assert "a &lt;table&gt;" in page and "(doubtful: another order)" in page
    assert "0.0123" in page and "Old|Rec [1]" in page and r"Old\|Rec" in tables
    assert "**0.9" not in tables and "<u>0.9" not in tables  # nor marked as the best
    assert "leave_one_out, but topk [2, 5]" in page  # the toy's cut-offs
    rows = pd.read_csv(folder / "published.csv").set_index("system")
    assert rows.loc["New", "ndcg@5"] == 0.9 and np.isnan(rows.loc["New", "recall@5"])
    assert rows.loc["New", "doubt"] == "another order"
    result = json.loads((folder / "Pop-seed2020/result.json").read_text())
    assert result["known_test_sets"][0]["name"] == "toy-best"
    assert result["protocol"]["deviations"].keys() == {"topk", "valid_metric"}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            ["--test_information=train"],
            "they are of leave_one_out, and Pop-seed2020 has test_information train.",
        ),
        (["--eval_args={'mode': {'test': 'uni9'}}"], "has eval_args.mode {"),
        (["--test_users=9"], "those of Toy's Best for the tested users, who are not all"),
        (["--eval_args={'order': 'RO'}"], "users have another test item than in Toy's Best"),
    ],
)
def test_not_beside_ours(
    data: Path, toy_is_known: Path, tmp_path: Path, given: list[str], sentence: str
) -> None:
    found = compared(data, tmp_path / "other", LOO, *given)
    assert any(sentence in each for each in found["test_items"]), found["test_items"]
    assert "published" not in found
    assert not (tmp_path / "other/published.csv").exists()
    assert "Old" not in (tmp_path / "other/report.html").read_text()


def test_lists_from_a_file_are_another_test(data: Path, toy_is_known: Path, tmp_path: Path) -> None:
    """The test items are the same, and fewer items are ranked."""
    argv = classical_arguments("Pop", data, tmp_path / "x", LOO)
    _, parts = load_parts(load_config(argv))
    test = parts[2]
    answers = {
        str(user): str(item)
        for user, item in zip(
            test.id2token("user_id", test.inter_feat["user_id"].numpy()),
            test.id2token("item_id", test.inter_feat["item_id"].numpy()),
            strict=True,
        )
    }
    rows = [f"{u},{i}" for u, own in answers.items() for i in dict.fromkeys([own, *FILLERS])]
    (tmp_path / "lists.csv").write_text("\n".join(["user_id,item_id", *rows]) + "\n")
    found = compared(data, tmp_path / "lists", LOO, f"--candidate_lists={tmp_path / 'lists.csv'}")
    assert any("has candidate_lists" in each for each in found["test_items"]), found["test_items"]
    assert "published" not in found


def test_refitted_systems_know_as_much(data: Path, toy_is_known: Path, tmp_path: Path) -> None:
    assert "published" in compared(data, tmp_path / "refit", LOO, "--test_information=refit")


def test_keys_decide_not_the_name(data: Path, toy_is_known: Path, tmp_path: Path) -> None:
    by_hand = "--eval_args={'split': {'LS': 'valid_and_test'}, 'order': 'TO'}"
    folder = tmp_path / "hand"
    found = compared(data, folder, by_hand)
    assert "published" in found and "leave_one_out" not in found["origin"]["protocol"]
    for run in folder.glob("*/result.json"):  # an earlier version did not compare
        result = json.loads(run.read_text())
        del result["known_test_sets"]
        run.write_text(json.dumps(result))
    before = folder / "results.json"
    before.unlink()
    assert run_comparison([f"--resume={folder}"], cli.main) == 0
    assert "published" in json.loads(before.read_text())


def test_other_ids(data: Path, toy_is_known: Path, tmp_path: Path) -> None:
    """The same users and items under other names, and in another order."""
    shutil.copytree(data / "toy", tmp_path / "renamed/toy")
    for file in (tmp_path / "renamed/toy").iterdir():
        head, *rows = file.read_text().splitlines()
        new = ["\t".join(f"B{c}" if c[:1] in "ui" else c for c in r.split("\t")) for r in rows]
        file.write_text("\n".join([head, *reversed(new)]) + "\n")
    found = compared(tmp_path / "renamed", tmp_path / "fits", LOO)
    (sentence,) = found["test_items"]
    assert "equal to Toy's Best (by who has which items, as the ids are others)" in sentence
    assert "published" in found


def test_the_smallest_difference_is_in_the_report(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "comparison"
    found = compared(data, folder, LOO)
    assert found["test_items"] == []
    (test,) = [each for each in found["significance"] if each["metric"] == "ndcg@5"]
    assert found["resolution"].startswith(
        f"24 test cases show no difference in ndcg@5 below {test['detectable']:.4f} to "
    )
    assert found["resolution"] in (folder / "tables.md").read_text().replace("\\", "")
    three = compared(data, tmp_path / "three", LOO, models="Pop,ItemKNN,EASE")
    shown = (
        r"24 test cases show no difference in ndcg@5 below 0\.\d+ \(\w+\) to 0\.\d+ \(\w+\) against"
    )
    assert re.match(shown, three["resolution"]), three["resolution"]
    table = pd.read_csv(folder / "significance.csv")
    assert list(table.columns[:9])[-1] == "wilcoxon_p" and "detectable" in table
    alone = compared(data, tmp_path / "alone", LOO, "--seeds=2", models="ItemKNN")
    assert "if differences spread over users as the metric does" in alone["resolution"]


def test_detectable_difference_has_its_power() -> None:
    """By simulation: tests of that mean reject in 80 % of the draws, of half of it in fewer."""
    rng, n = np.random.default_rng(0), 95
    values = rng.standard_normal(n)
    values = (values - values.mean()) / values.std(ddof=1)
    least = detectable_difference(0.3 * values)
    assert least == pytest.approx(0.3 * (1.98552 + 0.84528) / 95**0.5, rel=1e-3)
    for mean, power in ((least, 0.8), (least / 2, 0.29)):
        drawn = rng.normal(mean, 0.3, (4000, n))
        assert (stats.ttest_1samp(drawn, 0, axis=1).pvalue < 0.05).mean() == pytest.approx(
            power, abs=0.03
        )
    hits = np.r_[np.ones(43), np.zeros(52)]  # HitRatio@1 of LLaRA's 95 cases
    assert detectable_difference(hits) > 0.10
    assert np.isnan(detectable_difference(hits[:1])) and detectable_difference(hits[:3]) == 0


def test_published_files_are_complete() -> None:
    for name in known_names():
        content = read_settings_file(known_text(name))
        assert content["title"]
        for row in content.get("published", []):
            assert row["source"] in content["sources"] and row["system"]
            figures = {k: v for k, v in row.items() if "@" in k}
            assert figures and all(0 < value < 1 for value in figures.values())
            assert row.keys() == {"system", "source", *figures}
        if "published" in content:
            assert content["protocol"] in protocol_names()
            assert {row["source"] for row in content["published"]} == content["sources"].keys()
