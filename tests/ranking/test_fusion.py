"""Ranking together with an assistant: sums of scores, and the weight that validation chooses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from recbole_multdpo.classical.assistant import make_assistant
from recbole_multdpo.quick_start import run
from recbole_multdpo.ranking import make_ranker
from recbole_multdpo.ranking.fusion import CURVE_FILE, choose_weight
from tests.integration.toy import toy_arguments, toy_model

EASE = ["--assistant=EASE", "--EASE.reg_weight=10"]


def test_fused_ranking_is_that_of_the_sums(data_path: Path, tmp_path: Path) -> None:
    config, parts, model = toy_model(data_path, tmp_path, *EASE, "--expand_per_step=2")
    ranker = make_ranker(model.eval(), model.histories)
    users = parts[1].inter_feat["user_id"].unique()
    plain = ranker.topk(users, None, 6)
    assistant = make_assistant(config.assistant, parts[0], parts, None, tmp_path / "assistant")
    ranker = replace(ranker, assistant=assistant)
    assert ranker.topk(users, None, 6).items.equal(plain.items)  # the weight is 0
    ranker = replace(ranker, weight=20.0)
    fused = ranker.topk(users, None, 6)
    catalogue = torch.arange(model.n_items).expand(len(users), -1)
    sums = model.score(ranker.prompts(users), catalogue) + 20.0 * assistant.log_probs(users)
    best = sums[:, 1:].topk(6)
    torch.testing.assert_close(fused.scores, best.values, atol=1e-4, rtol=1e-5)
    assert not fused.items.equal(plain.items)
    pairs = torch.cartesian_prod(users.flip(0), torch.arange(1, model.n_items))
    found = ranker.pair_scores(*pairs.T).view(len(users), -1).flip(0)
    torch.testing.assert_close(found, sums[:, 1:], atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("mode", ["full", "uni20"])
def test_the_best_weight_on_validation_is_used(data_path: Path, tmp_path: Path, mode: str) -> None:
    options = [*EASE, "--loss=sft", "--assistant_weight=[30, 0, 2]"]
    options += [f"--eval_args={{'mode': {{'valid': '{mode}', 'test': 'full'}}}}"]
    result = run(toy_arguments(data_path, tmp_path / "run", *options))
    fusion = result["assistant"]
    curve = pd.read_csv(tmp_path / "run" / CURVE_FILE).to_dict("records")
    assert curve == fusion["curve"] and [point["weight"] for point in curve] == [0, 2, 30]
    best = max(curve, key=lambda point: point["ndcg@5"])
    assert fusion["weight"] == best["weight"] and fusion["settings"] == {"reg_weight": 10}
    assert result["valid_result"] == {k: v for k, v in best.items() if k != "weight"}
    assert len({point["ndcg@5"] for point in curve}) > 1
    fixed = [f"--assistant_weight={fusion['weight']}" if "weight=[" in o else o for o in options]
    again = run(toy_arguments(data_path, tmp_path / "again", *fixed))
    assert again["test_result"] == result["test_result"]
    slow = run(toy_arguments(data_path, tmp_path / "slow", *fixed, "--ranker=exhaustive"))
    assert slow["test_result"] == result["test_result"]


def test_the_smallest_of_equally_good_weights() -> None:
    metrics = {0.0: 0.1, 1.0: 0.3, 5.0: 0.3, 9.0: 0.2}

    def evaluate(weights):  # type: ignore[no-untyped-def]
        return [{"m@1": metrics[weight]} for weight in weights]

    weight, curve = choose_weight([9, 5, 1, 0, 1], evaluate, "m@1", True)
    assert weight == 1 and curve == [{"weight": w, "m@1": m} for w, m in metrics.items()]
    assert choose_weight([1, 9], evaluate, "m@1", False)[0] == 9
