"""The assistant: RecBole's own model and scores, cached."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_multdpo.classical.assistant import Assistant, make_assistant
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.quick_start import run
from tests.integration.toy import classical_arguments, toy_arguments, toy_model

EASE = ["--assistant=EASE", "--EASE.reg_weight=10"]


def made(config, parts, cache_dir: Path | None, own: Path) -> Assistant:  # type: ignore[no-untyped-def]
    return make_assistant(config.assistant, parts[0], parts, cache_dir, own / "assistant")


# --------------------------------------------------------------------------------------------------
# scores


def test_log_probs_are_a_log_softmax_over_the_items() -> None:
    scores = np.array([[9.0, np.log(1), np.log(3)], [0.0, 5.0, 5.0]], dtype=np.float32)
    assistant = Assistant("EASE", scores, scores, np.array([-1, 1, 0]), {})
    found = assistant.log_probs(torch.tensor([2, 1]))
    expected = torch.tensor([[0.0, 1 / 4, 3 / 4], [0.0, 1 / 2, 1 / 2]]).log()
    torch.testing.assert_close(found, expected)
    sharper = assistant.log_probs(torch.tensor([2]), temperature=0.5)
    torch.testing.assert_close(sharper, torch.tensor([[0.0, 1 / 10, 9 / 10]]).log())
    assert assistant.scores_of(torch.tensor([2, 1])).tolist() == scores.tolist()
    assert scores[0, 0] == 9.0  # the table on disk is not written to
    with pytest.raises(ValueError, match="no scores for"):
        assistant.log_probs(torch.tensor([0]))


def test_scores_are_those_of_steck_on_the_training_part(data_path: Path, tmp_path: Path) -> None:
    """X B with B = I - P diag(1 / P), P = (X'X + 10 I)^-1, from the training rows alone."""
    config, parts, _ = toy_model(data_path, tmp_path, *EASE)
    assistant = made(config, parts, None, tmp_path)
    train = parts[0].inter_feat
    x = np.zeros((parts[0].user_num, parts[0].item_num))
    x[train["user_id"].numpy(), train["item_id"].numpy()] = 1
    p = np.linalg.inv(x.T @ x + 10 * np.eye(x.shape[1]))
    expected = torch.from_numpy(x @ (np.eye(len(p)) - p / np.diag(p)))
    users = torch.cat([part.inter_feat["user_id"] for part in parts[1:]]).unique()
    expected[:, 0] = -torch.inf
    found = assistant.log_probs(users)
    torch.testing.assert_close(found, expected[users].log_softmax(1).float())


@pytest.mark.parametrize("name", ["EASE", "BPR"])
def test_trained_as_by_itself(data_path: Path, tmp_path: Path, name: str) -> None:
    """Its own validation metrics, and as good as alone where its weight drowns the text."""
    short = {"EASE": "reg_weight=10", "BPR": "epochs=3"}[name]
    alone = run(classical_arguments(name, data_path, tmp_path / "alone", f"--{short}"))
    options = [f"--assistant={name}", f"--{name}.{short}", "--assistant_weight=1e5"]
    fused = run(toy_arguments(data_path, tmp_path / "fused", "--loss=zero_shot", *options))
    assert fused["assistant"]["valid_result"] == alone["valid_result"]
    assert fused["test_result"] == pytest.approx(alone["test_result"], abs=2e-4)
    assert fused["test_set"] == alone["test_set"]


def test_the_language_model_is_the_same_with_and_without(data_path: Path, tmp_path: Path) -> None:
    """LoRA's dropout draws from the global generator, which RecBole's models use too."""
    dropout = ["--finetune=lora", "--lora_dropout=0.5", "--sft_cache=False"]
    without = run(toy_arguments(data_path, tmp_path / "without", *dropout))
    options = ["--assistant=BPR", "--BPR.epochs=2", "--assistant_weight=0"]
    with_it = run(toy_arguments(data_path, tmp_path / "with", *dropout, *options))
    for part in ("valid_result", "test_result"):
        assert with_it[part] == without[part]


# --------------------------------------------------------------------------------------------------
# cache


def test_scores_are_cached_and_never_with_other_settings(data_path: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"

    def folders(*extra: str) -> set[str]:
        config, parts, _ = toy_model(data_path, tmp_path, *EASE[:1], *extra)
        made(config, parts, cache, tmp_path)
        return {path.name for path in cache.iterdir()}

    first = folders()
    scores = cache / next(iter(first)) / "scores.npy"
    before = scores.stat().st_mtime_ns
    # no setting of the language model matters
    assert folders("--beta=3", "--assistant_weight=2", "--max_history=3") == first
    assert scores.stat().st_mtime_ns == before
    sizes = [
        len(folders(*e)) for e in ([EASE[1]], ["--seed=7"], ["--val_interval={rating: '[5,6]'}"])
    ]
    assert sizes == [2, 3, 4]
    assert json.loads((scores.parent / "valid.json").read_text()).keys() >= {"ndcg@5"}


# --------------------------------------------------------------------------------------------------
# what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--assistant=EASY"], "no model 'EASY' that can assist; did you mean EASE"),
        (["--assistant=LLMRec"], "no model 'LLMRec' that can assist"),
        (["--assistant=SASRec"], "assistant=SASRec is no general model"),
        (["--assistant=EASE", "--EASE.reg_wight=1"], "assistant EASE: reg_wight.*mean reg_weight"),
        (["--assistant=EASE", "--EASE.reg_weight=big"], "assistant EASE: reg_weight"),
        (["--assistant=EASE", "--EASE.topk=[1]"], "topk must be those of the run"),
        (["--assistant=EASE", "--BPR.epochs=1"], "a setting of an assistant BPR.*--assistant=BPR"),
        (["--ItemKNN.k=1"], "a setting of an assistant ItemKNN.*Add --assistant=ItemKNN"),
        (["--assistant=EASE", "--assistant_weight=-1"], "assistant_weight .*or equal to 0"),
        (["--assistant=EASE", "--assistant_weight=[]"], "assistant_weight .*at least 1 item"),
        (["--assistant_weight=3"], "no effect without an assistant"),
        (["--assistant=BPR", "--context=conversation"], "assistant BPR: model=BPR knows users by"),
    ],
)  # fmt: skip
def test_mistakes_are_found_at_the_start(
    data_path: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    from recbole_multdpo.settings.config import load_config

    if "--context=conversation" in options:
        options = [*options, "--benchmark_filename=[train, valid, test]"]
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_config(toy_arguments(data_path, tmp_path / "run", *options))
