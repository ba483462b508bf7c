"""Packed scoring: one sequence per example, `[prompt | candidate 1 | candidate 2 | ...]`.

A candidate of l tokens (terminator included) is scored by l predictions: its first token from the
last prompt position, every other token from the candidate token before it. Its last token is never
fed. Positions restart after the prompt, and a block mask lets a candidate token attend only to the
prompt and its own candidate. Values and gradients equal those of C separate forward passes
(`recbole_multdpo.scoring.padded` is that reference implementation), but the prompt is computed
once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.scoring.catalogue import (
    ItemCatalogue,
    allowed_tokens,
    log_softmax_within,
    prefix_nodes,
)
from recbole_multdpo.scoring.head import Head, head_logps
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.parts import parts_of
from recbole_multdpo.scoring.trie import ItemTrie
from recbole_multdpo.scoring.windows import LayerKinds

PROMPT_SEGMENT = 0
PADDING_SEGMENT = -1


@dataclass(frozen=True)
class PackedInputs:
    """Inputs of one forward pass over B packed examples; L is the longest packed row.

    Attributes:
        input_ids: long [B, L].
        position_ids: long [B, L]; candidate tokens continue the prompt's count.
        segments: long [B, L]; 0 prompt, c + 1 candidate c, -1 padding.
        score_rows: long [R], flat index [B * L] of the predicting position.
        score_tokens: long [R], the predicted token.
        score_slots: long [R], flat index [B * C] of the candidate that the prediction belongs to.
        score_offsets: long [R], position of the predicted token in its item.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    score_rows: Tensor
    score_tokens: Tensor
    score_slots: Tensor
    score_offsets: Tensor


def packed_lengths(prompt_lengths: Tensor, candidates: Tensor, items: ItemTokens) -> Tensor:
    """Number of tokens in each packed row, long [B], from lengths [B] and item ids [B, C]."""
    return prompt_lengths + (items.lengths[candidates] - 1).clamp(min=0).sum(1)


def split_candidates(
    prompt_lengths: Tensor, candidates: Tensor, items: ItemTokens, max_tokens: int
) -> list[Tensor]:
    """Split candidates [B, C] into parts [B, c] whose packed rows fit a token budget.

    The prompt is computed again for every part.

    Args:
        prompt_lengths: long [B].
        candidates: long [B, C], item ids; 0 is padding.
        items: token table of the catalogue.
        max_tokens: limit of B times a part's longest packed row; 0 for no limit. A part has at
            least one column, even if that exceeds the limit.
    """
    longest = int(packed_lengths(prompt_lengths, candidates, items).max())
    if not max_tokens or len(candidates) * longest <= max_tokens:
        return [candidates]
    fed = (items.lengths[candidates] - 1).clamp(min=0).amax(0).tolist()  # [C], at most
    free = max_tokens // len(candidates) - int(prompt_lengths.max())
    sizes, used = [0], 0
    for n_tokens in fed:
        if sizes[-1] and used + n_tokens > free:
            sizes.append(0)
            used = 0
        sizes[-1] += 1
        used += n_tokens
    return list(candidates.split(sizes, dim=1))


def pack(prompts: Prompts, candidates: Tensor, items: ItemTokens) -> PackedInputs:
    """Pack B prompts and candidates [B, C] (item ids, 0 padding) into rows."""
    n_examples, n_candidates = candidates.shape
    prompt_lengths, device = prompts.lengths, prompts.device
    lengths = items.lengths[candidates]  # [B, C], with terminator; 0 for padding
    fed = (lengths - 1).clamp(min=0)  # [B, C]
    width = int(packed_lengths(prompt_lengths, candidates, items).max())

    input_ids = torch.zeros(n_examples, width, dtype=torch.long, device=device)
    position_ids = torch.zeros_like(input_ids)
    segments = torch.full_like(input_ids, PADDING_SEGMENT)

    columns = torch.arange(prompts.width, device=device)
    example, column = torch.nonzero(columns < prompt_lengths[:, None], as_tuple=True)
    input_ids[example, column] = prompts.ids[example, column]
    position_ids[example, column] = column
    segments[example, column] = PROMPT_SEGMENT

    # column of each candidate's first fed token
    starts = prompt_lengths[:, None] + fed.cumsum(1) - fed  # [B, C]
    offsets = torch.arange(items.ids.shape[1], device=device)
    example, slot, offset = torch.nonzero(offsets < fed[:, :, None], as_tuple=True)
    column = starts[example, slot] + offset
    input_ids[example, column] = items.ids[candidates[example, slot], offset]
    position_ids[example, column] = prompt_lengths[example] + offset
    segments[example, column] = slot + 1

    example, slot, offset = torch.nonzero(offsets < lengths[:, :, None], as_tuple=True)
    from_prompt = prompt_lengths[example] - 1
    from_candidate = starts[example, slot] + offset - 1
    column = torch.where(offset == 0, from_prompt, from_candidate)
    return PackedInputs(
        input_ids=input_ids,
        position_ids=position_ids,
        segments=segments,
        score_rows=example * width + column,
        score_tokens=items.ids[candidates[example, slot], offset],
        score_slots=example * n_candidates + slot,
        score_offsets=offset,
    )


def block_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask [B, 1, L, L] of `dtype`: 0 where visible, its lowest value elsewhere.

    A token attends to itself and to earlier tokens of the prompt and of its own candidate. Padding
    attends to padding: a softmax over no key would be NaN. The mask is additive and floating
    because eager attention silently misreads a boolean 4-D mask.
    """
    width = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    visible = causal & ((key == query) | ((key == PROMPT_SEGMENT) & (query != PADDING_SEGMENT)))
    mask = torch.zeros(visible.shape, dtype=dtype, device=segments.device)
    return mask.masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


def gathered_logps(
    hidden: Tensor,
    head: Head,
    rows: Tensor,
    tokens: Tensor,
    nodes: Tensor | None = None,
    trie: ItemTrie | None = None,
) -> Tensor:
    """Log-probabilities of `tokens` [R] at positions `rows` [R] of `hidden` [B * L, H], nats, [R].

    The head runs once per distinct position: all candidates share the last prompt position. With a
    trie, log-probabilities are normalised over the children of `nodes` [R], which must be equal for
    equal rows.
    """
    order = rows.argsort(stable=True)
    distinct, row_of = torch.unique_consecutive(rows[order], return_inverse=True)
    if trie is None or nodes is None or len(rows) == 0:  # no row: every candidate is padding
        logps = head_logps(hidden[distinct], head, row_of, tokens[order])
    else:
        node = torch.empty_like(distinct).index_copy_(0, row_of, nodes[order])
        source, allowed = allowed_tokens(trie, node)
        logps = head_logps(hidden[distinct], head, source, allowed)
        logps = log_softmax_within(logps, source, len(distinct))
        logps = logps[_found(source, allowed, row_of, tokens[order])]
    return torch.empty_like(logps).index_copy(0, order, logps)


def _found(source: Tensor, allowed: Tensor, row_of: Tensor, tokens: Tensor) -> Tensor:
    """Index of every pair (row_of, tokens) among the sorted pairs (source, allowed)."""
    stride = torch.maximum(allowed.max(), tokens.max()) + 1
    return torch.searchsorted(source * stride + allowed, row_of * stride + tokens)


def packed_logps(
    lm: nn.Module, prompts: Prompts, candidates: Tensor, catalogue: ItemCatalogue
) -> Tensor:
    """log π(item | prompt) of every candidate, by one forward pass.

    Args:
        lm: a Hugging Face causal LM, possibly wrapped by PEFT.
        prompts: the B prompts.
        candidates: long [B, C], item ids; 0 is padding.
        catalogue: the items, on the same device, and the normalisation.

    Returns:
        float [B, C], summed over the item's tokens, nats; 0 at padding.
    """
    logps, slots = packed_token_logps(lm, prompts, candidates, catalogue)
    total = logps.new_zeros(candidates.numel())
    return total.index_add(0, slots, logps).view(candidates.shape)


def packed_token_logps(
    lm: nn.Module, prompts: Prompts, candidates: Tensor, catalogue: ItemCatalogue
) -> tuple[Tensor, Tensor]:
    """The summands of `packed_logps`, with the same arguments.

    Returns:
        float [R], log-probability of every token of every candidate, nats, a candidate's tokens in
        their order; long [R], flat index [B * C] of the token's candidate.
    """
    packed = pack(prompts, candidates, catalogue.items)
    nodes, trie = None, None
    if catalogue.normalised:
        trie = catalogue.trie
        item = candidates.flatten()[packed.score_slots]
        nodes = prefix_nodes(trie, item, packed.score_offsets)
    logps = _token_logps(lm, packed, packed.score_rows, packed.score_tokens, nodes, trie)
    return logps, packed.score_slots


def packed_logps_with_prompt(
    lm: nn.Module, prompts: Prompts, candidates: Tensor, items: ItemTokens
) -> tuple[Tensor, Tensor]:
    """`packed_logps` over the vocabulary, and log π(prompt) from the same forward pass.

    Returns:
        float [B, C] as `packed_logps`, and float [B], the sum over all prompt tokens but the first,
        which is not predicted, nats.
    """
    packed = pack(prompts, candidates, items)
    width = packed.input_ids.shape[1]
    columns = torch.arange(1, prompts.width, device=prompts.device)
    example, position = torch.nonzero(columns < prompts.lengths[:, None], as_tuple=True)
    rows = torch.cat([packed.score_rows, example * width + position])
    tokens = torch.cat([packed.score_tokens, prompts.ids[example, position + 1]])
    slots = torch.cat([packed.score_slots, candidates.numel() + example])
    logps = _token_logps(lm, packed, rows, tokens)
    total = logps.new_zeros(candidates.numel() + len(candidates)).index_add(0, slots, logps)
    return total[: candidates.numel()].view(candidates.shape), total[candidates.numel() :]


def _token_logps(
    lm: nn.Module,
    packed: PackedInputs,
    rows: Tensor,
    tokens: Tensor,
    nodes: Tensor | None = None,
    trie: ItemTrie | None = None,
) -> Tensor:
    """Run the body once and the head on `rows`: `gathered_logps` of `tokens`, [R], nats."""
    model = causal_lm(lm)
    parts = parts_of(model)
    mask, positions = block_mask(packed.segments, model.dtype), packed.position_ids
    hidden = parts.body(
        input_ids=packed.input_ids,
        attention_mask=LayerKinds.of(model.config).masks(mask, positions, positions),
        position_ids=positions,
        use_cache=False,
    ).last_hidden_state
    return gathered_logps(hidden.flatten(0, 1), parts.head, rows, tokens, nodes, trie)
