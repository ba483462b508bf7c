"""One optimizer step: the batch's average, its parts, and every loss through the real model."""

from __future__ import annotations

import pytest
import torch
from torch.optim.lr_scheduler import LambdaLR

from recbole_multdpo.errors import TrainingError
from recbole_multdpo.losses import LOSSES, kl_estimate, preference_loss, set_masks
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.ranking import make_ranker
from recbole_multdpo.training import step as step_module
from recbole_multdpo.training.stages import train_loader
from recbole_multdpo.training.step import TrainingStep, part_tokens
from recbole_multdpo.training.trainer import SetwiseTrainer, Stage
from tests.integration.toy import toy_model, write_toy


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """(config, training part, model, folder); level_thresholds give two levels of positives."""
    folder = tmp_path_factory.mktemp("toy")
    config, parts, model = toy_model(
        write_toy(folder / "data"),
        folder,
        "--loss=lipo_bt",
        "--level_thresholds=[5, 4]",
        "--clip_grad_norm=~",
    )
    return config, parts[0], model, folder


def first_batch(toy, loss: str):  # type: ignore[no-untyped-def]
    config, train, model, _ = toy
    loader = train_loader(config, model, train, loss, 8)
    loader.set_epoch(0)
    return next(iter(loader))


def away_from_the_reference(model, loss: str) -> None:  # type: ignore[no-untyped-def]
    model.start_preference_stage(loss)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))


def step_gradient(toy, batch, **changes):  # type: ignore[no-untyped-def]
    """The gradient of one optimizer step, as one vector."""
    config, _, model, folder = toy
    model.settings = model.settings.model_copy(update=changes)
    stage, ranker = Stage("preference", 1, 1e-30, 0), make_ranker(model, model.histories)
    trainer = SetwiseTrainer(config, model, stage, folder / "run", ranker)
    trainer.schedule = LambdaLR(trainer.optimizer, lambda step: 1.0)
    trainer._train_step(batch)
    return torch.cat([p.grad.flatten() for p in model.lm.parameters() if p.grad is not None])


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_trains_on_what_the_sampler_serves(toy, model, loss: str) -> None:  # type: ignore[no-untyped-def]
    batch = first_batch(toy, loss)
    positives, negatives = (mask.sum(1) for mask in set_masks(batch.levels))
    assert (positives == 1).all() == (LOSSES[loss].positives == "one")
    assert set(negatives.tolist()) == {"none": {0}, "one": {1}, "many": {5}}[LOSSES[loss].negatives]
    model.start_preference_stage(loss)
    gradient = step_gradient(toy, batch)
    assert gradient.isfinite().all() and gradient.abs().max() > 1e-6


@pytest.mark.parametrize("loss", ["mult2_dpo", "kto"])
@pytest.mark.parametrize("average", ["context", "positive"])
def test_parts_add_up_to_the_whole_batch(toy, model, loss: str, average: str) -> None:  # type: ignore[no-untyped-def]
    """Parts of 3, 3 and 2 examples with unequal numbers of positives, also for KTO's statistic."""
    batch = first_batch(toy, loss)
    away_from_the_reference(model, loss)
    whole = step_gradient(toy, batch, loss_average=average)
    parts = step_gradient(toy, batch, loss_average=average, gradient_accumulation_steps=3)
    torch.testing.assert_close(parts, whole, rtol=1e-4, atol=1e-5)

    losses = model.step(batch, model.batch_kl(batch)).losses
    n_positives = set_masks(batch.levels)[0].sum(1)
    total = len(batch) if average == "context" else n_positives.sum()
    model.lm.zero_grad()
    (losses.sum() / total).backward()
    expected = torch.cat([p.grad.flatten() for p in model.lm.parameters() if p.grad is not None])
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("loss", ["mult2_dpo", "kto"])
@pytest.mark.parametrize("average", ["context", "positive"])
def test_parts_of_similar_length_add_up_to_the_whole_batch(  # type: ignore[no-untyped-def]
    toy, model, monkeypatch: pytest.MonkeyPatch, loss: str, average: str
) -> None:
    """A part that costs nothing is made for every length (here made up: the toy's are equal).

    Control: with the weights of other examples the gradient is another one.
    """
    batch = first_batch(toy, loss)
    away_from_the_reference(model, loss)
    lengths = torch.tensor([5, 3, 9, 5, 7, 3, 3, 9])
    monkeypatch.setattr(step_module, "packed_lengths", lambda *_: lengths)
    sizes: list[int] = []
    one_part = LLMRec.step
    monkeypatch.setattr(
        LLMRec, "step", lambda *args: (sizes.append(len(args[1])), one_part(*args))[1]
    )
    gradients = []
    for cost in (2**40, 0):
        monkeypatch.setattr(step_module, "PART_COST_CPU", cost)
        gradients.append(step_gradient(toy, batch, loss_average=average))
    assert sizes == [8, 2, 1, 2, 3]
    torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)

    weights = TrainingStep.example_weights
    reversed_weights = torch.linspace(0.5, 1.5, len(batch))
    monkeypatch.setattr(
        TrainingStep, "example_weights", lambda *args: weights(*args) * reversed_weights
    )
    wrong = step_gradient(toy, batch, loss_average=average)
    assert not torch.allclose(wrong, gradients[0], rtol=1e-2, atol=1e-3)


def test_a_part_costs_less_where_tokens_cost_more(toy, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """256 tokens for a layer of 256 on a CPU, less for larger models; many on a GPU (modelled)."""
    model, cpu = toy[2], torch.device("cpu")
    assert part_tokens(model.lm, cpu) == 256 * (256 / 32) ** 2
    monkeypatch.setattr(model.lm.config, "num_hidden_layers", 2)
    assert part_tokens(model.lm, cpu) == 128 * (256 / 32) ** 2
    assert part_tokens(model.lm, torch.device("cuda")) == 1024 * 128 * (128 / 32) ** 2


def test_without_a_reference_the_loss_is_that_of_log_probabilities(toy, model) -> None:  # type: ignore[no-untyped-def]
    batch = first_batch(toy, "mult_dpo")
    away_from_the_reference(model, "mult_dpo")
    with_reference = model.step(batch)
    model.settings = model.settings.model_copy(update={"reference": "none"})
    without = model.step(batch)
    assert without.reference_logps is None
    expected = preference_loss(
        "mult_dpo",
        with_reference.policy_logps,
        torch.zeros_like(with_reference.policy_logps),
        batch.levels,
        model.settings.beta,
    )
    torch.testing.assert_close(without.losses, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(without.losses, with_reference.losses, atol=0.1)


def test_averages_differ_by_the_number_of_positives(toy, model) -> None:  # type: ignore[no-untyped-def]
    batch = first_batch(toy, "mult_dpo")
    model.start_preference_stage("mult_dpo")
    by_context = step_gradient(toy, batch, loss_average="context")
    by_positive = step_gradient(toy, batch, loss_average="positive")
    n_positives = set_masks(batch.levels)[0].sum()
    scaled = by_positive * n_positives / len(batch)
    torch.testing.assert_close(scaled, by_context, rtol=1e-4, atol=1e-4)
    assert n_positives > len(batch)


def test_kto_estimates_the_divergence_on_the_next_examples_first_target(toy, model) -> None:  # type: ignore[no-untyped-def]
    batch = first_batch(toy, "kto")
    away_from_the_reference(model, "kto")
    items = batch.candidates[:, 0].tolist()
    users, order = torch.arange(len(batch)), batch.user_ids.argsort()
    following = torch.empty_like(order)
    following[order] = order[(users + 1) % len(batch)]
    assert order.tolist() != users.tolist()
    logps = []
    for lm in (model.lm, model.reference):
        row = type(batch)(**{**vars(batch), "candidates": torch.tensor([items] * len(items))})
        scores = model._scorer(row)(lm).detach()
        logps.append(scores[users, following])
    torch.testing.assert_close(model.batch_kl(batch), kl_estimate(*logps), rtol=1e-4, atol=1e-5)
    assert model.batch_kl(batch.select(torch.tensor([0]))) == 0
    model.start_preference_stage("mult_dpo")
    assert model.batch_kl(batch) is None


def out_of_memory_above(n_examples: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let no more examples than that fit into a part; the sizes that were tried."""
    step, sizes = LLMRec.step, []

    def limited(model, batch, kl=None):  # type: ignore[no-untyped-def]
        sizes.append(len(batch))
        if len(batch) > n_examples:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        return step(model, batch, kl)

    monkeypatch.setattr(LLMRec, "step", limited)
    return sizes


@pytest.mark.parametrize("loss", ["mult2_dpo", "kto"])
@pytest.mark.parametrize("average", ["context", "positive"])
def test_smaller_parts_after_running_out_of_memory_give_the_same_gradient(  # type: ignore[no-untyped-def]
    toy, model, monkeypatch: pytest.MonkeyPatch, loss: str, average: str
) -> None:
    """The second part of the first try fails too: nothing of its first part may stay."""
    batch = first_batch(toy, loss)
    away_from_the_reference(model, loss)
    whole = step_gradient(toy, batch, loss_average=average)
    sizes = out_of_memory_above(2, monkeypatch)
    smaller = step_gradient(toy, batch, loss_average=average, auto_batch=True)
    assert sizes == [8, 4, 2, 2, 2, 2]
    torch.testing.assert_close(smaller, whole, rtol=1e-4, atol=1e-5)


def test_a_part_that_fails_after_others_leaves_nothing_of_them(  # type: ignore[no-untyped-def]
    toy, model, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = first_batch(toy, "mult_dpo")
    away_from_the_reference(model, "mult_dpo")
    whole = step_gradient(toy, batch)
    step, calls = LLMRec.step, []

    def failing_once(model, batch, kl=None):  # type: ignore[no-untyped-def]
        calls.append(len(batch))
        if len(calls) == 2:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: not enough memory")
        return step(model, batch, kl)

    monkeypatch.setattr(LLMRec, "step", failing_once)
    smaller = step_gradient(toy, batch, auto_batch=True, gradient_accumulation_steps=2)
    assert calls == [4, 4, 2, 2, 2, 2]
    torch.testing.assert_close(smaller, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "most", "named"),
    [
        ({"max_tokens_per_batch": 0}, 7, "with 8 examples.*set --auto_batch=True"),
        ({"auto_batch": True, "max_tokens_per_batch": 0}, 0, "with 1 exam"),
        ({}, 0, "with 1 exam"),
    ],
)
def test_out_of_memory_names_examples_and_settings(  # type: ignore[no-untyped-def]
    toy, model, monkeypatch: pytest.MonkeyPatch, changes, most: int, named: str
) -> None:
    batch = first_batch(toy, "mult_dpo")
    model.start_preference_stage("mult_dpo")
    out_of_memory_above(most, monkeypatch)
    with pytest.raises(TrainingError, match=f"{named}.*--max_tokens_per_batch") as caught:
        step_gradient(toy, batch, **changes)
    assert "users u" in str(caught.value) and "20 GiB" in str(caught.value)


def test_another_error_is_no_want_of_memory(toy, model, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    def failing(*_):  # type: ignore[no-untyped-def]
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(LLMRec, "step", failing)
    with pytest.raises(RuntimeError, match="shapes"):
        step_gradient(toy, first_batch(toy, "sft"), auto_batch=True)


@pytest.mark.parametrize(
    ("epochs", "eval_step", "unvalidated"),
    [(4, 0, 0), (4, 1, 0), (4, 2, 0), (4, 3, 1), (5, 2, 1), (4, 4, 0), (4, 9, 0), (0, 2, 0)],
)
def test_epochs_that_no_validation_follows(epochs: int, eval_step: int, unvalidated: int) -> None:
    """With a step of more than there are epochs, the last one is validated."""
    assert Stage("preference", epochs, 1.0, eval_step).unvalidated == unvalidated
