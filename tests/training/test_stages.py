"""Batches of a stage: the log's line and its warning about small ones; the whole catalogue."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from recbole_multdpo.data.batch import SetwiseBatch
from recbole_multdpo.losses import LOSSES
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import DETAIL
from recbole_multdpo.training import stages
from recbole_multdpo.training.step import Stage
from tests.integration.toy import N_ITEMS, toy_model, write_toy


@pytest.mark.parametrize(
    ("name", "n_processes", "device", "line", "warning"),
    [
        ("sft", 1, "cuda", "sft: 16 examples per step", None),
        ("sft", 2, "cuda", "sft: 16 examples per step: 8 on each of 2 processes", None),
        ("preference", 8, "cpu", "preference: 16 examples per step: 2 on each of 8", None),
        ("preference", 8, "cuda", "2 on each of 8 processes", "--train_batch_size to 64, which"),
        ("refit-sft", 3, "cuda", "at most 6 on each of 3", "--sft_batch_size to 24.*--sft_learn"),
    ],
)
def test_examples_per_step_and_process(  # type: ignore[no-untyped-def]
    caplog, monkeypatch, name: str, n_processes: int, device: str, line: str, warning: str | None
) -> None:
    monkeypatch.setattr(processes, "world_size", lambda: n_processes)
    with caplog.at_level(DETAIL):
        stages._log_batches(Stage(name, 1, 1.0, 0), 16, device)
    first, *rest = caplog.messages
    assert line in first
    assert len(rest) == (warning is not None)
    if warning:
        assert re.search(warning, rest[0])


# -------------------------------------------------------------------------------------------------
# num_negatives: all


OF_SETS = [name for name, loss in LOSSES.items() if loss.negatives == "many"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """(config, training part, model) of the toy data, a policy off its reference."""
    path = tmp_path_factory.mktemp("toy")
    config, parts, model = toy_model(write_toy(path / "data"), path, "--num_negatives=all")
    model.start_preference_stage("mult_dpo")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return config, parts[0], model


def step(trained, loss: str, n_negatives: str | int):  # type: ignore[no-untyped-def]
    """A batch of the loss with this num_negatives; its losses and the gradient of each weight."""
    config, train, model = trained
    model.settings = model.settings.model_copy(
        update={"num_negatives": n_negatives, "loss": loss, "level_thresholds": (5.0, 4.0)}
    )
    model.loss_name = loss
    batch = next(iter(stages.train_loader(config, model, train, loss, 8)))
    model.zero_grad()
    losses = model.step(batch, model.batch_kl(batch)).losses
    losses.mean().backward()
    return batch, losses.detach(), [p.grad.clone() for p in model.lm.parameters()]


def negatives(batch: SetwiseBatch) -> list[set[int]]:
    rows = zip(batch.candidates, batch.levels, strict=True)
    return [set(items[levels == 0].tolist()) for items, levels in rows]


@pytest.mark.parametrize("loss", OF_SETS)
def test_a_step_against_the_whole_catalogue_is_that_of_drawing_every_item(trained, loss) -> None:  # type: ignore[no-untyped-def]
    batch, losses, gradients = step(trained, loss, "all")
    model: LLMRec = trained[2]
    for user, found in zip(batch.user_ids.tolist(), negatives(batch), strict=True):
        assert found == {*range(1, N_ITEMS + 1)} - {*model.histories.history(user).tolist()}
    drawn, drawn_losses, drawn_gradients = step(trained, loss, 1000)
    assert negatives(drawn) == negatives(batch)
    torch.testing.assert_close(losses, drawn_losses)
    torch.testing.assert_close(gradients, drawn_gradients, rtol=1e-3, atol=1e-5)
    few, few_losses, _ = step(trained, loss, 5)
    assert all(len(found) == 5 for found in negatives(few))
    assert not torch.allclose(losses, few_losses, rtol=1e-2)  # control


def test_losses_of_one_negative_keep_it(trained) -> None:  # type: ignore[no-untyped-def]
    assert all(len(found) == 1 for found in negatives(step(trained, "dpo", "all")[0]))


@pytest.mark.parametrize(
    ("extra", "n_tokens"),
    [
        ([], None),
        (["--normalize_over=vocabulary"], "feeds up to 30 tokens"),  # titles; ends are not fed
        (["--scorer=padded", "--ranker=exhaustive"], r"feeds up to \d,?\d+ tokens"),
        (["--tiny_title_tokens=False"], r"feeds up to \d\d+ tokens .* about \d\d+\."),
    ],
)
def test_the_price_of_the_whole_catalogue_is_told(  # type: ignore[no-untyped-def]
    caplog, tmp_path: Path, extra: list[str], n_tokens: str | None
) -> None:
    data = write_toy(tmp_path / "data")
    config, parts, model = toy_model(data, tmp_path, "--num_negatives=all", *extra)
    stages.train_loader(config, model, parts[0], "sft", 8)
    stages.train_loader(config, model, parts[0], "dpo", 8)
    assert caplog.messages == []
    stages.train_loader(config, model, parts[0], "mult_dpo", 8)
    assert len(caplog.messages) == (n_tokens is not None)
    if n_tokens is not None:
        assert re.search(n_tokens, caplog.messages[0])
