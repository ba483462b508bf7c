"""BIGRec through the command: next to other models, with its weights, and on conversations."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from recbole_multdpo import cli
from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.plan import make_plan
from recbole_multdpo.comparison.runs import run_comparison
from recbole_multdpo.quick_start import run
from recbole_multdpo.ranking.fusion import CURVE_FILE
from recbole_multdpo.ranking.grounding import GAMMAS, GroundingRanker
from recbole_multdpo.trained.run import load_run
from tests.integration.test_conversations import DATA, write_conversations
from tests.integration.toy import N_ITEMS, N_USERS, toy_arguments, write_toy

pytestmark = pytest.mark.integration
BIGREC = ["--model=BIGRec", "--generation_tokens=8", "--valid_metric=NDCG@5"]
WEIGHTED = [*BIGREC, "--grounding_weight=popularity"]
ASSISTED = [*BIGREC, "--grounding_weight=assistant", "--assistant=EASE", "--EASE.reg_weight=10"]


def result_of(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def test_beside_a_language_model_and_a_classical_one(tmp_path: Path) -> None:
    data_path, folder = write_toy(tmp_path / "data"), tmp_path / "comparison"
    arguments = toy_arguments(
        data_path, folder, "--model=LLMRec,BIGRec,EASE", "--loss=sft", "--generation_tokens=8"
    )
    # no system has a preference stage
    arguments = [text for text in arguments if not text.startswith("--num_negatives")]
    assert run_comparison(arguments, cli.main) == 0
    runs = pd.read_csv(folder / "runs.csv")
    assert sorted(runs["system"]) == ["BIGRec", "EASE", "LLMRec sft"]
    results = [result_of(path) for path in folder.glob("*-seed*")]
    assert len({result["test_set"] for result in results}) == 1
    assert {result["num_users_evaluated"] for result in results} == {N_USERS}


def test_systems_of_an_experiment_file(tmp_path: Path) -> None:
    file = tmp_path / "experiment.yaml"
    file.write_text(
        "systems:\n  LLMRec sft: {model: LLMRec, loss: sft}\n  BIGRec: {model: BIGRec}\n"
        "  BIGRec EASE: {model: BIGRec, grounding_weight: assistant, assistant: EASE}\n"
    )
    argv = [f"--experiment={file}", "--dataset=ml-100k", "--EASE.reg_weight=9"]
    plan = make_plan(read_request(argv)).settings
    given = {system.name: settings for system, settings in plan.items()}
    assert list(given) == ["LLMRec sft", "BIGRec", "BIGRec EASE"]
    having = [name for name, settings in given.items() if "EASE.reg_weight" in settings]
    assert having == ["BIGRec EASE"]


@pytest.mark.parametrize("weighted", [WEIGHTED, ASSISTED])
def test_gamma_is_chosen_recorded_and_used(tmp_path: Path, weighted: list[str]) -> None:
    data_path = write_toy(tmp_path / "data")
    chosen = run(toy_arguments(data_path, tmp_path / "chosen", *weighted))
    curve = dict(chosen["grounding_gamma_curve"])
    assert list(curve) == list(GAMMAS)
    gamma = chosen["grounding_gamma"]
    assert curve[gamma] == max(curve.values()) == chosen["valid_result"]["ndcg@5"]
    loaded = load_run(tmp_path / "chosen").ranker
    assert isinstance(loaded, GroundingRanker) and loaded.gamma == gamma and loaded.base is None
    fixed = run(
        toy_arguments(data_path, tmp_path / "fixed", *weighted, f"--grounding_gamma={gamma}")
    )
    assert fixed["test_result"] == chosen["test_result"]
    assert "supervised fine-tuning: taken from" in (tmp_path / "fixed" / "run.log").read_text()
    plain = run(toy_arguments(data_path, tmp_path / "plain", *BIGREC))
    assert plain["valid_result"]["ndcg@5"] == pytest.approx(curve[0.0])


def test_an_assistant_has_gamma_as_its_weight_and_stays_with_its_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data_path = write_toy(tmp_path / "data")
    arguments = [*ASSISTED, "--grounding_gamma=100"]
    result = run(toy_arguments(data_path, tmp_path / "run", *arguments))
    assert result["assistant"].keys() == {"model", "settings", "valid_result"}
    assert result["assistant"]["settings"] == {"reg_weight": 10}
    assert not (tmp_path / "run" / CURVE_FILE).exists()
    # EASE knows the genres, and its order decides all places but the first
    plain = run(toy_arguments(data_path, tmp_path / "plain", *BIGREC))
    assert result["test_result"]["ndcg@5"] > plain["test_result"]["ndcg@5"]
    assert "assistant" not in plain

    loaded = load_run(tmp_path / "run").ranker
    assert "EASE, which is not loaded" in caplog.text
    users, other = torch.arange(1, N_USERS + 1), load_run(tmp_path / "plain").ranker
    assert torch.equal(loaded.topk(users, None, 5).items, other.topk(users, None, 5).items)


@pytest.mark.parametrize("weighted", [WEIGHTED, ASSISTED])
@pytest.mark.parametrize("mode", ["full", "uni20"])
def test_conversations(tmp_path: Path, mode: str, weighted: list[str]) -> None:
    data_path = write_conversations(tmp_path / "data")
    evaluation = f"--eval_args={{'mode': {{'valid': '{mode}', 'test': 'full'}}}}"
    result = run(toy_arguments(data_path, tmp_path / "run", *weighted, *DATA, evaluation))
    assert result["num_items"] == N_ITEMS and result["context"] == "conversation"
    assert len(result["grounding_gamma_curve"]) == len(GAMMAS)
