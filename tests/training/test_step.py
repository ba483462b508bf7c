"""The metrics of an optimizer step: their definition, parts of a batch, several kinds of losses."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from recbole_multdpo.data.batch import SetwiseBatch
from recbole_multdpo.losses import LOSSES, set_masks
from recbole_multdpo.model.llmrec import StepOutput
from recbole_multdpo.ranking import make_ranker
from recbole_multdpo.training import step
from recbole_multdpo.training.step import Stage, TrainingStep, step_metrics
from recbole_multdpo.training.trainer import SetwiseTrainer
from tests.integration.toy import toy_model, write_toy
from tests.training.test_trainer import away_from_the_reference, first_batch

TRL_NAMES = (
    *(f"rewards/{name}" for name in ("chosen", "rejected", "accuracies", "margins")),
    "logps/chosen",
    "logps/rejected",
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """(config, training part, model, folder); level_thresholds give two levels of positives."""
    folder = tmp_path_factory.mktemp("toy")
    config, parts, model = toy_model(
        write_toy(folder / "data"),
        folder,
        "--loss=lipo_bt",
        "--level_thresholds=[5, 4]",
        "--beta=0.5",
    )
    return config, parts[0], model, folder


def metrics_of_a_step(toy, batch: SetwiseBatch, **changes) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """Metrics of one optimizer step."""
    config, _, model, folder = toy
    model.settings = model.settings.model_copy(update=changes)
    stage, ranker = Stage("preference", 1, 1e-30, 0), make_ranker(model, model.histories)
    trainer = SetwiseTrainer(config, model, stage, folder / "run", ranker)
    return trainer.step.run(batch, 1)


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def slow_metrics(model, batch: SetwiseBatch, loss: str) -> dict[str, float]:  # type: ignore[no-untyped-def]
    """TRL's metrics, example by example and pair by pair."""
    output, beta = model.step(batch, model.batch_kl(batch)), model.settings.beta
    rows: dict[str, list[float]] = {name: [] for name in TRL_NAMES}
    for row in range(len(batch)):
        chosen: list[tuple[float, float]] = []  # (reward, log-probability)
        rejected: list[tuple[float, float]] = []
        for column, level in enumerate(batch.levels[row].tolist()):
            if level == -1:
                continue
            logp = reward = float(output.policy_logps[row, column])
            if output.reference_logps is not None:
                reward -= float(output.reference_logps[row, column])
            elif loss in ("simpo", "pro"):
                reward /= int(model.catalogue.items.lengths[batch.candidates[row, column]])
            (chosen if level >= 1 else rejected).append((beta * reward, logp))
        rows["rewards/accuracies"].append(mean([c[0] > r[0] for c in chosen for r in rejected]))
        (rewarded, logp), (punished, other) = (
            map(mean, zip(*side, strict=True)) for side in (chosen, rejected)
        )
        rows["rewards/chosen"].append(rewarded)
        rows["rewards/rejected"].append(punished)
        rows["rewards/margins"].append(rewarded - punished)
        rows["logps/chosen"].append(logp)
        rows["logps/rejected"].append(other)
    return {name: mean(values) for name, values in rows.items()}


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "sft"])
@pytest.mark.parametrize("n_parts", [1, 3])
def test_metrics_equal_a_slow_count(toy, model, loss: str, n_parts: int) -> None:  # type: ignore[no-untyped-def]
    """Levels, one negative or several, no reference, KTO; whole and in parts of 3, 3 and 2."""
    batch = first_batch(toy, loss)
    away_from_the_reference(model, loss)
    found = metrics_of_a_step(toy, batch, loss=loss, gradient_accumulation_steps=n_parts)
    expected = slow_metrics(model, batch, loss)
    assert {name: found[name] for name in TRL_NAMES} == pytest.approx(expected, abs=2e-5)
    assert 0 < expected["rewards/accuracies"] < 1
    assert (found["positive_logp"], found["negative_logp"], found["reward_accuracy"]) == (
        found["logps/chosen"],
        found["logps/rejected"],
        found["rewards/accuracies"],
    )
    if LOSSES[loss].needs_reference:
        assert found["margin"] == found["rewards/margins"]
    else:
        assert found["margin"] == pytest.approx(
            expected["logps/chosen"] - expected["logps/rejected"], abs=2e-5
        )


def test_without_a_reference_the_reward_is_the_log_probability(toy, model) -> None:  # type: ignore[no-untyped-def]
    batch = first_batch(toy, "mult2_dpo")
    away_from_the_reference(model, "mult2_dpo")
    with_reference = metrics_of_a_step(toy, batch, loss="mult2_dpo")
    found = metrics_of_a_step(toy, batch, loss="mult2_dpo", reference="none")
    expected = slow_metrics(model, batch, "mult2_dpo")
    assert {name: found[name] for name in TRL_NAMES} == pytest.approx(expected, abs=2e-5)
    assert found["rewards/margins"] == pytest.approx(0.5 * found["margin"], abs=2e-5)
    assert found["rewards/chosen"] != pytest.approx(with_reference["rewards/chosen"], abs=0.1)


def test_a_part_counts_by_its_examples(toy, model, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    """Control: means of unequal parts, averaged without weights, are others."""
    batch = first_batch(toy, "mult2_dpo")
    away_from_the_reference(model, "mult2_dpo")
    parts: list[dict[str, float]] = []

    def recording(*args):  # type: ignore[no-untyped-def]
        parts.append(step_metrics(*args))
        return parts[-1]

    monkeypatch.setattr(step, "step_metrics", recording)
    found = metrics_of_a_step(toy, batch, loss="mult2_dpo", gradient_accumulation_steps=3)
    unweighted = mean([part["rewards/accuracies"] for part in parts])
    assert len(parts) == 3
    assert abs(found["rewards/accuracies"] - unweighted) > 1e-3


def test_one_pair_is_trls_definition() -> None:
    """The lines of TRL's DPOTrainer, for rewards and log-probabilities of pairs."""
    generator = torch.Generator().manual_seed(0)
    policy, reference = torch.randn(2, 16, 2, generator=generator)
    beta = 0.1
    found = step_metrics(
        StepOutput(torch.zeros(16), policy, reference), torch.tensor([[1, 0]] * 16), beta
    )
    chosen_rewards = beta * (policy[:, 0] - reference[:, 0])
    rejected_rewards = beta * (policy[:, 1] - reference[:, 1])
    expected = {
        "rewards/chosen": chosen_rewards.mean().item(),
        "rewards/rejected": rejected_rewards.mean().item(),
        "rewards/accuracies": (chosen_rewards > rejected_rewards).float().mean().item(),
        "rewards/margins": (chosen_rewards - rejected_rewards).mean().item(),
        "logps/chosen": policy[:, 0].mean().item(),
        "logps/rejected": policy[:, 1].mean().item(),
    }
    assert {name: found[name] for name in TRL_NAMES} == pytest.approx(expected)


def test_supervised_fine_tuning_has_no_rewards(toy, model) -> None:  # type: ignore[no-untyped-def]
    batch = first_batch(toy, "sft")
    assert not set_masks(batch.levels)[1].any()
    model.start_preference_stage("sft")
    config, _, model, folder = toy
    stage, ranker = Stage("sft", 1, 1e-30, 0), make_ranker(model, model.histories)
    trainer = SetwiseTrainer(config, model, stage, folder / "run", ranker)
    assert isinstance(trainer.step, TrainingStep)
    assert set(trainer.step.run(batch, 1)) == {"loss", "positive_logp", "grad_norm"}
