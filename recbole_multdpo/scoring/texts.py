"""Packed scoring of texts, without RecBole: prompts and candidates of any kind.

    packed = pack_texts(tokenizer, queries, passages)  # a list of passages for each query
    logps = packed.logps(lm)  # [queries, passages], nats

A search engine's query and its passages, or a question and its answers, are a prompt and candidates
like a user's history and titles. With `recbole_multdpo.losses` they train by any of its losses.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens, encode_plain
from recbole_multdpo.scoring.packed import PackedExamples


def pack_texts(
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str] | Sequence[Sequence[int]],
    candidates: Sequence[Sequence[str]],
    device: torch.device | str = "cpu",
) -> PackedExamples:
    """Pack every prompt with its candidates into one sequence, to be scored by one or more models.

    log π of a candidate is summed over its tokens and the terminator, the tokenizer's EOS, nats.
    Each is scored after the prompt alone: it does not see the others. That takes a model that obeys
    a mask per position (`attn_implementation` sdpa or eager, no recurrent layers);
    `recbole_multdpo.scoring.padded.padded_logps` scores one sequence per candidate by any model.

    Args:
        tokenizer: of the models; it has an EOS token.
        prompts: B texts, tokenised with the special tokens that the tokenizer adds; or B lists of
            token ids, such as of a chat template.
        candidates: for each prompt its texts, tokenised as they stand: most begin with a space or a
            line end. An example may have fewer than another.
        device: of the models.

    Returns:
        The examples; `logps(lm)` and `lengths` are [B, C], C the largest number of candidates,
        with 0 for those that an example does not have: give them level -1 in a loss.

    Raises:
        ValueError: there is no EOS token, or the numbers of prompts and lists differ.
        DataError: a candidate has the text of a special token.
    """
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no EOS token, which ends a candidate: set eos_token.")
    if len(prompts) != len(candidates):
        raise ValueError(f"{len(prompts)} prompts have {len(candidates)} lists of candidates.")
    ids = [
        list(tokenizer(prompt)["input_ids"]) if isinstance(prompt, str) else list(prompt)
        for prompt in prompts
    ]
    texts = list(dict.fromkeys(text for each in candidates for text in each))
    ended = [[*tokens, tokenizer.eos_token_id] for tokens in encode_plain(tokenizer, texts)]
    number = {text: n for n, text in enumerate(texts, 1)}  # 0 is padding
    return PackedExamples.of(
        Prompts(_padded(ids), torch.tensor([len(each) for each in ids])).to(device),
        _padded([[number[text] for text in each] for each in candidates]).to(device),
        ItemTokens.from_lists([[], *ended]).to(device),
    )


def _padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """Rows of numbers as a tensor [B, longest], filled up with 0."""
    width = max(map(len, rows), default=0)
    return torch.tensor([[*row, *[0] * (width - len(row))] for row in rows], dtype=torch.long)
