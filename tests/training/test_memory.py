"""Runs whose batches are cut, and whose blocks are recomputed, by the memory that is free."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recbole_multdpo.errors import TrainingError
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.checkpoint import check_checkpoint, step_folders
from recbole_multdpo.runtime.console import DETAIL
from recbole_multdpo.scoring import packed
from recbole_multdpo.training import memory, trainer
from recbole_multdpo.training.stages import train_loader
from recbole_multdpo.training.step import TrainingStep
from tests.integration.toy import toy_arguments, toy_model, write_toy
from tests.training.test_trainer import away_from_the_reference, first_batch, step_gradient

SETTINGS = [
    "--loss=mult_dpo",
    "--epochs=1",
    "--tiny_num_layers=3",
    "--sft_cache=False",
    "--history_format=list",
]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """(config, training part, model, folder); titles of several tokens."""
    folder = tmp_path_factory.mktemp("toy")
    settings = ["--tiny_title_tokens=False", "--num_negatives=12", "--clip_grad_norm=~"]
    config, parts, model = toy_model(write_toy(folder / "data"), folder, *settings)
    return config, parts[0], model, folder


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each forward pass of the preference stage, padding included."""
    pack, fit, found = packed.pack, trainer.fit_into_memory, []

    def counted(*arguments):  # type: ignore[no-untyped-def]
        inputs = pack(*arguments)
        found.append(inputs.input_ids.numel())
        return inputs

    def of_preferences(*arguments):  # type: ignore[no-untyped-def]
        found.clear()
        fit(*arguments)

    monkeypatch.setattr(packed, "pack", counted)
    monkeypatch.setattr(trainer, "fit_into_memory", of_preferences)
    return found


def with_free(monkeypatch: pytest.MonkeyPatch, n_bytes: float) -> None:
    """Let so much be free for gradients, optimizer and activations."""
    monkeypatch.setattr(memory, "logits_bytes", lambda *_: 0)
    monkeypatch.setattr(memory, "free_bytes", lambda device: n_bytes / memory.USABLE["cpu"])


def test_a_small_memory_gives_small_parts_and_the_same_result(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog, sizes: list[int]
) -> None:  # type: ignore[no-untyped-def]
    whole = run(toy_arguments(data_path, tmp_path / "whole", *SETTINGS))
    n_tokens = max(sizes)
    with_free(monkeypatch, 2e6)
    sizes.clear()
    with caplog.at_level(DETAIL):
        cut = run(toy_arguments(data_path, tmp_path / "cut", *SETTINGS))
    state = check_checkpoint(step_folders(tmp_path / "cut/checkpoints/preference")[0])["memory"]
    lines = [line for line in caplog.messages if line.startswith("memory of the preference stage")]
    assert f"max_tokens_per_batch={state['max_tokens']}, gradient_checkpointing=True" in lines[-1]
    assert "0 (batches fit), gradient_checkpointing=False" in lines[0]
    assert state["gradient_checkpointing"]
    assert max(sizes) <= state["max_tokens"] < n_tokens
    assert cut["test_result"] == pytest.approx(whole["test_result"], abs=0.02)


def test_a_resumed_run_computes_the_same_parts(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With more memory than before the checkpoint's choice holds: equal bit by bit."""
    arguments = [*SETTINGS, "--save_steps=1"]
    with_free(monkeypatch, 2e6)
    whole = run(toy_arguments(data_path, tmp_path / "whole", *arguments))
    step, calls = TrainingStep.run, []

    def failing(self, batch, number):  # type: ignore[no-untyped-def]
        calls.append(number)
        if len(calls) == 5:
            raise RuntimeError("stopped")
        return step(self, batch, number)

    def resumed(name: str):  # type: ignore[no-untyped-def]
        calls.clear()
        with_free(monkeypatch, 2e6)
        with monkeypatch.context() as patch:
            patch.setattr(TrainingStep, "run", failing)
            with pytest.raises(RuntimeError, match="stopped"):
                run(toy_arguments(data_path, tmp_path / name, *arguments))
        with_free(monkeypatch, 1e12)
        return run([f"--resume={tmp_path / name}"])["model_files"]

    assert resumed("same") == whole["model_files"]
    # control: chosen anew, the parts are others
    monkeypatch.setattr(trainer, "restore_memory", lambda *_: None)
    assert resumed("other") != whole["model_files"]


def test_processes_choose_by_the_one_with_the_least_memory(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of two, the other has less: the choice is that of its memory."""
    chosen = []
    for own, other in ((2e6, 2e6), (1e12, 2e6), (1e12, 1e12)):
        with_free(monkeypatch, own)
        config, parts, model = toy_model(data_path, tmp_path, *SETTINGS)
        model.train()
        data = train_loader(config, model, parts[0], "sft", 8)
        taken = memory.state_to_come(model, None)
        least = lambda room, n=other - taken: [room, n]  # noqa: E731
        monkeypatch.setattr(memory.processes, "all_gather", least)
        memory.fit_into_memory(config, model, data, "sft")
        chosen.append(memory.memory_state(model))
        monkeypatch.undo()
    assert chosen[0] == chosen[1] != chosen[2]
    assert chosen[2] == {"max_tokens": 0, "gradient_checkpointing": False}


def test_nothing_fits(data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with_free(monkeypatch, 1000)
    with pytest.raises(TrainingError, match=r"does not fit.*--finetune=lora.*--dtype=bfloat16"):
        run(toy_arguments(data_path, tmp_path / "run", *SETTINGS))


def test_explicit_settings_ask_nothing(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "count_step", None)
    explicit = ["--max_tokens_per_batch=90", "--gradient_checkpointing=False"]
    run(toy_arguments(data_path, tmp_path / "run", *SETTINGS, *explicit))


def test_an_example_that_runs_out_of_memory_is_cut(toy, model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Halves of the batch first, then parts of an example's candidates; equal gradients."""
    batch, pack = first_batch(toy, "mult_dpo"), packed.pack
    away_from_the_reference(model, "mult_dpo")
    whole = step_gradient(toy, batch, max_tokens_per_batch=0)
    items = model.catalogue.items
    limit = int(packed.packed_lengths(batch.prompts.lengths, batch.candidates, items).max()) - 1

    def limited(*arguments):  # type: ignore[no-untyped-def]
        found = pack(*arguments)
        if found.input_ids.numel() > limit:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return found

    monkeypatch.setattr(packed, "pack", limited)
    smaller = step_gradient(toy, batch, max_tokens_per_batch="auto")
    torch.testing.assert_close(smaller, whole, rtol=1e-4, atol=1e-5)
    assert 0 < model.automatic_max_tokens < limit
    # control: where the user has set the limit, it stays
    with pytest.raises(TrainingError, match="out of memory"):
        step_gradient(toy, batch, max_tokens_per_batch=0, auto_batch=True)


def test_an_example_is_cut_until_it_fits_or_cannot_be_cut(toy, model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """A third of its tokens, then nothing at all; each try is with fewer tokens than before."""
    batch, pack = first_batch(toy, "mult_dpo"), packed.pack
    away_from_the_reference(model, "mult_dpo")
    whole = step_gradient(toy, batch, max_tokens_per_batch=0)
    items = model.catalogue.items
    longest = int(packed.packed_lengths(batch.prompts.lengths, batch.candidates, items).max())
    least = int(batch.prompts.lengths.max() + items.lengths[batch.candidates].max())
    limit, failed = least, []
    assert longest // 2 > least

    def limited(*arguments):  # type: ignore[no-untyped-def]
        found = pack(*arguments)
        if found.input_ids.numel() > limit:
            failed.append(found.input_ids.numel())
            assert len(failed) < 20, "the same parts fail again and again"
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return found

    monkeypatch.setattr(packed, "pack", limited)
    smaller = step_gradient(toy, batch, max_tokens_per_batch="auto")
    torch.testing.assert_close(smaller, whole, rtol=1e-4, atol=1e-5)
    model.automatic_max_tokens, limit = None, 0
    failed.clear()
    with pytest.raises(TrainingError, match="out of memory"):
        step_gradient(toy, batch, max_tokens_per_batch="auto")


def test_a_statistic_of_the_batch_that_does_not_fit_ends_the_run(toy, model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """KTO's is computed of the whole batch, which smaller parts do not change."""
    batch, tries = first_batch(toy, "kto"), []
    away_from_the_reference(model, "kto")

    def failing(*arguments):  # type: ignore[no-untyped-def]
        tries.append(1)
        assert len(tries) < 20, "the same statistic fails again and again"
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(LLMRec, "batch_kl", failing)
    with pytest.raises(TrainingError, match="lower --train_batch_size"):
        step_gradient(toy, batch, max_tokens_per_batch="auto")


def test_a_damaged_state_is_refused(model) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError, match="memory"):
        memory.restore_memory(model, {"max_tokens": "9", "gradient_checkpointing": True})
