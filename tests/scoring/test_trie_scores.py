"""All items along the trie against a loop that scores every item alone, and controls."""

from dataclasses import replace

import pytest
import torch

from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.trie_scores import _chunks, trie_scores
from tests.scoring.test_best_first import case, oracle, tiny_lm, wrong_tries


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("nodes_per_chunk", [1, 7, 1000])
def test_equals_scoring_every_item_alone(architecture, attention, nodes_per_chunk):
    made = case()
    lm = tiny_lm(architecture, attention)
    found = trie_scores(lm, made.catalogue, made.prompts, nodes_per_chunk=nodes_per_chunk)
    torch.testing.assert_close(found[:, 1:], oracle(architecture)[:, 1:], rtol=0, atol=1e-5)
    assert (found[:, 0] == -torch.inf).all()


def test_padded_prompts_and_users_do_not_influence_each_other():
    made, lm = case(), tiny_lm()
    together = trie_scores(lm, made.catalogue, made.prompts)
    for user, prompt in enumerate(made.prompts.split(1)):
        alone = trie_scores(lm, made.catalogue, prompt.trimmed())
        torch.testing.assert_close(alone[0], together[user], rtol=0, atol=1e-5)


def test_float32_sums_of_a_float32_model():
    made = case()
    found = trie_scores(tiny_lm(dtype=torch.float32), made.catalogue, made.prompts)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found[:, 1:].double(), oracle()[:, 1:], rtol=0, atol=1e-3)


@pytest.mark.parametrize("mistake", ["no ancestors", "not itself", "shifted positions"])
def test_wrong_mask_or_positions_change_the_scores(mistake):
    made = case()
    mistaken = replace(made.catalogue, trie=wrong_tries()[mistake])
    right = trie_scores(tiny_lm(), made.catalogue, made.prompts)[:, 1:]
    wrong = trie_scores(tiny_lm(), mistaken, made.prompts)[:, 1:]
    assert (wrong - right).abs().max() > 1e-2


@pytest.mark.parametrize("nodes_per_chunk", [1, 5, 1000])
def test_chunks_hold_every_node_once_and_all_its_ancestors(nodes_per_chunk):
    trie = case().catalogue.trie
    fed = []
    for chunk in _chunks(trie, nodes_per_chunk):
        nodes = chunk.nodes.tolist()
        fed += nodes[chunk.n_ancestors :]
        for row, node in enumerate(nodes):
            seen = {nodes[column] for column in chunk.visible[row].nonzero()[:, 0].tolist()}
            while node > 0:
                assert node in seen
                seen.remove(node)
                node = int(trie.parent[node])
            assert not seen
    assert sorted(fed) == list(range(1, trie.num_internal))


def test_texts_of_one_token_need_the_prompt_only():
    """The root is the only internal node, as with `tiny_title_tokens` over the catalogue."""
    made, lm = case(), tiny_lm()
    tokens = [3, 9, 9, 4]
    items = ItemTokens.from_lists([[], *([token] for token in tokens)])
    found = trie_scores(lm, ItemCatalogue.build(items), made.prompts)
    hidden = lm(made.prompts.ids).logits[range(len(found)), made.prompts.lengths - 1]
    expected = hidden.log_softmax(-1)[:, tokens]
    torch.testing.assert_close(found[:, 1:], expected, rtol=0, atol=1e-5)


def test_training_mode_is_refused():
    made = case()
    with pytest.raises(ValueError, match="eval mode"):
        trie_scores(tiny_lm().train(), made.catalogue, made.prompts)
