"""Tuning on the validation part: grids, ranges, choice, resuming, files."""

from __future__ import annotations

import csv
import json
import math
import re
from pathlib import Path

import pytest

from recbole_multdpo import cli
from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.plan import Plan, make_plan
from recbole_multdpo.comparison.request import edge_settings
from recbole_multdpo.comparison.runs import Runner, run_comparison, run_in_subprocess
from recbole_multdpo.comparison.tuning import TRIALS_FILE, tune, write_tuning
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.config import load_config
from tests.integration.toy import CLASSICAL, COLUMNS, toy_arguments


class FakeRuns:
    """Writes a validation figure for every run: best at reg_weight 30, none at 666."""

    def __init__(self) -> None:
        self.tried: list[float] = []

    def __call__(self, argv: list[str]) -> int:
        given = dict(text[2:].split("=", 1) for text in argv)
        weight = float(given["reg_weight"])
        self.tried.append(weight)
        if weight == 666:
            return 1
        folder = Path(given["run_dir"])
        folder.mkdir(parents=True)
        score = -abs(math.log(weight / 30))
        text = json.dumps({"valid_result": {"ndcg@5": score, "hit@5": 0.5}})
        (folder / "result.json").write_text(text)
        return 0


def classical(data_path: Path, folder: Path, *extra: str) -> list[str]:
    """Arguments without a model, which `extra` may name."""
    return [*CLASSICAL, COLUMNS, f"--data_path={data_path}", f"--run_dir={folder}", *extra]


def plan_of(data_path: Path, folder: Path, space: str) -> Plan:
    return make_plan(read_request(classical(data_path, folder, "--model=EASE", f"--tune={space}")))


def test_every_value_is_tried_and_the_best_on_validation_chosen(
    data_path: Path, tmp_path: Path
) -> None:
    plan, fake = plan_of(data_path, tmp_path, "{'reg_weight': [3, 20, 90, 666]}"), FakeRuns()
    (system,) = plan.systems
    found = tune(system, plan, None, Runner(fake, 1).run_all, 1)
    assert fake.tried == [3, 20, 90, 666]
    assert found.best is not None and found.best.values == {"reg_weight": 20}
    assert math.isnan(found.trials[3].score)
    assert "reg_weight=20 chosen among 4" in found.sentence and "end" not in found.sentence

    tune(system, plan, None, Runner(fake, 1).run_all, 1)
    assert fake.tried == [3, 20, 90, 666, 666]  # what has a result is not run again

    write_tuning([found], tmp_path)
    rows = list(csv.DictReader((tmp_path / "tuning.csv").open()))
    assert [row["reg_weight"] for row in rows] == ["3", "20", "90", "666"]
    assert [row["chosen"] for row in rows] == ["False", "True", "False", "False"]
    assert float(rows[0]["ndcg@5"]) == pytest.approx(-math.log(10))
    assert rows[3]["ndcg@5"] == ""
    config = load_config([f"--config_files={tmp_path / 'best' / 'EASE.yaml'}"])
    assert config["model"] == "EASE" and config["reg_weight"] == 20


@pytest.mark.parametrize(
    ("fixed", "space", "ran"),
    [
        (
            ["--warmup_ratio=0.3"],
            "{'lr_scheduler_type': ['constant', 'linear']}",
            [
                {"lr_scheduler_type": "constant"},
                {"lr_scheduler_type": "linear", "warmup_ratio": "0.3"},
            ],
        ),
        (
            ["--beta=4"],
            "{'negatives': ['static', 'dynamic'], 'negative_temperature': [0.1, 1]}",
            [
                {"negatives": "static", "beta": "4"},
                {"negatives": "dynamic", "negative_temperature": "0.1", "beta": "4"},
                {"negatives": "dynamic", "negative_temperature": "1", "beta": "4"},
            ],
        ),
    ],
)
def test_what_acts_with_some_of_the_tuned_values_is_given_with_these(
    fixed: list[str], space: str, ran: list[dict[str, str]], data_path: Path, tmp_path: Path
) -> None:
    argv = [*toy_arguments(data_path, tmp_path / "all", "--loss=mult_dpo"), f"--tune={space}"]
    plan = make_plan(read_request([*argv, *fixed]))
    commands = []

    def fake(given: list[str]) -> int:
        load_config(given)  # refuses what has no effect
        commands.append(dict(text[2:].split("=", 1) for text in given))
        return 1

    found = tune(plan.systems[0], plan, None, Runner(fake, 1).run_all, 1)
    assert len(found.trials) == len(ran)
    keys = {key for each in ran for key in each}
    assert [{key: each[key] for key in keys & each.keys()} for each in commands] == ran


def test_a_setting_without_effect_whatever_is_tuned_is_refused(
    data_path: Path, tmp_path: Path
) -> None:
    argv = toy_arguments(data_path, tmp_path / "all", "--loss=mult_dpo", "--negative_pool_size=20")
    with pytest.raises(ConfigError, match="negative_pool_size: no effect with negatives=static"):
        make_plan(read_request([*argv, "--tune={'beta': [1, 2]}"]))


def test_a_comparison_of_before_keeps_what_has_no_effect(data_path: Path, tmp_path: Path) -> None:
    """Version 0.1 accepted more; its comparisons are resumed without these settings."""
    argv = toy_arguments(data_path, tmp_path / "all", "--loss=mult_dpo", "--negative_pool_size=20")
    request = read_request([*argv, "--seeds=2"])
    with pytest.raises(ConfigError, match="negative_pool_size: no effect"):
        make_plan(request)
    (settings,) = make_plan(request, resumed=True).settings.values()
    assert "negative_pool_size" not in settings and settings["loss"] == "mult_dpo"


def test_optimum_at_the_end_of_the_space_is_reported(data_path: Path, tmp_path: Path) -> None:
    plan = plan_of(data_path, tmp_path, "{'reg_weight': [30, 90, 270]}")
    found = tune(plan.systems[0], plan, None, Runner(FakeRuns(), 1).run_all, 1)
    assert "reg_weight at the end of what was tried" in found.sentence


@pytest.mark.parametrize(
    "setting",
    [
        "--eval_args={'split': {'RS': [0.8, 0.0, 0.2]}}",
        "--eval_args={'split': {'TS': [0.8, 0.0, 0.2]}, 'order': 'TO'}",
        "--eval_args={'split': {'LS': 'test_only'}}",
        "--benchmark_filename=[train, test]",
    ],
)
def test_tuning_needs_a_validation_part(data_path: Path, tmp_path: Path, setting: str) -> None:
    argv = classical(data_path, tmp_path, "--model=EASE", setting)
    assert make_plan(read_request(argv)).spaces  # which is refused for tuning alone
    with pytest.raises(ConfigError, match="has no validation part to choose by"):
        make_plan(read_request([*argv, "--tune={'reg_weight': [3, 20]}"]))


def test_no_trial_with_a_score(data_path: Path, tmp_path: Path) -> None:
    plan = plan_of(data_path, tmp_path, "{'reg_weight': [666]}")
    found = tune(plan.systems[0], plan, None, Runner(FakeRuns(), 1).run_all, 1)
    assert found.best is None and "none of 1 settings tried has a" in found.sentence


SPACE = "{'reg_weight': {'low': 1.0, 'high': 1000.0, 'log': True}}"


@pytest.mark.parametrize("at_once", [1, 3])
def test_range_search_resumes_after_an_interruption(
    data_path: Path, tmp_path: Path, at_once: int
) -> None:
    pytest.importorskip("optuna")
    plan, fake = plan_of(data_path, tmp_path, SPACE), FakeRuns()
    (system,) = plan.systems
    found = tune(system, plan, 12, Runner(fake, 1).run_all, at_once)
    assert len(fake.tried) == len(set(fake.tried)) == 12
    assert all(1 <= weight <= 1000 for weight in fake.tried)
    assert found.best is not None
    assert found.best.score == max(trial.score for trial in found.trials)

    # killed while the sixth ran: its values are remembered, the five before it are not run again
    file = tmp_path / "tuning" / "EASE" / TRIALS_FILE
    file.write_text(json.dumps(json.loads(file.read_text())[:6]))
    for number in range(5, 12):
        (tmp_path / "tuning" / "EASE" / f"trial-{number:03d}" / "result.json").unlink()
    again = FakeRuns()
    for folder in (tmp_path / "tuning" / "EASE").glob("trial-*"):
        if not (folder / "result.json").exists():
            folder.rmdir()
    continued = tune(system, plan, 12, Runner(again, 1).run_all, at_once)
    assert len(again.tried) == 7 and again.tried[0] == fake.tried[5]
    assert [trial.values for trial in continued.trials[:6]] == [
        trial.values for trial in found.trials[:6]
    ]


def test_fewer_trials_than_values_are_chosen_by_optuna(data_path: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    plan, fake = plan_of(data_path, tmp_path, "{'reg_weight': [3, 20, 90, 200, 500]}"), FakeRuns()
    tune(plan.systems[0], plan, 3, Runner(fake, 1).run_all, 1)
    assert len(fake.tried) <= 3 and set(fake.tried) <= {3, 20, 90, 200, 500}


def write_validations(folder: Path, scores: list[float]) -> None:
    folder.mkdir(parents=True)
    sft = ["sft,5,ndcg@5,0.9"]
    rows = [f"preference,{10 * n},ndcg@5,{score}" for n, score in enumerate(scores, 1)]
    lines = ["stage,step,metric,value", *sft, *rows]
    (folder / "validations.csv").write_text("\n".join(lines) + "\n")


def test_trial_below_the_median_is_stopped(data_path: Path, tmp_path: Path) -> None:
    """Nine trials reach 0.5 at their second validation; one is below and one above."""
    pytest.importorskip("optuna")
    plan = plan_of(data_path, tmp_path, SPACE)
    (system,) = plan.systems
    decisions: dict[str, bool] = {}

    def run_all(runs, stop=None):  # type: ignore[no-untyped-def]
        for folder in runs:
            number = int(folder.name.removeprefix("trial-"))
            last = {9: 0.4, 10: 0.6}.get(number, 0.5)
            write_validations(folder, [0.1, last])
            decisions[folder.name] = stop(folder)
            if not decisions[folder.name]:
                (folder / "result.json").write_text(json.dumps({"valid_result": {"ndcg@5": last}}))
        return {}

    found = tune(system, plan, 11, run_all, 1)
    assert [name for name, stopped in decisions.items() if stopped] == ["trial-009"]
    assert math.isnan(found.trials[9].score)
    assert found.best is found.trials[10]
    # continued, the stopped one is not taken up again
    decisions.clear()
    for folder in (tmp_path / "tuning" / "EASE").glob("trial-*"):
        if folder.name == "trial-010":
            (folder / "result.json").unlink()
            (folder / "validations.csv").unlink()
            folder.rmdir()
    ran: list[Path] = []

    def again(runs, stop=None):  # type: ignore[no-untyped-def]
        ran.extend(folder for folder in runs if not (folder / "result.json").exists())
        return {}

    tune(system, plan, 11, again, 1)
    assert [folder.name for folder in ran] == ["trial-010"]


@pytest.mark.integration
def test_a_stopped_run_ends_by_itself(data_path: Path, tmp_path: Path) -> None:
    argv = toy_arguments(data_path, tmp_path / "run", "--sft_epochs=100000")
    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return (tmp_path / "run" / "steps.csv").is_file()

    assert run_in_subprocess(argv, stop=stop) != 0
    assert asked and not (tmp_path / "run" / "result.json").exists()


def test_a_chosen_number_is_told_with_six_digits(data_path: Path, tmp_path: Path) -> None:
    plan = plan_of(data_path, tmp_path, "{'reg_weight': [29.123456789012, 90]}")
    (system,) = plan.systems
    found = tune(system, plan, None, Runner(FakeRuns(), 1).run_all, 1)
    assert "EASE: reg_weight=29.1235 chosen among 2" in found.sentence
    write_tuning([found], tmp_path)
    assert "29.123456789012" in (tmp_path / "tuning.csv").read_text()  # all of them


def test_a_range_needs_a_number_of_trials(data_path: Path, tmp_path: Path) -> None:
    plan = plan_of(data_path, tmp_path, SPACE)
    with pytest.raises(ConfigError, match="--trials=20"):
        tune(plan.systems[0], plan, None, Runner(FakeRuns(), 1).run_all, 1)


def test_both_ends_are_checked_before_anything_runs(data_path: Path, tmp_path: Path) -> None:
    space = {"a": [1, "x"], "b": {"low": 2, "high": 3}}
    assert list(edge_settings(space)) == [{"a": "1"}, {"a": "x"}, {"b": "2"}, {"b": "3"}]
    with pytest.raises(ConfigError, match="EASE: reg_weight"):
        plan_of(data_path, tmp_path, "{'reg_weight': [1, 'many']}")
    with pytest.raises(ConfigError, match="regweight is a setting of none"):
        plan_of(data_path, tmp_path, "{'regweight': [1, 2]}")


@pytest.mark.integration
def test_a_whole_tuned_comparison(data_path: Path, tmp_path: Path) -> None:
    """Real runs: the chosen setting is that of the members, and its trial becomes a member."""
    folder = tmp_path / "runs" / "tuned"
    tuned = ["--model=LLMRec,ItemKNN", "--loss=sft,dpo", "--seeds=2"]
    spaces = "--tune={'beta': [0.5, 2], 'ItemKNN.k': [2, 5, 9]}"
    argv = toy_arguments(data_path, folder, *tuned, spaces)
    argv = [text for text in argv if not text.startswith("--sft_cache_dir")]
    calls: list[list[str]] = []

    def recording(arguments: list[str]) -> int:
        calls.append(arguments)
        return cli.main(arguments)

    assert run_comparison(argv, recording) == 0
    # 2 + 3 trials, and 2 seeds of 3 systems: no trial has a test, so that the chosen ones go on
    # to theirs, the language model from its checkpoint
    assert len(calls) == 2 + 3 + 2 * 3
    (continued,) = [call for call in calls if call[0].startswith("--resume")]
    assert continued == [f"--resume={folder / 'LLMRec-dpo-seed2020'}", "--final_test=True"]
    rows = list(csv.DictReader((folder / "tuning.csv").open()))
    assert [row["system"] for row in rows] == 2 * ["LLMRec dpo"] + 3 * ["ItemKNN"]
    (chosen,) = [row for row in rows if row["system"] == "ItemKNN" and row["chosen"] == "True"]
    assert float(chosen["ndcg@5"]) == max(
        float(row["ndcg@5"]) for row in rows if row["system"] == "ItemKNN"
    )
    for seed in (2020, 2021):
        config = (folder / f"ItemKNN-seed{seed}" / "config.yaml").read_text()
        assert f"\nk: {chosen['k']}\n" in config
    assert "ItemKNN: k=" in (folder / "tables.md").read_text()
    assert "final_test" not in (folder / "best/ItemKNN.yaml").read_text()
    trials = sorted(folder.glob("tuning/*/trial-*"))
    members = sorted(folder.glob("*-seed*"))
    assert len(trials) == 5 and len(members) == 6
    assert not any(_tells_a_test(trial) for trial in trials)
    assert all(_tells_a_test(member) for member in members)  # the control
    chosen_trial = next(trial for trial in trials if is_chosen(folder, trial))
    trained = json.loads((chosen_trial / "result.json").read_text())
    resumed = json.loads((folder / "LLMRec-dpo-seed2020/result.json").read_text())
    assert resumed["valid_result"] == trained["valid_result"]
    assert resumed["seconds"]["preference"] == trained["seconds"]["preference"]
    assert run_comparison([f"--resume={folder}"], recording) == 0 and len(calls) == 11


def is_chosen(folder: Path, trial: Path) -> bool:
    """True for the trial of the language model that `tuning.csv` marks as chosen."""
    with (folder / "tuning.csv").open() as file:
        rows = list(csv.DictReader(file))
    return any(
        row["system"] == "LLMRec dpo" == trial.parent.name.replace("-", " ")
        and row["chosen"] == "True"
        and trial.name.endswith(f"{int(row['trial']):03d}")
        for row in rows
    )


def _tells_a_test(folder: Path) -> bool:
    """True if a run wrote or printed a metric of the test part; all its places must agree."""
    result = json.loads((folder / "result.json").read_text())
    tables = re.findall(r"^metric +valid(.*)$", (folder / "run.log").read_text(), re.MULTILINE)
    told = {
        any("test" in key for key in result),
        "test" in tables[-1],  # a continued trial has two
        (folder / "per_user.csv").exists(),
        (folder / "model").exists(),
    }
    (all_told,) = told
    return all_told


@pytest.mark.integration
def test_parallel_jobs_give_the_same_result(data_path: Path, tmp_path: Path) -> None:
    results = []
    for jobs, run_member in ((1, cli.main), (2, None)):
        folder = tmp_path / f"jobs{jobs}"
        argv = classical(data_path, folder, "--model=Pop,ItemKNN", f"--jobs={jobs}")
        assert run_comparison(argv, run_member) == 0
        found = json.loads((folder / "results.json").read_text())
        results.append({name: each["mean"] for name, each in found["systems"].items()})
    assert results[0] == results[1]
