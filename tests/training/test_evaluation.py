"""The language model runs once per validation: weights share its scores, and none is repeated."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from recbole_multdpo.classical.assistant import make_assistant
from recbole_multdpo.data.loader import evaluation_loaders
from recbole_multdpo.errors import TrainingError
from recbole_multdpo.quick_start import run
from recbole_multdpo.ranking import make_ranker
from recbole_multdpo.scoring.best_first import TrieSearch
from recbole_multdpo.training import trainer as trainer_module
from recbole_multdpo.training.step import Stage
from recbole_multdpo.training.trainer import SetwiseTrainer
from tests.integration.toy import toy_arguments, toy_model, without_price

WEIGHTS = [0.0, 1.0, 3.0, 30.0]
Counts = dict[str, int]


@contextmanager
def counted(lm: nn.Module) -> Iterator[Counts]:
    """Forwards of a language model and the tokens that they are fed, padding included."""
    counts = {"forwards": 0, "tokens": 0}

    def count(module: nn.Module, arguments: Any) -> None:
        counts["forwards"] += 1
        counts["tokens"] += arguments[0].numel()

    handle = lm.get_input_embeddings().register_forward_pre_hook(count)  # type: ignore[operator]
    try:
        yield counts
    finally:
        handle.remove()


def evaluations(
    data_path: Path, tmp_path: Path, *options: str
) -> tuple[nn.Module, Callable[[], list[Any]], Callable[[], list[Any]]]:
    """The model, and its validation with each weight: together, and one after the other."""
    several = ["--tiny_title_tokens=False", "--assistant=EASE", "--EASE.reg_weight=10"]
    config, parts, model = toy_model(data_path, tmp_path, *several, *options)
    assert model.catalogue.trie.num_internal > 30
    assistant = make_assistant(config.assistant, parts[0], parts, None, tmp_path / "assistant")
    ranker = replace(make_ranker(model, model.histories), assistant=assistant)
    stage = Stage("preference", epochs=1, learning_rate=1.0, eval_step=1)
    trainer = SetwiseTrainer(config, model, stage, tmp_path, ranker)
    trainer.eval_collector.data_collect(SimpleNamespace(dataset=parts[0]))
    _, valid, _ = evaluation_loaders(config, parts[0], parts)

    def together() -> list[Any]:
        return trainer.evaluate_weights(ranker, WEIGHTS, valid)

    def in_turn() -> list[Any]:
        return [trainer.evaluate_ranker(replace(ranker, weight=w), valid) for w in WEIGHTS]

    return model.lm, together, in_turn


SEARCH = ["--expand_per_step=2"]
SAMPLED = "--eval_args={'mode': 'uni7'}"


@pytest.mark.parametrize(
    ("options", "share"),
    [
        (SEARCH, 0.4),
        ([*SEARCH, SAMPLED], 0.4),
        ([SAMPLED, "--metrics=[NDCG, GAUC]"], 0.26),
        ([SAMPLED, "--ranker=exhaustive"], 0.26),
        ([*SEARCH, "--model=D3", "--loss=sft", "--ranker=best_first"], 0.4),
        (["--model=D3", "--loss=sft", SAMPLED], 0.26),
    ],
    ids=["full", "sampled", "all ranks", "exhaustive", "D3", "D3 sampled"],
)
def test_all_weights_from_one_pass(
    data_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    share: float,
) -> None:
    if "--model=D3" in options:
        monkeypatch.setattr(f"{__name__}.WEIGHTS", [0.0, 0.5, 0.75, 0.97])
    lm, together, in_turn = evaluations(data_path, tmp_path, *options)
    with counted(lm) as slow:
        expected = in_turn()
    with counted(lm) as fast:
        found = together()
    assert found == expected
    assert len({str(metrics) for metrics in found}) > 1  # weights matter
    assert fast["tokens"] <= share * slow["tokens"]
    assert fast["forwards"] < slow["forwards"]
    if SEARCH[0] in options:  # a control: a search that stays at its first weight
        monkeypatch.setattr(TrieSearch, "_weighted", lambda search, table, users: 0 * table[users])
        assert together() != expected


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of users of every ranking of a run."""
    found: list[int] = []
    collect = trainer_module.collect_rankings

    def counting(ranker: Any, weights: Any, loader: Any, *arguments: Any) -> Any:
        found.append(len(loader.uid_list))
        return collect(ranker, weights, loader, *arguments)

    monkeypatch.setattr(trainer_module, "collect_rankings", counting)
    without_price(monkeypatch)
    return found


def test_the_best_epochs_validation_is_the_reported_one(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: list[int]
) -> None:
    """Two validations in the second stage, and a test."""
    arguments = toy_arguments(data_path, tmp_path / "once", "--sft_cache=False", "--test_sft=False")
    once = run(arguments)
    assert passes == [24] * 3
    monkeypatch.setattr(SetwiseTrainer, "best_metrics", lambda *_: {})
    twice = run(
        toy_arguments(data_path, tmp_path / "twice", "--sft_cache=False", "--test_sft=False")
    )
    assert passes == [24] * (3 + 4)
    assert once["valid_result"] == twice["valid_result"]
    assert once["test_result"] == twice["test_result"]


@pytest.mark.parametrize(
    ("options", "last"),
    [
        (["--valid_users=5"], [5, 24, 24]),  # other users
        (["--assistant=EASE"], [24, 24, 24]),  # another ranking
        (["--eval_step=0"], [24, 24]),  # none of these weights
    ],
)
def test_another_validation_is_made(
    data_path: Path, tmp_path: Path, passes: list[int], options: list[str], last: list[int]
) -> None:
    run(toy_arguments(data_path, tmp_path / "run", "--epochs=1", "--test_sft=False", *options))
    assert passes == last


@pytest.mark.parametrize("candidates", ["full", "uni10"])
def test_a_batch_of_users_that_does_not_fit_is_ranked_in_halves(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, candidates: str
) -> None:
    """Of 24 users at once no more than 7 fit: after 24 and 12, six at a time."""
    mode = f"--eval_args={{'mode': '{candidates}'}}"
    _, together, _ = evaluations(data_path, tmp_path, "--rank_batch_users=24", mode)
    whole = together()
    init, sizes = TrieSearch.__init__, []

    def limited(self: TrieSearch, lm: Any, catalogue: Any, prompts: Any, *args: Any, **kw: Any):  # type: ignore[no-untyped-def]
        sizes.append(len(prompts))
        if len(prompts) > 7:
            raise torch.OutOfMemoryError("tried to allocate 20 GiB")
        init(self, lm, catalogue, prompts, *args, **kw)

    monkeypatch.setattr(TrieSearch, "__init__", limited)
    assert together() == whole
    assert max(sizes) > 7 and sum(size > 7 for size in sizes) <= 2

    def never(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("tried to allocate 20 GiB")

    monkeypatch.setattr(TrieSearch, "__init__", never)
    with pytest.raises(TrainingError, match="out of memory while ranking"):
        together()
