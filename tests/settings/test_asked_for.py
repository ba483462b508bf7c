"""Settings that run code of others or send data away count on the command line only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.request import Request, System, request_text
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.runs.resume import resolve_resume
from recbole_multdpo.settings import config
from recbole_multdpo.settings.asked_for import ASKED_FOR, check_asked
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.settings.text import dump_settings
from recbole_multdpo.trained.run import run_config

BASE = ["--model=LLMRec", "--dataset=ml-100k", "--device=cpu"]


@pytest.fixture(autouse=True)
def wandb_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """These tests run alike with and without wandb."""
    monkeypatch.setattr(config, "missing_for_logging", lambda settings: [])


def run_with(folder: Path, **changes: object) -> Path:
    """The folder of a run, of which there are the settings only."""
    folder.mkdir()
    settings = {**load_config(BASE).to_dict(), **changes}
    (folder / "config.yaml").write_text(dump_settings(settings), encoding="utf-8")
    return folder


@pytest.mark.parametrize("key", ASKED_FOR)
def test_a_settings_file_cannot_turn_it_on(tmp_path: Path, key: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"{key}: True\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"{key} \(.*mine\.yaml\).*add --{key}=True"):
        load_config([*BASE, f"--config_files={file}"])
    # the remedy works, both ways
    assert load_config([*BASE, f"--config_files={file}", f"--{key}=True"])[key] is True
    assert load_config([*BASE, f"--config_files={file}", f"--{key}=False"])[key] is False
    assert load_config(BASE, config_dict={"config_files": [str(file)], key: True})[key] is True
    file.write_text(f"{key}: False\n", encoding="utf-8")
    assert load_config([*BASE, f"--config_files={file}"])[key] is False


def test_resume_takes_no_code_from_the_run(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", trust_remote_code=True)
    with pytest.raises(ConfigError, match=r"trust_remote_code .*add --trust_remote_code=True"):
        load_config([f"--resume={run}"])
    for given in (True, False):
        resumed = load_config([f"--resume={run}", f"--trust_remote_code={given}"])
        assert resolve_resume(resumed) == str(run)
        assert resumed["trust_remote_code"] is given


def test_resume_sends_nothing_away_unless_asked_again(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", log_wandb=True, wandb_project="theirs")
    resumed = load_config([f"--resume={run}"])
    assert resolve_resume(resumed) == str(run)
    assert resumed["log_wandb"] is False and resumed["wandb_project"] != "theirs"
    assert "add --log_wandb=True --wandb_project=theirs" in " ".join(resumed.warnings)
    again = load_config([f"--resume={run}", "--log_wandb=True", "--wandb_project=theirs"])
    assert again["log_wandb"] is True and again["wandb_project"] == "theirs"
    assert not again.warnings


def test_commands_on_finished_runs_take_neither(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", log_wandb=True)
    assert run_config(run, {})["log_wandb"] is False
    assert run_config(run, {}, log_wandb=True)["log_wandb"] is True
    coded = run_with(tmp_path / "coded", trust_remote_code=True)
    with pytest.raises(ConfigError, match="add --trust_remote_code=True"):
        run_config(coded, {})
    assert run_config(coded, {}, trust_remote_code=True)["trust_remote_code"] is True


@pytest.mark.parametrize(
    "text",
    [
        "model: LLMRec\ntrust_remote_code: True",
        "model: LLMRec\nLLMRec.trust_remote_code: 'True'",
        "model: LLMRec\nvary: {trust_remote_code: [True, False]}",
        "model: LLMRec\ntune: {LLMRec.trust_remote_code: [True, False]}",
        "systems: {mine: {model: LLMRec, trust_remote_code: 1}}",
        "model: LLMRec\nlog_wandb: yes",
    ],
)
def test_an_experiment_cannot_turn_it_on(tmp_path: Path, text: str) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(f"dataset: ml-100k\n{text}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"experiment\.yaml\): is not taken from a file"):
        read_request([f"--experiment={file}"])
    asked = [f"--{key}=True" for key in ASKED_FOR]
    assert read_request([f"--experiment={file}", *asked]).settings["trust_remote_code"] == "True"


@pytest.mark.parametrize("where", ["settings", "own", "vary"])
def test_a_comparison_folder_cannot_turn_it_on(tmp_path: Path, where: str) -> None:
    on = {"trust_remote_code": "True"}
    request = Request(
        systems=(System("LLMRec", own=tuple(on.items()) if where == "own" else ()),),
        seeds=1,
        first_seed=None,
        baseline=None,
        run_dir=None,
        settings=on if where == "settings" else {},
        vary={"trust_remote_code": [True]} if where == "vary" else {},
        tune={},
        trials=None,
        jobs=1,
    )
    (tmp_path / "comparison.json").write_text(request_text(request), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"comparison\.json\): is not taken from a file"):
        read_request([f"--resume={tmp_path}"])
    asked = read_request([f"--resume={tmp_path}", "--trust_remote_code=True"])
    assert asked.settings["trust_remote_code"] == "True"
    saved = json.loads((tmp_path / "comparison.json").read_text(encoding="utf-8"))
    saved = json.loads(json.dumps(saved).replace('"True"', '"False"').replace("true", "false"))
    (tmp_path / "comparison.json").write_text(json.dumps(saved), encoding="utf-8")
    read_request([f"--resume={tmp_path}"])  # control: what is off disturbs nobody


def test_names_with_a_dot_and_any_depth_are_found() -> None:
    nested = {"a": [{"b": {"LLMRec.log_wandb": True}}]}
    with pytest.raises(ConfigError, match=r"LLMRec\.log_wandb \(there\)"):
        check_asked(nested, "there", {})
    with pytest.raises(ConfigError, match=r"LLMRec\.log_wandb \(there\)"):
        check_asked(nested, "there", {"log_wandb": False})  # the system's own would win
    check_asked(nested, "there", {"log_wandb": True})
    check_asked({"log_wandb": True}, "there", {"log_wandb": False})
    check_asked({"a": {"log_wandb": "no"}, "trust_remote_code": None}, "there", {})


@pytest.mark.parametrize("key", ["dataset_save_path", "dataloaders_save_path"])
def test_paths_of_pickles_are_refused_anywhere(tmp_path: Path, key: str) -> None:
    message = rf"{key} .*pickle.*Leave it out"
    with pytest.raises(ConfigError, match=message):
        load_config([*BASE, f"--{key}={tmp_path / 'x.pth'}"])
    with pytest.raises(ConfigError, match=message):
        load_config([f"--resume={run_with(tmp_path / 'run', **{key: 'x.pth'})}"])


@pytest.mark.parametrize("key", ["save_dataset", "save_dataloaders"])
def test_no_pickle_is_written(tmp_path: Path, key: str) -> None:
    ignored = load_config([*BASE, f"--{key}=True"])
    assert ignored[key] is False
    assert f"{key}=True is ignored" in " ".join(ignored.warnings)
    run = run_with(tmp_path / "run", **{key: True})  # of a run of before
    assert resolve_resume(load_config([f"--resume={run}"])) == str(run)
