"""EASE on likes and low ratings, against the formula; RecBole's own where there is no weight."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_multdpo.classical import run as classical_run
from recbole_multdpo.classical.run import build_model
from recbole_multdpo.data.counted_dataset import train_and_valid
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.trained.recommender import Recommender
from tests.integration.toy import N_USERS, classical_arguments, toy_arguments, write_toy

FIVES = "--val_interval={'rating': '[5,inf)'}"


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    return write_toy(tmp_path / "data")


def made(data_path: Path, *extra: str):  # type: ignore[no-untyped-def]
    folder = data_path.parent / "run"
    config = load_config(classical_arguments("EASE", data_path, folder, "--reg_weight=3", *extra))
    dataset, parts = load_parts(config)
    return config, dataset, parts, build_model(config, parts[0])


def scores(model, users: np.ndarray) -> np.ndarray:  # type: ignore[no-untyped-def]
    found = model.full_sort_predict(Interaction({"user_id": torch.from_numpy(users)}))
    return found.view(len(users), -1).numpy()


def likes_and_lows(dataset, part):  # type: ignore[no-untyped-def]
    """Dense matrices [n_users, n_items] of the part's rows, and of the training low ratings."""
    likes, lows = np.zeros((2, dataset.user_num, dataset.item_num))
    likes[tuple(part.inter_feat[f].numpy() for f in ("user_id", "item_id"))] = 1
    known = dataset.low_rated_items([0])
    lows[np.repeat(np.arange(dataset.user_num), known.counts), known.items] = 1
    return likes, lows


def test_the_scores_are_those_of_the_formula(data_path: Path) -> None:
    config, dataset, parts, model = made(data_path, FIVES, "--low_rating_weight=0.5")
    likes, lows = likes_and_lows(dataset, parts[0])
    assert lows.sum() == N_USERS
    both = np.concatenate([likes, 0.5 * lows], axis=1)
    inverse = np.linalg.inv(both.T @ both + 3 * np.eye(both.shape[1]))
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    expected = (both @ weights)[:, : dataset.item_num]
    users = np.arange(1, dataset.user_num)
    found = scores(model, users)
    np.testing.assert_allclose(found, expected[users], atol=2e-5)
    pairs = np.repeat(users, dataset.item_num), np.tile(np.arange(dataset.item_num), len(users))
    columns = (torch.from_numpy(ids) for ids in pairs)
    asked = Interaction(dict(zip(("user_id", "item_id"), columns, strict=True)))
    np.testing.assert_allclose(model.predict(asked).numpy(), found.ravel(), atol=2e-5)
    plain = made(data_path, FIVES)[3]
    assert type(plain).__module__.startswith("recbole.")
    assert np.abs(scores(plain, users) - found).max() > 0.01


def test_what_later_low_ratings_say_changes_nothing(data_path: Path) -> None:
    """The scores are those without the rows of validation and test, low ones included."""
    users = np.arange(1, N_USERS + 1)
    _, dataset, parts, model = made(data_path, FIVES, "--low_rating_weight=0.5")
    before = scores(model, users)
    dataset.low_ratings.items[dataset.low_ratings.part > 0] = 1
    assert np.array_equal(scores(build_model(dataset.config, parts[0]), users), before)
    dataset.low_ratings.items[:] = 1
    assert not np.array_equal(scores(build_model(dataset.config, parts[0]), users), before)


@pytest.mark.parametrize("information", ["train", "train_valid", "refit"])
def test_a_run_knows_what_the_setting_allows(data_path: Path, information: str) -> None:
    folder = data_path.parent / "run"
    extra = (FIVES, "--low_rating_weight=0.5", f"--test_information={information}")
    result = run(classical_arguments("EASE", data_path, folder, "--reg_weight=3", *extra))
    assert result["test_result"]["ndcg@5"] > 0
    loaded = Recommender.load(folder)
    config, dataset, parts, model = made(data_path, *extra[:2])
    users = np.arange(1, dataset.user_num)
    if information == "train_valid":
        likes, lows = likes_and_lows(dataset, train_and_valid(parts))
        expected = (likes @ model.item_similarity + lows @ model.low_similarity)[users]
    else:
        fitted = parts[0] if information == "train" else train_and_valid(parts)
        expected = scores(build_model(config, fitted), users)
    np.testing.assert_allclose(scores(loaded.run.model, users), expected, atol=2e-5)


def test_it_assists_and_teaches(data_path: Path, tmp_path: Path) -> None:
    helped = ["--loss=sft", FIVES, "--EASE.low_rating_weight=0.5", "--EASE.reg_weight=3"]
    folders = {}
    for name in ("assistant", "sft_teacher"):
        arguments = toy_arguments(data_path, tmp_path / name, *helped, f"--{name}=EASE")
        folders[name] = run(arguments)
    assert "assistant" in folders["assistant"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--low_rating_weight=0.5", "--val_interval=~"], "there are none"),
        (["--low_rating_weight=-1", FIVES], "must be 0 or a positive number"),
        (["--low_rating_weight=much", FIVES], "must be 0 or a positive number"),
    ],
)
def test_refusals(data_path: Path, extra: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(data_path, *extra)


@pytest.mark.parametrize(("weight", "n_columns"), [(0, 1), (0.5, 2)])
def test_ease_is_refused_where_its_matrices_do_not_fit(
    data_path: Path, monkeypatch: pytest.MonkeyPatch, weight: float, n_columns: int
) -> None:
    *_, parts, _ = made(data_path, FIVES)
    needed = 28 * (n_columns * parts[0].item_num) ** 2
    monkeypatch.setattr(classical_run, "free_bytes", lambda device: needed)
    made(data_path, FIVES, f"--low_rating_weight={weight}")
    monkeypatch.setattr(classical_run, "free_bytes", lambda device: needed - 1)
    with pytest.raises(ConfigError, match="columns needs.*Use ItemKNN.*--sft_teacher=~"):
        made(data_path, FIVES, f"--low_rating_weight={weight}")
