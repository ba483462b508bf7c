"""The set-wise sampler: distribution of the negatives, and contents of a batch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recbole_multdpo.data import sampler as sampler_module
from recbole_multdpo.data.conversations import Conversations
from recbole_multdpo.data.prompt import PromptBuilder, PromptFrame
from recbole_multdpo.data.random_keys import random_uniforms
from recbole_multdpo.data.sampler import (
    FILTER_BITS,
    REJECTION_STREAM,
    AllNegatives,
    NegativeSampler,
    SetwiseSampler,
)
from recbole_multdpo.data.user_items import UserItems, split_history
from recbole_multdpo.errors import ConfigError


def user_items(*lists, levels=None):
    """Users 0, 1, ... with their items, oldest first; levels by item where given."""
    users = np.repeat(np.arange(len(lists)), [len(items) for items in lists])
    items = np.array([item for items in lists for item in items], dtype=np.int64)
    item_levels = np.array([(levels or {}).get(item, 1) for item in items], dtype=np.int64)
    return UserItems.build(users, items, item_levels, None, len(lists))


# -------------------------------------------------------------------------------------------------
# properties of the negatives


@st.composite
def settings_of_a_draw(draw):
    """(known items per user, catalogue size, weights, number of negatives, seed, epoch)."""
    n_items = draw(st.integers(2, 30))  # item 0 included
    known = draw(
        st.lists(st.lists(st.integers(1, n_items - 1), unique=True), min_size=1, max_size=5)
    )
    weights = draw(
        st.none() | st.lists(st.sampled_from([0.0, 1.0, 50.0]), min_size=n_items, max_size=n_items)
    )
    if weights is not None and sum(weights[1:]) == 0:
        weights[1] = 1.0
    m = draw(st.integers(0, 12))
    return known, n_items, weights, m, draw(st.integers(0, 2**40)), draw(st.integers(0, 99))


@settings(max_examples=200)
@given(settings_of_a_draw())
def test_negatives_are_unknown_distinct_and_as_many_as_there_are(case):
    known, n_items, weights, m, seed, epoch = case
    sampler = NegativeSampler(user_items(*known), n_items, weights and np.array(weights))
    drawn = sampler.sample(np.arange(len(known)), m, seed=seed, epoch=epoch)
    assert drawn.shape == (len(known), m) and drawn.dtype == np.int64
    weight = np.ones(n_items) if weights is None else weights
    for user, items in enumerate(known):
        available = {i for i in range(1, n_items) if weight[i] > 0} - set(items)
        negatives = [item for item in drawn[user].tolist() if item != 0]
        assert sampler.n_available[user] == len(available)
        assert set(negatives) <= available
        assert len(set(negatives)) == len(negatives) == min(m, len(available))
        assert drawn[user].tolist() == negatives + [0] * (m - len(negatives))  # padding is last


@settings(max_examples=50)
@given(settings_of_a_draw(), st.randoms(use_true_random=False))
def test_a_user_s_draw_does_not_depend_on_the_batch(case, random):
    known, n_items, weights, m, seed, epoch = case
    sampler = NegativeSampler(user_items(*known), n_items, weights and np.array(weights))
    together = sampler.sample(np.arange(len(known)), m, seed=seed, epoch=epoch)
    order = np.array(random.sample(range(len(known)), len(known)))
    shuffled = sampler.sample(order, m, seed=seed, epoch=epoch)
    assert shuffled.tolist() == together[order].tolist()
    for user in range(len(known)):
        alone = sampler.sample(np.array([user]), m, seed=seed, epoch=epoch)
        assert alone[0].tolist() == together[user].tolist()


def test_users_that_need_more_rounds_do_not_change_those_that_need_fewer():
    """User 1 knows the items of large weight, so most of its draws are rejected in every round."""
    weights = np.array([0.0, *[200.0] * 5, *[1.0] * 200])
    sampler = NegativeSampler(user_items([], [1, 2, 3, 4, 5]), len(weights), weights)
    users = np.array([0, 1])
    together = sampler.sample(users, 4, seed=5, epoch=0)
    assert together[0].tolist() == sampler.sample(users[:1], 4, seed=5, epoch=0)[0].tolist()
    assert together[1].tolist() == sampler.sample(users[1:], 4, seed=5, epoch=0)[0].tolist()


def test_the_draw_changes_with_epoch_seed_and_user():
    sampler = NegativeSampler(user_items([], []), 1000)
    base = sampler.sample(np.array([0, 1]), 20, seed=1, epoch=0)
    assert (sampler.sample(np.array([0, 1]), 20, seed=1, epoch=0) == base).all()
    others = (
        sampler.sample(np.array([0, 1]), 20, seed=1, epoch=1),
        sampler.sample(np.array([0, 1]), 20, seed=2, epoch=0),
        base[::-1],
    )
    for other in others:
        assert (other == base).mean() < 0.2


def test_fewer_negatives_are_the_first_of_more():
    """DPO's one negative is the first of Mult-DPO's many."""
    sampler = NegativeSampler(user_items([1, 2]), 500)
    many = sampler.sample(np.array([0]), 64, seed=3, epoch=2)
    assert sampler.sample(np.array([0]), 1, seed=3, epoch=2)[0, 0] == many[0, 0]


def test_no_negative_is_left():
    sampler = NegativeSampler(user_items([1, 2, 3], [1, 2]), 4)
    assert sampler.n_available.tolist() == [0, 1]
    assert sampler.sample(np.array([0, 1]), 2, seed=0, epoch=0).tolist() == [[0, 0], [3, 0]]


def test_nobody_knows_anything_and_nothing_is_asked():
    sampler = NegativeSampler(user_items([], []), 3)
    assert sorted(sampler.sample(np.array([1]), 2, seed=0, epoch=0)[0]) == [1, 2]
    assert sampler.sample(np.array([0]), 0, seed=0, epoch=0).shape == (1, 0)
    assert sampler.sample(np.array([], dtype=int), 3, seed=0, epoch=0).shape == (0, 3)


def test_validation_and_test_items_can_be_drawn():
    """Only training items are known; avoiding the others would reveal them."""
    sampler = NegativeSampler(user_items([1, 2]), 6)
    drawn = {int(sampler.sample(np.array([0]), 1, seed=s, epoch=0)[0, 0]) for s in range(60)}
    assert drawn == {3, 4, 5}


@pytest.mark.parametrize(
    "weights", [np.ones(3), np.array([1, 1, -1.0, 1]), np.array([1, 0, 0, 0.0]), [1, np.nan, 1, 1]]
)
def test_weights_must_be_weights(weights):
    with pytest.raises(ValueError, match="weights must be"):
        NegativeSampler(user_items([1]), 4, weights)


def test_weights_that_overflow_name_the_setting():
    with pytest.raises(ConfigError, match="--popularity_alpha"):
        NegativeSampler(user_items([1]), 4, np.array([0, 1e308, 1e308, 1]))


def test_the_caller_s_weights_stay_as_they_are():
    weights = np.array([9.0, 1, 1])
    NegativeSampler(user_items([1]), 3, weights)
    assert weights[0] == 9.0


def test_the_largest_random_number_draws_an_item(monkeypatch):
    """Weights whose cumulative sum ends below their `sum()`: u may exceed the last boundary."""
    top = 1 - 2.0**-53
    weights = next(
        w
        for w in (np.random.default_rng(seed).random(1000) for seed in range(100))
        if w[1:].cumsum()[-1] / w[1:].sum() < top
    )
    sampler = NegativeSampler(user_items([]), 1000, weights)
    monkeypatch.setattr(
        sampler_module,
        "random_uniforms",
        lambda *c: np.full(np.broadcast_shapes(*map(np.shape, c)), top),
    )
    drawn = sampler.sample(np.array([0]), 3, seed=0, epoch=0)[0]
    assert drawn[0] == 999 and ((drawn > 0) & (drawn < 1000)).all() and len(set(drawn)) == 3


def test_the_smallest_random_number_draws_an_item_too(monkeypatch):
    """u = 0 belongs to the first item with weight, not to the items of weight 0 before it."""
    sampler = NegativeSampler(user_items([]), 6, np.array([0, 0, 1.0, 1, 1, 1]))
    monkeypatch.setattr(
        sampler_module,
        "random_uniforms",
        lambda *c: np.zeros(np.broadcast_shapes(*map(np.shape, c))),
    )
    assert sampler.sample(np.array([0]), 1, seed=0, epoch=0).tolist() == [[2]]


# -------------------------------------------------------------------------------------------------
# the same draw by a loop


def draws_one_by_one(known, weights, user, m, seed, epoch):
    """Reference implementation: looks up each number in the cumulative weights."""
    cumulative = np.cumsum(weights) / np.sum(weights)
    negatives, index = [], 0
    while len(negatives) < m:
        uniform = random_uniforms(seed, epoch, REJECTION_STREAM, user, index)[0]
        item = int(np.searchsorted(cumulative, uniform, side="right"))
        if item not in known and item not in negatives:
            negatives.append(item)
        index += 1
    return negatives


# more users than one block, more items than slots in the filter
@pytest.mark.parametrize(("n_users", "n_items"), [(1500, 700), (20, 9000), (20, 2**17)])
@pytest.mark.parametrize("is_weighted", [False, True])
def test_a_block_of_users_equals_a_loop(n_users, n_items, is_weighted):
    rng = np.random.default_rng(0)
    known = [1 + rng.permutation(n_items - 1)[: rng.integers(0, 300)] for _ in range(n_users)]
    weights = np.ones(n_items) if not is_weighted else rng.random(n_items) ** 4
    weights[0] = 0.0
    sampler = NegativeSampler(user_items(*known), n_items, weights)
    drawn = sampler.sample(np.arange(n_users), 20, seed=8, epoch=3)
    for user in range(0, n_users, 1 + n_users // 50):
        expected = draws_one_by_one(set(known[user].tolist()), weights, user, 20, 8, 3)
        assert drawn[user].tolist() == expected


def test_known_items_are_found_whatever_else_shares_their_place_in_the_filter():
    n_items = 5 * FILTER_BITS
    known = [[7, 9 + FILTER_BITS, 11 + 3 * FILTER_BITS], [], list(range(1, n_items, 2))]
    sampler = NegativeSampler(user_items(*known), n_items)
    users, items = np.array([2, 0, 1, 0]), np.arange(n_items)
    found = sampler.is_known(users, np.tile(items, (4, 1)))
    for row, user in enumerate(users):
        assert found[row].tolist() == np.isin(items, known[user]).tolist()
    assert (found == sampler.known_mask(users)).all()


def test_an_epoch_drawn_at_once_is_the_epoch_drawn_by_batch():
    known = user_items(*[[1 + user % 50, 2, 3] for user in range(60)])
    at_once, by_batch = NegativeSampler(known, 200), NegativeSampler(known, 200)
    users = np.arange(0, 60, 2)
    at_once.draw_epoch(users, 9, seed=1, epoch=4)
    asked = [(users[5:9], 9, 1, 4), (users[::-1], 9, 1, 4)]
    # not in the table: another epoch, seed or number, and a user who was left out
    asked += [(users, 9, 1, 5), (users, 9, 2, 4), (users, 7, 1, 4), (np.array([0, 1]), 9, 1, 4)]
    for part, m, seed, epoch in asked:
        found = at_once.sample(part, m, seed=seed, epoch=epoch)
        assert found.dtype == np.int64
        assert found.tolist() == by_batch.sample(part, m, seed=seed, epoch=epoch).tolist()


# -------------------------------------------------------------------------------------------------
# distributions: one draw for each of many users that know the same items

N_USERS = 20_000
KNOWN = [2, 5]


def ordered_pairs(drawn, n_items):
    """Counts of each (first, second) pair of negatives, [n_items, n_items]."""
    return np.bincount(drawn[:, 0] * n_items + drawn[:, 1], minlength=n_items**2).reshape(
        n_items, n_items
    )


def pair_probabilities(weights):
    """w_i / W · w_j / (W − w_i) for i ≠ j, known items and item 0 at weight 0."""
    w = np.array(weights, dtype=float)
    w[[0, *KNOWN]] = 0
    first = w / w.sum()
    return np.where(np.eye(len(w), dtype=bool), 0, np.outer(first, w) / (w.sum() - w)[:, None])


def p_value(drawn, weights):
    """Chi-square of the first two negatives against draws without replacement."""
    expected = pair_probabilities(weights).ravel()
    observed = ordered_pairs(drawn, len(weights)).ravel()
    assert observed[expected == 0].sum() == 0
    likely = expected > 0
    return stats.chisquare(observed[likely], N_USERS * expected[likely]).pvalue


UNIFORM = [1.0] * 12
POPULARITY = [0.0, 5, 40, 1, 2, 9, 3, 3, 8, 1, 6, 0, 4]


@pytest.fixture(scope="module")
def many_users():
    return user_items(*[KNOWN] * N_USERS)


def draw(known, weights, n_negatives, **changes):
    sampler = NegativeSampler(known, len(weights), np.array(weights))
    return sampler.sample(np.arange(N_USERS), n_negatives, **{"seed": 17, "epoch": 3, **changes})


def by_rejection(known, weights):
    """Two negatives of nine available items, drawn by rejection."""
    sampler = NegativeSampler(known, len(weights), np.array(weights))
    assert (sampler.n_available >= 8).all()
    return draw(known, weights, 2)


def by_sorting(known, weights):
    """The first two of three: fewer than twelve items are available, so the catalogue is sorted."""
    sampler = NegativeSampler(known, len(weights), np.array(weights))
    assert (sampler.n_available < 12).all()
    return draw(known, weights, 3)


@pytest.mark.parametrize("path", [by_rejection, by_sorting])
@pytest.mark.parametrize("weights", [UNIFORM, POPULARITY], ids=["uniform", "popularity"])
def test_both_paths_draw_without_replacement_in_proportion_to_weight(many_users, path, weights):
    assert p_value(path(many_users, weights), weights) > 0.001


@pytest.mark.parametrize("path", [by_rejection, by_sorting])
def test_the_chi_square_test_sees_a_small_bias(many_users, path):
    """Control: the test rejects one weight that is a fifth too large."""
    biased = [*UNIFORM[:-1], 1.2]
    assert p_value(path(many_users, biased), UNIFORM) < 1e-4


def test_rejection_that_gives_up_does_not_bias_the_draw(many_users, monkeypatch):
    """One item has 90 % of the weight, and two rounds leave about two fifths of rows unfinished.

    Control: redrawing the unfinished rows is visibly biased, because it keeps the sets that end
    quickly.
    """
    weights = [0.0, 1, 1, 81, 1, 1, 1, 1, 1, 1, 1, 1]
    sampler = NegativeSampler(many_users, len(weights), np.array(weights))
    users = np.arange(N_USERS)
    monkeypatch.setattr(sampler_module, "REJECTION_ROUNDS", 2)
    partial = rejection_alone(sampler, users)
    complete = (partial > 0).all(axis=1)
    assert 0.1 < (~complete).mean() < 0.5
    assert p_value(draw(many_users, weights, 2), weights) > 0.001

    redrawn = partial.copy()
    nothing = np.zeros((int((~complete).sum()), 2), dtype=np.int64)
    redrawn[~complete] = sampler._by_sorting(users[~complete], nothing, 17, 3)
    assert p_value(redrawn, weights) < 1e-6
    monkeypatch.undo()
    assert (rejection_alone(sampler, users) > 0).mean() > 0.999  # all rounds


def rejection_alone(sampler, users):
    """Two negatives by rejection alone."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "_by_sorting", lambda users, drawn, seed, epoch: drawn)
        return sampler.sample(users, 2, seed=17, epoch=3)


def test_unfinished_rows_keep_the_accepted_items(many_users, monkeypatch):
    monkeypatch.setattr(sampler_module, "REJECTION_ROUNDS", 2)
    weights = [0.0, 1, 1, 81, 1, 1, 1, 1, 1, 1, 1, 1]
    sampler = NegativeSampler(many_users, len(weights), np.array(weights))
    partial = rejection_alone(sampler, np.arange(N_USERS))
    drawn = draw(many_users, weights, 2)
    assert 0 < (partial == 0).mean() < 1
    assert (drawn[partial > 0] == partial[partial > 0]).all()


@given(settings_of_a_draw())
def test_all_negatives_are_a_draw_of_every_available_item(case):
    known, n_items, _, _, seed, epoch = case
    users = np.arange(len(known))
    everything = AllNegatives(user_items(*known), n_items)
    found = everything.sample(users, n_items - 1, seed=seed, epoch=epoch)
    drawn = NegativeSampler(user_items(*known), n_items).sample(
        users, n_items - 1, seed=seed, epoch=epoch
    )
    assert found.shape == drawn.shape and found.dtype == drawn.dtype
    assert np.array_equal(np.sort(found), np.sort(drawn))
    assert ((found > 0).sum(axis=1) == everything.n_available).all()


# -------------------------------------------------------------------------------------------------
# batches

ITEMS = user_items(
    [1, 2, 3, 4, 5, 6, 7, 8], [9], [3, 4, 5], [], levels={i: 1 + i % 3 for i in range(1, 10)}
)
N_ITEMS = 40


@pytest.fixture(scope="module")
def make_sampler(tokenizer):
    prompts = PromptBuilder(
        tokenizer,
        ["[PAD]", *(f"title {i}" for i in range(1, N_ITEMS))],
        PromptFrame("Seen:", "\n-", "\nNext:", " "),
        max_history=3,
        max_prompt_tokens=1000,
    )

    def make(known=ITEMS, n_items=N_ITEMS, **changes):
        options = {
            "seed": 4,
            "history_split": "random",
            "target_share": 0.5,
            "max_targets": 3,
            "n_negatives": 5,
            "one_positive": False,
        }
        negatives = NegativeSampler(known, n_items)
        return SetwiseSampler(known, prompts, negatives, **{**options, **changes})

    return make


def titles(tokenizer, batch, row):
    """The prompt's text."""
    return tokenizer.decode(batch.prompts.ids[row, : batch.prompts.lengths[row]])


@pytest.mark.parametrize("mode", ["random", "temporal"])
def test_a_batch_holds_the_split_and_the_negatives(make_sampler, tokenizer, mode):
    users = np.array([2, 0, 1])
    batch = make_sampler(history_split=mode).sample(users, epoch=6)
    split = split_history(
        ITEMS,
        users,
        seed=4,
        epoch=6,
        mode=mode,
        target_share=0.5,
        max_targets=3,
        max_history=3,
    )
    negatives = NegativeSampler(ITEMS, N_ITEMS).sample(users, 5, seed=4, epoch=6)
    assert batch.user_ids.tolist() == [2, 0, 1]
    for tensor in (batch.prompts.ids, batch.prompts.lengths, batch.candidates, batch.levels):
        assert tensor.dtype == torch.long
    assert batch.candidates.shape == batch.levels.shape == (3, 3 + 5)
    for row in range(3):
        targets, n = split.targets[row].tolist(), len(split.targets[row])
        assert batch.candidates[row].tolist() == targets + [0] * (3 - n) + negatives[row].tolist()
        assert batch.levels[row].tolist() == [1 + i % 3 for i in targets] + [-1] * (3 - n) + [0] * 5
        shown = "".join(f"\n- title {item}" for item in split.histories[row])
        assert titles(tokenizer, batch, row) == f"Seen:{shown}\nNext:"


def test_padding_is_padding_and_nothing_else(make_sampler):
    """4 items: user 0 leaves one negative, user 1 none; candidate 0 and level −1 go together."""
    known = user_items([1, 2], [1, 2, 3], [1])
    batch = make_sampler(known, 4, n_negatives=3).sample(np.array([0, 1, 2]), 0)
    assert ((batch.candidates == 0) == (batch.levels == -1)).all()
    assert (batch.levels == 0).sum(1).tolist() == [1, 0, 2]
    assert (batch.levels == 1).sum(1).tolist() == [1, 2, 1]


def test_no_negatives_for_supervised_fine_tuning(make_sampler):
    batch = make_sampler(n_negatives=0).sample(np.array([0, 1]), 0)
    assert batch.candidates.shape == (2, 3)
    assert (batch.levels[0] >= 1).all() and batch.levels[1].tolist()[1:] == [-1, -1]


@pytest.mark.parametrize("mode", ["random", "temporal"])
def test_one_positive_keeps_history_and_negatives(make_sampler, mode):
    many = make_sampler(history_split=mode).sample(np.array([0, 2]), 1)
    one = make_sampler(history_split=mode, one_positive=True).sample(np.array([0, 2]), 1)
    assert torch.equal(one.prompts.ids, many.prompts.ids)
    assert torch.equal(one.candidates[:, 1:], many.candidates[:, 3:])
    assert torch.equal(one.candidates[:, 0], many.candidates[:, 0])
    assert torch.equal(one.levels[:, 0], many.levels[:, 0])
    assert (one.levels[:, 1:] == 0).all()


def test_the_one_positive_is_any_target(make_sampler):
    sampler = make_sampler(one_positive=True)
    seen = {int(sampler.sample(np.array([0]), epoch).candidates[0, 0]) for epoch in range(80)}
    assert seen == set(range(1, 9))


@settings(max_examples=25)
@given(st.permutations([0, 1, 2]), st.integers(0, 50), st.sampled_from(["random", "temporal"]))
def test_examples_do_not_depend_on_the_batch(make_sampler, order, epoch, mode):
    sampler = make_sampler(seed=9, history_split=mode)
    batch = sampler.sample(np.array(order), epoch)
    for row, user in enumerate(order):
        alone = sampler.sample(np.array([user]), epoch)
        length = int(alone.prompts.lengths[0])
        assert batch.prompts.lengths[row] == length
        assert torch.equal(batch.prompts.ids[row, :length], alone.prompts.ids[0])
        valid = batch.levels[row] >= 0
        assert torch.equal(batch.candidates[row][valid], alone.candidates[0][alone.levels[0] >= 0])


@pytest.mark.parametrize("n_items", [1, 7])
@pytest.mark.parametrize("filter_bits", [8, 2**12])
def test_known_items_are_those_of_the_users_sets(monkeypatch, n_items, filter_bits):
    """Users 0 … 3 know no item, the items 2 and 5, all items, and the last one.

    With a filter of 8 slots the 20 items share slots; with the usual one they do not.
    """
    monkeypatch.setattr(sampler_module, "FILTER_BITS", filter_bits)
    items = np.array([2, 5, *range(1, 21), 20])
    known = UserItems(np.array([0, 0, 2, 22, 23]), items, np.ones(23, dtype=np.int64))
    sampler = NegativeSampler(known, 21)
    users = np.array([3, 0, 2, 1, 1])
    asked = np.random.default_rng(0).integers(1, 21, size=(5, n_items))
    sets = [{20}, set(), set(range(1, 21)), {2, 5}, {2, 5}]
    expected = [[i in s for i in row] for row, s in zip(asked, sets, strict=True)]
    assert sampler.is_known(users, asked).tolist() == expected


def test_a_batch_can_be_cut_for_gradient_accumulation(make_sampler):
    batch = make_sampler().sample(np.array([0, 1, 2]), 0)
    part = batch.select(torch.tensor([1, 2]))
    assert len(part) == 2 and part.user_ids.tolist() == [1, 2]
    assert torch.equal(part.candidates, batch.candidates[1:])
    assert batch.to("meta").levels.device.type == "meta"


# -------------------------------------------------------------------------------------------------
# items of the prompt as targets


class NoPrompts:
    """A prompt builder of empty prompts."""

    max_history = 2

    def build(self, histories, disliked=None):
        return torch.zeros(len(histories), 1, dtype=torch.long), torch.ones(len(histories))


def positives(sampler, users, epoch=0):
    """Sorted candidates of each example; there are no negatives."""
    batch = sampler.sample(np.array(users), epoch)
    assert torch.equal(batch.levels > 0, batch.candidates > 0)
    return [sorted(items[items > 0].tolist()) for items in batch.candidates]


def shown_sampler(items, *, also_shown, conversations=None):
    return SetwiseSampler(
        items,
        NoPrompts(),
        NegativeSampler(items, 20),
        seed=1,
        history_split="random",
        target_share=0.3,
        max_targets=8,
        n_negatives=0,
        one_positive=False,
        history_as_targets=also_shown,
        conversations=conversations,
    )


def test_the_items_of_the_history_can_be_targets_too():
    items = user_items([], [1, 2, 3], [4, 5, 6, 7, 8, 9])
    # user 1: one target and two shown; user 2: two targets, two of four shown
    assert [
        len(chosen) for chosen in positives(shown_sampler(items, also_shown=False), [1, 2])
    ] == [
        1,
        2,
    ]
    every = positives(shown_sampler(items, also_shown=True), [1, 2])
    assert every[0] == [1, 2, 3]
    assert len(every[1]) == 4 and set(every[1]) <= {4, 5, 6, 7, 8, 9}


def test_mentioned_items_can_be_targets_without_repeats():
    answers = user_items([], [1, 2], [3])
    conversations = Conversations(
        turns=[("", ""), ("user", "hello")],
        start=np.array([0, 0, 1, 2]),
        turn_ids=np.array([1, 1]),
        mentioned=user_items([], [7, 2, 8], []),  # 2 is mentioned and an answer
    )
    without = shown_sampler(answers, also_shown=False, conversations=conversations)
    assert positives(without, [1, 2]) == [[1, 2], [3]]
    with_mentioned = shown_sampler(answers, also_shown=True, conversations=conversations)
    assert positives(with_mentioned, [1, 2]) == [[1, 2, 7, 8], [3]]
