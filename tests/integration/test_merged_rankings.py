"""Rankings of a run with LoRA are made by merged weights, but where both models are needed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from recbole_multdpo.model.lora import LoraLinear
from recbole_multdpo.quick_start import run
from recbole_multdpo.ranking import RANKERS
from recbole_multdpo.training import negative_draw
from recbole_multdpo.training.trainer import SetwiseTrainer
from tests.integration.toy import toy_arguments, without_price

DYNAMIC = ("--negatives=dynamic", "--negative_pool=catalogue")


def adapted(lm: nn.Module) -> str:
    """The way in which the model computes at this moment."""
    layers = [module for module in lm.modules() if isinstance(module, LoraLinear)]
    if all(layer.merged for layer in layers):
        return "merged"  # or without an adapter
    return "off" if all(layer.disable_adapters for layer in layers) else "apart"


@pytest.mark.parametrize(
    ("arguments", "rankings", "draws"),
    [
        ((*DYNAMIC, "--dynamic_weights=policy"), {"merged"}, {"off", "merged"}),
        ((*DYNAMIC, "--dynamic_weights=ratio"), {"merged"}, {"apart", "off"}),
        (("--model=D3",), {"merged"}, set()),
        (("--model=BIGRec", "--grounding_model=tuned"), {"merged"}, set()),
        (("--model=BIGRec", "--grounding_model=base"), {"apart"}, set()),
    ],
    ids=["policy", "ratio", "D3", "BIGRec", "BIGRec by the base"],
)
def test_how_a_run_ranks_and_draws(
    data_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    rankings: set[str],
    draws: set[str],
) -> None:
    """Weights are the same bit by bit before and after every validation between epochs."""
    seen: dict[str, Counter[str]] = {"ranking": Counter(), "draw": Counter()}
    validations = []
    ranker_class = {"D3": 1, "BIGRec": 2}.get(arguments[0].partition("=")[2], 0)
    ranker: Any = list(RANKERS.values())[ranker_class]
    topk, scores, valid = ranker.topk, negative_draw._scores, SetwiseTrainer._valid_epoch

    def ranked(self: Any, *args: Any, **kwargs: Any) -> Any:
        seen["ranking"][adapted(self.model.lm)] += 1
        return topk(self, *args, **kwargs)

    def drawn(model: Any, lm: nn.Module, *args: Any) -> Any:
        seen["draw"][adapted(lm)] += 1
        return scores(model, lm, *args)

    def validated(self: SetwiseTrainer, *args: Any, **kwargs: Any) -> Any:
        before = {name: value.clone() for name, value in self.model.lm.state_dict().items()}
        result = valid(self, *args, **kwargs)
        after = self.model.lm.state_dict()
        validations.append(all(torch.equal(after[name], value) for name, value in before.items()))
        return result

    monkeypatch.setattr(ranker, "topk", ranked)
    monkeypatch.setattr(negative_draw, "_scores", drawn)
    monkeypatch.setattr(SetwiseTrainer, "_valid_epoch", validated)
    settings = ("--finetune=lora", "--sft_eval_step=1", *arguments)
    without_price(monkeypatch)
    run(toy_arguments(data_path, tmp_path / "run", *settings))
    assert set(seen["ranking"]) == rankings
    assert set(seen["draw"]) == draws
    assert validations and all(validations)
