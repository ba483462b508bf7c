"""Tests over users against values worked out by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_multdpo.comparison.results import Results
from recbole_multdpo.comparison.significance import (
    bootstrap_interval,
    compare_with,
    holm,
    paired_p_values,
)


def make_results(values, tests=None):
    """Results of {(system, seed): {user: ndcg}}; `tests` overrides the hash of a run's test set."""
    users = [
        {"system": system, "seed": seed, "user": user, "n_train": 5, "n_test": 1, "ndcg@2": value}
        for (system, seed), by_user in values.items()
        for user, value in by_user.items()
    ]
    runs = [
        {
            "system": system,
            "seed": seed,
            "seconds": 1.0,
            "test_set": (tests or {}).get((system, seed), f"split{seed}"),
        }
        for system, seed in values
    ]
    metrics = [
        {"system": system, "seed": seed, "ndcg@2": float(np.mean(list(by_user.values())))}
        for (system, seed), by_user in values.items()
    ]
    return Results(pd.DataFrame(metrics), pd.DataFrame(users), pd.DataFrame(runs))


def test_p_values_by_hand():
    """Differences 1, 2, 3: mean 2, deviation 1, so t = 2 sqrt(3) with 2 degrees of freedom, where
    p = 1 - t / sqrt(2 + t^2). All three are positive: one of the 8 patterns of signs, two-sided."""
    t_p, wilcoxon_p = paired_p_values(np.array([1.0, 2.0, 3.0]))
    t = 2 * math.sqrt(3)
    assert t_p == pytest.approx(1 - t / math.sqrt(2 + t**2))
    assert wilcoxon_p == pytest.approx(2 / 8)


@pytest.mark.parametrize(
    ("differences", "expected"),
    [([0.0, 0.0, 0.0], (1.0, 1.0)), ([0.5, 0.5], (0.0, 0.5))],
)
def test_differences_without_spread(differences, expected):
    assert paired_p_values(np.array(differences)) == pytest.approx(expected)


def test_one_user_has_no_p_value():
    assert all(map(math.isnan, paired_p_values(np.array([0.3]))))


def test_holm_by_hand():
    """Sorted 0.01, 0.03, 0.04 times 3, 2, 1 is 0.03, 0.06, 0.04; the last may not fall."""
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    adjusted = holm([0.02, math.nan])  # one test is not corrected
    assert adjusted[0] == 0.02 and math.isnan(adjusted[1])
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_lies_between_no_correction_and_bonferroni(p_values):
    adjusted = holm(p_values)
    for raw, corrected in zip(p_values, adjusted, strict=True):
        assert raw <= corrected <= min(1.0, len(p_values) * raw) + 1e-12
    assert np.all(np.diff(np.array(adjusted)[np.argsort(p_values, kind="stable")]) >= 0)


def test_bootstrap_interval_of_a_known_spread():
    """A hundred zeros and ones in equal parts: a mean of 0.5 with standard error 0.05."""
    low, high = bootstrap_interval(np.array([0.0, 1.0] * 50))
    assert low == pytest.approx(0.5 - 1.96 * 0.05, abs=0.015)
    assert high == pytest.approx(0.5 + 1.96 * 0.05, abs=0.015)
    assert bootstrap_interval(np.array([0.25, 0.25])) == (0.25, 0.25)


def test_users_are_averaged_over_seeds_first():
    """User differences per seed are 1, 0 and 0, 1; averaged 0.5 and 0.5: two users, not four."""
    results = make_results(
        {
            ("A", 1): {"u": 1.0, "v": 0.0},
            ("B", 1): {"u": 0.0, "v": 0.0},
            ("A", 2): {"u": 0.0, "v": 1.0},
            ("B", 2): {"v": 0.0, "u": 0.0},  # rows are matched by user, not by place
        }
    )
    (test,) = compare_with(results, "ndcg@2", "B")
    assert (test.system, test.reference, test.n_users) == ("A", "B", 2)
    assert (test.difference, test.ci_low, test.ci_high) == (0.5, 0.5, 0.5)


def test_only_seeds_that_both_have_are_paired():
    results = make_results(
        {
            ("A", 1): {"u": 0.5, "v": 0.7},
            ("B", 1): {"u": 0.1, "v": 0.1},
            ("A", 2): {"u": 9.0, "v": 9.0},
        }
    )
    (test,) = compare_with(results, "ndcg@2", "B")
    assert test.difference == pytest.approx(0.5)


def test_runs_tested_on_other_items_are_left_out():
    values = {(name, 1): {"u": 0.1 * i, "v": 0.2 * i} for i, name in enumerate("ABC")}
    assert len(compare_with(make_results(values), "ndcg@2", "A")) == 2
    (test,) = compare_with(make_results(values, {("C", 1): "other"}), "ndcg@2", "A")
    assert test.system == "B"


def test_correction_is_over_the_systems_of_one_metric():
    rng = np.random.default_rng(0)
    base = {f"u{i}": 0.0 for i in range(30)}
    better = {user: 0.3 + 0.1 * rng.standard_normal() for user in base}
    same = {user: 0.1 * rng.standard_normal() for user in base}
    results = make_results({("base", 1): base, ("better", 1): better, ("same", 1): same})
    found = {test.system: test for test in compare_with(results, "ndcg@2", "base")}
    assert found["better"].significant and not found["same"].significant
    assert found["better"].t_holm == pytest.approx(2 * found["better"].t_p)
    assert found["same"].t_holm == pytest.approx(found["same"].t_p)
