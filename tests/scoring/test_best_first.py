"""Best-first ranking against a loop that scores every item alone, and controls that must differ."""

import math
from dataclasses import dataclass, replace
from functools import cache, partial

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.errors import ConfigError, TrainingError
from recbole_multdpo.scoring import best_first as best_first_module
from recbole_multdpo.scoring import head as head_module
from recbole_multdpo.scoring.best_first import TrieSearch
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.exhaustive import exhaustive_topk
from recbole_multdpo.scoring.packed import packed_logps
from recbole_multdpo.scoring.topk import stable_topk

VOCABULARY = 24
END = 1
ARCHITECTURES = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}


def tiny_lm(architecture="qwen2", attention="sdpa", dtype=torch.float64, **overrides):
    """A random model with grouped queries; wide weights keep it far from uniform."""
    config_class, model_class = ARCHITECTURES[architecture]
    config = config_class(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        attn_implementation=attention,
        **overrides,
    )
    torch.manual_seed(0)
    return model_class(config).to(dtype).eval()


@dataclass(frozen=True)
class Case:
    """A catalogue and a batch of prompts."""

    catalogue: ItemCatalogue
    prompts: Prompts

    def rank(self, lm, k=5, excluded=None, *, targets=None, expand_per_step=32, **options):
        search = TrieSearch(lm, self.catalogue, self.prompts, excluded, k, **options)
        if targets is not None:
            search.set_targets(targets)
        return search.run(expand_per_step=expand_per_step)

    def rank_all(self, lm, weights, k=5, excluded=None, *, expand_per_step=32, **options):
        """A result for each weight."""
        options["weights"] = weights
        search = TrieSearch(lm, self.catalogue, self.prompts, excluded, k, **options)
        return search.run_all(expand_per_step=expand_per_step)

    def normalised(self):
        """The same items, with forced suffixes, normalised over the catalogue."""
        return replace(self, catalogue=replace(self.catalogue, normalised=True))


@cache
def case(seed=0, n_items=30, n_users=4):
    """Short texts over few tokens share prefixes; every seventh text repeats another item's."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low, high, *size):
        return torch.randint(low, high, size, generator=generator)

    texts = [draw(2, 6, int(draw(1, 6, 1))).tolist() for _ in range(n_items)]
    for item in range(7, n_items, 7):
        texts[item] = texts[item - 5]
    items = ItemTokens.from_lists([[], *([*text, END] for text in texts)])
    prompt_lengths = draw(1, 9, n_users)
    prompt_lengths[0] = 8
    # whatever is to the right of a prompt is padding, so it may be anything
    prompts = Prompts(draw(2, VOCABULARY, n_users, 8), prompt_lengths)
    return Case(ItemCatalogue.build(items), prompts)


@torch.no_grad()
def naive_scores(lm, case):
    """log π(item | prompt) [B, n_items], one unpadded forward per user and item; item 0 −inf."""
    items, prompts = case.catalogue.items, case.prompts
    scores = torch.full((len(prompts), len(case.catalogue)), -math.inf).double()
    for user, length in enumerate(prompts.lengths.tolist()):
        for item in range(1, scores.shape[1]):
            tokens = items.ids[item, : items.lengths[item]]
            joined = torch.cat([prompts.ids[user, :length], tokens])
            logps = lm(input_ids=joined[None]).logits[0, length - 1 : -1].double().log_softmax(-1)
            scores[user, item] = logps.gather(1, tokens[:, None]).sum()
    return scores


@cache
def oracle(architecture="qwen2"):
    """Naive scores of the standard case; shared, because each costs a forward pass."""
    return naive_scores(tiny_lm(architecture), case())


def ranked(scores, k, excluded=None):
    """Items of each row by descending score, ties by id, as plain Python sorts them."""
    lists = []
    for user, row in enumerate(scores.tolist()):
        # float64 models still normalise in float32, so equal texts are compared up to 1e-6
        pairs = [
            (-round(score, 6), item)
            for item, score in enumerate(row)
            if item > 0 and not (excluded is not None and excluded[user, item])
        ]
        best = [item for _, item in sorted(pairs)[:k]]
        lists.append(best + [0] * (k - len(best)))
    return lists


def assert_matches(result, scores, k, excluded=None, atol=2e-6):
    """Items, their order and their scores are those of the oracle."""
    expected = torch.tensor(ranked(scores, k, excluded))
    assert result.items.tolist() == expected.tolist()
    torch.testing.assert_close(
        result.scores.double(), scores.gather(1, expected), rtol=0, atol=atol
    )


# --------------------------------------------------------------------------------------------------
# equality with scoring every item alone


@pytest.mark.parametrize("expand_per_step", [1, 6, 1000])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_equals_scoring_every_item_alone(architecture, attention, expand_per_step):
    result = case().rank(tiny_lm(architecture, attention), k=8, expand_per_step=expand_per_step)
    assert_matches(result, oracle(architecture), 8)
    assert result.scores.dtype == torch.float64


@pytest.mark.parametrize("k", [1, 29, 30, 45])
def test_k_from_one_to_more_than_there_are_items(k):
    assert_matches(case().rank(tiny_lm(), k=k), oracle(), k)


def test_excluded_items_do_not_rank():
    """User 0 keeps all items, user 1 half, user 2 three, user 3 none."""
    excluded = torch.zeros(4, 31, dtype=torch.bool)
    excluded[1, ::2] = True
    excluded[2, 4:] = True
    excluded[3] = True
    for expand_per_step in (1, 1000):
        result = case().rank(tiny_lm(), k=6, excluded=excluded, expand_per_step=expand_per_step)
        assert_matches(result, oracle(), 6, excluded)
    assert result.items[3].tolist() == [0] * 6
    assert result.expanded[3] == 0


def test_one_of_two_items_with_the_same_text_can_be_excluded():
    first, second = 3, 8  # texts[7] = texts[2] in `case`, and ids start at 1
    assert case().catalogue.trie.leaf_of_item[first] == case().catalogue.trie.leaf_of_item[second]
    everything = case().rank(tiny_lm(), k=30)
    for row, scores in zip(everything.items.tolist(), everything.scores, strict=True):
        assert row.index(first) < row.index(second)
        assert scores[row.index(first)] == scores[row.index(second)]
    excluded = torch.zeros(4, 31, dtype=torch.bool)
    excluded[:, first] = True
    result = case().rank(tiny_lm(), k=30, excluded=excluded)
    assert_matches(result, oracle(), 30, excluded)
    assert (result.items == second).any(1).all()


def test_float32_ranks_as_float64():
    result = case().rank(tiny_lm(dtype=torch.float32), k=8)
    assert result.scores.dtype == torch.float32
    assert_matches(result, oracle(), 8, atol=1e-4)


def test_bfloat16_scores_are_float32_sums_of_bfloat16_predictions():
    lm = tiny_lm(dtype=torch.bfloat16)
    result = case().rank(lm, k=30)
    assert result.scores.dtype == torch.float32
    exact = oracle().gather(1, result.items)
    assert (result.scores.double() - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("text", [[], [3], [3, 3, 4]])
def test_catalogue_of_one_item(text):
    items = ItemTokens.from_lists([[], [*text, END]])
    one = replace(case(), catalogue=ItemCatalogue.build(items))
    result = one.rank(tiny_lm(), k=2)
    assert_matches(result, naive_scores(tiny_lm(), one), 2)
    assert result.expanded.tolist() == [len(text)] * 4


def test_adapter_wrapped_model():
    lm = tiny_lm()
    adapter = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False
    )
    wrapped = get_peft_model(lm, adapter).double().eval()
    adapted = naive_scores(wrapped, case())
    assert (adapted[:, 1:] - oracle()[:, 1:]).abs().min() > 1e-4
    assert_matches(case().rank(wrapped, k=8), adapted, 8)


def test_what_stands_in_the_padding_does_not_matter():
    prompts = case().prompts
    padding = torch.arange(8) >= prompts.lengths[:, None]
    other = replace(case(), prompts=replace(prompts, ids=prompts.ids.masked_fill(padding, 0)))
    assert (other.prompts.ids != prompts.ids).any()
    here, there = case().rank(tiny_lm(), k=8), other.rank(tiny_lm(), k=8)
    assert here.items.equal(there.items)
    assert here.scores.equal(there.scores)


def test_a_batch_equals_its_users_alone():
    lm, together = tiny_lm(), case().rank(tiny_lm(), k=8, expand_per_step=4)
    for user, prompt in enumerate(case().prompts.split(1)):
        one = replace(case(), prompts=prompt.trimmed())
        alone = one.rank(lm, k=8, expand_per_step=4)
        assert alone.items[0].equal(together.items[user])
        assert alone.expanded[0] == together.expanded[user]
        torch.testing.assert_close(alone.scores[0], together.scores[user], rtol=0, atol=2e-6)


def test_head_in_chunks_of_one_row(monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_LOGITS", 1)
    monkeypatch.setattr(head_module, "MIN_CHUNK_ROWS", 1)
    assert_matches(case().rank(tiny_lm(), k=8), oracle(), 8)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(1, 10_000),
    n_items=st.integers(1, 60),
    n_users=st.integers(1, 6),
    expand_per_step=st.sampled_from([1, 3, 16]),
    k=st.integers(1, 12),
    excluded_share=st.sampled_from([0.0, 0.3, 0.95]),
)
@example(2512, 60, 6, 1, 1, 0.0)  # two best items within rounding
def test_equals_exhaustive_on_random_catalogues(
    seed, n_items, n_users, expand_per_step, k, excluded_share
):
    lm, drawn = tiny_lm(), case.__wrapped__(seed, n_items, n_users)
    generator = torch.Generator().manual_seed(seed)
    excluded = torch.rand(n_users, n_items + 1, generator=generator) < excluded_share
    search = drawn.rank(lm, k=k, excluded=excluded, expand_per_step=expand_per_step)
    exhaustive = exhaustive_topk(
        partial(packed_logps, lm, catalogue=drawn.catalogue),
        drawn.prompts,
        excluded,
        k,
        n_items=n_items + 1,
    )
    torch.testing.assert_close(search.scores, exhaustive.scores, rtol=0, atol=5e-6)
    every_item = torch.arange(1, n_items + 1).expand(n_users, -1)
    logps = packed_logps(lm, drawn.prompts, every_item, drawn.catalogue)
    scores = torch.cat([torch.full_like(logps[:, :1], -math.inf), logps], 1)
    scores = scores.masked_fill(excluded, -math.inf)
    # items whose scores differ by rounding only may come in either order, and none comes twice
    found = scores.gather(1, search.items).to(exhaustive.scores)
    torch.testing.assert_close(found, exhaustive.scores, rtol=0, atol=5e-6)
    for row in search.items.tolist():
        ranked_items = [item for item in row if item]
        assert len(set(ranked_items)) == len(ranked_items)


# --------------------------------------------------------------------------------------------------
# controls: a wrong mask or position must show


def wrong_tries():
    """Tries whose `path` or `depth` makes the search build a wrong mask or wrong positions."""
    trie = case().catalogue.trie
    nodes = torch.arange(1, trie.num_internal)
    only_self = torch.zeros_like(trie.path)
    only_self[nodes, trie.depth[nodes] - 1] = nodes
    without_self = trie.path.clone()
    without_self[nodes, trie.depth[nodes] - 1] = 0
    return {
        "no ancestors": replace(trie, path=only_self),
        "not itself": replace(trie, path=without_self),
        "shifted positions": replace(
            trie, depth=torch.where(trie.depth > 1, trie.depth + 1, trie.depth)
        ),
    }


@pytest.mark.parametrize("mistake", ["no ancestors", "not itself", "shifted positions"])
def test_wrong_mask_or_positions_change_the_scores(mistake):
    mistaken = replace(case().catalogue, trie=wrong_tries()[mistake])
    right = case().rank(tiny_lm(), k=30)
    wrong = replace(case(), catalogue=mistaken).rank(tiny_lm(), k=30)
    assert (wrong.scores - right.scores).abs().max() > 1e-2


# --------------------------------------------------------------------------------------------------
# how much is expanded


@torch.no_grad()
def naive_prefix_scores(lm, case):
    """Log-probability of each internal node's prefix [B, I], one forward per user and node."""
    trie, prompts = case.catalogue.trie, case.prompts
    scores = torch.zeros(len(prompts), trie.num_internal, dtype=torch.float64)
    for user, length in enumerate(prompts.lengths.tolist()):
        for node in range(1, trie.num_internal):
            tokens = trie.token[trie.path[node, : trie.depth[node]]]
            joined = torch.cat([prompts.ids[user, :length], tokens])
            logps = lm(input_ids=joined[None]).logits[0, length - 1 : -1].log_softmax(-1)
            scores[user, node] = logps.gather(1, tokens[:, None]).sum()
    return scores


@pytest.mark.parametrize("k", [1, 4, 15])
def test_one_node_per_step_expands_no_more_than_needed(k):
    """Any exact search must open each prefix that beats the k-th item; ours opens only these."""
    prefixes = naive_prefix_scores(tiny_lm(), case())[:, 1:]
    result = case().rank(tiny_lm(), k=k, expand_per_step=1)
    last = result.scores[:, -1:]
    needed = (prefixes > last + 1e-5).sum(1)
    allowed = (prefixes > last - 2e-4).sum(1)
    assert (needed <= result.expanded).all()
    assert (result.expanded <= allowed).all()
    assert (allowed < case().catalogue.trie.num_internal - 1).all()  # the bound does prune


def test_peaked_model_expands_a_fraction_and_wider_steps_expand_more():
    lm = tiny_lm()
    lm.lm_head.weight.data *= 4
    wide = case(seed=3, n_items=200)
    narrow_steps = wide.rank(lm, k=2, expand_per_step=1)
    wide_steps = wide.rank(lm, k=2, expand_per_step=1000)
    internal = wide.catalogue.trie.num_internal - 1
    assert narrow_steps.expanded.float().mean() < 0.25 * internal
    assert (narrow_steps.expanded <= wide_steps.expanded).all()
    assert (wide_steps.expanded <= internal).all()
    assert narrow_steps.items.equal(wide_steps.items)


def test_without_a_bound_every_node_is_expanded_once():
    result = case().rank(tiny_lm(), k=31)
    assert result.expanded.tolist() == [case().catalogue.trie.num_internal - 1] * 4


def test_excluded_subtrees_are_not_entered():
    """With one allowed item only its own prefixes are fed: its tokens without the terminator."""
    item = int(case().catalogue.items.lengths.argmax())
    excluded = torch.ones(4, 31, dtype=torch.bool)
    excluded[:, item] = False
    result = case().rank(tiny_lm(), k=1, excluded=excluded)
    assert result.items.tolist() == [[item]] * 4
    assert result.expanded.tolist() == [int(case().catalogue.items.lengths[item]) - 1] * 4


# --------------------------------------------------------------------------------------------------
# items with a bias: fusion with another score


def random_bias(scale, seed=0, n_users=4, n_items=31):
    """Random numbers of both signs; item 0 has none."""
    drawn = torch.randn(n_users, n_items, generator=torch.Generator().manual_seed(seed))
    drawn[:, 0] = -math.inf
    return scale * drawn.double()


@pytest.mark.parametrize("expand_per_step", [1, 6, 1000])
@pytest.mark.parametrize("scale", [0.1, 3.0, 100.0])
def test_with_a_bias_equals_the_sum_of_every_item(scale, expand_per_step):
    added = random_bias(scale)
    result = case().rank(tiny_lm(), k=8, item_bias=added, expand_per_step=expand_per_step)
    assert_matches(result, oracle() + added, 8)
    assert result.items.tolist() != ranked(oracle(), 8)


def test_the_bias_of_excluded_items_open_no_node():
    """The largest bias belongs to excluded items, which are neither listed nor searched for."""
    added, excluded = random_bias(0.1), torch.zeros(4, 31, dtype=torch.bool)
    excluded[:, 20] = True
    plain = case().rank(tiny_lm(), k=3, item_bias=added, excluded=excluded, expand_per_step=1)
    added[:, 20] = 1e3
    result = case().rank(tiny_lm(), k=3, item_bias=added, excluded=excluded, expand_per_step=1)
    assert_matches(result, oracle() + added, 3, excluded)
    assert result.expanded.equal(plain.expanded)


@pytest.mark.parametrize("scale", [0.5, 5.0])
def test_with_a_bias_no_needless_node_is_expanded(scale):
    """A prefix must be opened if its log-probability plus largest bias beats the k-th item."""
    trie, added = case().catalogue.trie, random_bias(scale)
    bounds = naive_prefix_scores(tiny_lm(), case())
    for node in range(1, trie.num_internal):
        start, count = trie.item_start[node], trie.item_count[node]
        bounds[:, node] += added[:, trie.item_order[start : start + count]].max(1).values
    result = case().rank(tiny_lm(), k=4, item_bias=added, expand_per_step=1)
    last = result.scores[:, -1:]
    assert ((bounds[:, 1:] > last + 1e-5).sum(1) <= result.expanded).all()
    assert (result.expanded <= (bounds[:, 1:] > last - 2e-4).sum(1)).all()
    assert (result.expanded < trie.num_internal - 1).any()


def test_a_bound_that_forgets_the_bias_misses_items(monkeypatch):
    added = random_bias(3.0)
    monkeypatch.setattr(
        best_first_module, "_largest_below", lambda trie, _: added.new_zeros(4, trie.num_internal)
    )
    wrong = case().rank(tiny_lm(), k=4, item_bias=added - 20, expand_per_step=1)
    assert wrong.items.tolist() == ranked(oracle() + added, 4)  # too high a bound only costs
    wrong = case().rank(tiny_lm(), k=4, item_bias=added + 20, expand_per_step=1)
    assert wrong.items.tolist() != ranked(oracle() + added, 4)


def test_searches_with_a_bias_that_are_given_up():
    added, excluded = random_bias(2.0), excluding_all_but(12)
    given_up = case().rank(
        tiny_lm(), k=20, item_bias=added, excluded=excluded, max_expanded=5, expand_per_step=4
    )
    assert (given_up.expanded[[0, 2]] > case().catalogue.trie.num_internal - 1).all()
    assert_matches(given_up, oracle() + added, 20, excluded)


WEIGHTS = (0.0, 0.5, 3.0, 100.0)


@pytest.mark.parametrize("expand_per_step", [1, 6, 1000])
def test_every_weight_of_a_bias_from_the_same_fed_nodes(expand_per_step):
    added, excluded = random_bias(1.0), excluding_all_but(14)
    options = {"k": 4, "excluded": excluded, "expand_per_step": expand_per_step}
    together = case().rank_all(tiny_lm(), WEIGHTS, item_bias=added, **options)
    alone = [case().rank(tiny_lm(), item_bias=w * random_bias(1.0), **options) for w in WEIGHTS[1:]]
    alone.insert(0, case().rank(tiny_lm(), **options))  # 0 times −inf of item 0 is no number
    added[:, 0] = 0.0
    for weight, found, one in zip(WEIGHTS, together, alone, strict=True):
        assert_matches(found, oracle() + weight * added, 4, excluded)
        assert found.items.equal(one.items)
    n_fed = torch.stack([one.expanded for one in alone])
    assert (together[-1].expanded >= n_fed.max(0).values).all()
    assert (together[-1].expanded <= n_fed.sum(0)).all()
    assert together[-1].expanded.sum() < 0.7 * n_fed.sum()
    assert together[0].items.tolist() != together[-1].items.tolist()


def test_a_search_that_keeps_its_first_weight_is_noticed(monkeypatch):
    monkeypatch.setattr(TrieSearch, "_weighted", lambda search, table, users: 0 * table[users])
    added = random_bias(1.0)
    *_, wrong = case().rank_all(tiny_lm(), WEIGHTS, k=4, item_bias=added)
    assert wrong.items.tolist() == ranked(oracle(), 4) != ranked(oracle() + 100 * added, 4)


def test_weights_of_searches_that_are_given_up():
    """After a node or two, and some of them only at a later weight."""
    added, excluded = random_bias(2.0), excluding_all_but(12)
    for max_expanded in (2, 5, 9):
        found = case().rank_all(
            tiny_lm(),
            WEIGHTS,
            k=20,
            item_bias=added,
            excluded=excluded,
            max_expanded=max_expanded,
            expand_per_step=2,
        )
        for weight, result in zip(WEIGHTS, found, strict=True):
            expected = oracle() + (weight * added).nan_to_num(0.0, neginf=0.0)
            assert_matches(result, expected, 20, excluded)
        assert (found[-1].expanded > case().catalogue.trie.num_internal - 1).any()


def test_weights_with_targets_have_the_same_places():
    added, targets = random_bias(1.0), torch.tensor([[3, 9], [12, 0], [5, 6], [30, 1]])
    search = TrieSearch(
        tiny_lm(), case().catalogue, case().prompts, None, 6, item_bias=added, weights=WEIGHTS
    )
    search.set_targets(targets)
    found = search.run_all(expand_per_step=1)
    complete = case().rank_all(tiny_lm(), WEIGHTS, k=6, item_bias=added, expand_per_step=1)
    for result, whole in zip(found, complete, strict=True):
        for user, own in enumerate(targets.tolist()):
            wanted = [(r, i) for r, i in enumerate(whole.items[user].tolist()) if i in own]
            assert [(r, i) for r, i in enumerate(result.items[user].tolist()) if i in own] == wanted
    assert found[-1].expanded.sum() < complete[-1].expanded.sum()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(1, 10_000),
    n_items=st.integers(1, 60),
    expand_per_step=st.sampled_from([1, 3, 16]),
    k=st.integers(1, 12),
    excluded_share=st.sampled_from([0.0, 0.3, 0.95]),
    scale=st.sampled_from([0.0, 0.3, 4.0, 300.0]),
)
def test_with_a_bias_equals_exhaustive_on_random_catalogues(
    seed, n_items, expand_per_step, k, excluded_share, scale
):
    lm, drawn = tiny_lm(), case.__wrapped__(seed, n_items, 3)
    generator = torch.Generator().manual_seed(seed)
    excluded = torch.rand(3, n_items + 1, generator=generator) < excluded_share
    added = torch.randn(3, n_items + 1, generator=generator).double() * scale
    weights = (1.0, 0.0, 7.0)
    found = drawn.rank_all(
        lm, weights, k=k, excluded=excluded, expand_per_step=expand_per_step, item_bias=added
    )
    every_item = torch.arange(1, n_items + 1).expand(3, -1)
    logps = packed_logps(lm, drawn.prompts, every_item, drawn.catalogue)
    for weight, search in zip(weights, found, strict=True):
        scores = torch.cat([added[:, :1] - math.inf, logps + weight * added[:, 1:]], dim=1)
        all_scores = scores.masked_fill(excluded, -math.inf)
        _, scores = stable_topk(all_scores, k)
        torch.testing.assert_close(search.scores, scores, rtol=0, atol=5e-6)
        # items whose scores differ by rounding only may come in either order
        torch.testing.assert_close(all_scores.gather(1, search.items), scores, rtol=0, atol=5e-6)


# --------------------------------------------------------------------------------------------------
# giving up


def excluding_all_but(item):
    """For two of four users only the path of one item is left to search."""
    excluded = torch.zeros(4, 31, dtype=torch.bool)
    excluded[1::2] = True
    excluded[1::2, item] = False
    return excluded


def test_searches_given_up_end_with_the_same_ranking():
    """Users 0 and 2 open most of the trie and give up; users 1 and 3 open a few nodes."""
    excluded = excluding_all_but(12)
    searched = case().rank(tiny_lm(), k=20, excluded=excluded)
    internal = case().catalogue.trie.num_internal
    given_up = case().rank(
        tiny_lm(), k=20, excluded=excluded, max_expanded=internal // 2, expand_per_step=4
    )
    assert given_up.items.equal(searched.items)
    torch.testing.assert_close(given_up.scores, searched.scores, rtol=0, atol=2e-6)
    assert (given_up.expanded[[0, 2]] > internal - 1).all()
    assert given_up.expanded[[1, 3]].equal(searched.expanded[[1, 3]])
    # half the trie, one step too many, then all of it
    assert (given_up.expanded <= internal // 2 + 4 + internal - 1).all()


def test_small_tries_are_searched_to_the_end(monkeypatch):
    internal = case().catalogue.trie.num_internal
    assert (case().rank(tiny_lm(), k=31).expanded == internal - 1).all()
    monkeypatch.setattr(best_first_module, "PATIENCE", 3)
    assert (case().rank(tiny_lm(), k=31).expanded > internal - 1).all()


# --------------------------------------------------------------------------------------------------
# what is refused


def test_training_mode_is_refused():
    with pytest.raises(ValueError, match="eval"):
        case().rank(tiny_lm().train())


@pytest.mark.parametrize("options", [{"k": 0}, {"expand_per_step": 0}])
def test_counts_below_one_are_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        case().rank(tiny_lm(), **options)


@pytest.mark.parametrize("length", [0, 9])
def test_prompt_lengths_outside_the_table_are_refused(length):
    lengths = case().prompts.lengths.clone()
    lengths[2] = length
    with pytest.raises(ValueError, match="1 to 8"):
        replace(case().prompts, lengths=lengths)


def test_nan_weights_are_reported_and_not_ranked():
    lm = tiny_lm()
    lm.lm_head.weight.data[7] = math.nan
    with pytest.raises(TrainingError, match="NaN"):
        case().rank(lm)


def test_attention_without_an_additive_mask_is_refused():
    lm = tiny_lm()
    lm.config._attn_implementation = "flash_attention_2"
    with pytest.raises(ConfigError, match="flash_attention_2"):
        case().rank(lm)


# -------------------------------------------------------------------------------------------------
# places of some items only


def hits(result, targets):
    """bool [B, k], True where the list has one of the user's targets [B, T]."""
    listed = (result.items[:, :, None] == targets[:, None]).any(2)
    return (listed & (result.items > 0)).tolist()


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10),
    k=st.integers(1, 8),
    n_targets=st.integers(1, 5),
    expand_per_step=st.sampled_from([1, 3, 16]),
    with_bias=st.booleans(),
)
def test_targets_stand_where_the_whole_search_puts_them(
    seed, k, n_targets, expand_per_step, with_bias
):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(0, 31, (4, n_targets), generator=generator)  # 0 is padding
    targets[0] = 0  # a user without any
    excluded = torch.rand(4, 31, generator=generator) < 0.3  # some targets too
    options = {"k": k, "excluded": excluded, "expand_per_step": expand_per_step}
    if with_bias:
        options["item_bias"] = torch.randn(4, 31, generator=generator).double()
    whole = case().rank(tiny_lm(), **options)
    some = case().rank(tiny_lm(), targets=targets, **options)
    assert hits(some, targets) == hits(whole, targets)
    assert (some.expanded <= whole.expanded).all()


def test_the_search_for_targets_ends_earlier_and_its_lists_may_be_wrong():
    """Control: the targets' ranks are right although the lists differ from the full search."""
    large = case(seed=3, n_items=200)
    lm = tiny_lm()
    whole = large.rank(lm, k=20, expand_per_step=1)
    targets = whole.items[:, 2:3]
    some = large.rank(lm, k=20, expand_per_step=1, targets=targets)
    assert hits(some, targets) == hits(whole, targets)
    assert (some.expanded < whole.expanded).all()
    assert not some.items.equal(whole.items)
    # out of reach: as soon as 20 items are known to be better
    worst = large.rank(lm, k=200).items[:, -1:]
    some = large.rank(lm, k=20, expand_per_step=1, targets=worst)
    assert not any(map(any, hits(some, worst)))


def test_a_search_for_targets_that_is_given_up_ranks_them_too():
    whole = case().rank(tiny_lm(), k=5)
    targets = whole.items[:, 3:]
    some = case().rank(tiny_lm(), k=5, targets=targets, max_expanded=0, expand_per_step=1)
    assert hits(some, targets) == hits(whole, targets)
