"""Candidate lists in runs, evaluations and comparisons: scored exactly, written out again."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_multdpo.cli import main as command
from recbole_multdpo.evaluate import main
from recbole_multdpo.quick_start import run
from recbole_multdpo.trained.run import TrainedRun, load_run
from tests.integration.toy import N_ITEMS, N_USERS, toy_arguments
from tests.settings.test_information import LEAVE_ONE_OUT
from tests.settings.test_information import arguments as classical_arguments

pytestmark = pytest.mark.integration

N_LISTED = 6
RUNS = {
    "one token": ("LLMRec", []),
    "several tokens": ("LLMRec", ["--tiny_title_tokens=False"]),
    "padded": ("LLMRec", ["--scorer=padded", "--tiny_title_tokens=False"]),
    "with EASE": ("LLMRec", ["--assistant=EASE", "--assistant_weight=0.5"]),
    "EASE": ("EASE", []),
}
COLUMNS = ["user", "Q0", "item", "rank", "score", "tag"]


def arguments(name: str, data_path: Path, folder: Path, *extra: str) -> list[str]:
    """A run of `RUNS` in leave-one-out."""
    model, own = RUNS[name]
    if model == "LLMRec":
        return toy_arguments(data_path, folder, LEAVE_ONE_OUT, "--loss=sft", *own, *extra)
    return classical_arguments(model, data_path, folder, LEAVE_ONE_OUT, *own, *extra)


def write_lists(file: Path) -> dict[str, list[str]]:
    """A table of lists: random items, and the last item of all users but the first."""
    rng = np.random.default_rng(1)
    rows = pd.read_csv(file.parent / "toy" / "toy.inter", sep="\t")
    rows.columns = [name.split(":")[0] for name in rows.columns]
    last = rows.sort_values("timestamp").groupby("user_id")["item_id"].last()
    lists = {}
    for user in range(N_USERS):
        target = last[f"u{user}"]
        others = [f"i{item}" for item in rng.permutation(N_ITEMS) if f"i{item}" != target]
        lists[f"u{user}"] = others[:N_LISTED] if user == 0 else [*others[: N_LISTED - 1], target]
    pairs = [f"{user},{item}" for user, items in lists.items() for item in items]
    file.write_text("\n".join(["user,item", *pairs]) + "\n")
    return lists


@pytest.fixture(scope="module")
def lists(data_path: Path) -> dict[str, list[str]]:
    return write_lists(data_path / "lists.csv")


def evaluated(run_folder: Path, *extra: str) -> dict[str, object]:
    """Content of the file that the command writes."""
    file = run_folder.parent / "evaluation.json"
    file.unlink(missing_ok=True)
    assert main([str(run_folder), f"--output={file}", *extra]) == 0
    return json.loads(file.read_text())


def every_score(found: TrainedRun) -> dict[str, dict[str, float]]:
    """Scores of the whole catalogue for every user, by token, without lists."""
    users = torch.arange(1, found.dataset.user_num)
    if found.ranker is not None:
        topk = found.ranker.topk(users, None, found.dataset.item_num - 1)
        scores = torch.zeros(len(users), found.dataset.item_num)
        scores.scatter_(1, topk.items, topk.scores.float())
    else:
        scores = found.model.full_sort_predict(Interaction({"user_id": users}))
        scores = scores.view(len(users), -1)
    items = found.dataset.id2token("item_id", np.arange(1, found.dataset.item_num))
    tokens = found.dataset.id2token("user_id", users.numpy())
    return {
        user: dict(zip(items, of_user[1:].tolist(), strict=True))
        for user, of_user in zip(tokens, scores, strict=True)
    }


@pytest.mark.parametrize("name", RUNS)
def test_scores_and_figures_are_those_of_the_whole_catalogue(
    name: str, data_path: Path, lists: dict[str, list[str]], tmp_path: Path
) -> None:
    run(arguments(name, data_path, tmp_path / "run"))
    out = tmp_path / "out.trec"
    own = [f"--candidate_lists={data_path / 'lists.csv'}", f"--write_run={out}"]
    found = evaluated(tmp_path / "run", *own, "--topk=[1, 3]", "--metrics=[Hit, NDCG, MRR]")
    written = pd.read_csv(out, sep=" ", names=COLUMNS)
    assert set(written["tag"]) == {"run"} and set(written["Q0"]) == {"Q0"}
    trained = load_run(tmp_path / "run", scratch=tmp_path)
    scores, targets = every_score(trained), trained.items_of(2)
    figures = defaultdict(list)
    for number, (user, items) in enumerate(lists.items()):
        rows = written[written["user"] == user]
        best = sorted(items, key=lambda item, of=scores[user]: -of[item])
        assert rows["rank"].tolist() == [*range(1, N_LISTED + 1)]
        own_scores = rows["score"].to_numpy()
        expected = np.array([scores[user][item] for item in rows["item"]])
        np.testing.assert_allclose(own_scores, expected, rtol=1e-4, atol=1e-4)
        assert set(rows["item"]) == set(items) and (np.diff(own_scores) <= 0).all()
        inner = trained.dataset.token2id("user_id", user)
        (target,) = trained.dataset.id2token("item_id", targets.history(inner))
        place = best.index(target) + 1 if target in items else np.inf
        figures["hit@1"].append(place == 1)
        figures["mrr@3"].append(1 / place if place <= 3 else 0)
        figures["ndcg@3"].append(1 / np.log2(place + 1) if place <= 3 else 0)
        # control: scores of another user do not pass
        other = scores[f"u{(number + 1) % N_USERS}"]
        assert not np.allclose(own_scores, [other[item] for item in rows["item"]], atol=1e-3)
    for metric, values in figures.items():
        assert found["test_result"][metric] == pytest.approx(np.mean(values), abs=1e-4)
    described = found["candidate_lists"]
    assert described["shortest"] == described["longest"] == N_LISTED
    assert described["users_with_target"] == N_USERS - 1 and described["valid_ratio"] == 1
    # the run that was written is a file of lists, with the same result
    again = evaluated(tmp_path / "run", f"--candidate_lists={out}", "--topk=[1, 3]")
    assert again["test_result"]["hit@1"] == found["test_result"]["hit@1"]
    assert again["candidate_lists"]["fingerprint"] == described["fingerprint"]


def test_a_comparison_ranks_them_in_all_systems(
    data_path: Path, lists: dict[str, list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    extra = ["--model=LLMRec,EASE", LEAVE_ONE_OUT, f"--candidate_lists={data_path / 'lists.csv'}"]
    given = toy_arguments(data_path, tmp_path / "both", "--loss=sft", *extra)
    assert command(given) == 0
    shown = capsys.readouterr().out
    report = (tmp_path / "both" / "report.html").read_text()
    tables = (tmp_path / "both" / "tables.md").read_text()
    words = f"{N_LISTED} candidates of each user, from lists.csv"
    found = json.loads((tmp_path / "both" / "results.json").read_text())
    assert words in shown and words in report and words in tables
    assert any(f"Every system ranked {words}" in note for note in found["notes"])
    for name in ("LLMRec-sft", "EASE"):
        (member,) = (tmp_path / "both").glob(f"{name}*/result.json")
        result = json.loads(member.read_text())
        assert result["candidate_lists"]["users"] == N_USERS
        assert evaluated(member.parent)["own_test"]  # its own test is that of the lists
        other = evaluated(member.parent, "--candidate_lists=~")
        assert "candidate_lists" not in other and other["test_result"] != result["test_result"]


def test_a_full_ranking_is_written_too(data_path: Path, tmp_path: Path) -> None:
    """It has the lists of `recommend`, as long as the largest cut-off."""
    extra = ["--stop_at_metrics=True"]  # which ends a search before the lists are whole
    run(arguments("one token", data_path, tmp_path / "run", *extra))
    assert main([str(tmp_path / "run"), f"--write_run={tmp_path / 'out'}"]) == 0
    written = pd.read_csv(tmp_path / "out", sep=" ", names=COLUMNS)
    trained = load_run(tmp_path / "run")
    known = trained.items_of(0, 1)
    for user, rows in written.groupby("user"):
        inner = trained.dataset.token2id("user_id", user)
        excluded = torch.zeros(1, trained.dataset.item_num, dtype=torch.bool)
        excluded[0, torch.from_numpy(known.history(inner))] = True
        best = trained.ranker.topk(torch.tensor([inner]), excluded, 5)
        assert rows["item"].tolist() == [trained.item_name(item) for item in best.items[0].tolist()]


def test_what_cannot_be_is_refused(
    data_path: Path,
    lists: dict[str, list[str]],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = f"--candidate_lists={data_path / 'lists.csv'}"
    rolling = "--test_information=rolling"
    given = classical_arguments("SASRec", data_path, tmp_path / "a", LEAVE_ONE_OUT, path, rolling)
    for arguments_, message in (
        (given, "has one list for each user"),
        (arguments("EASE", data_path, tmp_path / "b", path, "--topk=[5, 9]"), "at most 6"),
        (arguments("EASE", data_path, tmp_path / "c", "--candidate_lists=none"), "cannot be read"),
    ):
        assert command(arguments_) == 2
        assert message in capsys.readouterr().err
    run(arguments("EASE", data_path, tmp_path / "run"))
    (tmp_path / "there").write_text("")
    assert main([str(tmp_path / "run"), f"--write_run={tmp_path / 'there'}"]) == 2
    assert "exists already" in capsys.readouterr().err
