"""Run folders found and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recbole_multdpo.errors import DataError, MultDPOError
from recbole_multdpo.plots.runs import find_runs
from tests.plots.conftest import MakeRun, set_seconds


def names(*folders: Path) -> list[str]:
    return [run.name for run in find_runs(folders)]


def test_folders_of_one_run_and_of_several(make_run: MakeRun) -> None:
    ease = make_run("cmp/EASE-seed1", model="EASE")
    make_run("cmp/LLMRec-sft-seed1", loss="sft")
    assert names(ease) == ["EASE"]
    assert names(ease.parent) == ["EASE", "LLMRec sft"]
    assert names(ease.parent, ease) == ["EASE", "LLMRec sft"]  # each once


def test_seed_and_technical_settings_do_not_make_another_system(make_run: MakeRun) -> None:
    one = make_run("one", seed=1, num_threads=1, data_path="a")
    two = make_run("two", seed=2, num_threads=4, data_path="b")
    assert names(one, two) == ["LLMRec mult_dpo"] * 2


def test_runs_of_a_system_are_named_by_differing_settings(make_run: MakeRun) -> None:
    runs = [make_run(f"beta{beta}", beta=beta) for beta in (0.3, 1.0)]
    other = make_run("dpo", loss="dpo", beta=5.0)  # alone in its kind
    assert names(*runs, other) == [
        "LLMRec mult_dpo beta=0.3",
        "LLMRec mult_dpo beta=1.0",
        "LLMRec dpo",
    ]


def test_runs_of_a_finished_comparison_have_the_names_of_its_tables(make_run: MakeRun) -> None:
    run = make_run("cmp/5-4-unrated-seed1", loss="mult2_dpo")
    titles = {"runs": [{"system": "5 > 4 > unrated", "seed": 1}]}
    (run.parent / "results.json").write_text(json.dumps(titles))
    assert names(run.parent) == ["5 > 4 > unrated"]
    other = make_run("cmp/EASE-seed1", model="EASE")
    assert names(run, other) == ["5 > 4 > unrated", "EASE"]  # also if it is named alone


def test_a_model_without_training_is_zero_shot(make_run: MakeRun) -> None:
    run = make_run("zero", loss="sft", sft_epochs=0)
    assert names(run) == ["LLMRec zero-shot"]
    assert find_runs([run])[0].training_seconds() == 0.0


def test_seconds_come_from_the_log_of_both_stages_and_else_from_the_result(
    make_run: MakeRun,
) -> None:
    ease = find_runs([make_run("ease", model="EASE", seconds={"train": 2.5, "test": 9.0})])[0]
    assert ease.training_seconds() == 2.5
    logged = make_run("logged", n_steps=2)
    set_seconds(logged, (10, 30, 1, 4))  # two steps of each stage
    assert find_runs([logged])[0].training_seconds() == 34.0


def test_a_first_stage_of_unknown_duration_is_an_error(make_run: MakeRun) -> None:
    with pytest.raises(DataError, match="sft_cache=False"):
        find_runs([make_run("cached")])[0].training_seconds()


def test_zero_shot_took_no_time_to_train(make_run: MakeRun) -> None:
    run = find_runs([make_run("zero", loss="zero_shot")])[0]
    assert run.settings["sft_epochs"] and run.training_seconds() == 0.0


def test_folder_without_runs_is_an_error(make_run: MakeRun, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="config.yaml"):
        find_runs([tmp_path])
    with pytest.raises(DataError, match="--resume"):
        find_runs([make_run("cut", finished=False)])[0].result()


@pytest.mark.parametrize("content", ['{"seconds": {"tra', "[]"])
def test_a_damaged_result_is_named_with_the_remedy(make_run: MakeRun, content: str) -> None:
    run = make_run("cut", seconds={})
    (run / "result.json").write_text(content)
    with pytest.raises(MultDPOError, match="result.json cannot be read .*resume the run"):
        find_runs([run])[0].result()
