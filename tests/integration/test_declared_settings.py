"""Runs do what the declarations of settings say: on toy data, many settings at once."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from recbole_multdpo.classical.assistant import cache_key
from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.plan import make_plan
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.plots.runs import find_runs
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.runs.resume import resolve_resume
from recbole_multdpo.settings.config import Config, load_config
from recbole_multdpo.settings.effects import declared, idle, in_run
from recbole_multdpo.settings.llmrec import LLMRecSettings
from recbole_multdpo.settings.text import dump_settings
from recbole_multdpo.training.sft_cache import sft_key
from tests.integration.test_unchanged import cut_short
from tests.integration.toy import toy_arguments, write_toy
from tests.settings.other_values import other_values

pytestmark = pytest.mark.integration
RUNS = {
    "zero_shot": ["--loss=zero_shot"],
    "no epochs": ["--loss=sft", "--sft_epochs=0"],
    "sft": ["--loss=sft"],
    "teacher": ["--loss=sft", "--sft_teacher=EASE"],
    "one negative": ["--loss=dpo"],
    "static": ["--loss=mult_dpo"],
    "dynamic": ["--loss=mult_dpo", "--negatives=dynamic"],
    "no reference": ["--loss=simpo"],
    "levels": ["--loss=lipo_bt", "--level_thresholds=[5, 4]"],
    "no preference epochs": ["--loss=mult_dpo", "--epochs=0"],
    "constant": ["--loss=sft", "--lr_scheduler_type=constant"],
    "candidates": ["--loss=sft", "--eval_args={'mode': 'uni10'}"],
    "exhaustive": ["--loss=sft", "--ranker=exhaustive"],
    "D3": ["--model=D3"],
    "D3 exactly": ["--model=D3", "--ranker=best_first"],
    "BIGRec": ["--model=BIGRec", "--generation_tokens=8"],
    "EASE": ["--model=EASE"],
    "Pop": ["--model=Pop"],
    "BPR": ["--model=BPR", "--epochs=2"],
}
QUICK = ("sft", "static", "D3", "EASE")
WHICH = [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in RUNS]
# read before a run begins, or by code that these runs do not come to
READ_ELSEWHERE = {
    "assistant": "by Config, which makes the assistant's own configuration",
    "assistant_settings": "by Config, for the assistant's own configuration",
    "sft_teacher_settings": "by Config, for the teacher's own configuration",
    "sft_teacher_items": "where a title has several tokens",
    "auto_batch": "after a step that ran out of memory",
    "deepspeed": "by Config",
    "score_batch_tokens": "by commands on finished runs, where the run scores no candidates",
    "sft_cache": "for an assistant, where there is no first stage",
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


def arguments(data: Path, folder: Path, *extra: str) -> list[str]:
    """A run of the toy data without what only language models have, for one of RecBole's."""
    given = toy_arguments(data, folder, *extra)
    if not {"--model=EASE", "--model=Pop", "--model=BPR"} & set(extra):
        return given
    own = {f"--{key}" for key in LLMRecSettings.model_fields}
    kept = [text for text in given if text.split("=")[0] not in own]
    return [text for text in kept if text in extra or "epochs" not in text and "batch" not in text]


def with_file(argv: list[str], settings: Mapping[str, Any], file: Path) -> list[str]:
    """The arguments with a file of further settings, which they do not set themselves."""
    file.write_text(dump_settings(settings), encoding="utf-8")
    kept = [text for text in argv if text[2:].split("=")[0] not in settings]
    return [*kept, f"--config_files={file}"]


def changing(config: Config, *changes: str) -> dict[str, Any]:
    """Other values of the settings that change no more than `speed`, `machine` or `log`."""
    table = declared(config["model"])
    return {k: v for k, v in other_values(config).items() if table[k].changes in changes}


def without_effect(config: Config) -> dict[str, Any]:
    values, given = other_values(config), in_run(config.final_config_dict, config.settings)
    values.pop("track_bounds", None)  # without log-ratios it is refused in files too
    if config.settings is None:
        values.pop("epochs", None)  # its other value, auto, is of LLMRec alone
    return {key: values[key] for key in sorted(idle(given, values, config["model"]))}


# ---- what changes what ----


@pytest.mark.parametrize("name", WHICH)
def test_settings_without_effect_leave_a_run_alone(name: str, data: Path, tmp_path: Path) -> None:
    plain = arguments(data, tmp_path / "one", *RUNS[name], "--sft_cache=False")
    changes = without_effect(load_config(plain))
    assert len(changes) >= 3
    one = run(plain)
    again = [text.replace("/one", "/two") for text in plain]
    two = run(with_file(again, changes, tmp_path / "other.yaml"))
    for key in ("test_result", "valid_result", "model_files"):
        assert one[key] == two[key], key


def test_speed_changes_results_by_rounding_only(data: Path, tmp_path: Path) -> None:
    plain = arguments(data, tmp_path / "one", "--loss=mult_dpo", "--epochs=1")
    changes = changing(load_config(plain), "speed")
    changes |= {"max_tokens_per_batch": 100, "score_batch_tokens": 300, "sft_cache": False}
    changes["reference_cache"] = True
    assert {"gradient_checkpointing", "auto_batch", "stop_at_metrics"} <= changes.keys()
    one = run(plain)
    again = [text.replace("/one", "/two") for text in plain]
    two = run(with_file(again, changes, tmp_path / "other.yaml"))
    for key in ("test_result", "valid_result"):
        assert one[key] == pytest.approx(two[key], abs=0.02), key
    other = run(arguments(data, tmp_path / "other", "--loss=mult_dpo", "--sft_epochs=9"))
    assert other["test_result"] != pytest.approx(one["test_result"], abs=0.02)


def test_logs_and_places_change_nothing(data: Path, tmp_path: Path) -> None:
    plain = arguments(data, tmp_path / "one", "--loss=mult_dpo", "--sft_cache=False")
    changes = changing(load_config(plain), "machine", "log")
    changes |= {"data_path": str(tmp_path / "moved"), "num_threads": 1, "worker": 1}
    changes["sft_cache_dir"] = str(tmp_path / "elsewhere")
    shutil.copytree(data, tmp_path / "moved")
    assert {"track_bounds", "save_steps", "linked_users"} <= changes.keys()
    one = run(plain)
    again = [text.replace("/one", "/two") for text in plain]
    two = run(with_file(again, changes, tmp_path / "other.yaml"))
    for key in ("test_result", "valid_result", "model_files"):
        assert one[key] == two[key], key


# ---- what is derived ----


def model_of(argv: list[str]) -> tuple[Config, Any]:
    config = load_config(argv)
    return config, config.model_class(config, load_parts(config)[1][0])


def test_the_first_stage_is_that_of_all_that_differ_later(data: Path, tmp_path: Path) -> None:
    plain = arguments(data, tmp_path / "one", "--loss=mult_dpo")
    config, model = model_of(plain)
    own, table, values = sft_key(config, model), declared("LLMRec"), other_values(config)
    given = in_run(config.final_config_dict, config.settings)
    matters = {
        key
        for key in values
        if table[key].acts_in("model", "sft")
        and not table[key].may_change
        and not table[key].failing(given)
    }
    unfit = {"topk", "reference"}  # with valid_metric and reference_cache as they are
    later = {
        key: value
        for key, value in values.items()
        if not table[key].acts_in(*EARLIER) and key not in unfit
    }
    same = {**later, **without_effect(config), **changing(config, "speed", "machine", "log")}
    assert {"beta", "negative_distribution", "auto_batch", "eval_step"} <= same.keys()
    same = {key: value for key, value in same.items() if key not in matters}
    assert sft_key(*model_of(with_file(plain, same, tmp_path / "same.yaml"))) == own
    for number, key in enumerate(sorted(matters - DATA_BY_CONTENT)):
        file = tmp_path / f"{number}.yaml"
        assert sft_key(*model_of(with_file(plain, {key: values[key]}, file))) != own, key


EARLIER = ("data", "filter", "backbone", "prompt", "model", "sft")
DATA_BY_CONTENT = {"seed"}  # and so slow to test one by one


def test_the_first_stage_is_taken_from_the_cache(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(arguments(data, tmp_path / "one", "--loss=sft"))
    caplog.clear()
    plain = arguments(data, tmp_path / "two", "--loss=mult_dpo")
    faster = {"gradient_accumulation_steps": 2, "max_tokens_per_batch": 90, "auto_batch": True}
    with caplog.at_level(logging.INFO):
        run(with_file(plain, {**faster, "gradient_checkpointing": True}, tmp_path / "a.yaml"))
    assert "supervised fine-tuning: taken from" in caplog.text


def test_an_assistants_scores_are_kept_by_what_acts(data: Path, tmp_path: Path) -> None:
    keys = []
    for options in ("", "--EASE.epochs=9 --EASE.learning_rate=0.3", "--EASE.reg_weight=3"):
        config = load_config(
            [*arguments(data, tmp_path / "run", "--loss=sft", "--assistant=EASE"), *options.split()]
        )
        assert config.assistant is not None
        keys.append(cache_key(config.assistant, *load_parts(config)))
    assert keys[0] == keys[1] != keys[2]


def test_a_run_goes_on_with_everything_changed_that_may_change(data: Path, tmp_path: Path) -> None:
    plain = arguments(data, tmp_path / "one", "--loss=mult_dpo", "--sft_cache=False", "--worker=0")
    cut_short(plain)
    config = load_config(plain)
    changes = {**changing(config, "speed", "machine", "log"), "worker": 1, "num_threads": 1}
    changes["sft_cache_dir"] = str(tmp_path / "elsewhere")
    changes["data_path"] = str(shutil.copytree(data, tmp_path / "moved"))
    result = run(with_file([f"--resume={tmp_path / 'one'}"], changes, tmp_path / "a.yaml"))
    assert result["test_result"]
    other = other_values(config)
    for key in ("beta", "max_history", "seed", "tiny_num_layers", "topk"):
        file = tmp_path / "b.yaml"
        value = [2, 3, 5] if key == "topk" else other[key]
        with pytest.raises(ConfigError, match=f"settings differ: {key}: "):
            run(with_file([f"--resume={tmp_path / 'one'}"], {key: value}, file))


def test_auto_finds_a_run_that_was_started_before_a_setting_existed(
    data: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "runs" / "one"
    plain = arguments(data, folder, "--loss=dpo", "--sft_cache=False")
    cut_short(plain)
    lines = (folder / "config.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if not line.startswith("dpo_label_smoothing:")]
    assert len(kept) == len(lines) - 1
    (folder / "config.yaml").write_text("".join(kept), encoding="utf-8")
    again = [text for text in plain if not text.startswith("--run_dir")]
    again += [f"--checkpoint_dir={folder.parent}", "--resume=auto"]
    config = load_config(again)
    assert resolve_resume(config) == str(folder)
    # it did what was asked: no warning
    assert config.warnings == [] and config.notes == [f"--resume=auto: {folder}"]
    assert resolve_resume(load_config([*again, "--save_steps=7"])) == str(folder)
    for other in ("--dpo_label_smoothing=0.2", "--beta=7"):
        assert resolve_resume(load_config([*again, other])) is None
    by_name = f"--resume={folder}"
    assert resolve_resume(load_config([by_name, "--save_steps=7"])) == str(folder)
    with pytest.raises(ConfigError, match="started before dpo_label_smoothing could be set"):
        resolve_resume(load_config([by_name, "--dpo_label_smoothing=0.2"]))


def test_figures_call_one_system_what_differs_in_nothing_that_acts(
    data: Path, tmp_path: Path
) -> None:
    plain = arguments(data, tmp_path / "run", "--loss=mult_dpo")
    config = load_config(plain)
    changes = {**without_effect(config), **changing(config, "speed", "machine", "log")}
    changes |= {"seed": 3, "metrics": ["Recall"], "topk": [5]}
    changes.pop("track_bounds")  # with it level_thresholds would act, on bounds.csv
    folders = {}
    for name, settings in {
        "one": {},
        "two": changes,
        "other": {"beta": 7.0},
    }.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        saved = {**config.to_dict(), **settings}
        (folders[name] / "config.yaml").write_text(dump_settings(saved), encoding="utf-8")
    names = [each.name for each in find_runs([folders["one"], folders["two"]])]
    assert names == ["LLMRec mult_dpo"] * 2
    beta = config["beta"]
    names = [each.name for each in find_runs([folders["one"], folders["other"]])]
    assert names == [f"LLMRec mult_dpo beta={beta}", "LLMRec mult_dpo beta=7.0"]


@pytest.mark.parametrize(
    ("argv", "names"),
    [
        (
            ["--loss=sft,mult_dpo", "--vary={'negative_distribution': ['uniform', 'popularity']}"],
            [
                "LLMRec sft",
                "LLMRec mult_dpo negative_distribution=uniform",
                "LLMRec mult_dpo negative_distribution=popularity",
            ],
        ),
        (
            [
                "--loss=mult_dpo",
                "--vary={'negatives': [static, dynamic], 'negative_temperature': [0.1, 1]}",
            ],
            [
                "LLMRec mult_dpo negatives=static",
                "LLMRec mult_dpo negatives=dynamic negative_temperature=0.1",
                "LLMRec mult_dpo negatives=dynamic negative_temperature=1",
            ],
        ),
        (  # refused with sft alone, wherever it is set
            [
                "--model=LLMRec,D3",
                "--loss=sft,mult_dpo",
                "--val_interval={'rating': '[5,inf)'}",
                "--vary={'low_ratings': ['ignore', 'below_unrated']}",
            ],
            [
                "LLMRec sft",
                "LLMRec mult_dpo low_ratings=ignore",
                "LLMRec mult_dpo low_ratings=below_unrated",
                "D3",
            ],
        ),
        (
            ["--model=LLMRec,BIGRec", "--loss=sft,mult_dpo", "--track_bounds=True"],
            ["LLMRec sft", "LLMRec mult_dpo", "BIGRec"],
        ),
        (
            ["--model=EASE,BPR", "--vary={'epochs': [1, 2]}"],
            ["EASE", "BPR epochs=1", "BPR epochs=2"],
        ),
    ],
)
def test_systems_that_differ_in_nothing_that_acts_are_one(
    argv: list[str], names: list[str], data: Path, tmp_path: Path
) -> None:
    given = arguments(data, tmp_path / "run", *argv)
    if "--model=EASE,BPR" in argv:
        given = [
            text for text in given if text[2:].split("=")[0] not in LLMRecSettings.model_fields
        ]
    given = [text for text in given if not text.startswith(("--epochs", "--train_batch", "--run"))]
    plan = make_plan(read_request([*given, "--seeds=1", f"--run_dir={tmp_path / 'all'}"]))
    assert [system.name for system in plan.systems] == names


def test_a_data_folder_sets_nothing_that_is_not_its_to_set(data: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(data, tmp_path / "data"))
    forbidden = [key for key, acting in declared().items() if not acting.data_folder]
    assert {"backbone", "deepspeed", "pretrain_path", "log_wandb", "resume"} <= set(forbidden)
    for key in forbidden:
        (folder / "toy" / "toy.yaml").write_text(f"{key}: x\n", encoding="utf-8")
        with pytest.raises(ConfigError, match=rf"may not set {key}\b"):
            load_config(["--model=LLMRec", "--dataset=toy", f"--data_path={folder}"])


# ---- what a run reads ----


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Settings that are asked for, of a language model's and of the others."""
    keys: set[str] = set()
    for kind, method in ((LLMRecSettings, "__getattribute__"), (Config, "__getitem__")):
        original = getattr(kind, method)

        def noting(settings: Any, name: str, original: Any = original) -> Any:
            keys.add(name)
            return original(settings, name)

        monkeypatch.setattr(kind, method, noting)
    yield keys


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in list(RUNS)[:15]])
def test_what_acts_is_read(
    name: str, data: Path, tmp_path: Path, read: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = arguments(data, tmp_path / "run", *RUNS[name], "--sft_cache=False")
    config = load_config(argv)
    monkeypatch.setattr("recbole_multdpo.quick_start.load_config", lambda argv: config)
    fields = {
        key: acting
        for key, acting in declared(config["model"]).items()
        if key in type(config.settings).model_fields and acting.changes in ("results", "speed")
    }
    given = in_run(config.final_config_dict, config.settings)
    acting = fields.keys() - idle(given, fields, config["model"])
    read.clear()
    run(argv)
    assert acting - read - READ_ELSEWHERE.keys() == set()
    assert "beta" in acting or name not in ("static", "dynamic", "levels")
