"""Packed scoring of texts: equal to the model's own passes, without RecBole."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from recbole_multdpo.model.tiny import make_tiny_backbone
from recbole_multdpo.scoring.texts import pack_texts

ROOT = Path(__file__).resolve().parents[2]
PROMPTS = ["Query: red\nPassage:", "Query: a much longer one about blue\nPassage:"]
CANDIDATES = [[" red apples", " green pears and more", " blue"], [" blue", " red apples"]]


@pytest.fixture(scope="module")
def backbone():
    texts = [*PROMPTS, *(text for each in CANDIDATES for text in each)]
    lm, tokenizer = make_tiny_backbone(texts, hidden_size=32, num_heads=2, seed=0)
    return lm.eval(), tokenizer


def alone(lm, tokenizer, prompt: str, candidate: str) -> tuple[torch.Tensor, int]:
    """log π(candidate | prompt) and its number of tokens, from one plain pass."""
    start = tokenizer(prompt)["input_ids"]
    ids = tokenizer(candidate, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
    logits = lm(torch.tensor([[*start, *ids]])).logits[0]
    logps = logits.log_softmax(-1)[len(start) - 1 : -1]
    return logps.gather(1, torch.tensor(ids)[:, None]).sum(), len(ids)


def test_values_and_gradients_are_those_of_single_passes(backbone) -> None:
    lm, tokenizer = backbone
    packed = pack_texts(tokenizer, PROMPTS, CANDIDATES)
    logps = packed.logps(lm)
    assert logps.shape == packed.lengths.shape == (2, 3)
    assert logps[1, 2] == 0 and packed.lengths[1, 2] == 0  # the second example has two
    singles = []
    for row, (prompt, texts) in enumerate(zip(PROMPTS, CANDIDATES, strict=True)):
        for column, text in enumerate(texts):
            value, length = alone(lm, tokenizer, prompt, text)
            torch.testing.assert_close(logps[row, column], value, atol=1e-4, rtol=1e-5)
            assert packed.lengths[row, column] == length
            singles.append(value)
    weights = list(lm.parameters())
    ours = torch.autograd.grad(logps.sum(), weights)
    theirs = torch.autograd.grad(torch.stack(singles).sum(), weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    other_prompt, _ = alone(lm, tokenizer, PROMPTS[1], CANDIDATES[0][0])
    assert abs(other_prompt - logps[0, 0]) > 1e-3  # the control: another prompt


def test_prompts_as_token_ids(backbone) -> None:
    lm, tokenizer = backbone
    ids = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    of_text, of_ids = (
        pack_texts(tokenizer, given, CANDIDATES).logps(lm) for given in (PROMPTS, ids)
    )
    assert torch.equal(of_text, of_ids)


def test_what_cannot_be_scored(backbone) -> None:
    lm, tokenizer = backbone
    with pytest.raises(ValueError, match="2 prompts have 1 lists"):
        pack_texts(tokenizer, PROMPTS, CANDIDATES[:1])
    without = copy.deepcopy(tokenizer)
    without.eos_token = None
    with pytest.raises(ValueError, match="no EOS token"):
        pack_texts(without, PROMPTS, CANDIDATES)


def test_losses_and_scoring_import_no_recbole() -> None:
    code = (
        "import sys; import recbole_multdpo.scoring.texts, recbole_multdpo.losses.preference\n"
        "found = {name for name in sys.modules if name.split('.')[0] == 'recbole'}\n"
        "assert 'torch' in sys.modules and not found, found\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
