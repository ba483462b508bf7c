"""The key of the cached first stage: what determines that stage changes it, and nothing else."""

import csv
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from torch import nn

from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.model.backbone import save_backbone
from recbole_multdpo.runs.checkpoint import save_checkpoint, trainable_tensors
from recbole_multdpo.runs.step_log import STEP_COLUMNS, StepLog
from recbole_multdpo.training.sft_cache import (
    load_cached_sft,
    sft_checkpoint,
    sft_key,
    store_sft,
)
from tests.integration.toy import toy_model, toy_runs, write_toy


@pytest.fixture(scope="module")
def key_of(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy")
    data_path = write_toy(folder / "data")

    def key(*arguments: str) -> str:
        config, _, model = toy_model(data_path, folder, *arguments)
        return sft_key(config, model)

    return key


@pytest.mark.parametrize(
    "argument",
    [
        "--loss=pl_dpo",
        "--beta=0.3",
        "--num_negatives=7",
        "--negatives=dynamic",
        "--loss=lipo_bt --level_thresholds=[5,4]",
        "--learning_rate=1e-5",
        "--epochs=1",
        "--rank_history=3",
        "--rank_history=6",  # as max_history
        "--max_steps=3 --sft_max_steps=0",
    ],
)
def test_later_settings_share_the_stage(key_of, argument):
    assert key_of(*argument.split()) == key_of()


@pytest.mark.parametrize(
    ("whole", "same", "other"),
    [
        ("--weight_decay=1", "--weight_decay=1.0", "--weight_decay=2"),
        (
            "--sft_teacher=EASE --EASE.reg_weight=9",
            "--sft_teacher=EASE --EASE.reg_weight=9.0",
            "--sft_teacher=EASE --EASE.reg_weight=8",
        ),
    ],
)
def test_a_whole_number_is_the_float(key_of, whole, same, other):
    assert key_of(*whole.split()) == key_of(*same.split()) != key_of(*other.split())


@pytest.mark.parametrize(
    "argument",
    [
        "--seed=7",
        "--dtype=bfloat16",
        "--tf32=True",
        "--sft_epochs=2",
        "--sft_learning_rate=1e-3",
        "--weight_decay=0.7",
        "--normalize_over=vocabulary",
        "--sft_targets=held_out",
        "--sft_loss_average=context",
        "--tiny_title_tokens=False",
        "--max_history=5",
        "--train_users=9",
        "--max_steps=3",
        "--sft_max_steps=3",
        "--target_share=0.4",
        "--item_year_field=~",
        "--val_interval={'rating': '[5,inf)'}",
    ],
)
def test_what_determines_the_stage_separates(key_of, argument):
    assert key_of(argument) != key_of()


def test_kernels_with_sums_in_another_order_separate(tmp_path):
    """The key of the stage and that of the reference's log-probabilities, of pretrained models."""
    data_path = write_toy(tmp_path / "data")
    _, _, tiny = toy_model(data_path, tmp_path)
    save_backbone(tiny.lm, tiny.tokenizer, tmp_path / "lm")

    def keys(*arguments: str) -> list[str]:
        backbone = f"--backbone={tmp_path / 'lm'}"
        config, _, model = toy_model(data_path, tmp_path, backbone, "--lora_r=2", *arguments)
        model.start_preference_stage("mult_dpo")
        return [sft_key(config, model), model.reference_digest()]

    plain, again, fused = keys(), keys("--use_liger_kernel=False"), keys("--use_liger_kernel=True")
    assert plain == again and not set(plain) & set(fused)


def test_backbones_that_earlier_versions_scored_wrong_are_kept_apart(tmp_path, monkeypatch):
    """In the caches of the first stage and of the reference; all others are found again."""
    config, _, model = toy_model(write_toy(tmp_path / "data"), tmp_path)
    model.start_preference_stage("mult_dpo")
    for of_the_model in (
        {"sliding_window": 8},  # a Mistral
        {"layer_types": ["chunked_attention"], "attention_chunk_size": 8},
    ):
        found = [sft_key(config, model), model.reference_digest()]
        with monkeypatch.context() as patch:
            for name, value in of_the_model.items():
                patch.setattr(model.lm.config, name, value, raising=False)
            if "layer_types" not in of_the_model:
                patch.setattr(model.lm.config, "layer_types", None)
            assert model.is_scored_specially
            assert not {*found} & {sft_key(config, model), model.reference_digest()}
        assert not model.is_scored_specially
        assert found == [sft_key(config, model), model.reference_digest()]


def model(value: float) -> SimpleNamespace:
    """The part of a model that the cache sees: `lm` with one trained weight."""
    lm = nn.Linear(1, 1, bias=False)
    nn.init.constant_(lm.weight, value)
    return SimpleNamespace(lm=lm)


def stored(tmp_path: Path, value: float) -> None:
    save_checkpoint(tmp_path / "best", trainable_tensors(model(value).lm), {})
    store_sft(tmp_path / "cache", "abc", tmp_path / "best", tmp_path)


def test_a_stored_stage_is_found_by_its_key_alone(tmp_path: Path):
    target = model(0)
    assert not load_cached_sft(tmp_path / "cache", "abc", target, tmp_path / "run")
    stored(tmp_path, 1)
    stored(tmp_path, 2)  # what is there stays
    assert not load_cached_sft(tmp_path / "cache", "abd", target, tmp_path / "run")
    assert target.lm.weight == 0
    assert load_cached_sft(tmp_path / "cache", "abc", target, tmp_path / "run")
    assert target.lm.weight == 1


def test_the_stages_logs_come_along_and_never_replace_one(tmp_path: Path):
    (tmp_path / "steps.csv").write_text("sft")
    stored(tmp_path, 1)
    log = tmp_path / "run" / "steps.csv"
    log.parent.mkdir()
    assert load_cached_sft(tmp_path / "cache", "abc", model(0), log.parent)
    assert log.read_text() == "sft"
    log.write_text("sft and preference")
    assert load_cached_sft(tmp_path / "cache", "abc", model(0), log.parent)
    assert log.read_text() == "sft and preference"
    assert not (log.parent / "validations.csv").exists()


def test_the_log_of_an_older_version_gets_its_new_columns_empty(tmp_path: Path):
    old = ",".join(STEP_COLUMNS[:-1])
    (tmp_path / "steps.csv").write_text(f"{old}\nsft,1,1,0.5,2.5,-2.5,,,1.0,0.001\n")
    stored(tmp_path, 1)
    (tmp_path / "run").mkdir()
    assert load_cached_sft(tmp_path / "cache", "abc", model(0), tmp_path / "run")
    StepLog(tmp_path / "run", "preference").step(1, 1, {"reward_accuracy": 0.75})
    with (tmp_path / "run" / "steps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == STEP_COLUMNS
    assert [(row["stage"], row["learning_rate"], row["reward_accuracy"]) for row in rows] == [
        ("sft", "0.001", ""),
        ("preference", "", "0.75"),
    ]


def test_a_damaged_stage_is_passed_over_and_replaced(tmp_path: Path):
    stored(tmp_path, 1)
    file = tmp_path / "cache" / "sft-abc" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    target = model(0)
    assert not load_cached_sft(tmp_path / "cache", "abc", target, tmp_path / "run")
    assert target.lm.weight == 0
    stored(tmp_path, 2)
    assert load_cached_sft(tmp_path / "cache", "abc", target, tmp_path / "run")
    assert target.lm.weight == 2


def test_a_cache_that_cannot_be_written_names_the_setting(tmp_path: Path):
    (tmp_path / "cache").write_text("in the way")
    with pytest.raises(CheckpointError, match="--sft_cache_dir"):
        stored(tmp_path, 1)


def test_rounded_figures_choose_the_best_epoch(key_of):
    validated = "--sft_eval_step=1"
    assert key_of(validated) != key_of(validated, "--metric_decimal_place=1")
    assert key_of() == key_of("--metric_decimal_place=1")


@pytest.mark.integration
def test_a_stage_is_found_that_was_cached_under_a_key_of_before(tmp_path):
    toy_runs(tmp_path, {"one": ["--loss=sft"], "two": ["--loss=dpo"], "other": ["--seed=7"]})
    for folder in (tmp_path / "cache").glob("sft-*"):
        folder.rename(folder.with_name(f"sft-of-before-{folder.name[4:]}"))
    found = {}
    for name, arguments in {"two": ["--loss=dpo"], "other": ["--seed=7"]}.items():
        shutil.rmtree(tmp_path / name / "checkpoints" / "sft", ignore_errors=True)
        found[name] = sft_checkpoint(tmp_path / name, *_model(tmp_path, *arguments))
    assert found["two"] != found["other"]
    assert found["two"].name == f"sft-of-before-{sft_key(*_model(tmp_path, '--loss=dpo'))}"
    shutil.rmtree(found["two"])
    with pytest.raises(CheckpointError, match="the reference, are missing"):
        sft_checkpoint(tmp_path / "two", *_model(tmp_path, "--loss=dpo"))


def _model(folder: Path, *arguments: str):
    config, _, model = toy_model(folder / "data", folder, *arguments)
    return config, model
