"""Preference training begins at a log-ratio of exactly 0, also where the backbone has dropout."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from recbole_multdpo.model import llmrec
from recbole_multdpo.model.backbone import save_backbone
from recbole_multdpo.quick_start import run
from tests.integration.toy import toy_arguments

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "bos_token_id": None,
    "eos_token_id": 0,
    "pad_token_id": 0,
}


@pytest.fixture
def backbone(request, tmp_path: Path, make_tokenizer) -> Path:  # type: ignore[no-untyped-def]
    """A folder with a model of the parameter's type, whose published dropout is 0.1."""
    tokenizer = make_tokenizer()
    config = AutoConfig.for_model(request.param, vocab_size=len(tokenizer), **SIZES)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        lm = AutoModelForCausalLM.from_config(config)
    save_backbone(lm, tokenizer, tmp_path / request.param)
    return tmp_path / request.param


def first_margin(data_path: Path, folder: Path, backbone: Path, *extra: str) -> float:
    """The margin at the first step of the second stage, nats."""
    arguments = toy_arguments(
        data_path, folder, f"--backbone={backbone}", "--normalize_over=vocabulary", *extra
    )
    run([text for text in arguments if not text.startswith("--tiny_")])
    with (folder / "steps.csv").open() as stream:
        rows = [row for row in csv.DictReader(stream) if row["stage"] == "preference"]
    assert float(rows[-1]["margin"]) != 0
    return float(rows[0]["margin"])


@pytest.mark.parametrize(
    ("backbone", "extra"),
    [
        ("opt", ("--finetune=full",)),
        ("gpt2", ("--finetune=lora", "--lora_dropout=0.1", "--gradient_checkpointing=True")),
    ],
    ids=["full", "lora"],
    indirect=["backbone"],
)
def test_the_first_margin_is_zero(
    data_path: Path,
    tmp_path: Path,
    backbone: Path,
    extra: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    extra = (*extra, "--epochs=1")
    assert first_margin(data_path, tmp_path / "run", backbone, *extra) == 0
    # control: in training mode as it is, noise of dropout
    monkeypatch.setattr(llmrec, "train_without_dropout", lambda lm: None)
    assert abs(first_margin(data_path, tmp_path / "noisy", backbone, *extra)) > 1e-4
