"""From raw files to a result: the converter's folder goes into the main command as it is."""

from __future__ import annotations

import json
import os
import random
from collections import defaultdict
from pathlib import Path

import pytest

from recbole_multdpo.data.convert.__main__ import main
from recbole_multdpo.quick_start import run
from tests.integration.toy import SMALL

pytestmark = pytest.mark.integration
REAL_DATA = Path(os.environ.get("MULTDPO_TEST_DATA", Path(__file__).parents[3] / "shared/data"))
needs_real_data = pytest.mark.skipif(
    not REAL_DATA.is_dir(), reason=f"the real data are not at {REAL_DATA} (MULTDPO_TEST_DATA)"
)
TITLES = ['"Crocodile" Dundee', "Heat", "Tab\there", "Alien", '"', 'Say "hi"', "Up", "Emma"]


def conversations(raw: Path) -> None:
    """32 conversations in each part; the first title begins with a quotation mark."""
    raw.mkdir()
    names = {f"{title} ({1990 + n})": n for n, title in enumerate(TITLES)}
    (raw / "entity2id.json").write_text(json.dumps(names))
    (raw / "item_ids.json").write_text(json.dumps(list(names.values())))
    for part in ("train", "valid", "test"):
        rows = [
            {
                "context": ["", f"Question {n}\nof {part}?"],
                "rec": [n % 8, (n + 1) % 8],
                "prev_entity": [(n + 2) % 8],
                "dialog_id": f"{part} {n}",
                "is_user": 0,
            }
            for n in range(32)
        ]
        (raw / f"{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def lists_of_titles(raw: Path) -> None:
    """32 users with four titles each."""
    raw.mkdir()
    rng = random.Random(0)
    lists = [rng.sample(TITLES, 4) for _ in range(32)]
    rows = [{"history": one[:3], "targets": one[3:]} for one in lists]
    (raw / "train.json").write_text(json.dumps(rows))


@pytest.mark.parametrize("model", ["Pop", "LLMRec"])
@pytest.mark.parametrize(
    ("kind", "write", "n_users"),
    [("crs", conversations, 32), ("titles-jsonl", lists_of_titles, 32)],
)
def test_a_converted_folder_runs_as_it_is(tmp_path, kind, write, n_users, model):
    write(tmp_path / "raw")
    output = tmp_path / "data" / "converted"
    assert main([kind, "--input", str(tmp_path / "raw"), "--output", str(output)]) == 0
    small = [a for a in SMALL if model == "LLMRec" or a.split("=")[0] in ("--device", "--topk")]
    arguments = {
        argument.split("=", 1)[0]: argument
        for argument in [
            *small,
            "--valid_metric=NDCG@5",
            "--show_progress=False",
            f"--model={model}",
            "--dataset=converted",
            f"--data_path={output.parent}",
            f"--run_dir={tmp_path / 'run'}",
        ]
    }
    result = run(list(arguments.values()))
    assert result["num_users_evaluated"] == n_users
    assert result["num_items"] == len(TITLES)
    if model == "LLMRec":
        assert result["item_texts"]["n_missing"] == result["item_texts"]["n_empty"] == 0


@needs_real_data
def test_real_redial(tmp_path):
    arguments = ["--input", str(REAL_DATA / "redial-cikm"), "--output", str(tmp_path / "redial")]
    assert main(["crs", *arguments, "--resplit", "0.8", "0.1", "0.1"]) == 0
    report = json.loads((tmp_path / "redial" / "conversion.json").read_text())
    assert report["rows"]["item"] == 6281
    assert report["counts"]["turns"] == 3552
    assert report["counts"]["answers"] == 4778
    assert report["counts"]["turns_with_guessed_speakers"] == 0
    assert report["rejected"] == {}


@needs_real_data
def test_real_goodreads_sample(tmp_path):
    source, output = REAL_DATA / "goodreads-sprec", tmp_path / "goodreads-sprec"
    assert main(["titles-jsonl", "--input", str(source), "--output", str(output)]) == 0
    report = json.loads((output / "conversion.json").read_text())
    # 4,999 rows of ten titles and the next one, one of five, many of them windows of one reader's
    # list; one title is not in id2name.json, five are there twice
    assert report["rows"] == {"inter": 47_228, "item": 4058 + 1 - 5}
    readers = report["counts"]["rows_of_one_reader"]
    assert (readers["rows"], readers["rows_joined"], readers["readers"]) == (5000, 2004, 3879)
    assert readers["test_answers_that_stood_in_training"] == 978
    assert report["rejected"] == {}
    assert answers_after_the_same_titles(output / "goodreads-sprec.inter") == 1
    apart = tmp_path / "apart"
    arguments = ["--input", str(source), "--output", str(apart), "--link", "none"]
    assert main(["titles-jsonl", *arguments]) == 0
    assert answers_after_the_same_titles(apart / "apart.inter") == 789


def answers_after_the_same_titles(path):
    """Users whose last item is in another's list after the same five items."""
    lists = defaultdict(list)
    for line in path.read_text(encoding="utf-8").splitlines()[1:]:
        user, item, _ = line.split("\t")
        lists[user].append(item)
    owners = defaultdict(set)
    for user, items in lists.items():
        for at in range(len(items) - 5):
            owners[tuple(items[at : at + 6])].add(user)
    return sum(bool(owners[tuple(items[-6:])] - {user}) for user, items in lists.items())
