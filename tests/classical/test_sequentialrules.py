"""SequentialRules against a count by hand, as a model, an assistant and a teacher."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_multdpo.classical.general_recommender.sequentialrules import recency_rows, rules
from recbole_multdpo.classical.run import build_model
from recbole_multdpo.classical.teacher import make_teacher
from recbole_multdpo.data.dataset import LLMRecDataset
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.load import load_dataset, split_dataset
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.trained.recommender import Recommender
from tests.integration.toy import classical_arguments, toy_arguments

SETTINGS = {
    "distance_power": 0.7,
    "max_distance": 3,
    "backward": 0.4,
    "popularity_power": 0.3,
}


def random_histories(n_users: int, n_items: int) -> list[list[int]]:
    rng = np.random.default_rng(1)
    lengths = rng.integers(0, n_items, n_users)
    return [(rng.permutation(n_items - 1)[:length] + 1).tolist() for length in lengths]


def slow_rules(histories: list[list[int]], n_items: int, **given: float) -> np.ndarray:
    """Rules pair by pair."""
    found = np.zeros((n_items, n_items))
    popularity = np.ones(n_items)
    for item in range(n_items):
        popularity[item] = max(1, sum(item in history for history in histories))
    for history in histories:
        for at, item in enumerate(history):
            for later, other in enumerate(history):
                distance = later - at
                if 0 < distance <= given["max_distance"]:
                    weight = distance ** -given["distance_power"]
                    found[item, other] += weight
                    found[other, item] += given["backward"] * weight
    return found / np.outer(popularity, popularity) ** given["popularity_power"]


@pytest.mark.parametrize("changes", [{}, {"max_distance": 99}, {"backward": 0.0}], ids=str)
def test_rules_equal_a_count_of_pairs(changes: dict[str, float]) -> None:
    """Control: with the sequences reversed they are others."""
    histories, settings = random_histories(20, 9), {**SETTINGS, **changes}
    expected = slow_rules(histories, 9, **settings)
    found = rules(UserItems.from_lists(histories), 9, **settings)  # type: ignore[arg-type]
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-5)
    assert not found.diagonal().any() and found.dtype == np.float32
    backwards = UserItems.from_lists([history[::-1] for history in histories])
    other = rules(backwards, 9, **settings)  # type: ignore[arg-type]
    assert not np.allclose(other.toarray(), expected, rtol=0.1)


def test_two_items_by_hand() -> None:
    """1 before 3 at distance 2 of three users' items; popularity 2, 1 and 2."""
    histories = UserItems.from_lists([[1, 2, 3], [1], [3]])
    found = rules(
        histories, 4, distance_power=1, max_distance=9, backward=0.5, popularity_power=1
    ).toarray()
    assert found[1, 3] == pytest.approx(1 / 2 / (2 * 2))
    assert found[3, 1] == pytest.approx(0.5 / 2 / (2 * 2))
    assert found[1, 2] == pytest.approx(1 / 2)
    assert found[2, 1] == pytest.approx(0.5 / 2)


def test_no_history_has_two_items() -> None:
    found = rules(UserItems.from_lists([[1], []]), 3, **SETTINGS)  # type: ignore[arg-type]
    assert found.nnz == 0


def test_rows_weigh_the_latest_item_most() -> None:
    none = np.zeros(0, dtype=np.int64)
    found = recency_rows([np.array([3, 1]), none, np.array([2])], 4, 0.5)
    assert found.toarray().tolist() == [[0, 1, 0, 0.5], [0, 0, 0, 0], [0, 0, 1, 0]]
    assert recency_rows([np.array([3, 1])], 4).toarray().tolist() == [[0, 1, 0, 1]]


def split(data_path: Path, tmp_path: Path, *extra: str):  # type: ignore[no-untyped-def]
    config = load_config(toy_arguments(data_path, tmp_path / "run", "--loss=sft", *extra))
    return config, split_dataset(config, load_dataset(config, LLMRecDataset))


def test_model_assistant_and_teacher_have_the_scores_of_the_count(
    data_path: Path, tmp_path: Path
) -> None:
    """Of the training rows in order of time, whatever the order of the file."""
    config, parts = split(data_path, tmp_path, "--sft_teacher=SequentialRules")
    assert config.teacher is not None
    train = parts[0].inter_feat
    histories: list[list[int]] = [[] for _ in range(parts[0].user_num)]
    for at in train["timestamp"].argsort(stable=True).tolist():
        histories[int(train["user_id"][at])].append(int(train["item_id"][at]))
    names = ("distance_power", "max_distance", "backward", "popularity_power")
    settings = {name: config.teacher[name] for name in names}
    table = slow_rules(histories, parts[0].item_num, **settings)
    expected = np.stack(
        [
            sum((0.6**age * table[item] for age, item in enumerate(history[::-1])), table[0] * 0)
            for history in histories
        ]
    )
    model = build_model(config.teacher, parts[0])
    users = torch.arange(1, parts[0].user_num)
    found = model.full_sort_predict({"user_id": users}).view(len(users), -1)
    np.testing.assert_allclose(found, expected[1:], rtol=1e-4, atol=1e-6)
    items = torch.arange(1, parts[0].user_num) % (parts[0].item_num - 1) + 1
    pairs = model.predict({"user_id": users, "item_id": items})
    np.testing.assert_allclose(pairs, expected[users, items], rtol=1e-4, atol=1e-6)
    teacher = make_teacher(config.teacher, parts[0], parts[0], tmp_path / "teacher")
    shown = [np.array(history) for history in histories]
    np.testing.assert_allclose(
        teacher.scores(np.arange(len(shown)), shown), expected, rtol=1e-4, atol=1e-6
    )
    backwards = teacher.scores(np.arange(len(shown)), [history[::-1] for history in shown])
    assert not np.allclose(backwards, expected, rtol=0.1)


@pytest.mark.integration
def test_it_runs_is_given_validation_items_and_assists(data_path: Path, tmp_path: Path) -> None:
    last = "--eval_args={'split': {'LS': 'valid_and_test'}, 'order': 'TO'}"
    alone = run(classical_arguments("SequentialRules", data_path, tmp_path / "alone", last))
    assert alone["test_information"] == "train_valid"
    settings = [
        "--assistant=SequentialRules",
        "--assistant_weight=1e6",
        "--loss=zero_shot",
    ]
    fused = run(toy_arguments(data_path, tmp_path / "fused", *settings, last))
    assert fused["assistant"]["valid_result"] == alone["valid_result"]
    assert fused["test_result"] == pytest.approx(alone["test_result"], abs=0.05)  # ties
    # typed titles are in the order of time
    for_titles = Recommender.load(tmp_path / "alone").for_titles
    one, other = for_titles(["i0", "i3"], 5), for_titles(["i3", "i0"], 5)
    assert [r.score for r in one.recommendations] != [r.score for r in other.recommendations]
    without = run(
        classical_arguments(
            *("SequentialRules", data_path, tmp_path / "without", last),
            "--test_information=train",
        )
    )
    assert without["test_result"] != alone["test_result"]


def test_it_needs_times(data_path: Path, tmp_path: Path) -> None:
    columns = "--load_col={'inter': ['user_id', 'item_id']}"
    arguments = classical_arguments("SequentialRules", data_path, tmp_path / "run", columns)
    with pytest.raises(ConfigError, match="SequentialRules reads the order of time: add timestamp"):
        run(arguments)
