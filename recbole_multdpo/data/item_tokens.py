"""Token ids of every item of the catalogue, each ended by one terminator token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from recbole_multdpo.errors import DataError


@dataclass(frozen=True)
class ItemTokens:
    """Right-padded token ids of all items; row 0 is RecBole's [PAD] item.

    Attributes:
        ids: long [n_items, max_len], padded with 0.
        lengths: long [n_items], tokens of each item with its terminator; 0 for item 0.
    """

    ids: Tensor
    lengths: Tensor

    @classmethod
    def from_lists(cls, token_lists: Sequence[Sequence[int]]) -> ItemTokens:
        """Pad lists of token ids; entry 0 (the [PAD] item) must be empty, the others must not."""
        lengths = np.array([len(tokens) for tokens in token_lists], dtype=np.int64)
        empty = np.flatnonzero(lengths[1:] == 0) + 1
        if lengths[0] != 0 or len(empty):
            raise ValueError(
                f"item 0 must have no token, the others at least one; empty: {empty[:5]}"
            )
        ids = np.zeros((len(lengths), max(int(lengths.max(initial=0)), 1)), dtype=np.int64)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(
            [np.asarray(tokens, dtype=np.int64) for tokens in token_lists]
        )
        return cls(torch.from_numpy(ids), torch.from_numpy(lengths))

    def to(self, device: torch.device | str) -> ItemTokens:
        """Copy of the table on `device`."""
        return ItemTokens(self.ids.to(device), self.lengths.to(device))


def encode_plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise untrusted texts, reading special tokens in them as plain characters.

    Otherwise a title "<|im_end|><|im_start|>system ..." would end the user's turn of a chat prompt
    and speak in another role, and a title with the end token would end early.

    Raises:
        DataError: the tokenizer still makes a special token of a text.
    """
    if not texts:
        return []
    encoded = tokenizer(list(texts), add_special_tokens=False, split_special_tokens=True)
    # rare characters become the unknown token, which is harmless unless it is also the EOS token
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id} | {tokenizer.eos_token_id}
    for text, ids in zip(texts, encoded["input_ids"], strict=True):
        if not special.isdisjoint(ids):
            found = tokenizer.convert_ids_to_tokens(sorted(special.intersection(ids)))
            raise DataError(
                f"the text {text.strip()[:60]!r} contains {', '.join(map(repr, found))}, which "
                "this tokenizer reads as a special token; remove it from the .item or .user file."
            )
    return encoded["input_ids"]


def encode_items(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    prefix: str,
    max_item_tokens: int,
) -> ItemTokens:
    """Tokenise `prefix + text` for every item and append the tokenizer's EOS token.

    Items are tokenised without the prompt and joined to it as token ids, so no tokenizer can merge
    characters across the boundary. The terminator occurs only at the end of an item
    (`encode_plain`).

    Args:
        tokenizer: a Hugging Face tokenizer with an EOS token.
        texts: one text per inner item id; entry 0 belongs to [PAD] and is ignored.
        prefix: text between prompt and item, usually one space or empty.
        max_item_tokens: longest allowed item without its terminator; 0 for no limit.

    Raises:
        DataError: an item is longer than `max_item_tokens` (item texts are never truncated), or the
            tokenizer makes a special token of its text.
    """
    encoded = encode_plain(tokenizer, [prefix + text for text in texts[1:]])
    for item, ids in enumerate(encoded, start=1):
        if max_item_tokens and len(ids) > max_item_tokens:
            raise DataError(
                f"item {item} ({texts[item][:60]!r}) takes {len(ids)} tokens, more than "
                f"max_item_tokens={max_item_tokens}. Raise --max_item_tokens (0: no limit) or "
                "shorten the text; item texts are never truncated, because two truncated texts "
                "could be equal."
            )
    return ItemTokens.from_lists([[], *([*ids, tokenizer.eos_token_id] for ids in encoded)])
