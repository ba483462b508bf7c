"""A step with a teacher: its loss and gradient against a dense count, in parts, with LoRA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from recbole_multdpo.classical.teacher import make_teacher
from recbole_multdpo.data.batch import SetwiseBatch
from recbole_multdpo.data.loader import FILLER
from recbole_multdpo.ranking import make_ranker
from recbole_multdpo.training.stages import soft_targets, train_loader
from recbole_multdpo.training.step import Stage, TrainingStep
from recbole_multdpo.training.trainer import SetwiseTrainer
from tests.integration.toy import toy_model, write_toy

TEACHER = [
    *("--loss=sft", "--sft_teacher=EASE", "--EASE.reg_weight=5", "--sft_teacher_weight=0.3"),
    "--clip_grad_norm=~",
]
TITLES = {
    "one token": [],
    "over the vocabulary": ["--normalize_over=vocabulary", "--sft_teacher_items=4"],
    "several tokens": ["--tiny_title_tokens=False", "--sft_teacher_items=4"],
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


def taught(data: Path, folder: Path, *extra: str) -> SimpleNamespace:
    """A model with its teacher and a batch of the supervised stage."""
    config, parts, model = toy_model(data, folder, *TEACHER, *extra)
    teacher = make_teacher(config.teacher, parts[0], parts[0], folder / "teacher")
    loader = train_loader(config, model, parts[0], "sft", 8)
    loader.setwise_sampler.soft_targets = soft_targets(model, teacher)
    loader.set_epoch(0)
    batch = loader.collate_fn(range(8))
    return SimpleNamespace(**locals())


def step_gradient(toy: SimpleNamespace, batch: SetwiseBatch, **changes: Any) -> Tensor:
    """Gradient of a whole step, before the clipping and the update, which are made tiny."""
    model = toy.model
    model.settings = model.settings.model_copy(update=changes)
    stage, ranker = Stage("sft", 1, 1e-30, 0), make_ranker(model, model.histories)
    found = SetwiseTrainer(toy.config, model, stage, toy.folder / "run", ranker)
    toy.metrics = found.step.run(batch, 1)
    return torch.cat([p.grad.flatten() for p in model.lm.parameters() if p.grad is not None])


def slow_loss(toy: SimpleNamespace, batch: SetwiseBatch, weight: float) -> Tensor:
    """The loss of the stage, context by context and item by item, from scores of all items."""
    model, settings = toy.model, toy.model.settings
    train, n_items = toy.parts[0].inter_feat, toy.model.n_items
    x = np.zeros((toy.parts[0].user_num, n_items))
    x[train["user_id"].numpy(), train["item_id"].numpy()] = 1
    p = np.linalg.inv(x.T @ x + 5 * np.eye(n_items))
    b = np.where(np.eye(n_items), 0, -p / np.diag(p))
    factor = np.maximum(x.sum(0), 1) ** settings.sft_teacher_popularity
    every_item = torch.arange(n_items).expand(len(batch), -1)
    scored = replace(batch, candidates=every_item, teacher_probs=None)
    logps = toy.padded(scored)
    of_positives, of_teacher, n_positives = [], [], 0
    split = toy.loader.setwise_sampler.split(batch.user_ids.numpy(), 0)
    for row, (shown, target) in enumerate(zip(split.histories, split.targets, strict=True)):
        positives = [*target.tolist(), *shown.tolist()]
        of_positives += [-logps[row, item] for item in positives]
        n_positives += len(positives)
        open_items = [item for item in range(1, n_items) if item not in shown.tolist()]
        scores = np.array([sum(b[i, j] * factor[j] for i in shown) for j in open_items])
        z = 1.5 * (scores - scores.mean()) / scores.std()
        probs = dict(zip(open_items, np.exp(z), strict=True))
        if not model.scores_in_one_token:
            best = sorted(probs, key=lambda item: -probs[item])[: settings.sft_teacher_items]
            probs = {item: probs[item] for item in {*best, *target.tolist()}}
        total = sum(probs.values())
        of_teacher.append(-sum(logps[row, item] * probs[item] / total for item in probs))
    first = torch.stack(of_positives).sum() / n_positives
    return (1 - weight) * first + weight * torch.stack(of_teacher).mean()


def padded_scores(toy: SimpleNamespace, batch: SetwiseBatch) -> Tensor:
    """log π of the batch's candidates, one sequence per candidate."""
    model = toy.model
    model.settings = model.settings.model_copy(update={"scorer": "padded"})
    try:
        return model._scorer(batch)(model.lm)
    finally:
        model.settings = model.settings.model_copy(update={"scorer": "packed"})


@pytest.mark.parametrize("titles", TITLES, ids=str)
def test_a_step_equals_the_dense_loss(data: Path, tmp_path: Path, titles: str) -> None:
    """Values and gradients, whole and in parts; with another weight, or without, they differ."""
    toy = taught(data, tmp_path, *TITLES[titles])
    toy.padded = lambda batch: padded_scores(toy, batch)
    toy.model.train()
    loss = slow_loss(toy, toy.batch, 0.3)
    parameters = [p for p in toy.model.lm.parameters() if p.requires_grad]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    whole = step_gradient(toy, toy.batch)
    assert 0.7 * toy.metrics["loss"] + 0.3 * toy.metrics["teacher_loss"] == pytest.approx(
        float(loss.detach()),
        rel=0.02,  # the log's loss is a mean over contexts, this one over positives
    )
    torch.testing.assert_close(whole, expected, rtol=1e-3, atol=1e-6)
    for parts in ({"gradient_accumulation_steps": 3}, {"max_tokens_per_batch": 60}):
        torch.testing.assert_close(
            step_gradient(toy, toy.batch, **parts), expected, rtol=1e-3, atol=1e-6
        )
    other = step_gradient(toy, toy.batch, sft_teacher_weight=0.6)
    assert not torch.allclose(other, expected, rtol=1e-2, atol=1e-4)
    without = step_gradient(toy, replace(toy.batch, teacher_probs=None))
    assert not torch.allclose(without, expected, rtol=1e-2, atol=1e-4)


def test_weights_of_the_terms(data: Path, tmp_path: Path) -> None:
    """All positives weigh alike, and all contexts; a filler has no weight."""
    toy = taught(data, tmp_path)
    batch = toy.batch.select(torch.tensor([0, 1, 2, 2]))
    batch.user_ids[3] = FILLER
    batch.levels[0, batch.levels[0] >= 1] = -1
    batch.levels[0, 5] = 1
    n_positives = (batch.levels[:3] >= 1).sum(1)
    step = SimpleNamespace(settings=toy.model.settings, n_examples=3, stage=Stage("sft", 1, 1, 0))
    step.example_weights = lambda batch: TrainingStep.example_weights(step, batch)  # type: ignore[arg-type]
    found = TrainingStep.term_weights(step, batch)  # type: ignore[arg-type]
    torch.testing.assert_close(found[:3, 0], 0.7 * n_positives / n_positives.sum())
    torch.testing.assert_close(found[:3, 1], torch.full((3,), 0.1))
    assert found[3].tolist() == [0, 0]


def test_lora_gets_the_gradient_of_all_weights(data: Path, tmp_path: Path) -> None:
    """Of a LoRA matrix that begins at 0 it is the other's product with that of the weight."""
    toy = taught(data, tmp_path, "--finetune=lora", "--lora_r=2")
    toy.padded = lambda batch: padded_scores(toy, batch)
    loss = slow_loss(toy, toy.batch, 0.3)
    parameters = [p for p in toy.model.lm.parameters() if p.requires_grad]
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])
    torch.testing.assert_close(step_gradient(toy, toy.batch), expected, rtol=1e-3, atol=1e-6)
