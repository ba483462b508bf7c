"""Whole comparisons on the toy data: results, resuming, failing members."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pandas as pd
import pytest

from recbole_multdpo import cli
from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.plan import make_plan
from recbole_multdpo.comparison.runs import run_comparison
from recbole_multdpo.errors import ConfigError, MultDPOError
from tests.integration.toy import N_USERS, toy_arguments

pytestmark = pytest.mark.integration
SMALL = ["--model=LLMRec,Pop,ItemKNN", "--loss=sft,dpo", "--seeds=2"]
MEMBERS = [
    f"{system}-seed{seed}"
    for seed in (2020, 2021)
    for system in ("LLMRec-sft", "LLMRec-dpo", "Pop", "ItemKNN")
]
FILES = {"tables.md", "tables.tex", "runs.csv", "significance.csv", "results.json", "report.html"}


def arguments(data_path: Path, folder: Path, *extra: str) -> list[str]:
    """The comparison's command line, its cache where it is by default."""
    given = toy_arguments(data_path, folder, *SMALL, *extra)
    return [text for text in given if not text.startswith("--sft_cache_dir")]


@pytest.fixture(scope="module")
def finished(data_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished comparison, made in this process."""
    folder = tmp_path_factory.mktemp("parent") / "comparison"
    assert run_comparison(arguments(data_path, folder), cli.main) == 0
    return folder


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "comparison"))


def result(run: Path) -> dict:
    return json.loads((run / "result.json").read_text())


def test_files_of_a_comparison(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert names == {*MEMBERS, *FILES, "comparison.json", ".lock"}
    assert {path.name for path in finished.parent.iterdir()} == {"comparison", "sft_cache"}


def test_members_share_split_and_first_stage(finished: Path) -> None:
    tests = {name: result(finished / name)["test_set"] for name in MEMBERS}
    of_seed = [
        {tests[name] for name in MEMBERS if name.endswith(seed)} for seed in ("2020", "2021")
    ]
    assert [len(hashes) for hashes in of_seed] == [1, 1]
    assert of_seed[0] != of_seed[1]
    # one a seed, for two losses
    assert len(list((finished.parent / "sft_cache").glob("sft-*"))) == 2
    assert "taken from" in (finished / "LLMRec-dpo-seed2020" / "run.log").read_text()


@pytest.mark.parametrize("name", MEMBERS[:4])
def test_means_over_users_are_recboles_figures(finished: Path, name: str) -> None:
    users = pd.read_csv(finished / name / "per_user.csv")
    reported = result(finished / name)["test_result"]
    assert len(users) == users["user"].nunique() == N_USERS
    # of 11 rows one is for validation and one for test
    assert set(users["n_train"]) == {9} and set(users["n_test"]) == {1}
    for metric in ("ndcg@2", "ndcg@5", "recall@5", "mrr@5", "hit@2", "precision@5"):
        assert users[metric].mean() == pytest.approx(reported[metric], abs=5.1e-5)  # rounded there
    for metric in ("averagepopularity@5", "tailpercentage@2"):
        assert users[metric].mean() == pytest.approx(reported[metric], abs=5.1e-5)
    assert users["ndcg@5"].nunique() > 1


def test_the_numbers_as_json(finished: Path) -> None:
    found = json.loads((finished / "results.json").read_text())
    assert list(found["systems"]) == ["LLMRec sft", "LLMRec dpo", "Pop", "ItemKNN"]
    two = [
        result(finished / f"ItemKNN-seed{seed}")["test_result"]["ndcg@5"] for seed in (2020, 2021)
    ]
    assert found["systems"]["ItemKNN"]["mean"]["ndcg@5"] == pytest.approx(sum(two) / 2)
    assert found["reference"] == "ItemKNN"
    tests = [test for test in found["significance"] if test["metric"] == "ndcg@5"]
    assert {test["system"] for test in tests} == {"LLMRec sft", "LLMRec dpo", "Pop"}
    assert all(test["n_users"] == N_USERS for test in tests)
    known = "At test every system knows the training part alone (test_information=train)."
    seen = "Items that a user rated below val_interval rank like unrated ones "
    assert found["failures"] == {}
    taught = "LLMRec sft, LLMRec dpo: the first stage also learns from the scores of EASE "
    notes = [known, f"{seen}(seen_items=positives).", f"{taught}(sft_teacher)."]
    assert found["notes"] == notes


def test_resuming_runs_only_what_is_missing(copied: Path) -> None:
    """Two runs stopped halfway, of which RecBole's starts again, and the report is missing."""
    before = {name: result(copied / name)["test_result"] for name in MEMBERS}
    (copied / "LLMRec-dpo-seed2021" / "result.json").unlink()
    (copied / "Pop-seed2021" / "result.json").unlink()
    (copied / "Pop-seed2021" / "half").touch()
    for name in FILES:
        (copied / name).unlink()
    calls: list[list[str]] = []

    def recording(argv: list[str]) -> int:
        calls.append(argv)
        return cli.main(argv)

    assert run_comparison([f"--resume={copied}"], recording) == 0
    assert calls[0] == [f"--resume={copied / 'LLMRec-dpo-seed2021'}"]
    assert calls[1][0] == "--model=Pop" and f"--run_dir={copied / 'Pop-seed2021'}" in calls[1]
    assert len(calls) == 2 and not (copied / "Pop-seed2021" / "half").exists()
    assert {name: result(copied / name)["test_result"] for name in MEMBERS} == before
    assert FILES <= {path.name for path in copied.iterdir()}


def test_failed_member_is_reported_and_others_continue(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("Pop-seed2020", "ItemKNN-seed2020"):
        (copied / name / "result.json").unlink()

    def failing(argv: list[str]) -> int:
        if "Pop" not in argv[0]:
            return cli.main(argv)
        log = copied / "Pop-seed2020" / "run.log"
        log.parent.mkdir()
        log.write_text("2026-01-01 00:00:00 ERROR  the run stopped: no more memory\n")
        return 1

    assert run_comparison([f"--resume={copied}"], failing) == 1
    captured = capsys.readouterr()
    assert "failed: Pop-seed2020: the run stopped: no more memory" in captured.err
    assert "Pop is the mean of 1 of 2 seeds" in captured.out
    found = json.loads((copied / "results.json").read_text())
    assert found["failures"] == {"Pop-seed2020": "the run stopped: no more memory"}
    assert found["systems"]["Pop"]["seeds"] == 1
    assert result(copied / "ItemKNN-seed2020")
    assert "no more memory" in (copied / "report.html").read_text()


def test_an_interruption_stops_the_comparison(copied: Path) -> None:
    (copied / "Pop-seed2020" / "result.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        run_comparison([f"--resume={copied}"], lambda argv: 130)


def test_no_result_at_all_is_an_error(data_path: Path, tmp_path: Path) -> None:
    with pytest.raises(MultDPOError, match="no run .* succeeded"):
        run_comparison(arguments(data_path, tmp_path / "new"), lambda argv: -9)


def test_every_run_in_a_subprocess(copied: Path) -> None:
    """The command as users type it, after the data have moved: the run reports what is missing."""
    run = copied / "LLMRec-sft-seed2020"
    (run / "result.json").unlink()
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(re.sub("data_path: .*", "data_path: nowhere", config))
    assert cli.main([f"--resume={copied}"]) == 1
    failures = json.loads((copied / "results.json").read_text())["failures"]
    assert "nowhere" in failures[run.name]


def test_metrics_beyond_accuracy_and_settings_reach_the_members(
    data_path: Path, tmp_path: Path
) -> None:
    argv = arguments(data_path, tmp_path / "new", "--beta=2", "--ItemKNN.k=7", "--metrics=[NDCG]")
    plan = make_plan(read_request(argv))
    assert [member.folder_name for member in plan.members] == MEMBERS
    given = {system.name: settings for system, settings in plan.settings.items()}
    for settings in given.values():
        metrics = "['NDCG', 'ItemCoverage', 'AveragePopularity', 'TailPercentage', 'GiniIndex']"
        assert settings["metrics"] == metrics and settings["tail_ratio"] == "0.8"
    assert given["LLMRec dpo"]["beta"] == "2"
    assert not any("beta" in given[name] for name in ("Pop", "LLMRec sft"))
    assert given["ItemKNN"]["k"] == "7" and "k" not in given["Pop"]
    assert given["LLMRec sft"]["sft_cache_dir"] == str(tmp_path / "sft_cache")
    assert not (tmp_path / "new").exists()


def test_zero_shot_is_a_loss_without_options(data_path: Path, tmp_path: Path) -> None:
    argv = arguments(data_path, tmp_path / "new", "--loss=zero_shot,lipo_bt", "--lipo_pairs=mean")
    plan = make_plan(read_request([*argv, "--beta=2"]))
    given = {system.name: settings for system, settings in plan.settings.items()}
    assert given["LLMRec zero_shot"]["loss"] == "zero_shot"
    assert not {"lipo_pairs", "beta"} & given["LLMRec zero_shot"].keys()
    assert {"lipo_pairs", "beta"} <= given["LLMRec lipo_bt"].keys()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("--bta=1", "LLMRec sft: bta.*did you mean beta"),
        ("--Pop.epochs=many", "Pop: epochs"),
        ("--Pop.topk=[1, 5]", "topk is .* for LLMRec sft and .* for Pop"),
    ],
)
def test_wrong_settings_fail_before_anything_runs(
    data_path: Path, tmp_path: Path, extra: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_comparison(arguments(data_path, tmp_path / "new", extra), lambda argv: 0)
    assert not (tmp_path / "new").exists()


def test_metric_without_per_user_values_cannot_decide(data_path: Path, tmp_path: Path) -> None:
    """Significance tests need values per user, and a Gini index has none."""
    metrics = ("--metrics=['NDCG', 'GiniIndex']", "--valid_metric=GiniIndex@5")
    with pytest.raises(ConfigError, match="valid_metric=GiniIndex@5.*Use a metric of hits"):
        make_plan(read_request(arguments(data_path, tmp_path / "new", *metrics)))


def test_another_comparison_in_the_same_folder_is_refused(data_path: Path, copied: Path) -> None:
    with pytest.raises(ConfigError, match="--resume"):
        run_comparison(arguments(data_path, copied, "--beta=3"), lambda argv: 0)


def test_folder_that_is_not_empty_is_refused(data_path: Path, tmp_path: Path) -> None:
    (tmp_path / "note").touch()
    with pytest.raises(ConfigError, match="not empty"):
        run_comparison(arguments(data_path, tmp_path), lambda argv: 0)
