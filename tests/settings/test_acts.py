"""Declarations of settings: no other table of names exists, and what is derived is right."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import pytest

import recbole_multdpo
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.losses import LOSSES
from recbole_multdpo.runs.resume import changed_settings, settings_hash
from recbole_multdpo.settings.acts import Acts, Unknown
from recbole_multdpo.settings.config import Config, load_config
from recbole_multdpo.settings.effects import (
    _declaration,
    acts,
    declared,
    idle,
    idle_problems,
    in_run,
    text_settings,
)
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS
from tests.settings.other_values import other_values

PACKAGE = Path(recbole_multdpo.__file__).parent
BASE = ["--dataset=ml-100k", "--device=cpu"]
RUNS = {
    "zero_shot": ["--model=LLMRec", "--loss=zero_shot"],
    "no epochs": ["--model=LLMRec", "--loss=sft", "--sft_epochs=0"],
    "sft": ["--model=LLMRec", "--loss=sft"],
    "dpo": ["--model=LLMRec", "--loss=dpo"],
    "mult_dpo": ["--model=LLMRec"],
    "dynamic": ["--model=LLMRec", "--negatives=dynamic"],
    "no preference epochs": ["--model=LLMRec", "--epochs=0"],
    "constant": ["--model=LLMRec", "--lr_scheduler_type=constant"],
    "candidates": ["--model=LLMRec", "--eval_args={'mode': 'uni50'}"],
    "D3": ["--model=D3"],
    "D3 exactly": ["--model=D3", "--ranker=best_first"],
    "BIGRec": ["--model=BIGRec"],
    "EASE": ["--model=EASE"],
    "Pop": ["--model=Pop"],
    "BPR": ["--model=BPR"],
}
# Three or more names of settings that are no table of settings, but something else's names.
NO_TABLES = {
    ("comparison/command.py", "arguments of a comparison"): {"model", "loss", "seed", "run_dir"},
    ("export.py", "keys of catalogue.json"): {"context", "max_history", "max_prompt_tokens"},
    ("runs/folder.py", "keys of result.json"): {"model", "dataset", "loss", "seed"},
    ("runs/unchanged.py", "keys of result.json"): {"model", "dataset", "loss", "seed"},
    ("trained/evaluation.py", "keys of result.json"): {"model", "dataset", "loss", "seed"},
    ("trained/evaluation.py", "keys of evaluation-<n>.json"): {"eval_args", "metrics", "topk"},
    ("quick_start.py", "keys of result.json"): {"loss", "dtype", "test_information"},
    ("settings/config.py", "read for DeepSpeed"): {"learner", "clip_grad_norm", "dtype"},
    ("settings/other_names.py", "names of other libraries"): {"learning_rate", "backbone"},
    ("trained/commands.py", "arguments of load_run"): {"data_path", "device", "log_wandb"},
    ("trained/run.py", "arguments of load_run"): {"data_path", "device", "log_wandb"},
}


def config_of(name: str) -> Config:
    return load_config([*BASE, *RUNS[name]])


def idle_in(config: Config) -> set[str]:
    return idle(in_run(config.final_config_dict, config.settings), declared(config["model"]))


# ---- the declarations ----


def test_each_field_declares_what_it_acts_on() -> None:
    for model in LANGUAGE_MODELS:
        assert all(isinstance(acting, Acts) for acting in declared(model).values())
    with pytest.raises(TypeError, match="the field undeclared does not declare"):
        _declaration("undeclared", Annotated[int, "no declaration"])


def test_options_of_losses_act_with_the_losses_that_have_them() -> None:
    options = {option for loss in LOSSES.values() for option in loss.options}
    assert options and options <= declared("LLMRec").keys()
    for loss in ("kpo", "pl_dpo", "simpo"):
        config = load_config([*BASE, "--model=LLMRec", f"--loss={loss}"])
        assert options - idle_in(config) == set(LOSSES[loss].options)


def test_what_is_text_is_known_by_its_type() -> None:
    assert {"dataset", "backbone", "user_inter_num_interval", "gpu_id"} <= text_settings()
    assert text_settings().isdisjoint({"metrics", "deepspeed", "topk", "beta", "load_col"})


@pytest.mark.parametrize("name", [name for name in RUNS if name not in ("EASE", "Pop", "BPR")])
def test_conditions_ask_for_settings_that_a_run_has(name: str) -> None:
    """A misspelt one would be unknown, and the setting would count as acting."""
    config = config_of(name)
    given, model = in_run(config.final_config_dict, config.settings), config["model"]
    for key in declared(model).keys() & config.final_config_dict.keys():
        for condition in acts(key, model).when:
            assert condition.holds(given) in (True, False), key
            assert condition.found(given) and condition.remedy(given) is not None
    with pytest.raises(Unknown):
        given.negativs  # noqa: B018


# ---- no other table of names ----


def tables(source: str, names: set[str]) -> Iterator[set[str]]:
    """Collections, dictionaries and strings of words that hold three or more names of settings."""
    for node in ast.walk(ast.parse(source)):
        words: list[object] = []
        if isinstance(node, ast.Tuple | ast.List | ast.Set):
            words = [each.value for each in node.elts if isinstance(each, ast.Constant)]
        elif isinstance(node, ast.Dict):
            words = [each.value for each in node.keys if isinstance(each, ast.Constant)]
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = list(node.value.split())
            words = words if set(words) <= names else []
        found = {word for word in words if isinstance(word, str)} & names
        if len(found) >= 3:
            yield found


def test_no_module_has_a_table_of_names_of_settings() -> None:
    names, found = set(declared()), []
    for file in sorted(PACKAGE.rglob("*.py")):
        where = file.relative_to(PACKAGE).as_posix()
        allowed = [words for (at, _), words in NO_TABLES.items() if at == where]
        for table in tables(file.read_text(encoding="utf-8"), names):
            if not any(words <= table for words in allowed):
                found.append((where, sorted(table)))
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        'x = frozenset("beta reference loss_average".split())',
        'x = ("beta", "reference", "loss_average")',
        'x = {"beta": 1, "reference": 2, "loss_average": 3}',
    ],
)
def test_a_table_of_names_is_found(source: str) -> None:
    assert list(tables(source, set(declared()))) == [{"beta", "reference", "loss_average"}]
    assert list(tables('y = config["beta"], settings.reference, "is beta"', set(declared()))) == []


# ---- settings without effect ----


@pytest.mark.parametrize(
    "argv",
    [
        ["--loss=sft", "--negative_distribution=popularity"],
        ["--loss=sft", "--popularity_alpha=0.5"],
        ["--loss=sft", "--level_thresholds=[5,4]"],
        ["--loss=sft", "--eval_step=2"],
        ["--loss=sft", "--stopping_step=2"],
        ["--loss=zero_shot", "--sft_targets=held_out"],
        ["--loss=zero_shot", "--warmup_ratio=0.3"],
        ["--loss=zero_shot", "--learner=adam"],
        ["--loss=zero_shot", "--weight_decay=0.1"],
        ["--loss=zero_shot", "--max_targets=3"],
        ["--loss=zero_shot", "--gradient_checkpointing=True"],
        ["--loss=zero_shot", "--save_steps=5"],
        ["--loss=sft", "--sft_epochs=0", "--sft_learning_rate=1e-3"],
        ["--epochs=0", "--beta=2"],
        ["--epochs=0", "--track_bounds=True"],
        ["--loss=simpo", "--reference=none"],
        ["--loss=mult_dpo", "--level_thresholds=[5,4]"],
        ["--lr_scheduler_type=constant", "--warmup_ratio=0.5"],
        ["--rank_history=5", "--loss=zero_shot", "--max_history=3"],
        ["--model=D3", "--eval_args={'mode': 'uni50'}", "--beam_size=20"],
        ["--model=D3", "--ranker=best_first", "--beam_size=20"],
        ["--model=D3", "--expand_per_step=64"],
        ["--model=D3", "--stop_at_metrics=True"],
        ["--model=D3", "--assistant=~", "--assistant_temperature=2"],
        ["--model=BIGRec", "--ranker=exhaustive"],
        ["--model=BIGRec", "--stop_at_metrics=True"],
        ["--model=BIGRec", "--expand_per_step=4"],
        ["--model=BIGRec", "--grounding_gamma=1"],
        ["--model=EASE", "--epochs=3"],
        ["--model=EASE", "--learning_rate=0.1"],
        ["--model=Pop", "--learner=sgd"],
    ],
)
def test_what_has_no_effect_is_refused_on_the_command_line_only(
    argv: list[str], tmp_path: Path
) -> None:
    *others, last = argv if argv[0].startswith("--model") else ["--model=LLMRec", *argv]
    key, value = last[2:].split("=", 1)
    with pytest.raises(ConfigError, match=rf"{key}: no effect"):
        load_config([*BASE, *others, last])
    (tmp_path / "mine.yaml").write_text(f"{key}: {value}\n")
    load_config([*BASE, *others, f"--config_files={tmp_path / 'mine.yaml'}"])


@pytest.mark.parametrize("name", RUNS)
def test_remedies_work(name: str) -> None:
    """Whoever does what the sentence says is not refused again."""
    config = config_of(name)
    settings, model = in_run(config.final_config_dict, config.settings), config["model"]
    by_remedy: dict[tuple[str, ...], list[str]] = {}
    for key in sorted(idle_in(config) & other_values(config).keys()):
        sentences = idle_problems(settings, [key], model)
        if acts(key, model).limit:
            assert not sentences
            continue
        (sentence,) = sentences
        assert sentence.startswith(f"{key}: no effect"), sentence
        way = "".join(sentence.split(". ")[-1].split(", or ")[-2:-1])
        found = re.findall(r"--(\w+)=(\"[^\"]*\"|[^ ]+)", way)
        remedy = [f"--{name}={text.strip(chr(34))}" for name, text in found]
        remedy += NEEDED.get(key, [])
        # nothing but leaving it out, or another model, which has other settings
        if found and "model" not in dict(found):
            by_remedy.setdefault(tuple(remedy), []).append(key)
    for remedy, keys in by_remedy.items():
        given = {text.split("=")[0]: text for text in [*BASE, *RUNS[name], *remedy]}
        tried = load_config(list(given.values()))
        assert not idle(in_run(tried.final_config_dict, tried.settings), keys, model), remedy
    assert by_remedy or config.settings is None


NEEDED = {
    "level_thresholds": ["--level_thresholds=[5, 4]"],
    "rating_levels": ["--rating_levels=[5, 4]"],
}


# ---- what is derived ----


def test_runs_of_before_are_checked_as_they_were() -> None:
    """The hash that version 0.1 kept of settings, of which fewer might change."""
    before = {
        "model": "LLMRec",
        "loss": "mult_dpo",
        "seed": 7,
        "track_bounds": False,
        "loss_decimal_place": 4,
        "stop_at_metrics": False,
        "eval_batch_size": 4096,
        "device": "cpu",
        "save_steps": 3,
        "data_path": "data",
    }
    assert settings_hash(before, as_before=True) == "d1b3c9960a3b4b97"
    assert settings_hash({**before, "data_path": "moved"}, as_before=True) == "d1b3c9960a3b4b97"
    assert settings_hash({**before, "seed": 8}, as_before=True) != "d1b3c9960a3b4b97"
    assert settings_hash(before) != settings_hash(before, as_before=True)


@pytest.mark.parametrize("name", ["mult_dpo", "D3", "BIGRec", "EASE"])
def test_each_setting_that_changes_results_hinders_a_resume_by_name(name: str) -> None:
    config = config_of(name)
    saved = json.loads(json.dumps(config.to_dict(), default=str))
    for key in saved:
        changed = changed_settings(saved, {**saved, key: "something else"})
        assert changed == ([] if acts(key, config["model"]).may_change else [key])
    everything = {key: "else" if acts(key).may_change else value for key, value in saved.items()}
    assert changed_settings(saved, everything) == []
    assert {"data_path", "worker", "sft_cache_dir", "device"} & saved.keys()
