"""Results of runs: groups of users, means over seeds, notes."""

import re

import pandas as pd
import pytest

from recbole_multdpo.comparison.results import (
    by_history,
    differing_tests,
    history_groups,
    information_note,
    shared_seeds,
    teacher_note,
    trial_note,
    user_means,
    users_note,
)


def test_groups_of_equal_size():
    """Quartiles of 1 to 8 are cut at 2.75, 4.5 and 6.25."""
    groups = history_groups(pd.Series([8, 1, 2, 3, 4, 5, 6, 7]))
    assert list(groups) == ["7-8", "1-2", "1-2", "3-4", "3-4", "5-6", "5-6", "7-8"]


def test_equal_lengths_stay_together():
    assert list(history_groups(pd.Series([5, 5, 5, 5, 5, 9]))) == ["5-5"] * 5 + ["9-9"]
    assert set(history_groups(pd.Series([3, 3, 3]))) == {"3-3"}


def test_metric_by_history_is_a_mean_over_seeds_of_means_over_users():
    """Short histories: seed 1 has users 0 and 1 (mean 0.5), seed 2 user 1 (1): 0.75, not 2/3."""
    rows = [
        ("A", 1, "u", 1, 0.0),
        ("A", 1, "v", 1, 1.0),
        ("A", 1, "w", 20, 0.2),
        ("A", 2, "v", 1, 1.0),
        ("A", 2, "w", 20, 0.4),
        ("A", 2, "x", 20, 0.4),
    ]
    users = pd.DataFrame(rows, columns=["system", "seed", "user", "n_train", "ndcg@2"])
    table = by_history(users, "ndcg@2")
    assert list(table.columns) == ["1-1", "20-20"]
    assert table.loc["A", "1-1"] == pytest.approx(0.75)
    assert table.loc["A", "20-20"] == pytest.approx(0.3)


def test_a_user_is_in_the_same_group_for_every_system():
    rows = [("A", 1, "u", 4, 0.5), ("S", 1, "u", 3, 0.1), ("A", 1, "v", 9, 0), ("S", 1, "v", 8, 0)]
    users = pd.DataFrame(rows, columns=["system", "seed", "user", "n_train", "m"])
    table = by_history(users, "m")
    assert list(table.columns) == ["4-4", "9-9"] and list(table["4-4"]) == [0.5, 0.1]


def test_events_of_a_user_are_averaged_before_seeds():
    """Seed 1 has two events, 0 and 1, seed 2 one, 1: (0.5 + 1) / 2."""
    rows = [("S", 1, "u", 0.0), ("S", 1, "u", 1.0), ("S", 2, "u", 1.0)]
    users = pd.DataFrame(rows, columns=["system", "seed", "user", "m"])
    assert user_means(users, "m")["S"]["u"] == pytest.approx(0.75)
    assert user_means(users, "m", [1])["S"]["u"] == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        (["refit", "refit"], "fitted to the training and the validation part together"),
        (["train", None], "did not know the same at test .*: train for A; not said for B"),
    ],
)
def test_note_on_test_information(known: list[str | None], expected: str) -> None:
    runs = pd.DataFrame({"system": ["A", "B"], "seed": 1, "test_information": known})
    (note,) = information_note(runs)
    assert re.search(expected, note)
    assert information_note(runs.drop(columns="test_information")) == []


def test_note_on_teachers() -> None:
    runs = pd.DataFrame({"system": ["A", "B", "C", "A"], "seed": [1, 1, 1, 2]})
    assert teacher_note(runs) == [] == teacher_note(runs.assign(teacher=""))
    assert teacher_note(runs.assign(teacher=["EASE", "", "BPR", "EASE"])) == [
        "A: the first stage also learns from the scores of EASE (sft_teacher).",
        "C: the first stage also learns from the scores of BPR (sft_teacher).",
    ]


def test_note_on_a_trial() -> None:
    """It says which systems were cut short, and whether the others were."""
    runs = pd.DataFrame({"system": ["A", "A", "B"], "seed": [1, 2, 1]})
    assert trial_note(runs) == [] == trial_note(runs.assign(trial=""))
    (note,) = trial_note(runs.assign(trial=["5 of 9 users", "5 of 9 users", ""]))
    assert "A (5 of 9 users). B learned from all users" in note
    (note,) = trial_note(runs.assign(trial=["5 of 9 users", "5 of 9 users", "3 sft steps"]))
    assert note.endswith("A (5 of 9 users); B (3 sft steps).")


def test_note_on_a_test_of_some_users() -> None:
    """With the least certain seed of each system."""
    runs = pd.DataFrame({"system": ["A", "A", "B"], "seed": [1, 2, 1]})
    whole = runs.assign(tested="", margin=float("nan"))
    assert users_note(runs, "ndcg@5") == [] == users_note(whole, "ndcg@5")
    some = runs.assign(tested="5 of 9", margin=[0.01, 0.02, float("nan")])
    assert users_note(some, "ndcg@5") == [
        "A trial, tested on 5 of 9 users (test_users): by chance of the users, ndcg@5 of one seed "
        "is uncertain by ± 0.0200 for A (95 %)."
    ]
    assert users_note(some.assign(margin=float("nan")), "auc") == [
        "A trial, tested on 5 of 9 users (test_users)."
    ]


def test_runs_with_another_test_part_are_named():
    rows = [("A", 1, "x"), ("B", 1, "x"), ("A", 2, "y"), ("B", 2, "z")]
    runs = pd.DataFrame(rows, columns=["system", "seed", "test_set"])
    assert shared_seeds(runs, "A", "B") == [1]
    (note,) = differing_tests(runs)
    assert note.startswith("B (seed 2) was tested on other items than A")
