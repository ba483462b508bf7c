"""The trie of item texts: a handmade example, a dictionary-based reference, and bad input."""

import time

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.scoring.trie import ROOT, ItemTrie

END = 1


def build(texts):
    """Trie of a catalogue given as token lists without terminator."""
    return ItemTrie.build(ItemTokens.from_lists([[], *([*text, END] for text in texts)]))


def spelled(trie, node):
    """Tokens from the root to a node, by walking parents."""
    tokens = []
    while node != ROOT:
        tokens.append(int(trie.token[node]))
        node = int(trie.parent[node])
    return tuple(reversed(tokens))


def items_below(trie, node):
    start = int(trie.item_start[node])
    return trie.item_order[start : start + int(trie.item_count[node])].tolist()


def children_of(trie, node):
    start = int(trie.child_start[node])
    return trie.children[start : start + int(trie.child_count[node])].tolist()


def test_hand_drawn_example():
    """Items 1: "5 6", 2: "7", 3: "5 6" again, 4: "5 2", with terminator 1.

    Lexicographic order: 5 2 1 (item 4), 5 6 1 (items 1 and 3), 7 1 (item 2). Internal nodes: root,
    5, 5 2, 5 6, 7. Leaves: 5 2 1, 5 6 1, 7 1.
    """
    trie = build([[5, 6], [7], [5, 6], [5, 2]])
    assert (trie.num_internal, trie.num_leaves, trie.num_items) == (5, 3, 5)
    assert trie.item_order.tolist() == [4, 1, 3, 2]
    names = [spelled(trie, node) for node in range(8)]
    assert names == [(), (5,), (5, 2), (5, 6), (7,), (5, 2, 1), (5, 6, 1), (7, 1)]
    assert trie.token.tolist() == [-1, 5, 2, 6, 7, 1, 1, 1]
    assert trie.parent.tolist() == [-1, 0, 1, 1, 0, 2, 3, 4]
    assert trie.depth.tolist() == [0, 1, 2, 2, 1, 3, 3, 2]
    assert trie.path.tolist() == [[0, 0], [1, 0], [1, 2], [1, 3], [4, 0]]
    assert [children_of(trie, node) for node in range(5)] == [[1, 4], [2, 3], [5], [6], [7]]
    assert [items_below(trie, node) for node in range(8)] == [
        [4, 1, 3, 2],
        [4, 1, 3],
        [4],
        [1, 3],
        [2],
        [4],
        [1, 3],
        [2],
    ]
    assert trie.leaf_of_item.tolist() == [-1, 6, 7, 6, 5]


texts_strategy = st.lists(st.lists(st.integers(2, 5), max_size=5), min_size=1, max_size=25)


@given(texts_strategy)
def test_agrees_with_a_dictionary_of_prefixes(texts):
    trie = build(texts)
    full = {item: (*text, END) for item, text in enumerate(texts, start=1)}
    prefixes = {tokens[:length] for tokens in full.values() for length in range(len(tokens) + 1)}
    names = [spelled(trie, node) for node in range(len(trie.token))]

    assert len(names) == len(set(names))
    assert set(names) == prefixes
    assert set(names[trie.num_internal :]) == set(full.values())
    for node, name in enumerate(names):
        assert int(trie.depth[node]) == len(name)
        below = [item for item, tokens in full.items() if tokens[: len(name)] == name]
        assert sorted(items_below(trie, node)) == below
        if node < trie.num_internal:
            ancestors = [names.index(name[:length]) for length in range(1, len(name) + 1)]
            padding = [ROOT] * (trie.path.shape[1] - len(name))
            assert trie.path[node].tolist() == ancestors + padding
            tokens = [names[child] for child in children_of(trie, node)]
            assert tokens == sorted(p for p in prefixes if p[:-1] == name and len(p) > len(name))
    for item, tokens in full.items():
        assert names[trie.leaf_of_item[item]] == tokens
    # within a leaf, items ascend: ties are broken by id
    for node in range(trie.num_internal, len(names)):
        assert items_below(trie, node) == sorted(items_below(trie, node))


def test_token_zero_is_a_token_and_not_padding():
    """Text "3 0" must not be confused with "3" followed by the table's padding."""
    trie = ItemTrie.build(ItemTokens.from_lists([[], [3, 0, 0, END], [3, END], [0, END]]))
    assert trie.num_leaves == 3
    assert spelled(trie, int(trie.leaf_of_item[1])) == (3, 0, 0, END)
    assert spelled(trie, int(trie.leaf_of_item[2])) == (3, END)


def test_one_item_and_an_item_of_only_the_terminator():
    assert (build([[4, 5]]).num_internal, build([[4, 5]]).num_leaves) == (3, 1)
    trie = build([[]])
    assert (trie.num_internal, trie.num_leaves) == (1, 1)
    assert trie.path.shape == (1, 0)


@pytest.mark.parametrize("texts", [[[2, 3], [2]], [[2], [2, 3], [2, 3, 4]], [[4], [2, 9], [2]]])
def test_text_that_continues_another_is_refused(texts):
    """Without terminators 2 is a prefix of 2 3; its item would be an internal node."""
    with pytest.raises(ValueError, match="terminator"):
        ItemTrie.build(ItemTokens.from_lists([[], *texts]))


def test_message_names_both_items():
    with pytest.raises(ValueError, match="item 3 begin with all tokens of item 2"):
        ItemTrie.build(ItemTokens.from_lists([[], [9], [2, 3], [2, 3, 4]]))


def test_empty_texts_and_empty_catalogues_are_refused():
    ids, lengths = torch.tensor([[0], [5], [0]]), torch.tensor([0, 1, 0])
    with pytest.raises(ValueError, match="item 2 has no tokens"):
        ItemTrie.build(ItemTokens(ids, lengths))
    with pytest.raises(ValueError, match="no item"):
        ItemTrie.build(ItemTokens(ids[:1], lengths[:1]))


def test_large_catalogue_takes_seconds_at_most():
    """100,000 texts of up to 12 tokens, and every leaf still spells its items."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(2, 13, (100_001,), generator=generator)
    ids = torch.randint(2, 2000, (100_001, 12), generator=generator)
    ids[:, 0] %= 50
    columns = torch.arange(12)
    ids = torch.where(columns < lengths[:, None] - 1, ids, 0)
    ids = torch.where(columns == lengths[:, None] - 1, END, ids)
    ids[0], lengths[0] = 0, 0
    start = time.process_time()
    trie = ItemTrie.build(ItemTokens(ids, lengths))
    assert time.process_time() - start < 5
    assert int(trie.item_count[ROOT]) == 100_000
    # every leaf spells its items
    node, item = trie.leaf_of_item[1:].clone(), torch.arange(1, 100_001)
    for _ in range(12):
        depth = trie.depth[node]
        inside = depth > 0
        assert (trie.token[node] == ids[item, (depth - 1).clamp(min=0)])[inside].all()
        node = torch.where(inside, trie.parent[node], ROOT)
    assert (node == ROOT).all()


def test_moves_between_devices_as_a_whole():
    trie = build([[5, 6], [7]]).to("meta")
    assert trie.token.is_meta and trie.leaf_of_item.is_meta
    assert (trie.num_internal, trie.num_leaves) == (4, 2)
