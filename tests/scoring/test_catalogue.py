"""Probabilities normalised over the catalogue: packed, padded, searched and exhaustive agree."""

import pytest
import torch

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.losses import preference_loss
from recbole_multdpo.scoring.best_first import TrieSearch
from recbole_multdpo.scoring.catalogue import (
    ItemCatalogue,
    log_softmax_within,
    prefix_nodes,
    strip_forced_suffixes,
)
from recbole_multdpo.scoring.exhaustive import exhaustive_topk
from recbole_multdpo.scoring.packed import packed_logps
from recbole_multdpo.scoring.padded import padded_logps
from recbole_multdpo.scoring.trie import ItemTrie
from recbole_multdpo.scoring.trie_scores import trie_scores

EOS = 2
# 2 and 4 part at their second token, 2 and 7 at theirs; the ends of 1, 4 and 5 are forced; the
# third token of 8 is a choice after a forced one; 5 and 6 are the same text
ITEMS = ItemTokens.from_lists(
    [
        [],
        [40, 41, 42, EOS],
        [7, 9, EOS],
        [EOS],
        [7, 10, 31, 32, EOS],
        [50, EOS],
        [50, EOS],
        [7, EOS],
        [51, 52, 53, EOS],
        [51, 52, 54, 55, EOS],
    ]
)
TRIE = ItemTrie.build(ITEMS)
SHORT = strip_forced_suffixes(ITEMS, TRIE)
FREE = ItemCatalogue(ITEMS, TRIE)
WHOLE = ItemCatalogue(ITEMS, TRIE, normalised=True)
NORMALISED = ItemCatalogue.build(ITEMS, normalised=True)
PROMPT_LENGTHS = torch.tensor([6, 1, 3])
PROMPT_IDS = torch.tensor(
    [[11, 12, 13, 14, 15, 16, 0], [17, 0, 0, 0, 0, 0, 0], [18, 12, 19, 0, 0, 0, 0]]
)
CANDIDATES = torch.tensor([[4, 2, 0, 2, 1], [3, 0, 9, 5, 6], [1, 7, 4, 8, 0]])
LEVELS = torch.tensor([[1, 1, -1, 0, 0], [1, -1, 1, 0, 0], [1, 0, 0, 0, -1]])
CATALOGUE = torch.arange(1, 10).expand(3, -1)
PROMPTS = Prompts(PROMPT_IDS, PROMPT_LENGTHS)


pytestmark = pytest.mark.usefixtures("pure_float64")


@pytest.fixture(scope="module")
def lm(make_lm):
    return make_lm("qwen2", dtype=torch.float64)


def test_forced_suffixes_are_left_out():
    assert torch.equal(NORMALISED.items.ids, SHORT.ids)
    assert torch.equal(ItemCatalogue.build(ITEMS).items.ids, ITEMS.ids)
    kept = [SHORT.ids[i, : SHORT.lengths[i]].tolist() for i in range(len(SHORT.lengths))]
    assert kept == [
        [],
        [40],
        [7, 9],
        [EOS],
        [7, 10],
        [50],
        [50],
        [7, EOS],
        [51, 52, 53],
        [51, 52, 54],
    ]


def test_a_catalogue_of_one_text_keeps_one_token():
    items = ItemTokens.from_lists([[], [5, 6, EOS], [5, 6, EOS]])
    assert strip_forced_suffixes(items, ItemTrie.build(items)).lengths.tolist() == [0, 1, 1]


def test_prefix_nodes_lead_to_the_tokens():
    nodes = prefix_nodes(TRIE, torch.arange(10)[:, None], torch.arange(5))
    for item in range(1, len(ITEMS.lengths)):
        for offset in range(int(ITEMS.lengths[item])):
            start = int(TRIE.child_start[nodes[item, offset]])
            count = int(TRIE.child_count[nodes[item, offset]])
            children = TRIE.children[start : start + count]
            assert ITEMS.ids[item, offset] in TRIE.token[children]
            assert (TRIE.depth[children] == offset + 1).all()


def test_log_softmax_within_groups():
    values = torch.tensor([0.3, -1.0, 2.0, -torch.inf, -torch.inf], dtype=torch.float64)
    found = log_softmax_within(values, torch.tensor([0, 2, 0, 3, 2]), 4)
    expected = torch.tensor([0.3, 2.0], dtype=torch.float64).log_softmax(0)
    torch.testing.assert_close(found[[0, 2]], expected)
    assert found[1] == 0 and found[4] == -torch.inf
    assert found[3] == -torch.inf  # its group has no probability at all
    inputs = torch.randn(7, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    groups = torch.tensor([1, 0, 1, 2, 0, 1, 1])
    assert torch.autograd.gradcheck(
        lambda v: log_softmax_within(v, groups, 3), inputs.requires_grad_()
    )


def one_by_one(lm, item):
    """The definition: at each token, a softmax over the tokens that continue some title."""
    text = ITEMS.ids[item, : ITEMS.lengths[item]].tolist()
    texts = [ITEMS.ids[i, : ITEMS.lengths[i]].tolist() for i in range(1, len(ITEMS.lengths))]
    totals = torch.zeros(3, dtype=torch.float64)
    for row in range(3):
        prompt = PROMPT_IDS[row, : PROMPT_LENGTHS[row]].tolist()
        for offset, token in enumerate(text):
            logits = lm(input_ids=torch.tensor([prompt + text[:offset]])).logits[0, -1]
            going_on = sorted(
                {t[offset] for t in texts if t[:offset] == text[:offset] and len(t) > offset}
            )
            totals[row] += logits[going_on].log_softmax(0)[going_on.index(token)]
    return totals


@pytest.mark.parametrize("score", [packed_logps, padded_logps])
def test_scores_equal_the_definition_and_add_up_to_one(lm, score):
    with torch.no_grad():
        logps = score(lm, PROMPTS, CATALOGUE, NORMALISED)
        expected = torch.stack([one_by_one(lm, item) for item in range(1, 10)], dim=1)
        free = score(lm, PROMPTS, CATALOGUE, FREE)
    torch.testing.assert_close(logps, expected, rtol=1e-10, atol=1e-10)
    # items 5 and 6 share a text
    torch.testing.assert_close(logps.exp().sum(1) - logps[:, 5].exp(), torch.ones(3).double())
    assert (free - logps).max() < -0.1  # of all texts, titles are a part


@pytest.mark.parametrize("score", [packed_logps, padded_logps])
def test_forced_suffixes_make_no_difference(lm, score):
    with torch.no_grad():
        short = score(lm, PROMPTS, CANDIDATES, NORMALISED)
        whole = score(lm, PROMPTS, CANDIDATES, WHOLE)
        mistaken = score(lm, PROMPTS, CANDIDATES, ItemCatalogue.build(SHORT))
    torch.testing.assert_close(short, whole, rtol=1e-10, atol=1e-10)
    assert (mistaken - whole).abs().max() > 0.1


def test_packed_and_padded_have_the_same_gradients(lm):
    found = []
    for score in (packed_logps, padded_logps):
        lm.zero_grad(set_to_none=True)
        logps = score(lm, PROMPTS, CANDIDATES, NORMALISED)
        reference = torch.zeros_like(logps)
        preference_loss("mult_dpo", logps, reference, LEVELS, 0.7).sum().backward()
        found.append({name: p.grad.clone() for name, p in lm.named_parameters()})
    packed, padded = found
    for name, gradient in padded.items():
        torch.testing.assert_close(packed[name], gradient, rtol=1e-9, atol=1e-10, msg=name)
    assert max(gradient.abs().max() for gradient in padded.values()) > 1e-3


def test_forced_tokens_are_no_free_parameters(make_lm):
    """Rewarding a token that only one title has moves only that title's plain score."""
    lm = make_lm("qwen2", dtype=torch.float64, seed=1)
    candidates = torch.tensor([[1], [4], [4]])

    def scores():
        with torch.no_grad():
            plain = packed_logps(lm, PROMPTS, candidates, FREE)
            return packed_logps(lm, PROMPTS, candidates, NORMALISED), plain

    normalised, plain = scores()
    with torch.no_grad():
        lm.get_output_embeddings().weight[[41, 42, 31, 32]] *= 3
    normalised_after, plain_after = scores()
    torch.testing.assert_close(normalised, normalised_after, rtol=1e-12, atol=1e-12)
    assert (plain - plain_after).abs().min() > 0.01


@pytest.mark.parametrize("k", [1, 3, 9])
def test_search_equals_exhaustive_ranking(lm, k):
    excluded = torch.zeros(3, 10, dtype=torch.bool)
    excluded[:, 0] = True
    excluded[0, [2, 5]] = True
    excluded[2, 9] = True

    def score(prompts, candidates):
        return packed_logps(lm, prompts, candidates, NORMALISED)

    expected = exhaustive_topk(score, PROMPTS, excluded, k, n_items=10)
    for max_expanded in (None, 0):  # searched, and given up for scoring along the trie
        search = TrieSearch(lm, NORMALISED, PROMPTS, excluded, k, max_expanded=max_expanded)
        found = search.run(expand_per_step=1)
        assert torch.equal(found.items, expected.items)
        torch.testing.assert_close(found.scores, expected.scores, rtol=1e-10, atol=1e-10)
    free = TrieSearch(lm, ItemCatalogue.build(SHORT), PROMPTS, excluded, k).run()
    assert not torch.allclose(free.scores, expected.scores)


def test_every_item_along_the_trie(lm):
    with torch.no_grad():
        expected = packed_logps(lm, PROMPTS, CATALOGUE, NORMALISED)
    found = trie_scores(lm, NORMALISED, PROMPTS, nodes_per_chunk=2)
    torch.testing.assert_close(found[:, 1:], expected, rtol=1e-10, atol=1e-10)


def test_examples_of_padding_alone(lm):
    candidates = torch.zeros(3, 2, dtype=torch.long)
    assert (packed_logps(lm, PROMPTS, candidates, NORMALISED) == 0).all()


def test_a_catalogue_of_single_tokens(lm):
    """Titles of one token each: nothing is fed after the prompt."""
    items = ItemTokens.from_lists([[], [40, EOS], [41, EOS], [42, EOS]])
    short = ItemCatalogue.build(items, normalised=True)
    assert short.items.ids.shape == (4, 1) and short.trie.num_internal == 1
    candidates = torch.tensor([[1, 2, 3]] * 3)
    with torch.no_grad():
        logps = packed_logps(lm, PROMPTS, candidates, short)
        whole = ItemCatalogue(items, ItemTrie.build(items), normalised=True)
        expected = padded_logps(lm, PROMPTS, candidates, whole)
    torch.testing.assert_close(logps, expected, rtol=1e-10, atol=1e-10)
    found = TrieSearch(lm, short, PROMPTS, None, 3).run()
    torch.testing.assert_close(found.scores, logps.sort(1, descending=True).values)
    assert (found.expanded == 0).all()
