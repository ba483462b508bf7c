"""Users' items in time order, and their split into history and targets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from recbole_multdpo.data.user_items import UserItems, n_targets, ranking_histories, split_history


def user_items(*lists):
    """`UserItems` of users 0, 1, ...: each list holds (item) or (item, level), oldest first."""
    rows = [
        (user, *(entry if isinstance(entry, tuple) else (entry, 1)))
        for user, entries in enumerate(lists)
        for entry in entries
    ]
    users, items, levels = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    return UserItems.build(users, items, levels, None, len(lists))


def split(items, users, **changes):
    options = {
        "seed": 1,
        "epoch": 0,
        "mode": "random",
        "target_share": 0.5,
        "max_targets": 8,
        "max_history": 24,
    }
    return split_history(items, np.asarray(users), **{**options, **changes})


# -------------------------------------------------------------------------------------------------
# UserItems


def test_items_are_grouped_and_ordered_by_time():
    """Rows out of order; user 1 has none; equal times (user 2) keep the order of the rows."""
    items = UserItems.build(
        users=np.array([2, 0, 2, 0, 2]),
        items=np.array([5, 6, 4, 7, 9]),
        levels=np.array([1, 2, 1, 3, 1]),
        times=np.array([10.0, 8.0, 10.0, 3.0, 10.0]),
        n_users=4,
    )
    assert items.start.tolist() == [0, 2, 2, 5, 5]
    assert items.items.tolist() == [7, 6, 5, 4, 9]
    assert items.levels.tolist() == [3, 2, 1, 1, 1]
    assert items.counts.tolist() == [2, 0, 3, 0]
    assert items.history(2).tolist() == [5, 4, 9]
    assert items.history(1).tolist() == []


def test_without_times_the_given_order_is_kept():
    items = UserItems.build(np.array([1, 1, 1]), np.array([3, 1, 2]), np.array([1, 1, 1]), None, 2)
    assert items.history(1).tolist() == [3, 1, 2]


def test_a_repeated_pair_counts_once_at_its_latest_time_with_its_highest_level():
    items = UserItems.build(
        users=np.array([0, 0, 0, 1]),
        items=np.array([4, 5, 4, 4]),
        levels=np.array([3, 1, 2, 1]),
        times=np.array([1, 2, 3, 0]),
        n_users=2,
    )
    assert items.history(0).tolist() == [5, 4]
    assert items.levels.tolist() == [1, 3, 1]
    assert items.history(1).tolist() == [4]


def test_no_interactions_at_all():
    none = np.array([], dtype=np.int64)
    items = UserItems.build(none, none, none, None, 3)
    assert items.counts.tolist() == [0, 0, 0]


@given(
    st.lists(
        st.tuples(st.integers(0, 4), st.integers(1, 6), st.integers(1, 3), st.integers(0, 3)),
        max_size=30,
    )
)
def test_build_agrees_with_a_plain_loop(rows):
    """A dictionary per user, filled in time order: the last time and the highest level win."""
    users, items, levels, times = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    built = UserItems.build(users, items, levels, times, 5)
    for user in range(5):
        expected = {}
        for _, (_, item, level, _) in sorted(
            enumerate(row for row in rows if row[0] == user), key=lambda pair: pair[1][3]
        ):
            expected[item] = max(level, expected.pop(item, 0))
        span = slice(built.start[user], built.start[user + 1])
        assert built.items[span].tolist() == list(expected)
        assert built.levels[span].tolist() == list(expected.values())


# -------------------------------------------------------------------------------------------------
# how many targets


@pytest.mark.parametrize(
    ("count", "share", "cap", "expected"),
    [
        (1, 0.5, 8, 1),  # the only item is a target
        (2, 0.5, 8, 1),
        (3, 0.5, 8, 2),  # half is rounded up
        (10, 0.5, 8, 5),
        (100, 0.5, 8, 8),  # capped
        (10, 0.01, 8, 1),  # at least one
        (4, 0.99, 8, 3),  # one item is left for the history
        (10, 0.25, 8, 3),
    ],
)
def test_number_of_targets(count, share, cap, expected):
    assert n_targets(np.array([count]), share, cap).tolist() == [expected]


# -------------------------------------------------------------------------------------------------
# properties of both modes

sizes = st.lists(st.integers(1, 12), min_size=1, max_size=6)
options = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**40),
        "epoch": st.integers(0, 1000),
        "mode": st.sampled_from(["random", "temporal"]),
        "target_share": st.floats(0.01, 0.99),
        "max_targets": st.integers(1, 8),
        "max_history": st.integers(1, 8),
    }
)


def catalogue_of(sizes):
    """User u's items are 100 u + 1, 100 u + 2, ..., oldest first; levels alternate."""
    return user_items(
        *([(100 * user + i, 1 + i % 2) for i in range(1, n + 1)] for user, n in enumerate(sizes))
    )


@given(sizes, options)
def test_targets_and_history_are_disjoint_parts_within_the_caps(sizes, options):
    items = catalogue_of(sizes)
    result = split(items, range(len(sizes)), **options)
    expected = n_targets(np.array(sizes), options["target_share"], options["max_targets"])
    for user, history in enumerate(result.histories):
        targets, levels = result.targets[user], result.target_levels[user]
        both = [*history, *targets]
        assert len(set(both)) == len(both)
        assert set(both) <= set(items.history(user))
        assert len(targets) == expected[user] >= 1
        assert levels.tolist() == [1 + target % 100 % 2 for target in targets]
        assert len(history) <= options["max_history"]
        if sizes[user] > 1:
            assert len(history) >= 1


@given(sizes, options)
def test_random_mode_shows_all_that_is_not_held_out(sizes, options):
    result = split(catalogue_of(sizes), range(len(sizes)), **{**options, "mode": "random"})
    for size, history, targets in zip(sizes, result.histories, result.targets, strict=True):
        assert len(history) == min(size - len(targets), options["max_history"])


@given(sizes, options)
def test_temporal_mode_never_shows_the_future(sizes, options):
    """History, then targets, is one gapless run of the user's time line."""
    result = split(catalogue_of(sizes), range(len(sizes)), **{**options, "mode": "temporal"})
    for history, targets in zip(result.histories, result.targets, strict=True):
        line = np.concatenate([history, targets])
        assert (np.diff(line) == 1).all()


@given(sizes, options, st.randoms(use_true_random=False))
def test_a_user_s_draw_does_not_depend_on_the_batch(sizes, options, random):
    items = catalogue_of(sizes)
    users = list(range(len(sizes)))
    together = split(items, users, **options)
    order = random.sample(users, len(users))
    shuffled = split(items, order, **options)
    for place, user in enumerate(order):
        alone = split(items, [user], **options)
        for other, index in ((shuffled, place), (alone, 0)):
            assert other.histories[index].tolist() == together.histories[user].tolist()
            assert other.targets[index].tolist() == together.targets[user].tolist()
            assert other.target_levels[index].tolist() == together.target_levels[user].tolist()


@pytest.mark.parametrize("mode", ["random", "temporal"])
def test_the_draw_changes_with_epoch_seed_and_user(mode):
    items = user_items(*[list(range(1, 31))] * 20)

    def first_targets(**changes):
        return [t[0] for t in split(items, range(20), mode=mode, max_targets=3, **changes).targets]

    base = first_targets()
    assert first_targets() == base
    for other in (first_targets(epoch=1), first_targets(seed=2)):
        assert sum(a != b for a, b in zip(other, base, strict=True)) > 10
    assert len(set(base)) > 5


def test_a_user_of_one_item_has_an_empty_history():
    for mode in ("random", "temporal"):
        result = split(user_items([7]), [0], mode=mode)
        assert result.targets[0].tolist() == [7]
        assert result.histories[0].tolist() == []


# -------------------------------------------------------------------------------------------------
# distributions


def test_every_item_is_a_target_and_shown_equally_often():
    """2 of 6 items are targets over 6,000 epochs: all pairs (first target, first shown item)."""
    items = user_items(list(range(6)))
    pairs = np.zeros((6, 6), dtype=int)
    for epoch in range(6000):
        result = split(items, [0], epoch=epoch, target_share=0.33)
        pairs[result.targets[0][0], result.histories[0][0]] += 1
    assert (pairs.diagonal() == 0).all()
    off_diagonal = pairs[~np.eye(6, dtype=bool)]
    assert stats.chisquare(off_diagonal).pvalue > 0.001


def test_every_cut_that_leaves_a_full_window_is_equally_likely():
    """5 items, window of 2: the cut leaves 1, 2 or 3 items of history."""
    items = user_items([1, 2, 3, 4, 5])
    cuts = np.bincount(
        [
            len(split(items, [0], epoch=e, mode="temporal", target_share=0.4).histories[0])
            for e in range(3000)
        ],
        minlength=6,
    )
    assert cuts[[0, 4, 5]].tolist() == [0, 0, 0]
    assert stats.chisquare(cuts[1:4]).pvalue > 0.001


def test_temporal_history_holds_the_latest_items_before_the_cut():
    items = user_items(list(range(1, 11)))
    result = split(items, [0], mode="temporal", max_targets=1, max_history=2)
    assert (result.targets[0][0] - result.histories[0]).tolist()[-1] == 1
    assert len(result.histories[0]) <= 2


def test_the_largest_random_number_keeps_the_cut_in_range(monkeypatch):
    """The last cut leaves a full window, not an empty one."""
    monkeypatch.setattr(
        "recbole_multdpo.data.user_items.random_uniforms", lambda *_: np.array([1 - 2.0**-53])
    )
    result = split(user_items([1, 2, 3, 4]), [0], mode="temporal")
    assert result.histories[0].tolist() == [1, 2]
    assert result.targets[0].tolist() == [3, 4]


# -------------------------------------------------------------------------------------------------
# errors


def test_users_without_items_are_refused_by_number():
    with pytest.raises(ValueError, match=r"without training items: \[1\]"):
        split(user_items([1], [], [2]), [0, 1, 2])


@settings(max_examples=20)
@given(st.integers(1, 40))
def test_a_repeated_user_gets_the_same_draw_twice(size):
    result = split(user_items(list(range(size))), [0, 0])
    assert result.targets[0].tolist() == result.targets[1].tolist()


def test_ranking_history_is_as_in_training_and_fixed() -> None:
    items = np.arange(1, 41)
    known = UserItems.build(
        np.zeros(40, dtype=np.int64), items, np.ones(40, dtype=np.int64), items.astype(float), 1
    )
    users = np.array([0])
    (latest,) = ranking_histories(known, users, seed=3, mode="temporal", max_history=5)
    assert latest.tolist() == [36, 37, 38, 39, 40]
    (drawn,) = ranking_histories(known, users, seed=3, mode="random", max_history=5)
    (again,) = ranking_histories(known, users, seed=3, mode="random", max_history=5)
    (other,) = ranking_histories(known, users, seed=4, mode="random", max_history=5)
    assert drawn.tolist() == again.tolist() != other.tolist()
    assert len(set(drawn.tolist())) == 5 and drawn.tolist() != latest.tolist()
    (whole,) = ranking_histories(known, users, seed=3, mode="random", max_history=99)
    assert sorted(whole.tolist()) == items.tolist()


def test_union_holds_the_items_of_both_by_user():
    one = UserItems(np.array([0, 2, 2, 3]), np.array([5, 1, 7]), np.array([1, 2, 1]))
    other = UserItems(np.array([0, 1, 3, 3]), np.array([5, 2, 9]), np.array([3, 1, 1]))
    both = one.union(other)
    assert [both.history(user).tolist() for user in range(3)] == [[1, 5], [2, 9], [7]]
    assert both.levels.tolist() == [2, 3, 1, 1, 1]  # a shared pair: its higher level


def test_groups_add_the_other_items_of_known_ones():
    """Items 1 and 4 are one group, 2, 5 and 6 another; 3 is alone, 0 is padding."""
    group = np.array([9, 0, 7, 3, 0, 7, 7])
    known = UserItems.from_lists([[3, 1], [], [5, 2], [3]])
    wider = known.with_groups(group)
    found = [sorted(wider.history(user).tolist()) for user in range(4)]
    assert found == [[1, 3, 4], [], [2, 5, 6], [3]]
    alone = known.with_groups(np.arange(7))
    assert [sorted(alone.history(user)) for user in range(4)] == [[1, 3], [], [2, 5], [3]]


# -------------------------------------------------------------------------------------------------
# conversations: every item is a target


def test_all_items_are_targets_and_none_is_shown():
    items = user_items([(4, 2), 7, 9], [5])
    drawn = split(items, [1, 0], mode="all")
    assert [sorted(targets.tolist()) for targets in drawn.targets] == [[5], [4, 7, 9]]
    assert [len(history) for history in drawn.histories] == [0, 0]
    assert dict(zip(drawn.targets[1], drawn.target_levels[1], strict=True)) == {4: 2, 7: 1, 9: 1}
    # the cap takes other items in other epochs, and still shows none
    capped = [split(items, [0], mode="all", max_targets=1, epoch=epoch) for epoch in range(30)]
    assert {int(one.targets[0][0]) for one in capped} == {4, 7, 9}
    assert all(len(one.targets[0]) == 1 and len(one.histories[0]) == 0 for one in capped)


def test_sets_of_users():
    one, other = UserItems.from_lists([[3, 1], [], [2]]), UserItems.from_lists([[1, 5], [4], []])
    both = one.union(other)
    assert [sorted(both.history(user).tolist()) for user in range(3)] == [[1, 3, 5], [4], [2]]
    held = one.holds(np.array([0, 0, 1, 2, 2]), np.array([1, 5, 1, 2, 3]))
    assert held.tolist() == [True, False, False, True, False]
