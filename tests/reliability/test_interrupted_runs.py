"""Signals, full disks, damaged checkpoints and simultaneous runs, through the real run."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from recbole_multdpo.errors import CheckpointError, ConfigError, MultDPOError, TrainingError
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.quick_start import run
from recbole_multdpo.ranking.exact import ExactRanker
from recbole_multdpo.runs import step_log
from recbole_multdpo.runs.checkpoint import check_checkpoint, step_folders
from recbole_multdpo.runtime.interruption import Interrupted
from recbole_multdpo.training import step
from recbole_multdpo.training.trainer import SetwiseTrainer
from tests.integration.toy import toy_arguments
from tests.reliability.kills import differences, what_is_left

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
# three steps in an epoch; what a signal in the middle could lose or double
SETTINGS = ["--sft_epochs=1", "--epochs=2", "--sft_cache=False", "--track_bounds=True"]


@pytest.fixture(scope="module")
def whole(data_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Results and files of an undisturbed run."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    run(toy_arguments(data_path, folder, *SETTINGS))
    return what_is_left(folder)


def at_step(
    monkeypatch: pytest.MonkeyPatch, stage: str, step: int, what: Callable[[], object]
) -> None:
    """Do something right after a step of a stage, once."""
    count, done = SetwiseTrainer._count, []

    def counting(trainer: SetwiseTrainer, *args) -> None:  # type: ignore[no-untyped-def]
        count(trainer, *args)
        if not done and (trainer.stage.name, trainer.global_step) == (stage, step):
            done.append(True)
            what()

    monkeypatch.setattr(SetwiseTrainer, "_count", counting)


def at_validation(monkeypatch: pytest.MonkeyPatch, what: Callable[[], object]) -> None:
    """Do something while the first validation ranks, once."""
    topk, validate, done = ExactRanker.topk, SetwiseTrainer._valid_epoch, [True]

    def ranking(ranker: ExactRanker, *args):  # type: ignore[no-untyped-def]
        if not done:
            done.append(True)
            what()
        return topk(ranker, *args)

    def validating(trainer: SetwiseTrainer, *args, **kwargs):  # type: ignore[no-untyped-def]
        done.clear()
        monkeypatch.setattr(SetwiseTrainer, "_valid_epoch", validate)
        return validate(trainer, *args, **kwargs)

    monkeypatch.setattr(SetwiseTrainer, "_valid_epoch", validating)
    monkeypatch.setattr(ExactRanker, "topk", ranking)


def last_step(folder: Path, stage: str = "preference") -> dict:
    return check_checkpoint(step_folders(folder / "checkpoints" / stage)[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(("stage", "step"), [("sft", 2), ("preference", 4), ("preference", 3)])
def test_a_signal_saves_the_step_under_way(
    data_path: Path, tmp_path: Path, monkeypatch, whole: dict, stage: str, step: int, number: int
) -> None:
    if number == signal.SIGINT and step != 4:
        pytest.skip("as with SIGTERM")
    folder = tmp_path / "run"
    at_step(monkeypatch, stage, step, lambda: os.kill(os.getpid(), number))
    with pytest.raises(Interrupted, match=f"SIG.* continue with --resume={folder}") as caught:
        run(toy_arguments(data_path, folder, *SETTINGS))
    assert caught.value.exit_status == 128 + number
    assert last_step(folder, stage)["global_step"] == step
    run([f"--resume={folder}"])
    assert differences(whole, what_is_left(folder)) == []


def test_a_signal_in_a_validation_keeps_the_epoch(
    data_path: Path, tmp_path: Path, monkeypatch, whole: dict
) -> None:
    folder = tmp_path / "run"
    at_validation(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted):
        run(toy_arguments(data_path, folder, *SETTINGS))
    assert last_step(folder)["position"]["batch"] == 3  # trained, and not validated
    run([f"--resume={folder}"])
    assert differences(whole, what_is_left(folder)) == []


def test_a_run_that_stopped_early_is_not_trained_on(
    data_path: Path, tmp_path: Path, monkeypatch
) -> None:
    """Validation gets worse from epoch to epoch: two epochs of four, also after resuming."""
    validate = SetwiseTrainer._valid_epoch

    def getting_worse(trainer: SetwiseTrainer, *args, **kwargs):  # type: ignore[no-untyped-def]
        _, result = validate(trainer, *args, **kwargs)
        return -trainer.position.epoch, result

    monkeypatch.setattr(SetwiseTrainer, "_valid_epoch", getting_worse)
    settings = [*SETTINGS, "--epochs=4", "--stopping_step=0"]
    run(toy_arguments(data_path, tmp_path / "whole", *settings))
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        load = SetwiseTrainer.load_best

        def interrupted(trainer: SetwiseTrainer) -> None:
            if trainer.stage.name == "preference":
                os.kill(os.getpid(), signal.SIGTERM)
            load(trainer)

        patch.setattr(SetwiseTrainer, "load_best", interrupted)
        with pytest.raises(Interrupted):
            run(toy_arguments(data_path, folder, *settings))
    assert last_step(folder)["global_step"] == 6
    run([f"--resume={folder}"])
    assert differences(what_is_left(tmp_path / "whole"), what_is_left(folder)) == []


def test_a_run_of_a_version_without_reward_accuracy_is_resumed(
    data_path: Path, tmp_path: Path, monkeypatch, whole: dict
) -> None:
    """Its `steps.csv` keeps its columns; the epoch's mean is not that of a part of it."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        new, metrics = ("reward_accuracy", "rewards/", "logps/"), step.step_metrics
        patch.setattr(step_log, "METRICS", step_log.METRICS[:-2])
        patch.setattr(step_log, "STEP_COLUMNS", step_log.STEP_COLUMNS[:-2])
        patch.setattr(
            step,
            "step_metrics",
            lambda *args: {k: v for k, v in metrics(*args).items() if not k.startswith(new)},
        )
        at_step(patch, "preference", 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            run(toy_arguments(data_path, folder, *SETTINGS))
    run([f"--resume={folder}"])
    left, steps = what_is_left(folder), whole["steps"]
    assert steps[0][-2:] == ["reward_accuracy", "teacher_loss"] and steps[-1][-2]
    assert left["steps"] == [row[:-2] for row in steps]
    assert [n for n in differences(whole, left) if n != "steps"] == ["tensorboard"]
    accuracies = left["tensorboard"]["preference/rewards/accuracies"]
    assert accuracies == whole["tensorboard"]["preference/rewards/accuracies"][2:]
    first, second = (
        line
        for line in (folder / "run.log").read_text().splitlines()
        if "DETAIL" in line and "preference epoch" in line
    )
    assert "reward_accuracy" not in first and "reward_accuracy" in second


def test_the_command_ends_with_the_signals_status(data_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = toy_arguments(data_path, folder, "--sft_epochs=100000", "--save_steps=1")
    command = [sys.executable, str(ROOT / "run_recbole_multdpo.py"), *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: step_folders(folder / "checkpoints" / "sft"))
        process.terminate()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 143
    assert f"stopped by SIGTERM; continue with --resume={folder}" in said
    assert "Traceback" not in said


def until(done: Callable[[], object], seconds: float = 200) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end
        time.sleep(0.05)


# -------------------------------------------------------------------------------------------------
# disks


def limit_file_size(size: int) -> None:
    """From here on, no file may grow beyond: the system refuses, as with a full disk."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@pytest.fixture
def no_limit():
    yield
    limit_file_size(resource.RLIM_INFINITY)


@pytest.mark.parametrize("step", [2, 4])
def test_a_full_disk_is_named_and_nothing_is_lost(
    data_path: Path, tmp_path: Path, monkeypatch, no_limit, whole: dict, step: int
) -> None:
    folder = tmp_path / "run"
    at_step(monkeypatch, "preference", step, lambda: limit_file_size(20_000))
    with pytest.raises(MultDPOError, match=r"(File too large|os error 27).*--(run_dir|resume)"):
        run(toy_arguments(data_path, folder, *SETTINGS))
    limit_file_size(resource.RLIM_INFINITY)
    run([f"--resume={folder}"])
    assert differences(whole, what_is_left(folder)) == []


def test_a_folder_that_cannot_be_written(data_path: Path) -> None:
    with pytest.raises(ConfigError, match="--run_dir"):
        run(toy_arguments(data_path, Path("/proc/self/run"), "--sft_cache=False"))


# -------------------------------------------------------------------------------------------------
# damaged checkpoints


@pytest.fixture
def stopped(data_path: Path, tmp_path: Path, monkeypatch) -> Path:
    """A run stopped after four steps of preference training, with two checkpoints."""
    folder = tmp_path / "run"
    with monkeypatch.context() as patch:
        at_step(patch, "preference", 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            run(toy_arguments(data_path, folder, *SETTINGS))
    assert len(step_folders(folder / "checkpoints" / "preference")) == 2
    return folder


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_the_checkpoint_before_a_damaged_one_is_used(stopped: Path, whole: dict) -> None:
    newest = step_folders(stopped / "checkpoints" / "preference")[0]
    flip_a_bit(newest / "optimizer.safetensors")
    run([f"--resume={stopped}"])
    log = (stopped / "run.log").read_text()
    assert "is damaged (optimizer.safetensors is not what was written)" in log
    assert differences(whole, what_is_left(stopped)) == []


def test_without_any_whole_checkpoint_all_are_named(stopped: Path) -> None:
    for folder in (stopped / "checkpoints").rglob("step-*"):
        flip_a_bit(folder / "model.safetensors")
    with pytest.raises(CheckpointError, match="step-4.*step-3.*Remove the folder to start"):
        run([f"--resume={stopped}"])


def test_an_edited_configuration_is_noticed(stopped: Path) -> None:
    """config.yaml is read on resuming; the checkpoint knows what it was trained with."""
    file = stopped / "config.yaml"
    file.write_text(file.read_text().replace("beta: 3.0", "beta: 0.5"))
    with pytest.raises(ConfigError, match="beta: 3.0 there, 0.5 now"):
        run([f"--resume={stopped}"])


def test_running_out_of_memory_can_be_fixed_on_resuming(
    data_path: Path, tmp_path: Path, monkeypatch
) -> None:
    folder = tmp_path / "run"
    step, calls = LLMRec.step, []

    def failing(model: LLMRec, batch, kl=None):  # type: ignore[no-untyped-def]
        calls.append(len(batch))
        if len(calls) == 7:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return step(model, batch, kl)

    with monkeypatch.context() as patch:
        patch.setattr(LLMRec, "step", failing)
        with pytest.raises(TrainingError, match=f"--resume={folder}"):
            run(toy_arguments(data_path, folder, *SETTINGS, "--max_tokens_per_batch=0"))
    assert (
        last_step(folder)["global_step"] == 1
    )  # two to say the price, three of the first stage, one of this
    run([f"--resume={folder}", "--max_tokens_per_batch=200"])


def test_running_out_of_memory_while_ranking_names_its_settings(
    data_path: Path, tmp_path: Path, monkeypatch
) -> None:
    def failing(*_):  # type: ignore[no-untyped-def]
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(ExactRanker, "topk", failing)
    with pytest.raises(TrainingError, match=r"while ranking.*--rank_batch_users \(now 32\)"):
        run(toy_arguments(data_path, tmp_path / "run", *SETTINGS))


# -------------------------------------------------------------------------------------------------
# which run is resumed


def test_auto_continues_the_unfinished_run_of_the_same_settings(
    data_path: Path, tmp_path: Path, monkeypatch, whole: dict
) -> None:
    saved = tmp_path / "saved"

    def arguments(*extra: str) -> list[str]:
        given = toy_arguments(data_path, tmp_path / "unused", *SETTINGS, *extra)
        kept = [text for text in given if not text.startswith("--run_dir=")]
        return [*kept, f"--checkpoint_dir={saved}", "--resume=auto"]

    with monkeypatch.context() as patch:
        at_step(patch, "preference", 4, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            run(arguments())  # there is none yet: a new one
    (stopped,) = saved.iterdir()
    run(arguments("--seed=5"))  # other settings: a new one
    assert len(list(saved.iterdir())) == 2 and not (stopped / "result.json").exists()
    run(arguments())
    assert len(list(saved.iterdir())) == 2
    assert differences(whole, what_is_left(stopped)) == []
    run(arguments())  # it is finished: a new one
    assert len(list(saved.iterdir())) == 3


def test_resuming_a_finished_run_changes_nothing(data_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run(toy_arguments(data_path, folder, "--loss=sft", "--sft_cache=False"))
    before = {path: path.stat().st_mtime_ns for path in (folder / "tensorboard").rglob("*")}
    assert run([f"--resume={folder}"]) == result
    assert {p: p.stat().st_mtime_ns for p in (folder / "tensorboard").rglob("*")} == before


def test_two_runs_at_once_share_neither_folder_nor_half_a_cache(
    data_path: Path, tmp_path: Path
) -> None:
    """Two with the same settings and cache, and two that both want one folder."""
    one_cache = [f"--sft_cache_dir={tmp_path / 'cache'}", "--epochs=1"]

    def start(*extra: str) -> subprocess.Popen[str]:
        given = toy_arguments(data_path, tmp_path / "mine", *one_cache)
        kept = [text for text in given if not text.startswith("--run_dir=")]
        command = [sys.executable, str(ROOT / "run_recbole_multdpo.py"), *kept, *extra]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    apart = [start(f"--checkpoint_dir={tmp_path / 'saved'}") for _ in range(2)]
    same = [start(f"--run_dir={tmp_path / 'mine'}") for _ in range(2)]
    said = [process.communicate(timeout=280)[1] for process in [*apart, *same]]
    assert [process.returncode for process in apart] == [0, 0], said
    assert sorted(process.returncode for process in same) == [0, 2], said
    refused = next(text for process, text in zip(same, said[2:], strict=True) if process.returncode)
    assert "in use by another run" in refused or "is not empty" in refused
    folders = [*(tmp_path / "saved").iterdir(), tmp_path / "mine"]
    assert len(folders) == 3
    results = [json.loads((folder / "result.json").read_text()) for folder in folders]
    assert results[0]["test_result"] == results[1]["test_result"] == results[2]["test_result"]
    assert len(list((tmp_path / "cache").glob("sft-*"))) == 1
    assert [path.name for path in (tmp_path / "cache").glob(".*")] == [".lock"]
