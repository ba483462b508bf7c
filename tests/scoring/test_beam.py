"""Beam search by hand, against `generate`, and with a full beam against best-first."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LogitsProcessor, LogitsProcessorList

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.errors import TrainingError
from recbole_multdpo.scoring.beam import beam_topk, node_log_probs
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from tests.scoring.test_best_first import END, VOCABULARY, case, naive_scores, tiny_lm


def beam(lm, drawn, k=6, excluded=None, beam_size=10, **options):  # type: ignore[no-untyped-def]
    return beam_topk(
        lm, drawn.catalogue, drawn.prompts, excluded, k, beam_size=beam_size, **options
    )


def random_shares(  # type: ignore[no-untyped-def]
    n_users: int, n_items: int, seed: int = 0, scale: float = 2.0
):
    """Log of shares [n_users, n_items] that sum to 1; item 0 has none."""
    generator = torch.Generator().manual_seed(seed)
    scores = scale * torch.randn(n_users, n_items, generator=generator).double()
    scores[:, 0] = -math.inf
    return scores.log_softmax(1)


# --------------------------------------------------------------------------------------------------
# by hand: a model that says the same whatever it reads


# items 1 to 5; the beam of 2 keeps a and c after the first token and drops b
TEXTS = ["ac", "aa", "b", "cb", "ca"]
TOKENS = {"a": 2, "b": 3, "c": 4}
LOGPS = {"a": math.log(0.4), "b": math.log(0.25), "c": math.log(0.3), END: math.log(0.05)}
SCORES = [math.prod([0.4, 0.3]), 0.4 * 0.4, 0.25, 0.3 * 0.25, 0.3 * 0.4]


def constant_lm():  # type: ignore[no-untyped-def]
    """A model with the logits `LOGPS` at every position."""
    lm = tiny_lm()
    lm.model.norm.weight.data.zero_()
    lm.model.norm.weight.data[0] = 1.0
    lm.model.embed_tokens.weight.data[:] = 0.0
    lm.model.embed_tokens.weight.data[:, 0] = 1.0
    for layer in lm.model.layers:
        layer.self_attn.o_proj.weight.data.zero_()
        layer.mlp.down_proj.weight.data.zero_()
    lm.lm_head.weight.data.zero_()
    lm.lm_head.weight.data[:, 0] = -50.0
    size = math.sqrt(lm.config.hidden_size)  # the norm of a one-hot state
    for token, logp in LOGPS.items():
        lm.lm_head.weight.data[TOKENS.get(token, END), 0] = logp / size
    return lm


def hand_case():  # type: ignore[no-untyped-def]
    items = ItemTokens.from_lists([[], *([*(TOKENS[c] for c in text), END] for text in TEXTS)])
    prompts = Prompts(torch.full((1, 3), 7), torch.tensor([3]))
    return replace(case(), catalogue=ItemCatalogue.build(items), prompts=prompts)


def test_the_scores_by_hand_are_those_of_the_model() -> None:
    found = naive_scores(constant_lm(), hand_case())[0, 1:]
    torch.testing.assert_close(found.exp(), torch.tensor(SCORES).double() * 0.05, rtol=1e-4, atol=0)


def test_a_narrow_beam_by_hand() -> None:
    """Step 1 keeps a (.4) and c (.3) and drops b (.25), whose score would be the best.

    Step 2 scores aa .16, ac .12, ca .12, cb .075 and keeps aa and the first of ac and ca by token.
    Their ends complete them. The dropped ones follow by their scored prefixes: b .25 (one token),
    ca .12, cb .075.
    """
    result = beam(constant_lm(), hand_case(), k=5, beam_size=2)
    assert result.items[0, :2].tolist() in ([2, 1], [2, 5])
    rest = [3, 5, 4] if 1 in result.items[0, :2] else [3, 1, 4]
    assert result.items[0, 2:].tolist() == rest
    first = torch.tensor([0.16 * 0.05, 0.12 * 0.05]).double()
    torch.testing.assert_close(result.scores[0, :2].exp(), first, rtol=1e-4, atol=0)
    assert (result.scores[0].diff() <= 0).all()
    # fed: a, c; then two of the second tokens
    assert result.expanded.tolist() == [4]


def test_forced_tokens_are_free_where_probabilities_are_those_of_the_catalogue() -> None:
    """Over the titles: a .4/.95, b .25/.95, c .3/.95; then .4 and .3 in halves; ends are forced."""
    result = beam(constant_lm(), hand_case().normalised(), k=1, beam_size=3)
    assert result.items.tolist() == [[3]]  # b: its end is no choice any more
    torch.testing.assert_close(
        result.scores.exp(), torch.tensor([[0.25 / 0.95]]).double(), rtol=1e-4, atol=0
    )


def test_the_assistant_takes_part_in_every_token_by_hand() -> None:
    """w = 1/2. m(a) = .1 + .1, m(b) = .1, m(c) = .6 + .1: step 1 scores .4*.2, .25*.1, .3*.7.

    A beam of one takes c, then cb (.25*.6) before ca (.4*.1), unlike without an assistant.
    """
    drawn = hand_case()
    shares = torch.tensor([[0.0, 0.1, 0.1, 0.1, 0.6, 0.1]]).double()
    node_bias = node_log_probs(drawn.catalogue.trie, shares.log())  # odds w / (1 - w) = 1
    assert beam(constant_lm(), drawn, k=1, beam_size=1).items.tolist() != [[4]]
    result = beam(constant_lm(), drawn, k=1, beam_size=1, node_bias=node_bias)
    assert result.items.tolist() == [[4]]
    expected = torch.tensor([[0.3 * 0.25 * 0.05 * 0.6]]).double()
    torch.testing.assert_close(result.scores.exp(), expected, rtol=1e-4, atol=0)


def test_shares_of_nodes_are_sums_over_the_items_below() -> None:
    trie, shares = case().catalogue.trie, random_shares(3, 31, scale=30.0)
    found = node_log_probs(trie, shares)
    for node in range(len(trie.token)):
        start, count = int(trie.item_start[node]), int(trie.item_count[node])
        below = trie.item_order[start : start + count]
        torch.testing.assert_close(
            found[:, node], shares[:, below].logsumexp(1), rtol=1e-9, atol=1e-9
        )
    assert found.isfinite().all()


# --------------------------------------------------------------------------------------------------
# against transformers' beam search


class Mixture(LogitsProcessor):
    """D3's score of a token: (1 - w) log pi + w log [m(p t) / m(p)], −inf outside the trie."""

    def __init__(self, items, prompt_length, shares, weight):  # type: ignore[no-untyped-def]
        self.texts = [
            tuple(row[:length].tolist())
            for row, length in zip(items.ids[1:], items.lengths[1:], strict=True)
        ]
        self.shares = shares.exp()[1:].tolist()
        self.prompt_length, self.weight = prompt_length, weight

    def mass(self, prefix):  # type: ignore[no-untyped-def]
        pairs = zip(self.texts, self.shares, strict=True)
        return sum(share for text, share in pairs if text[: len(prefix)] == prefix)

    def __call__(self, input_ids, scores):  # type: ignore[no-untyped-def]
        mixed = torch.full_like(scores, -math.inf)
        for row, ids in enumerate(input_ids.tolist()):
            prefix = tuple(ids[self.prompt_length :])
            allowed = {t[len(prefix)] for t in self.texts if t[: len(prefix)] == prefix != t}
            for token in allowed:
                ratio = self.mass((*prefix, token)) / self.mass(prefix)
                mixed[row, token] = (1 - self.weight) * scores[row, token]
                mixed[row, token] += self.weight * math.log(ratio)
        return mixed


@pytest.mark.parametrize("weight", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("beam_size", [2, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_beam_search_of_transformers(seed: int, beam_size: int, weight: float) -> None:
    drawn, lm = case(seed, n_items=40, n_users=3), tiny_lm()
    items = drawn.catalogue.items
    shares = random_shares(3, 41, seed)
    node_bias = None
    if weight:
        node_bias = weight / (1 - weight) * node_log_probs(drawn.catalogue.trie, shares)
    found = beam(lm, drawn, k=40, beam_size=beam_size, node_bias=node_bias)
    for user, length in enumerate(drawn.prompts.lengths.tolist()):
        prompt = drawn.prompts.ids[user : user + 1, :length]
        generated = lm.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            num_beams=beam_size,
            num_return_sequences=beam_size,
            do_sample=False,
            length_penalty=0.0,
            max_new_tokens=int(items.lengths.max()),
            eos_token_id=END,
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
            logits_processor=LogitsProcessorList([Mixture(items, length, shares[user], weight)]),
        )
        texts = [tuple(row[length:].tolist()) for row in generated.sequences]
        texts = [text[: text.index(END) + 1] for text in texts if END in text]
        rank = 0
        for text, score in zip(texts, generated.sequences_scores.tolist(), strict=False):
            same = [
                item
                for item in range(1, 41)
                if tuple(items.ids[item, : items.lengths[item]].tolist()) == text
            ]
            assert found.items[user, rank : rank + len(same)].tolist() == same
            assert float(found.scores[user, rank]) * (1 - weight) == pytest.approx(score, abs=1e-5)
            rank += len(same)
        assert rank >= min(beam_size, 3)


def test_the_narrow_beam_is_not_the_exact_ranking() -> None:
    """Control: the comparisons above and below can distinguish the two rankings."""
    drawn, lm = case(0, n_items=40, n_users=3), tiny_lm()
    exact = drawn.rank(lm, k=5)
    assert not beam(lm, drawn, k=5, beam_size=1).items.equal(exact.items)


# --------------------------------------------------------------------------------------------------
# a full beam, and everything that it drops


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(1, 10_000),
    n_items=st.integers(1, 40),
    k=st.integers(1, 12),
    excluded_share=st.sampled_from([0.0, 0.3, 0.95]),
    odds=st.sampled_from([0.0, 1.0, 9.0]),
    normalised=st.booleans(),
)
def test_a_full_beam_is_the_exact_ranking(  # type: ignore[no-untyped-def]
    seed, n_items, k, excluded_share, odds, normalised
):
    lm, drawn = tiny_lm(), case.__wrapped__(seed, n_items, 3)
    generator = torch.Generator().manual_seed(seed)
    excluded = torch.rand(3, n_items + 1, generator=generator) < excluded_share
    of_nodes = odds * node_log_probs(drawn.catalogue.trie, random_shares(3, n_items + 1, seed))
    of_items = of_nodes[:, drawn.catalogue.trie.leaf_of_item.clamp(min=0)]
    drawn = drawn.normalised() if normalised else drawn
    exact = drawn.rank(lm, k=k, item_bias=of_items, excluded=excluded)
    found = beam(lm, drawn, k=k, beam_size=200, node_bias=of_nodes, excluded=excluded)
    torch.testing.assert_close(found.scores, exact.scores, rtol=0, atol=5e-6)
    assert found.items.equal(exact.items)


@pytest.mark.parametrize("beam_size", [1, 3])
def test_every_allowed_item_has_a_place(beam_size: int) -> None:
    drawn, lm = case(4, n_items=50, n_users=4), tiny_lm()
    excluded = torch.zeros(4, 51, dtype=torch.bool)
    excluded[1, ::2] = excluded[2, 3:] = excluded[3] = True
    result = beam(lm, drawn, k=50, beam_size=beam_size, excluded=excluded)
    for user in range(4):
        allowed = [item for item in range(1, 51) if not excluded[user, item]]
        listed = [item for item in result.items[user].tolist() if item]
        assert sorted(listed) == allowed
        assert (result.scores[user, : len(allowed)].diff() <= 0).all()
    assert result.expanded[3] == 0


def test_a_batch_equals_its_users_alone() -> None:
    drawn, lm = case(0, n_items=40, n_users=4), tiny_lm()
    together = beam(lm, drawn, k=40, beam_size=3)
    for user, prompt in enumerate(drawn.prompts.split(1)):
        alone = replace(drawn, prompts=prompt.trimmed())
        assert beam(lm, alone, k=40, beam_size=3).items[0].equal(together.items[user])


def test_nan_weights_are_reported() -> None:
    lm = tiny_lm()
    lm.lm_head.weight.data[VOCABULARY // 4] = math.nan
    with pytest.raises(TrainingError, match="NaN"):
        beam(lm, case())
