"""Scoring of catalogues whose texts are one token each, against the packed scorer and its twin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from recbole_multdpo.scoring.one_token import OneTokenExamples, is_one_token
from recbole_multdpo.scoring.packed import packed_logps
from recbole_multdpo.scoring.padded import padded_logps
from tests.integration.toy import toy_model

CANDIDATES = torch.tensor([[1, 30, 7, 7], [4, 0, 2, 9], [0, 0, 0, 0]])


def prepared(data_path: Path, tmp_path: Path, *extra: str):  # type: ignore[no-untyped-def]
    """(LM in float64, prompts of different lengths, catalogue)."""
    _, _, model = toy_model(data_path, tmp_path, *extra)
    users = torch.tensor([1, 2, 3])
    histories = [
        items[: 3 - i]
        for i, items in enumerate(model.shown_histories(users.numpy(), model.histories))
    ]
    return model.lm.double(), model.history_prompts(histories), model.catalogue


def gradient(lm: nn.Module, logps: Tensor) -> Tensor:
    weights = torch.linspace(-1, 2, logps.numel(), dtype=logps.dtype).view_as(logps)
    lm.zero_grad()
    (logps * weights).sum().backward()
    return torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])


@pytest.mark.parametrize("extra", [[], ["--finetune=lora", "--lora_r=2"]], ids=["full", "lora"])
def test_values_and_gradients_are_those_of_the_twins(
    data_path: Path, tmp_path: Path, extra: list[str]
) -> None:
    lm, prompts, catalogue = prepared(data_path, tmp_path, *extra)
    assert is_one_token(catalogue)
    found = OneTokenExamples.of(prompts, CANDIDATES, catalogue).logps(lm)
    own = gradient(lm, found)
    for twin in (packed_logps, padded_logps):
        expected = twin(lm, prompts, CANDIDATES, catalogue)
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(own, gradient(lm, expected), rtol=1e-4, atol=1e-6)
    assert (found[CANDIDATES == 0] == 0).all()
    # control: over the vocabulary the values are others
    other = packed_logps(lm, prompts, CANDIDATES, type(catalogue)(catalogue.items, catalogue.trie))
    assert not torch.allclose(found, other, atol=1e-3)


def test_all_items_are_a_distribution_over_texts(data_path: Path, tmp_path: Path) -> None:
    lm, prompts, catalogue = prepared(data_path, tmp_path)
    every_item = torch.arange(len(catalogue)).expand(3, -1)
    logps = OneTokenExamples.of(prompts, every_item, catalogue).logps(lm)
    torch.testing.assert_close(logps[:, 1:].exp().sum(1), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize(
    "extra", [["--normalize_over=vocabulary"], ["--tiny_title_tokens=False"]], ids=str
)
def test_other_catalogues_are_not_served(data_path: Path, tmp_path: Path, extra: list[str]) -> None:
    """Over the vocabulary a title's end is a second token."""
    assert not is_one_token(prepared(data_path, tmp_path, *extra)[2])
