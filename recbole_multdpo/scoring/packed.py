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
from recbole_multdpo.scoring.head import head_logps
from recbole_multdpo.scoring.last_layer import hidden_at
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.parts import parts_of
from recbole_multdpo.scoring.trie import ItemTrie
from recbole_multdpo.scoring.windows import LayerKinds, aligned_copy

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
        is_causal: True if no candidate token is fed: a position attends to all before it.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: Tensor
    score_rows: Tensor
    score_tokens: Tensor
    score_slots: Tensor
    score_offsets: Tensor
    is_causal: bool


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
    if not max_tokens:
        return [candidates]
    longest = int(packed_lengths(prompt_lengths, candidates, items).max())
    if len(candidates) * longest <= max_tokens:
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
    n_fed = fed.sum(1)
    width, most_fed = torch.stack([(prompt_lengths + n_fed).amax(), n_fed.amax()]).tolist()

    # one more column takes the tokens that are not fed
    spare = max(width, prompts.width)
    input_ids = torch.zeros(n_examples, spare + 1, dtype=torch.long, device=device)
    position_ids = torch.zeros_like(input_ids)
    segments = torch.full_like(input_ids, PADDING_SEGMENT)

    columns = torch.arange(prompts.width, device=device)
    is_prompt = columns < prompt_lengths[:, None]  # [B, P]
    input_ids[:, : prompts.width] = prompts.ids.where(is_prompt, 0)
    position_ids[:, : prompts.width] = columns.where(is_prompt, 0)
    segments[:, : prompts.width].masked_fill_(is_prompt, PROMPT_SEGMENT)

    # column of each candidate's first fed token
    starts = prompt_lengths[:, None] + fed.cumsum(1) - fed  # [B, C]
    offsets = torch.arange(items.ids.shape[1], device=device)
    tokens = items.ids[candidates]  # [B, C, T]
    if most_fed:
        is_fed = offsets < fed[:, :, None]
        place = (starts[:, :, None] + offsets).where(is_fed, spare).flatten(1)
        position = (prompt_lengths[:, None, None] + offsets).expand_as(tokens).flatten(1)
        segment = torch.arange(1, n_candidates + 1, device=device)[:, None].expand_as(tokens)
        input_ids.scatter_(1, place, tokens.flatten(1))
        position_ids.scatter_(1, place, position)
        segments.scatter_(1, place, segment.flatten(1))

    example, slot, offset = torch.nonzero(offsets < lengths[:, :, None], as_tuple=True)
    from_prompt = prompt_lengths[example] - 1
    from_candidate = starts[example, slot] + offset - 1
    column = torch.where(offset == 0, from_prompt, from_candidate)
    return PackedInputs(
        input_ids=input_ids[:, :width],
        position_ids=position_ids[:, :width],
        segments=segments[:, :width],
        score_rows=example * width + column,
        score_tokens=tokens[example, slot, offset],
        score_slots=example * n_candidates + slot,
        score_offsets=offset,
        is_causal=not most_fed,
    )


def block_mask(segments: Tensor, dtype: torch.dtype) -> Tensor:
    """Additive attention mask [B, 1, L, L] of `dtype`: 0 where visible, its lowest value elsewhere.

    A token attends to itself and to earlier tokens of the prompt and of its own candidate. Padding
    attends to padding: a softmax over no key would be NaN. The mask is additive and floating
    because eager attention silently misreads a boolean 4-D mask. Its rows are aligned in memory
    (`windows.aligned_copy`).
    """
    width = segments.shape[1]
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool, device=segments.device).tril()
    visible = causal & ((key == query) | ((key == PROMPT_SEGMENT) & (query != PADDING_SEGMENT)))
    nothing = torch.zeros((), dtype=dtype, device=segments.device).expand(visible.shape)
    return aligned_copy(nothing).masked_fill_(~visible, torch.finfo(dtype).min)[:, None]


@dataclass(frozen=True)
class PackedExamples:
    """B examples with their candidates, ready to be scored by one or several models.

    What does not depend on the model is computed once: policy and reference share it.

    Attributes:
        inputs: the packed rows.
        candidates: long [B, C], item ids.
        read: long [N], ascending, the distinct positions that predict something, flat [B * L].
        columns: long [B, S], the same by example, filled up with the example's first position.
        places: long [N], flat index [B * S] of `read` in `columns`.
        slots: long [R], for every prediction the flat index [B * C] of its candidate, or B * C plus
            the example for a token of its prompt; predictions are in the order of their positions.
        row_of: long [H], ascending, index into `read` of every probability that the head computes.
        tokens: long [H], its token.
        picked: long [R], index of the predictions among these, which are normalised over those of
            the same position; None if the predictions are all, over the vocabulary.
    """

    inputs: PackedInputs
    candidates: Tensor
    read: Tensor
    columns: Tensor
    places: Tensor
    slots: Tensor
    row_of: Tensor
    tokens: Tensor
    picked: Tensor | None

    @classmethod
    def of(
        cls,
        prompts: Prompts,
        candidates: Tensor,
        items: ItemTokens,
        trie: ItemTrie | None = None,
        *,
        with_prompt: bool = False,
    ) -> PackedExamples:
        """Pack examples; all tensors are on one device.

        Args:
            prompts: the B prompts.
            candidates: long [B, C], item ids; 0 is padding.
            items: token table of the catalogue.
            trie: normalise over its children (`ItemCatalogue.normaliser`); None: over the
                vocabulary.
            with_prompt: predict the prompts' tokens too; without a trie only.
        """
        inputs = pack(prompts, candidates, items)
        n_examples, width = inputs.input_ids.shape
        rows, tokens, slots = inputs.score_rows, inputs.score_tokens, inputs.score_slots
        if with_prompt:
            column = torch.arange(1, prompts.width, device=prompts.device)
            example, position = torch.nonzero(column < prompts.lengths[:, None], as_tuple=True)
            rows = torch.cat([rows, example * width + position])
            tokens = torch.cat([tokens, prompts.ids[example, position + 1]])
            slots = torch.cat([slots, candidates.numel() + example])
        order = rows.argsort(stable=True)
        tokens = tokens[order]
        # the head runs once per position: all candidates share the last prompt position
        read, row_of = torch.unique_consecutive(rows[order], return_inverse=True)
        picked = None
        if trie is not None and len(rows):  # no row: every candidate is padding
            item = candidates.flatten()[inputs.score_slots]
            nodes = prefix_nodes(trie, item, inputs.score_offsets)[order]
            node = torch.empty_like(read).index_copy_(0, row_of, nodes)
            source, allowed = allowed_tokens(trie, node)
            picked = _found(source, allowed, row_of, tokens)
            row_of, tokens = source, allowed
        columns, places = _by_example(read, n_examples, width)
        return cls(inputs, candidates, read, columns, places, slots[order], row_of, tokens, picked)

    @property
    def lengths(self) -> Tensor:
        """Tokens of every candidate, terminator included, long [B, C]; 0 at padding."""
        slots, shape = self.inputs.score_slots, self.candidates.shape
        return slots.bincount(minlength=self.candidates.numel()).view(shape)

    def token_logps(self, lm: nn.Module) -> Tensor:
        """Log-probabilities of the predictions under `lm`, [R], nats."""
        head = parts_of(causal_lm(lm)).head
        logps = head_logps(self.hidden(lm), head, self.row_of, self.tokens)
        if self.picked is None:
            return logps
        return log_softmax_within(logps, self.row_of, len(self.read))[self.picked]

    def logps(self, lm: nn.Module) -> Tensor:
        """log π(item | prompt) of every candidate under `lm`, see `packed_logps`."""
        return self.logps_with_prompt(lm)[0]

    def logps_with_prompt(self, lm: nn.Module) -> tuple[Tensor, Tensor]:
        """`logps`, and log π(prompt) [B], 0 unless the prompts' tokens are predicted."""
        logps, n_slots = self.token_logps(lm), self.candidates.numel()
        total = logps.new_zeros(n_slots + len(self.candidates)).index_add(0, self.slots, logps)
        return total[:n_slots].view(self.candidates.shape), total[n_slots:]

    def hidden(self, lm: nn.Module) -> Tensor:
        """Last hidden states [N, H] at `read` under `lm`."""
        model = causal_lm(lm)
        parts = parts_of(model)
        inputs, kinds = self.inputs, LayerKinds.of(model.config)
        positions = inputs.position_ids
        is_sdpa = model.config._attn_implementation == "sdpa"
        if parts.can_skip and inputs.is_causal and is_sdpa and not kinds.has_windows:
            mask = None
        else:
            mask = kinds.masks(block_mask(inputs.segments, model.dtype), positions, positions)
        if parts.can_skip:
            hidden = hidden_at(parts.body, inputs.input_ids, positions, mask, self.columns)
            return hidden.flatten(0, 1)[self.places]
        hidden = parts.body(
            input_ids=inputs.input_ids,
            attention_mask=mask,
            position_ids=positions,
            use_cache=False,
        ).last_hidden_state
        return hidden.flatten(0, 1)[self.read]


def _by_example(read: Tensor, n_examples: int, width: int) -> tuple[Tensor, Tensor]:
    """`PackedExamples.columns` and `places` of flat positions [N] in rows of `width`."""
    example = read // width
    counts = read.new_zeros(n_examples).index_add_(0, example, torch.ones_like(read))
    n_columns = max(int(counts.amax()), 1)
    first = counts.cumsum(0) - counts
    place = torch.arange(len(read), device=read.device) - first[example]
    places = example * n_columns + place
    columns = width * torch.arange(n_examples, device=read.device)[:, None]
    columns = columns.repeat(1, n_columns)
    columns.view(-1)[places] = read
    return columns, places


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
    return PackedExamples.of(prompts, candidates, catalogue.items, catalogue.normaliser).logps(lm)


def packed_token_logps(
    lm: nn.Module, prompts: Prompts, candidates: Tensor, catalogue: ItemCatalogue
) -> tuple[Tensor, Tensor]:
    """The summands of `packed_logps`, with the same arguments.

    Returns:
        float [R], log-probability of every token of every candidate, nats, a candidate's tokens in
        their order; long [R], flat index [B * C] of the token's candidate.
    """
    packed = PackedExamples.of(prompts, candidates, catalogue.items, catalogue.normaliser)
    return packed.token_logps(lm), packed.slots


def packed_logps_with_prompt(
    lm: nn.Module, prompts: Prompts, candidates: Tensor, items: ItemTokens
) -> tuple[Tensor, Tensor]:
    """`packed_logps` over the vocabulary, and log π(prompt) from the same forward pass.

    Returns:
        float [B, C] as `packed_logps`, and float [B], the sum over all prompt tokens but the first,
        which is not predicted, nats.
    """
    packed = PackedExamples.of(prompts, candidates, items, with_prompt=True)
    return packed.logps_with_prompt(lm)
