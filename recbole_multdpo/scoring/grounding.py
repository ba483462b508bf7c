"""Grounding: ranking of the catalogue from a freely generated text (BIGRec).

BIGRec (Bao et al., A Bi-Step Grounding Paradigm for Large Language Models in Recommendation
Systems, 2023, arXiv 2308.08434) generates a title without constraints and ranks every item by the
distance between the hidden states of the generated text and of the item's title. The language model
reads both texts without the prompt. A weight per item, its popularity or a collaborative model's
score, may add statistics that a text lacks. Normalisations follow the released code.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedTokenizerBase

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.scoring.lm import causal_lm


@torch.no_grad()
def generate_texts(
    lm: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Prompts,
    *,
    num_beams: int,
    max_new_tokens: int,
) -> list[str]:
    """Generate the best text of an unconstrained beam search for each of B prompts.

    This is transformers' beam search: a finished beam's score is its mean log-probability per
    token.

    Args:
        lm: a Hugging Face or PEFT model, in eval mode.
        tokenizer: the model's tokenizer.
        prompts: the B prompts.
        num_beams: width of the search; 1 is greedy.
        max_new_tokens: limit of a text, in tokens.

    Returns:
        The generated text of each prompt up to the end token, without special tokens and without
        surrounding white space and quotation marks; may be empty.
    """
    n_columns = prompts.width
    columns = torch.arange(n_columns, device=prompts.device)
    padding = n_columns - prompts.lengths[:, None]
    # generation appends on the right, so the padding moves to the left
    ids = prompts.ids.gather(1, (columns - padding).clamp(min=0))
    written = lm.generate(  # type: ignore[operator]  # of the wrapped Hugging Face model
        input_ids=ids,
        attention_mask=(columns >= padding).long(),
        generation_config=GenerationConfig(
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
    )
    texts = tokenizer.batch_decode(written[:, n_columns:], skip_special_tokens=True)
    return [text.strip().strip('"').strip() for text in texts]


@torch.no_grad()
def text_states(
    lm: nn.Module, token_lists: Sequence[Sequence[int]], *, layer: int, batch_tokens: int
) -> Tensor:
    """The hidden state of each text's last token.

    Args:
        lm: a Hugging Face or PEFT model.
        token_lists: n texts as token ids, none empty.
        layer: index into the model's hidden states: 0 are the embeddings, -1 is the last layer,
            after the final norm.
        batch_tokens: tokens per forward, including padding.

    Returns:
        float32 [n, hidden size].

    Raises:
        IndexError: the model has no such layer.
    """
    model = causal_lm(lm)
    order = sorted(range(len(token_lists)), key=lambda n: len(token_lists[n]))
    states: list[Tensor] = [torch.empty(0)] * len(token_lists)
    while order:
        longest = len(token_lists[order[-1]])
        rows = [order.pop() for _ in range(min(len(order), max(batch_tokens // longest, 1)))]
        lengths = torch.tensor([len(token_lists[n]) for n in rows])
        ids = torch.zeros(len(rows), longest, dtype=torch.long)
        for row, n in enumerate(rows):
            ids[row, : len(token_lists[n])] = torch.tensor(token_lists[n])
        mask = torch.arange(longest) < lengths[:, None]
        # without the head: its logits would need more memory than everything else
        hidden = model.base_model(
            input_ids=ids.to(model.device),
            attention_mask=mask.long().to(model.device),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states[layer]
        last = hidden[torch.arange(len(rows)), lengths - 1].float()
        for row, n in enumerate(rows):
            states[n] = last[row]
    return torch.stack(states)


def distances(texts: Tensor, items: Tensor) -> Tensor:
    """Euclidean distance of texts [B, H] from items [n, H]: [B, n].

    Computed from differences: with a matrix product, the distance of a text from itself would be
    the square root of a rounding error.
    """
    return torch.cdist(texts, items, compute_mode="donot_use_mm_for_euclid_dist")


def min_max(values: Tensor) -> Tensor:
    """Scale each row of [..., n] to [0, 1]; a constant row becomes 0."""
    low, high = values.amin(-1, keepdim=True), values.amax(-1, keepdim=True)
    return (values - low) / torch.where(high > low, high - low, 1.0)


def grounded_scores(distance: Tensor, weights: Tensor | None, gamma: float) -> Tensor:
    """Scores of n items for B texts; higher is better.

        score = −minmax(distance) · (1 + minmax(weight))^(−gamma)

    with minima and maxima over the catalogue, per text.

    Args:
        distance: [B, n], at least 0.
        weights: [B, n] or [1, n]: popularity, or a collaborative model's scores; None to use only
            distances.
        gamma: from 0, which disables the weights, to 100, beyond which factors leave float32.

    Returns:
        [B, n], in [−1, 0].
    """
    scores = -min_max(distance)
    if weights is None or gamma == 0:
        return scores
    return scores * (1 + min_max(weights)).pow(-gamma)
