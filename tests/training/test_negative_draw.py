"""Dynamic negatives with the real model: weights, pools, exclusion, and independence of batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from recbole_multdpo.errors import TrainingError
from recbole_multdpo.scoring.exhaustive import exhaustive_topk
from recbole_multdpo.training.negative_draw import _log_weights, _pool, draw_negatives
from recbole_multdpo.training.stages import train_loader
from tests.integration.toy import N_ITEMS, N_USERS, toy_model, write_toy
from tests.training.test_trainer import away_from_the_reference

EPOCH = 2


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    """(config, training part, model at the start of the preference stage)."""
    folder = tmp_path_factory.mktemp("toy")
    config, parts, model = toy_model(
        write_toy(folder / "data"), folder, "--negatives=dynamic", "--negative_temperature=0.5"
    )
    model.start_preference_stage("mult_dpo")
    model.eval()
    return config, parts[0], model


@pytest.fixture
def model(toy):  # type: ignore[no-untyped-def]
    """The toy's model with its settings and weights as they were."""
    _, _, model = toy
    settings = model.settings
    weights = {name: value.clone() for name, value in model.lm.state_dict().items()}
    yield model
    model.settings = settings
    model.lm.load_state_dict(weights)
    model.reference = None
    model.start_preference_stage("mult_dpo")
    model.eval()


def change(model, **settings) -> None:  # type: ignore[no-untyped-def]
    model.settings = model.settings.model_copy(update=settings)


def loader_of(toy, loss: str = "mult_dpo", batch_size: int = 8):  # type: ignore[no-untyped-def]
    config, train, model = toy
    loader = train_loader(config, model, train, loss, batch_size)
    loader.set_epoch(EPOCH)
    return loader


def drawn(toy, loader=None, epoch: int = EPOCH) -> np.ndarray:  # type: ignore[no-untyped-def]
    """Negatives [n_users, 5] of all users in an epoch."""
    loader = loader or loader_of(toy)
    sampler = loader.setwise_sampler
    negatives = sampler.negative_sampler
    draw_negatives(toy[2], sampler, negatives, loader.users, epoch)
    return negatives.sample(loader.users, 5, seed=sampler.seed, epoch=epoch)


def weights_and_prompts(toy, users):  # type: ignore[no-untyped-def]
    """`_log_weights` of users in the epoch, and the prompts that they are for."""
    _, _, model = toy
    sampler = loader_of(toy).setwise_sampler
    prompts = sampler.prompts.build(sampler.split(users, EPOCH).histories)
    arguments = (model, sampler.negative_sampler, prompts, users, sampler.seed, EPOCH)
    return _log_weights(*arguments), prompts


@pytest.mark.parametrize("weights", ["ratio", "policy"])
def test_weights_are_those_of_the_epochs_prompts(toy, model, weights: str) -> None:  # type: ignore[no-untyped-def]
    """Against the scores of every item by the packed scorer."""
    away_from_the_reference(model, "mult_dpo")
    model.eval()
    change(model, dynamic_weights=weights, beta=0.7)
    users = np.array([1, 4, 9])
    found, prompts = weights_and_prompts(toy, users)
    catalogue = torch.arange(N_ITEMS + 1).expand(3, -1)
    expected = model.score(prompts, catalogue)
    if weights == "ratio":
        expected = 0.7 * (expected - model.score(prompts, catalogue, model.reference))
    torch.testing.assert_close(found[:, 1:], expected[:, 1:] / 0.5, atol=1e-4, rtol=1e-4)
    assert (found[:, 0] == -torch.inf).all()
    assert found[:, 1:].std() > 0.1


def test_the_first_draw_is_uniform_by_ratio_and_not_by_policy(toy, model) -> None:  # type: ignore[no-untyped-def]
    """The policy is the reference: all ratios are exactly 1. 24 users, 5 negatives, 40 epochs."""
    users = np.arange(1, N_USERS + 1)
    weights, _ = weights_and_prompts(toy, users)
    assert (weights[:, 1:] == 0).all()

    def p_value() -> float:
        loader = loader_of(toy)
        counts = sum(
            np.bincount(drawn(toy, loader, epoch)[:, 0], minlength=N_ITEMS + 1)
            for epoch in range(40)
        )
        known = loader.setwise_sampler.negative_sampler.known_mask(users)
        known[:, 0] = True
        expected = 40 * (~known / (~known).sum(1, keepdims=True)).sum(0)
        return float(stats.chisquare(counts[1:], expected[1:]).pvalue)

    assert p_value() > 0.001
    with torch.no_grad():  # far from uniform: an untrained model is nearly so
        for parameter in model.lm.parameters():
            parameter.mul_(3)
    change(model, dynamic_weights="policy", negative_temperature=0.1)
    assert p_value() < 1e-6


@pytest.mark.parametrize("pool", ["catalogue", "uniform", "ranker"])
@pytest.mark.parametrize("loss", ["mult_dpo", "s_dpo"])
def test_negatives_are_distinct_and_no_training_items(toy, model, pool: str, loss: str) -> None:  # type: ignore[no-untyped-def]
    away_from_the_reference(model, loss)
    model.eval()
    change(model, negative_pool=pool, negative_pool_size=9)
    loader = loader_of(toy, loss)
    rows = drawn(toy, loader)
    for user, items in zip(loader.users.tolist(), rows.tolist(), strict=True):
        assert len(set(items)) == 5 and 0 not in items
        assert not set(items) & set(model.histories.history(user).tolist())
    # and they are what the batches hold
    by_user = dict(zip(loader.users.tolist(), rows.tolist(), strict=True))
    for batch in loader:
        for user, items in zip(batch.user_ids.tolist(), batch.candidates.tolist(), strict=True):
            assert items[-5:] == by_user[user]


def test_pools_hold_what_they_say(toy, model) -> None:  # type: ignore[no-untyped-def]
    sampler = loader_of(toy).setwise_sampler
    negatives, users = sampler.negative_sampler, np.array([3, 8])
    prompts = sampler.prompts.build(sampler.split(users, EPOCH).histories)
    arguments = (model, negatives, prompts, users, sampler.seed, EPOCH)
    change(model, negative_pool="uniform", negative_pool_size=9)
    uniform = negatives.pool(users, 9, seed=sampler.seed, epoch=EPOCH)
    assert _pool(*arguments).tolist() == uniform.tolist()
    change(model, negative_pool="ranker")
    known = torch.from_numpy(negatives.known_mask(users))
    best = exhaustive_topk(model.score, prompts, known, 9, n_items=N_ITEMS + 1)
    assert _pool(*arguments).tolist() == best.items.tolist()
    weights = _log_weights(*arguments)
    assert (weights > -torch.inf).sum(1).tolist() == [9, 9]
    assert (weights.gather(1, best.items) > -torch.inf).all()


def test_a_pool_larger_than_the_catalogue_is_the_catalogue(toy, model) -> None:  # type: ignore[no-untyped-def]
    away_from_the_reference(model, "mult_dpo")
    model.eval()
    whole = drawn(toy)
    for pool in ("uniform", "ranker"):
        change(model, negative_pool=pool, negative_pool_size=1000)
        assert (drawn(toy) == whole).all()


def test_the_draw_does_not_depend_on_batches(toy, model) -> None:  # type: ignore[no-untyped-def]
    away_from_the_reference(model, "mult_dpo")
    model.eval()
    whole = drawn(toy)
    assert (drawn(toy, loader_of(toy, batch_size=3)) == whole).all()
    change(model, rank_batch_users=5)
    assert (drawn(toy) == whole).all()
    # control: it does depend on the weights, the temperature and the epoch
    assert (drawn(toy, epoch=EPOCH + 1) != whole).any()
    change(model, negative_temperature=5.0)
    assert (drawn(toy) != whole).any()


def test_with_lora_the_reference_is_the_model_without_adapter(tmp_path) -> None:  # type: ignore[no-untyped-def]
    config, parts, model = toy_model(
        write_toy(tmp_path / "data"), tmp_path, "--negatives=dynamic", "--finetune=lora"
    )
    model.start_preference_stage("mult_dpo")
    model.eval()
    users = np.arange(1, 6)
    weights, _ = weights_and_prompts((config, parts[0], model), users)
    assert (weights[:, 1:] == 0).all()
    with torch.no_grad():
        for parameter in model.lm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    moved, _ = weights_and_prompts((config, parts[0], model), users)
    assert moved[:, 1:].std() > 0.1


def test_supervised_fine_tuning_draws_nothing(toy) -> None:  # type: ignore[no-untyped-def]
    batch = next(iter(loader_of(toy, "sft")))
    assert (batch.levels != 0).all()


def test_log_probabilities_that_are_no_numbers_are_named(toy, model) -> None:  # type: ignore[no-untyped-def]
    with torch.no_grad():
        next(model.lm.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="NaN.*learning_rate"):
        drawn(toy)
