"""Probe a language model before training: compare our scores with its own forward pass.

Scorers and rankers need more from a model than its `forward`: attention that follows our masks and
positions, a cache that can be cropped, a head that can be run separately. Neither the name nor the
configuration of an architecture shows if it has all that, so it is measured. A few random items
after random prompts of the run's maximum length are scored by the code that the run will use, and
one by one without padding by the model's own forward pass.

This is done twice: with the weights as they are, and with every matrix scaled up so that each token
influences all later ones, as may happen in training. An adapter that starts at zero, or freshly
initialised weights, would hide many faults.

It is done in float32, because bfloat16 cannot tell rounding from faults: an exact mixture of
experts may be a nat off, and a fault of hundredths is a fault. Differences in float32 are checked
again in float64, so that rounding that sends a token to another expert does not count as a fault.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from inspect import signature

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.model.reduced import number_of_layers, reduced_copy
from recbole_multdpo.scoring.beam import beam_topk
from recbole_multdpo.scoring.best_first import TrieSearch
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.packed import packed_logps
from recbole_multdpo.scoring.padded import padded_logps
from recbole_multdpo.scoring.topk import TopK
from recbole_multdpo.scoring.trie_scores import trie_scores

# In float32 exact scorers are 1e-5 nats off with random weights; larger differences are checked in
# float64, where exact ones are below 1e-6: norms and softmax stay in float32 even there.
NATS, RELATIVE = 2e-4, 2e-6
# for a model that does not run in float64
NATS_IN_FLOAT32 = 5e-3
# below this size a copy of all layers costs less than a second
SMALL = 20_000_000

# tokens at a prompt's end whose predictions must not depend on the item that follows
WATCHED = 32

OWN_FORWARD = "forward"
CAUSALITY = "causality"


@dataclass(frozen=True)
class Trial:
    """Sizes, tokens and methods of a probe.

    Attributes:
        prompt_tokens: length of the longest prompt; a second one is shorter, to have padding.
        item_tokens: length of the longest item, terminator included, at least 5.
        tokens: token ids to draw prompts and items from.
        terminator: token id at the end of every item.
        methods: keys of `METHODS`.
    """

    prompt_tokens: int
    item_tokens: int
    tokens: Sequence[int]
    terminator: int
    methods: tuple[str, ...]


@dataclass(frozen=True)
class _Inputs:
    """Two prompts and the catalogue of items."""

    prompts: Prompts
    catalogue: ItemCatalogue


def faults(
    lm: PreTrainedModel, trial: Trial, device: torch.device, *, attn: str | None = None
) -> dict[str, float | str]:
    """Find methods whose scores differ from the model's own forward pass.

    Args:
        lm: the bare causal LM, with an adapter's layers in place if it has one; it is not changed.
        trial: sizes, tokens and methods of the probe.
        device: device of the probe.
        attn: attention implementation to try instead of the model's own.

    Returns:
        The largest difference in nats by method, or the method's error as text; {} if all agree.
        `OWN_FORWARD` stands for a forward pass that fails, `CAUSALITY` for one whose predictions
        depend on later tokens.
    """
    whole = sum(p.numel() for p in lm.parameters()) <= SMALL or number_of_layers(lm) < 2

    def tried(dtype: torch.dtype, whole: bool) -> dict[str, float | str]:
        copied = reduced_copy(lm, dtype=dtype, device=device, whole=whole)
        if attn is not None:
            copied.set_attn_implementation(attn)
        found = _differences(copied, trial)
        if not found:
            _strengthen(copied)
            found = _differences(copied, trial)
            # too large for some architectures, which then cannot be checked
            found = {} if OWN_FORWARD in found else found
        return found

    found = tried(torch.float32, whole)
    if OWN_FORWARD in found and not whole:  # a layer may need one that the reduced copy lacks
        whole = True
        found = tried(torch.float32, whole)
    if not found or OWN_FORWARD in found:
        return found
    precisely = tried(torch.float64, whole)
    if OWN_FORWARD in precisely:
        return {k: v for k, v in found.items() if isinstance(v, str) or not v <= NATS_IN_FLOAT32}
    return {method: precisely[method] for method in found if method in precisely}


@torch.no_grad()
def _strengthen(lm: PreTrainedModel) -> None:
    """Scale every matrix up, if needed, to keep the norm of the vectors it multiplies."""
    generator = torch.Generator(device=lm.device).manual_seed(0)
    for parameter in lm.parameters():
        if parameter.ndim < 2 or not parameter.is_floating_point():
            continue
        wanted = 1.1 * parameter.shape[-1] ** -0.5
        found = float(parameter.std())
        if found == 0:  # an adapter's second matrix
            parameter.normal_(std=wanted / 4, generator=generator)
        elif found < wanted:
            parameter.mul_(wanted / found)


@torch.no_grad()
def _differences(lm: PreTrainedModel, trial: Trial) -> dict[str, float | str]:
    inputs = _inputs(trial, lm.device)
    try:
        expected, before = _own_scores(lm, inputs)  # [2, n_items]
    except Exception as error:  # model code can fail in any way
        return {OWN_FORWARD: _reason(error)}
    if not expected.isfinite().all():
        return {OWN_FORWARD: "its log-probabilities are not finite"}
    found: dict[str, float | str] = {}
    # predictions inside the prompt must not depend on the item after it
    if (change := _excess(before, before[:, :1].expand_as(before))) is not None:
        found[CAUSALITY] = change
    for method in trial.methods:
        try:
            scores = METHODS[method](lm, inputs).to(expected.dtype)
        except Exception as error:
            found[method] = _reason(error)
            continue
        if (difference := _excess(scores[:, 1:], expected[:, 1:])) is not None:
            found[method] = difference
    return found


def _excess(values: Tensor, expected: Tensor) -> float | None:
    """Largest difference if it exceeds rounding, else None; NaN counts as infinite."""
    difference = (values - expected).abs()
    if bool((difference <= NATS + RELATIVE * expected.abs()).all()):
        return None
    return float(difference.nan_to_num(torch.inf).max())


def _reason(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _inputs(trial: Trial, device: torch.device) -> _Inputs:
    """Random prompts and four items of 3 to `item_tokens` tokens, some with common prefixes."""
    generator = torch.Generator().manual_seed(0)

    def draw(n: int) -> list[int]:
        places = torch.randint(len(trial.tokens), (n,), generator=generator).tolist()
        return [trial.tokens[place] for place in places]

    longest = draw(max(trial.item_tokens, 5) - 1)
    texts = [longest, longest[:2] + draw(1), longest[:1] + draw(2), draw(2)]
    lengths = torch.tensor([trial.prompt_tokens, max(trial.prompt_tokens // 3, 1)])
    prompt_ids = torch.zeros(2, trial.prompt_tokens, dtype=torch.long)
    for row, length in enumerate(lengths.tolist()):
        prompt_ids[row, :length] = torch.tensor(draw(length))
    items = ItemTokens.from_lists([[], *([*text, trial.terminator] for text in texts)])
    return _Inputs(Prompts(prompt_ids, lengths).to(device), ItemCatalogue.build(items).to(device))


def _own_scores(lm: PreTrainedModel, inputs: _Inputs) -> tuple[Tensor, Tensor]:
    """Score items by the model's own forward pass, one unpadded row per item.

    Returns:
        log π of every item [2, n_items], and log-probabilities of the items' first tokens
        [2, n_items - 1, R, n_items - 1] at the last R tokens of the prompt (0 before a shorter
        one's first), by the item that follows the prompt; nats.
    """
    keeps = "logits_to_keep" in signature(lm.forward).parameters
    items = inputs.catalogue.items
    lengths, firsts = items.lengths.tolist(), items.ids[1:, 0]
    totals, before = [], []
    for row, n_prompt in enumerate(inputs.prompts.lengths.tolist()):
        prompt = inputs.prompts.ids[row, :n_prompt]
        for item, length in enumerate(lengths[1:], start=1):
            text = items.ids[item, :length]
            # with a large vocabulary, logits of a whole prompt would be most of the work
            keep = {"logits_to_keep": length + WATCHED} if keeps else {}
            ids = torch.cat([prompt, text])[None]
            logits = lm(input_ids=ids, use_cache=False, **keep).logits[0, -length - WATCHED : -1]
            logps = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
            totals.append(logps[torch.arange(-length, 0), text].sum())
            of_prompt = logps[:-length, firsts] if length < len(logps) else logps[:0, firsts]
            before.append(F.pad(of_prompt, (0, 0, WATCHED - 1 - len(of_prompt), 0)))
    n_items = len(lengths)
    scores = F.pad(torch.stack(totals).view(2, n_items - 1), (1, 0))
    return scores, torch.stack(before).view(2, n_items - 1, WATCHED - 1, n_items - 1)


def _by_candidates(score: Callable[..., Tensor]) -> Callable[[PreTrainedModel, _Inputs], Tensor]:
    def scores(lm: PreTrainedModel, inputs: _Inputs) -> Tensor:
        candidates = torch.arange(len(inputs.catalogue), device=lm.device).expand(2, -1)
        return score(lm, inputs.prompts, candidates, inputs.catalogue)

    return scores


def _by_trie(rank: Callable[..., TopK]) -> Callable[[PreTrainedModel, _Inputs], Tensor]:
    def scores(lm: PreTrainedModel, inputs: _Inputs) -> Tensor:
        n_items = len(inputs.catalogue)
        top = rank(lm, inputs.catalogue, inputs.prompts, None, n_items - 1)
        found = top.scores.new_zeros(2, n_items)
        return found.scatter(1, top.items, top.scores)

    return scores


def _all_by_trie(lm: PreTrainedModel, inputs: _Inputs) -> Tensor:
    return trie_scores(lm, inputs.catalogue, inputs.prompts)


# scores [2, n_items] of all items; item 0 has any value
METHODS: dict[str, Callable[[PreTrainedModel, _Inputs], Tensor]] = {
    "packed": _by_candidates(packed_logps),
    "padded": _by_candidates(padded_logps),
    "trie_scores": _all_by_trie,
    # in several steps, as a search does
    "best_first": _by_trie(lambda *arguments: TrieSearch(*arguments).run(expand_per_step=2)),
    # wide enough that no item is dropped
    "beam": _by_trie(lambda *arguments: beam_topk(*arguments, beam_size=arguments[-1] * 2)),
}


def longest_exact_prompt(
    lm: PreTrainedModel, trial: Trial, device: torch.device, shortest: int
) -> int | None:
    """Largest prompt length, at least `shortest`, at which all scores are exact; else None."""
    fits, fails = shortest, trial.prompt_tokens
    if fits >= fails or faults(lm, replace(trial, prompt_tokens=fits), device):
        return None
    while fails - fits > 1:
        middle = (fits + fails) // 2
        if faults(lm, replace(trial, prompt_tokens=middle), device):
            fails = middle
        else:
            fits = middle
    return fits
