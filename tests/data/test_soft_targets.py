"""A teacher's targets: values against a count item by item, what has no probability, candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from recbole_multdpo.data.batch import Prompts, SetwiseBatch
from recbole_multdpo.data.sampler import with_soft_targets
from recbole_multdpo.data.soft_targets import SoftTargets
from recbole_multdpo.data.user_items import UserItems

N_ITEMS = 12
# items 4 and 9 share a text
TEXTS = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 4, 9, 10])
KNOWN = UserItems.from_lists([[], [1, 2, 3], [4, 5], [6]])
USERS = np.array([1, 2, 3])
SHOWN = [np.array([2, 1]), np.array([4]), np.array([], dtype=np.int64)]


@dataclass(frozen=True)
class Fixed:
    """A teacher with a matrix, or with a row per user."""

    table: np.ndarray
    by_user: bool = False
    name: str = "fixed"
    popularity: np.ndarray | None = None

    def scores(
        self,
        users: np.ndarray,
        shown: Sequence[np.ndarray],
        disliked: Sequence[np.ndarray] | None = None,
    ) -> np.ndarray:
        if self.by_user:
            return self.table[users]
        return np.stack([self.table[items].sum(0) for items in shown]).astype(np.float32)


def targets(by_user: bool = False, **changes) -> SoftTargets:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(0)
    table = rng.normal(size=(4 if by_user else N_ITEMS, N_ITEMS)).astype(np.float32)
    factors = rng.uniform(0.5, 2, N_ITEMS).astype(np.float32)
    return replace(SoftTargets(Fixed(table, by_user), 1.5, factors, TEXTS, KNOWN, None), **changes)


def slow(soft: SoftTargets, user: int, shown: np.ndarray) -> list[float]:
    """One row of `probabilities`, item by item."""
    teacher = soft.teacher
    assert isinstance(teacher, Fixed)
    hidden = {*shown.tolist(), *(KNOWN.history(user).tolist() if teacher.by_user else ())}
    texts = {TEXTS[item] for item in hidden}
    scores = {}
    for item in range(1, N_ITEMS):
        rows = [teacher.table[user]] if teacher.by_user else [teacher.table[i] for i in shown]
        if TEXTS[item] not in texts:
            scores[item] = sum(float(row[item]) for row in rows) * float(soft.factors[item])
    mean = sum(scores.values()) / len(scores)
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores.values()) / len(scores))
    if not deviation:
        return [0.0] * N_ITEMS
    weights = {i: math.exp(soft.sharpness * (s - mean) / deviation) for i, s in scores.items()}
    return [weights.get(item, 0.0) / sum(weights.values()) for item in range(N_ITEMS)]


@pytest.mark.parametrize("by_user", [False, True])
def test_probabilities_equal_a_slow_count(by_user: bool) -> None:
    soft = targets(by_user)
    found = soft.probabilities(USERS, SHOWN)
    expected = np.array([slow(soft, *pair) for pair in zip(USERS, SHOWN, strict=True)])
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)
    # nothing shown: a matrix tells nothing, a row of the user does
    np.testing.assert_allclose(found.sum(1), [1, 1, 1 if by_user else 0], rtol=1e-6)
    assert (found[0, [0, 1, 2]] == 0).all()
    assert (found[0, 3] == 0) == by_user  # known, not shown
    assert (found[1, [4, 9]] == 0).all()  # of the text that is shown
    for other in (replace(soft, sharpness=1.0), replace(soft, factors=soft.factors * 0 + 1)):
        assert not np.allclose(other.probabilities(USERS, SHOWN), expected, atol=1e-3)


def test_the_scale_of_scores_and_a_constant_do_not_matter() -> None:
    soft = targets(factors=np.ones(N_ITEMS, dtype=np.float32))
    teacher = soft.teacher
    assert isinstance(teacher, Fixed)
    other = replace(soft, teacher=Fixed(1000 * teacher.table + 7))
    expected = soft.probabilities(USERS, SHOWN)
    np.testing.assert_allclose(other.probabilities(USERS, SHOWN), expected, rtol=1e-3)


def batch() -> SetwiseBatch:
    return SetwiseBatch(
        torch.from_numpy(USERS),
        Prompts(torch.ones(3, 1, dtype=torch.long), torch.ones(3, dtype=torch.long)),
        torch.tensor([[3, 2, 1], [5, 4, 0], [6, 0, 0]]),
        torch.tensor([[2, 1, 1], [1, 1, -1], [1, -1, -1]]),
    )


def test_the_whole_catalogue_as_candidates() -> None:
    soft = targets()
    found = with_soft_targets(batch(), soft, SHOWN)
    assert found.candidates.tolist() == [list(range(N_ITEMS))] * 3
    assert found.levels.tolist() == [
        [-1, 1, 1, 2, *[-1] * 8],
        [-1, -1, -1, -1, 1, 1, *[-1] * 6],
        [*[-1] * 6, 1, *[-1] * 5],
    ]
    assert found.teacher_probs is not None
    np.testing.assert_array_equal(found.teacher_probs, soft.probabilities(USERS, SHOWN))
    some = found.select(torch.tensor([2, 0]))
    assert torch.equal(some.teacher_probs, found.teacher_probs[[2, 0]])  # type: ignore[arg-type]


def test_the_best_items_and_the_observed_ones_as_candidates() -> None:
    soft = targets(n_items=3)
    whole = soft.probabilities(USERS, SHOWN)
    found = with_soft_targets(batch(), soft, SHOWN)
    assert found.teacher_probs is not None
    assert torch.equal(found.candidates[:, :3], batch().candidates)
    assert torch.equal(found.levels[:, :3], batch().levels)
    assert (found.levels[:, 3:] == -1).all()
    for row, user in enumerate(USERS):
        observed = [item for item in batch().candidates[row].tolist() if item]
        best = np.argsort(-whole[row])[:3] if whole[row].any() else np.array([], dtype=int)
        expected = {*observed, *best.tolist()}
        columns = found.candidates[row].tolist()
        assert sorted(item for item in columns if item) == sorted(expected), user  # each once
        kept = {item: whole[row, item] for item in expected}
        total = sum(kept.values()) or 1
        for item, probability in zip(columns, found.teacher_probs[row].tolist(), strict=True):
            assert probability == pytest.approx(kept.get(item, 0) / total, rel=1e-5)


def test_more_items_than_there_are() -> None:
    found = with_soft_targets(batch(), targets(n_items=99), SHOWN)
    assert found.teacher_probs is not None
    np.testing.assert_allclose(found.teacher_probs.sum(1), [1, 1, 0], rtol=1e-6)
