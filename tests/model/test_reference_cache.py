"""The reference's log-probabilities on disk: the same numbers, found again, never mistaken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_multdpo.data.batch import Prompts, SetwiseBatch
from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.model.reference_cache import FILE_NAME, ReferenceCache
from recbole_multdpo.quick_start import run
from recbole_multdpo.training.stages import train_loader
from recbole_multdpo.training.trainer import SetwiseTrainer
from tests.integration.toy import toy_arguments, toy_model, write_toy

BATCH = SetwiseBatch(
    user_ids=torch.tensor([1, 2]),
    prompts=Prompts(torch.tensor([[5, 6, 7], [5, 6, 0]]), torch.tensor([3, 2])),
    candidates=torch.tensor([[1, 0, 2], [1, 3, 0]]),
    levels=torch.tensor([[1, -1, 0], [1, 0, -1]]),
)


def by_hand(batch: SetwiseBatch) -> torch.Tensor:
    """Minus ten times the user, less the item; 0 at padding."""
    values = -10.0 * batch.user_ids[:, None] - batch.candidates
    return torch.where(batch.candidates > 0, values, 0.0)


def never(batch: SetwiseBatch) -> torch.Tensor:
    raise AssertionError("was to be found")


def test_what_was_saved_is_found_under_any_padding_and_batch(tmp_path: Path) -> None:
    first = ReferenceCache(tmp_path / "cache")
    expected = [[-11.0, 0.0, -12.0], [-21.0, -23.0, 0.0]]
    assert first.logps(BATCH, by_hand).tolist() == expected
    assert first.logps(BATCH, never).tolist() == expected
    first.save()
    second = ReferenceCache(tmp_path / "cache")
    assert second.logps(BATCH, never).tolist() == expected
    other = replace(
        BATCH.select(torch.tensor([1])),
        prompts=Prompts(torch.tensor([[5, 6]]), torch.tensor([2])),
        candidates=torch.tensor([[0, 1, 3]]),
    )
    assert second.logps(other, never).tolist() == [[0.0, -21.0, -23.0]]
    assert (first.n_computed, second.n_computed) == (2, 0)


@pytest.mark.parametrize(
    "change",
    [
        {"prompts": replace(BATCH.prompts, ids=torch.tensor([[5, 6, 8], [5, 6, 0]]))},
        {"prompts": replace(BATCH.prompts, lengths=torch.tensor([2, 2]))},
        {"candidates": torch.tensor([[2, 0, 1], [1, 3, 0]])},
        {"candidates": torch.tensor([[1, 0, 0], [1, 3, 0]])},
    ],
    ids=["prompt", "length", "order", "fewer"],
)
def test_another_prompt_or_draw_is_another_example(tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    cache = ReferenceCache(tmp_path)
    cache.logps(BATCH, by_hand)
    changed = replace(BATCH, **change)
    assert cache.logps(changed, by_hand).equal(by_hand(changed))
    assert cache.n_computed == 3  # the second example was found


def test_runs_add_to_each_other(tmp_path: Path) -> None:
    for row in (0, 1):
        cache = ReferenceCache(tmp_path)
        cache.logps(BATCH.select(torch.tensor([row])), by_hand)
        cache.save()
    assert ReferenceCache(tmp_path).logps(BATCH, never).equal(by_hand(BATCH))


@pytest.mark.parametrize("damage", ["hole", "cut", "short"])
def test_damage_is_an_error(tmp_path: Path, damage: str) -> None:
    cache = ReferenceCache(tmp_path)
    cache.logps(BATCH, by_hand)
    cache.save()
    (path,) = tmp_path.glob(f"*/{FILE_NAME}")
    with np.load(path) as saved:
        arrays = dict(saved)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-40])
    else:
        logps = np.full_like(arrays["logps"], np.nan) if damage == "hole" else arrays["logps"][1:]
        np.savez(path, **{**arrays, "logps": logps})
    with pytest.raises(CheckpointError, match="Delete its folder"):
        ReferenceCache(tmp_path)


def test_the_key_knows_weights_and_normalisation(tmp_path: Path) -> None:
    data_path = write_toy(tmp_path)

    def key(*extra: str, nudge: float = 0.0) -> str:
        _, _, model = toy_model(data_path, tmp_path, *extra)
        with torch.no_grad():
            next(iter(model.lm.parameters())).add_(nudge)
        model.start_preference_stage("mult_dpo")
        return model.reference_digest()

    same = [key(), key("--beta=3", "--loss=pl_dpo", "--num_negatives=2")]
    others = [
        key(nudge=1e-3),
        *map(key, ("--normalize_over=vocabulary", "--seed=7", "--tf32=True")),
    ]
    lora = [key("--finetune=lora", "--lora_r=2"), key("--finetune=lora", "--lora_r=1")]
    assert same[0] == same[1] and lora[0] == lora[1]
    assert len({same[0], *others}) == 5


@pytest.mark.parametrize("finetune", ["full", "lora"])
def test_a_sweep_over_beta_computes_the_reference_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, finetune: str
) -> None:
    data_path, caches = write_toy(tmp_path), []
    init = ReferenceCache.__init__

    def recorded(self, folder):  # type: ignore[no-untyped-def]
        caches.append(self)
        init(self, folder)

    monkeypatch.setattr(ReferenceCache, "__init__", recorded)
    results = {}
    for name, beta, cached in [("a", 1, True), ("b", 3, True), ("plain", 3, False)]:
        results[name] = run(
            toy_arguments(
                data_path,
                tmp_path / name,
                f"--finetune={finetune}",
                f"--beta={beta}",
                f"--reference_cache={cached}",
                "--epochs=1",
            )
        )
    first, second = caches
    assert first.n_computed == 24 and second.n_computed == 0
    assert results["b"]["test_result"] == pytest.approx(results["plain"]["test_result"], abs=2e-3)


def test_a_killed_run_leaves_what_it_computed_before_its_last_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data_path = write_toy(tmp_path)
    arguments = ("--reference_cache=True", "--epochs=2", "--eval_step=1")
    epoch = SetwiseTrainer._train_epoch

    def killed_in_the_second(self, train_data, epoch_idx, *args, **kwargs):  # type: ignore[no-untyped-def]
        if self.stage.name == "preference" and epoch_idx == 1:
            raise RuntimeError("killed")
        return epoch(self, train_data, epoch_idx, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(SetwiseTrainer, "_train_epoch", killed_in_the_second)
        with pytest.raises(RuntimeError, match="killed"):
            run(toy_arguments(data_path, tmp_path / "killed", *arguments))
    (folder,) = (tmp_path / "cache").glob("reference-*")
    left = ReferenceCache(folder)
    assert len(left._logps) == 24  # one epoch of the toy's users
    run(toy_arguments(data_path, tmp_path / "again", *arguments))
    assert len(ReferenceCache(folder)._logps) == 48
    assert len(list(folder.iterdir())) == 2  # the first epoch was not computed and stored again


def test_a_cache_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = ReferenceCache(tmp_path / "cache")
    cache.logps(BATCH, by_hand)
    with pytest.raises(CheckpointError, match="reference_cache=False"):
        cache.save()


def test_a_step_from_the_cache_is_the_step_without(tmp_path: Path) -> None:
    config, parts, model = toy_model(write_toy(tmp_path), tmp_path)
    loader = train_loader(config, model, parts[0], "mult_dpo", 8)
    loader.set_epoch(0)
    batch = next(iter(loader))
    model.start_preference_stage("mult_dpo")
    with torch.no_grad():  # off its reference
        next(iter(model.lm.parameters())).mul_(1.1)
    plain = model.step(batch)
    model.reference_cache = ReferenceCache(tmp_path / "cache")
    for _ in range(2):  # computed, then found
        cached = model.step(batch)
        assert torch.equal(cached.reference_logps, plain.reference_logps)
        assert torch.equal(cached.losses, plain.losses)
