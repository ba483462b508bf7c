"""The teacher of the supervised stage: its table, its cache, what it knows, whole runs with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.sparse import issparse

from recbole_multdpo.classical import teacher as teacher_module
from recbole_multdpo.classical.teacher import TableTeacher, make_teacher
from recbole_multdpo.data.dataset import LLMRecDataset
from recbole_multdpo.errors import CheckpointError, ConfigError, DataError
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.load import load_dataset, split_dataset
from recbole_multdpo.settings.config import load_config
from tests.integration.toy import cut_short, toy_arguments
from tests.several_processes import run_processes

EASE = ["--loss=sft", "--sft_teacher=EASE", "--EASE.reg_weight=10"]


def split(data_path: Path, tmp_path: Path, *extra: str):  # type: ignore[no-untyped-def]
    config = load_config(toy_arguments(data_path, tmp_path / "run", "--loss=sft", *extra))
    return config, split_dataset(config, load_dataset(config, LLMRecDataset))


def made(config: Any, parts: Any, folder: Path) -> TableTeacher:
    return make_teacher(config.teacher, parts[0], parts[0], folder)


# --------------------------------------------------------------------------------------------------
# scores


def test_scores_are_those_of_steck_for_any_history(data_path: Path, tmp_path: Path) -> None:
    """x B of the shown items x, with B = I - P diag(1 / P), P = (X'X + 10 I)^-1."""
    config, parts = split(data_path, tmp_path, *EASE)
    train = parts[0].inter_feat
    x = np.zeros((parts[0].user_num, parts[0].item_num))
    x[train["user_id"].numpy(), train["item_id"].numpy()] = 1
    p = np.linalg.inv(x.T @ x + 10 * np.eye(x.shape[1]))
    b = np.eye(len(p)) - p / np.diag(p)
    teacher = made(config, parts, tmp_path / "teacher")
    shown = [np.array([3, 1, 7]), np.array([], dtype=np.int64), np.array([2])]
    found = teacher.scores(np.array([1, 2, 3]), shown)
    expected = [b[[1, 3, 7]].sum(0), np.zeros(len(p)), b[2]]
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_array_equal(teacher.popularity, x.sum(0))


@pytest.mark.parametrize(
    ("name", "extra", "by_user", "sparse"),
    [
        ("ItemKNN", [], False, True),
        ("SLIMElastic", [], False, True),
        ("ItemKNN", ["--ItemKNN.knn_method=user"], True, False),
        ("BPR", ["--BPR.epochs=2"], True, False),
    ],
)
def test_models_with_a_matrix_score_histories_and_others_users(
    data_path: Path, tmp_path: Path, name: str, extra: list[str], by_user: bool, sparse: bool
) -> None:
    config, parts = split(data_path, tmp_path, f"--sft_teacher={name}", *extra)
    teacher = made(config, parts, tmp_path / "teacher")
    assert (teacher.by_user, issparse(teacher.table)) == (by_user, sparse)
    users, none = np.array([1, 4]), np.array([], dtype=np.int64)
    found = teacher.scores(users, [none, none])
    assert found.shape == (2, parts[0].item_num)
    assert found.any() == by_user
    # of a user's whole training part: the model's own scores
    own = [parts[0].user_items(()).history(user) for user in users]
    whole = teacher.scores(users, own)
    assert whole.any() and (by_user or not np.array_equal(whole, found))


@pytest.mark.parametrize("name", ["EASE", "ItemKNN", "BPR"])
def test_no_score_depends_on_what_is_held_out(data_path: Path, tmp_path: Path, name: str) -> None:
    """Control: a training row less changes scores, and the table has another key."""
    config, parts = split(data_path, tmp_path, f"--sft_teacher={name}")
    if name == "BPR":
        config, parts = split(data_path, tmp_path, "--sft_teacher=BPR", "--BPR.epochs=3")
    users, shown = np.arange(1, 9), [np.array([1, 2, 3])] * 8

    def scores(number: int, parts: list[Any]) -> np.ndarray:
        return made(config, parts, tmp_path / str(number)).scores(users, shown)

    expected = scores(1, parts)
    swapped = [parts[0], parts[2], parts[1].copy(parts[1].inter_feat[:3])]
    np.testing.assert_array_equal(scores(2, swapped), expected)
    (first,), (second,) = ([f.name for f in (tmp_path / n).iterdir()] for n in "12")
    assert first == second
    fewer = parts[0].copy(parts[0].inter_feat[1:])
    assert not np.array_equal(scores(3, [fewer, *parts[1:]]), expected)
    assert [f.name for f in (tmp_path / "3").iterdir()] != [first]


def test_the_random_state_stays(data_path: Path, tmp_path: Path) -> None:
    config, parts = split(data_path, tmp_path, "--sft_teacher=BPR", "--BPR.epochs=1")
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1]
    made(config, parts, tmp_path / "teacher")
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_before)  # type: ignore[arg-type]


# --------------------------------------------------------------------------------------------------
# cache


@pytest.mark.parametrize("name", ["EASE", "ItemKNN"])
def test_a_table_is_made_once_and_refused_if_damaged(
    data_path: Path, tmp_path: Path, name: str
) -> None:
    config, parts = split(data_path, tmp_path, f"--sft_teacher={name}")
    cache = tmp_path / "cache"
    shown = [np.array([1, 2])]
    expected = made(config, parts, cache).scores(np.array([1]), shown)
    (folder,) = cache.iterdir()
    (file,) = folder.iterdir()  # no checkpoint of RecBole's, which is a pickle
    before = file.stat().st_mtime_ns
    # no setting of the language model matters
    other, _ = split(data_path, tmp_path, f"--sft_teacher={name}", "--sft_teacher_weight=0.1")
    np.testing.assert_array_equal(made(other, parts, cache).scores(np.array([1]), shown), expected)
    assert file.stat().st_mtime_ns == before
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CheckpointError, match="Remove its folder to train the teacher again"):
        made(config, parts, cache)


def test_scores_that_are_not_finite_are_refused(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, parts = split(data_path, tmp_path, *EASE)
    monkeypatch.setattr(teacher_module, "item_matrix", lambda _: np.full((2, 2), np.nan))
    with pytest.raises(DataError, match="teacher EASE gives scores that are not finite"):
        made(config, parts, tmp_path / "teacher")


# --------------------------------------------------------------------------------------------------
# runs


@pytest.mark.integration
def test_a_run_learns_from_the_teacher_and_its_stage_has_a_key(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def result(name: str, *extra: str) -> tuple[dict[str, Any], set[str]]:
        found = run(toy_arguments(data_path, tmp_path / name, *extra))
        return found, {path.name for path in (tmp_path / "cache").glob("sft-*")}

    taught, first = result("taught", *EASE)
    assert taught["sft_teacher"] == "EASE"
    header, *rows = (tmp_path / "taught" / "steps.csv").read_text().splitlines()
    losses = [float(row.split(",")[header.split(",").index("teacher_loss")]) for row in rows]
    assert len(losses) == 3 and all(loss > 0 for loss in losses)
    _, of_each = result("without", "--loss=sft")
    seen = [len(of_each)]
    for number, setting in enumerate(
        ("weight=0.2", "sharpness=2", "popularity=0", "settings={'reg_weight': 3}")
    ):
        seen.append(len(result(str(number), *EASE[:2], f"--sft_teacher_{setting}")[1]))
    assert seen == [2, 3, 4, 5, 6]
    monkeypatch.setattr(teacher_module, "_write", None)  # not trained for a cached stage
    again, now = result("again", *EASE)
    assert now > first and again["test_result"] == taught["test_result"]


@pytest.mark.integration
@pytest.mark.parametrize("titles", [[], ["--tiny_title_tokens=False"]], ids=["one", "several"])
def test_two_processes_learn_as_one(data_path: Path, tmp_path: Path, titles: list[str]) -> None:
    """Batches that two processes cannot halve, in parts, which they do not have equally many of."""
    uneven = ["--sft_batch_size=5", "--sft_cache=False", "--rank_batch_users=5", *titles]

    def arguments(name: str, *extra: str) -> list[str]:
        return toy_arguments(data_path, tmp_path / name, *EASE, *uneven, *extra)

    one = run(arguments("one"))
    two, _ = run_processes(2, run, arguments("two", "--max_tokens_per_batch=90"))
    assert two["test_result"] == pytest.approx(one["test_result"], abs=1e-6)
    logs = [(tmp_path / name / "steps.csv").read_text().splitlines()[1:] for name in ("one", "two")]
    for ours, theirs in zip(*logs, strict=True):
        numbers = [[float(x) for x in row.split(",")[4:] if x] for row in (ours, theirs)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3)


@pytest.mark.integration
def test_an_interrupted_stage_resumes_to_the_same_result(data_path: Path, tmp_path: Path) -> None:
    settings = [*EASE, "--sft_cache=False", "--sft_epochs=2", "--sft_eval_step=1"]
    whole = run(toy_arguments(data_path, tmp_path / "whole", *settings))
    cut_short(toy_arguments(data_path, tmp_path / "cut", *settings), stage="sft")
    resumed = run([f"--resume={tmp_path / 'cut'}"])
    assert resumed["test_result"] == whole["test_result"]


@pytest.mark.integration
def test_a_refit_teaches_on_validation_rows_too(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    make = teacher_module._write
    monkeypatch.setattr(
        teacher_module, "_write", lambda *args: (sizes.append(len(args[2].inter_feat)), make(*args))
    )
    run(toy_arguments(data_path, tmp_path / "run", *EASE, "--test_information=refit"))
    assert len(sizes) == 2 and sizes[0] < sizes[1]


# --------------------------------------------------------------------------------------------------
# errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sft_teacher=EASY"], "sft_teacher: .* no model 'EASY' that can teach; did you mean"),
        (["--sft_teacher=SASRec"], "sft_teacher=SASRec is no general model"),
        (["--sft_teacher=EASE", "--EASE.topk=[1]"], "sft_teacher_settings: topk must be those of"),
        (["--sft_teacher=EASE", "--EASE.reg_wight=1"], "sft_teacher EASE: reg_wight.*reg_weight"),
        (["--sft_teacher=EASE", "--sft_teacher_weight=1.5"], "sft_teacher_weight.*or equal to 1"),
        (["--sft_teacher=EASE", "--sft_teacher_weight=-0.1"], "sft_teacher_weight.*or equal to 0"),
        (["--sft_teacher=EASE", "--sft_teacher_items=0"], "sft_teacher_items.*or equal to 1"),
        (["--sft_teacher=EASE", "--loss=zero_shot"], "no effect with loss=zero_shot"),
        (["--sft_teacher=EASE", "--sft_epochs=0"], "no effect with sft_epochs=0"),
        (["--sft_teacher=~", "--sft_teacher_sharpness=2"], "no effect without a teacher"),
        (["--sft_teacher=BPR", "--context=conversation"], "sft_teacher BPR: model=BPR knows users"),
    ],
)  # fmt: skip
def test_mistakes_are_found_at_the_start(
    data_path: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    if "--context=conversation" in options:
        options = [*options, "--benchmark_filename=[train, valid, test]"]
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_config(toy_arguments(data_path, tmp_path / "run", *options))


def test_assistant_and_teacher_of_one_name_share_their_settings(
    data_path: Path, tmp_path: Path
) -> None:
    both = ["--assistant=EASE", "--sft_teacher=EASE", "--EASE.reg_weight=7"]
    config = load_config(toy_arguments(data_path, tmp_path / "run", *both))
    assert config.assistant is not None and config.teacher is not None
    assert (config.assistant["reg_weight"], config.teacher["reg_weight"]) == (7, 7)
    two = ["--assistant=EASE", "--sft_teacher=ItemKNN", "--EASE.reg_weight=7", "--ItemKNN.k=5"]
    config = load_config(toy_arguments(data_path, tmp_path / "run", *two))
    assert config.assistant is not None and config.teacher is not None
    assert (config.assistant["reg_weight"], config.teacher["k"]) == (7, 5)


def test_its_training_leaves_no_curves_in_the_runs_tensorboard(
    data_path: Path, tmp_path: Path
) -> None:
    """Only the run that trained it would have them, not one that took it from a cache."""
    helpers = ["--sft_teacher=EASE", "--assistant=EASE"]
    run(toy_arguments(data_path, tmp_path / "run", *helpers))
    stages = [path for path in (tmp_path / "run" / "tensorboard").iterdir() if path.is_dir()]
    assert len(stages) == 2  # RecBole writes one folder at the end of each fit
