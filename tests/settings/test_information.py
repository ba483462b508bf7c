"""Information of every system at test: inputs by hand, weights that stay, refits, refusals."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_multdpo.classical.assistant import make_assistant
from recbole_multdpo.classical.run import ClassicalRun, prepare_classical
from recbole_multdpo.classical.user_rows import extend_user_rows
from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.plan import make_plan
from recbole_multdpo.data.counted_dataset import train_and_valid
from recbole_multdpo.data.sequences import with_one_input
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.settings.information import NO_INPUT, READS_ROWS
from recbole_multdpo.settings.recbole_code import recbole_models
from recbole_multdpo.settings.text import dump_settings
from recbole_multdpo.trained.explanation import Explainer
from recbole_multdpo.trained.run import load_run
from tests.integration.toy import (
    N_USERS,
    acting,
    classical_arguments,
    toy_arguments,
    toy_model,
    write_toy,
)

LEAVE_ONE_OUT = "--eval_args={'split': {'LS': 'valid_and_test'}, 'order': 'TO'}"
# of each user's 11 rows 5 train, 2 validate, 4 test; of a sequential model's 10 rows 5, 2 and 3
IN_TIME = "--eval_args={'split': {'RS': [0.5, 0.2, 0.3]}, 'order': 'TO'}"
COLUMNS = "--load_col={'inter': ['user_id', 'item_id', 'rating', 'timestamp']}"


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data, the rows of all users but their last ones first."""
    parent = write_toy(tmp_path_factory.mktemp("data"))
    (parent / "toy" / "toy.yaml").write_text("item_text_fields: [movie_title]\n")
    file = parent / "toy" / "toy.inter"
    header, *rows = file.read_text().splitlines()
    is_last = [row.endswith("\t10") for row in rows]
    early = [row for row, last in zip(rows, is_last, strict=True) if not last]
    late = [row for row, last in zip(rows, is_last, strict=True) if last]
    file.write_text("\n".join([header, *early, *late]) + "\n")
    for name, kept in (("early", early), ("late", late), ("valid", [early[9]])):
        (parent / "toy" / f"toy.{name}.inter").write_text("\n".join([header, *kept]) + "\n")
    return parent


Sequences = Callable[[str], list[str]]


@pytest.fixture(scope="module")
def sequence_of(data_path: Path) -> Sequences:
    """A user's items in the order of time, from the file."""
    rows = pd.read_csv(data_path / "toy" / "toy.inter", sep="\t")
    rows.columns = [name.split(":")[0] for name in rows.columns]
    by_user = rows.sort_values("timestamp").groupby("user_id")["item_id"].agg(list)
    return lambda user: by_user[user]


def arguments(model: str, data_path: Path, folder: Path, *extra: str) -> list[str]:
    """The command line of one of RecBole's models."""
    own = [f"--checkpoint_dir={folder}", "--epochs=2", COLUMNS]
    return acting(classical_arguments(model, data_path, folder, *own, *extra))


def prepared(model: str, data_path: Path, folder: Path, *extra: str) -> ClassicalRun:
    config = load_config(arguments(model, data_path, folder, *extra))
    dataset, parts = load_parts(config)
    return prepare_classical(config, dataset, parts)


def matrix(part) -> np.ndarray:  # type: ignore[no-untyped-def]
    return part.inter_matrix("csr").toarray()


def scores(model, config, n_users: int) -> np.ndarray:  # type: ignore[no-untyped-def]
    users = Interaction({config["USER_ID_FIELD"]: torch.arange(n_users)})
    with torch.no_grad():
        return model.full_sort_predict(users).view(n_users, -1).numpy()


def ease_weights(rows: np.ndarray, reg_weight: float) -> np.ndarray:
    """Steck's B = I - P / diag(P), P = (X'X + reg I)^-1."""
    inverse = np.linalg.inv(rows.T @ rows + reg_weight * np.eye(rows.shape[1]))
    weights = inverse / -np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights


def cosine_weights(rows: np.ndarray) -> np.ndarray:
    norms = np.sqrt((rows**2).sum(0))
    weights = rows.T @ rows / (norms[:, None] * norms + 1e-6)
    np.fill_diagonal(weights, 0)
    return weights


# --------------------------------------------------------------------------------------------------
# which value


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ([LEAVE_ONE_OUT], "train_valid"),
        ([IN_TIME], "train"),
        (["--eval_args={'split': {'LS': 'test_only'}, 'order': 'TO'}"], "train"),
        ([LEAVE_ONE_OUT, "--test_information=train"], "train"),
        ([IN_TIME, "--test_information=refit"], "refit"),
    ],
)
def test_the_default_gives_validation_items_in_leave_one_out(
    data_path: Path, tmp_path: Path, extra: list[str], expected: str
) -> None:
    config = load_config(arguments("EASE", data_path, tmp_path, *extra))
    assert config["test_information"] == config.to_dict()["test_information"] == expected


def test_ready_parts_are_no_leave_one_out(tmp_path: Path) -> None:
    file = tmp_path / "split.yaml"
    file.write_text("eval_args: {split: {LS: valid_and_test}, order: TO}\n")
    parts = "--benchmark_filename=['early', 'valid', 'late']"
    argv = arguments("EASE", tmp_path, tmp_path / "run", parts, f"--config_files={file}")
    assert load_config(argv)["test_information"] == "train"


def test_the_former_name_is_taken_with_a_sentence(data_path: Path, tmp_path: Path) -> None:
    given = toy_arguments(data_path, tmp_path / "run", "--test_history=train_valid")
    config = load_config(given)
    assert config["test_information"] == "train_valid" and "test_history" not in config.to_dict()
    assert any("test_history (command line): is called test_inf" in w for w in config.warnings)


@pytest.mark.parametrize(
    ("model", "extra", "expected"),
    [
        ("BPR", [LEAVE_ONE_OUT], "BPR keeps .* Use --test_information=refit, or"),
        ("LightGCN", ["--test_information=train_valid"], "LightGCN keeps"),
        ("FM", [LEAVE_ONE_OUT], "FM keeps"),
        ("ItemKNN", [LEAVE_ONE_OUT, "--knn_method=user"], "ItemKNN with knn_method=user keeps"),
        ("EASE", ["--test_information=rolling"], "rolling is RecBole's test of sequential"),
        (
            "LLMRec",
            ["--test_information=rolling"],
            "rolling is RecBole's test of sequential models",
        ),
        (
            "SASRec",
            ["--benchmark_filename=['early', 'valid', 'late']", "--eval_args={'order': 'TO'}"],
            "are in the files of benchmark_filename.* Use --test_information=rolling",
        ),
        ("RaCT", [LEAVE_ONE_OUT], "train_stage=actor_pretrain .* Use --test_information=train,"),
        (
            "S3Rec",
            ["--test_information=refit", LEAVE_ONE_OUT, "--train_neg_sample_args=~"],
            "train_stage=pretrain S3Rec is pretrained alone",
        ),
        ("EASE", ["--test_information=all"], "test_information .* must be 'auto', 'train'"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_is_loaded(
    data_path: Path, tmp_path: Path, model: str, extra: list[str], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        load_config([*arguments(model, data_path, tmp_path), *extra])


@pytest.mark.parametrize("value", ["refit", "train"])
def test_the_remedies_of_the_refusal_work(data_path: Path, tmp_path: Path, value: str) -> None:
    extra = [LEAVE_ONE_OUT, f"--test_information={value}"]
    result = run(arguments("BPR", data_path, tmp_path / "run", *extra))
    assert result["test_information"] == value and result["test_result"]["ndcg@5"] > 0


def test_a_pretrained_model_is_tested_on_what_it_was_trained_on(
    data_path: Path, tmp_path: Path
) -> None:
    extra = [LEAVE_ONE_OUT, "--test_information=train", "--pretrain_epochs=2", "--save_step=1"]
    result = run(arguments("RaCT", data_path, tmp_path / "run", *extra))
    assert result["test_result"]["ndcg@5"] > 0


# --------------------------------------------------------------------------------------------------
# models that score rows


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        ("EASE", lambda rows: ease_weights(rows, 250.0)),
        ("ItemKNN", cosine_weights),
    ],
)
def test_longer_rows_times_the_weights_of_the_training_part(
    data_path: Path,
    tmp_path: Path,
    model: str,
    weights: Callable[[np.ndarray], np.ndarray],
) -> None:
    prepared_run = prepared(model, data_path, tmp_path, LEAVE_ONE_OUT)
    prepared_run.fit(False)
    train, valid, _ = (matrix(part) for part in prepared_run.parts)
    n_users = len(train)
    before = scores(prepared_run.model, prepared_run.config, n_users)
    np.testing.assert_allclose(before, train @ weights(train), atol=1e-5)
    tested = prepared_run.for_test(False)
    found = scores(tested.model, tested.config, n_users)
    np.testing.assert_allclose(found, (train + valid) @ weights(train), atol=1e-5)
    assert np.abs(found - before).max() > 0.01  # a control


@pytest.mark.parametrize("model", ["EASE", "ItemKNN"])
def test_a_refit_is_a_run_on_the_union(data_path: Path, tmp_path: Path, model: str) -> None:
    refit = [LEAVE_ONE_OUT, "--test_information=refit"]
    union = ["--benchmark_filename=['early', 'valid', 'late']"]
    results = [
        run(arguments(model, data_path, tmp_path / name, *extra))["test_result"]
        for name, extra in (("refit", refit), ("union", union), ("input", [LEAVE_ONE_OUT]))
    ]
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("model", sorted(READS_ROWS | NO_INPUT | {"BPR", "DMF", "ENMF", "NNCF"}))
def test_the_list_of_models_is_what_their_scores_say(
    data_path: Path, tmp_path: Path, model: str
) -> None:
    made = prepared(model, data_path, tmp_path, LEAVE_ONE_OUT, "--test_information=train")
    shown = (made.model, made.config, made.calls, made.parts[0], train_and_valid(made.parts))
    if model in READS_ROWS | NO_INPUT:
        extend_user_rows(*shown)
    else:
        with pytest.raises(ConfigError, match=f"{model} keeps what it knows"):
            extend_user_rows(*shown)


def test_scores_that_do_not_change_or_change_for_others_are_refused(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = prepared("EASE", data_path, tmp_path, LEAVE_ONE_OUT)
    longer = train_and_valid(made.parts)
    with pytest.raises(ConfigError, match="EASE keeps"):  # nothing of the model is replaced
        extend_user_rows(made.model, made.config, [], made.parts[0], longer)
    # of half of the users alone there are validation rows
    half = longer.copy(longer.inter_feat[longer.inter_feat["user_id"] > N_USERS // 2])
    some_longer = train_and_valid([made.parts[0], half])
    original = type(made.model).full_sort_predict

    def mixed(model, interaction):  # type: ignore[no-untyped-def]
        return original(model, interaction) + float(model.interaction_matrix.sum())

    extend_user_rows(made.model, made.config, made.calls, made.parts[0], some_longer)
    made = prepared("EASE", data_path, tmp_path, LEAVE_ONE_OUT)
    monkeypatch.setattr(type(made.model), "full_sort_predict", mixed)
    with pytest.raises(ConfigError, match="EASE keeps"):
        extend_user_rows(made.model, made.config, made.calls, made.parts[0], some_longer)


def test_a_loaded_run_scores_as_it_was_tested(data_path: Path, tmp_path: Path) -> None:
    for model, value in (("EASE", "train_valid"), ("EASE", "refit"), ("MultiVAE", "train_valid")):
        extra = [LEAVE_ONE_OUT, f"--test_information={value}"]
        extra += ["--train_batch_size=64"] if model == "MultiVAE" else []
        folder = tmp_path / f"{model}-{value}"
        result = run(arguments(model, data_path, folder, *extra))
        loaded = load_run(folder)
        _, valid, test = (matrix(part) for part in loaded.parts)
        found = scores(loaded.model, loaded.config, len(test))
        seen = matrix(train_and_valid(loaded.parts)) > 0
        found[seen] = -np.inf
        found[:, 0] = -np.inf
        hits = [test[user, np.argsort(-found[user])[:5]].any() for user in range(1, len(test))]
        assert np.mean(hits) == pytest.approx(result["test_result"]["hit@5"], abs=1e-4)


def test_a_run_of_before_is_loaded_as_it_was_tested(data_path: Path, tmp_path: Path) -> None:
    extra = [LEAVE_ONE_OUT, "--test_information=train"]
    run(arguments("EASE", data_path, tmp_path / "run", *extra))
    file = tmp_path / "run" / "config.yaml"
    assert "test_information: train" in file.read_text()
    file.write_text(file.read_text().replace("test_information: train\n", ""))
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    del result["settings_hash"]  # which runs of before have not
    (tmp_path / "run" / "result.json").write_text(json.dumps(result))
    assert load_run(tmp_path / "run").config["test_information"] == "train"


# --------------------------------------------------------------------------------------------------
# sequential models

SMALL_SASREC = ["--hidden_size=8", "--inner_size=8", "--n_layers=1", "--n_heads=1"]


def inputs(part) -> dict[tuple[str, str], list[str]]:  # type: ignore[no-untyped-def]
    """(user, item) of each row to the items of its input."""
    rows = part.inter_feat
    return {
        (part.id2token("user_id", user), part.id2token("item_id", item)): list(
            part.id2token("item_id", shown[:length])
        )
        for user, item, shown, length in zip(
            rows["user_id"].numpy(),
            rows["item_id"].numpy(),
            rows["item_id_list"].numpy(),
            rows["item_length"].numpy(),
            strict=True,
        )
    }


@pytest.mark.parametrize(("knows_validation", "n_known"), [(False, 6), (True, 8)])
def test_all_rows_of_a_user_have_the_same_input(
    data_path: Path,
    tmp_path: Path,
    sequence_of: Sequences,
    knows_validation: bool,
    n_known: int,
) -> None:
    """A user's first row is the second event: 6 events in training, 2 validate, 3 test."""
    config = load_config(arguments("SASRec", data_path, tmp_path, IN_TIME))
    parts = load_parts(config)[1]
    _, valid, test = with_one_input(parts, knows_validation)
    for part, n_rows, n_shown in ((valid, 2, 6), (test, 3, n_known)):
        found = inputs(part)
        assert len(found) == n_rows * N_USERS
        for (user, item), shown in found.items():
            assert shown == sequence_of(user)[:n_shown] and item not in shown
    # a control: RecBole's own rows have test items in their input
    assert {len(shown) for shown in inputs(parts[2]).values()} == {8, 9, 10}


@pytest.mark.integration
def test_the_rows_of_ml_100k_that_know_another_test_item(tmp_path: Path) -> None:
    config = load_config(
        ["--model=SASRec", "--dataset=ml-100k", "--eval_args={'order': 'TO'}", "--device=cpu"]
    )
    parts = load_parts(config)[1]

    def n_knowing(test) -> int:  # type: ignore[no-untyped-def]
        found = inputs(test)
        items: dict[str, set[str]] = {}
        for user, item in found:
            items.setdefault(user, set()).add(item)
        return sum(
            bool((items[user] - {item}) & set(shown)) for (user, item), shown in found.items()
        )

    assert len(parts[2]) == 5073 and n_knowing(parts[2]) == 4131
    assert n_knowing(with_one_input(parts, knows_validation=False)[2]) == 0
    assert n_knowing(with_one_input(parts, knows_validation=True)[2]) == 0


def test_inputs_are_the_latest_events_where_they_are_cut(
    data_path: Path, tmp_path: Path, sequence_of: Sequences
) -> None:
    config = load_config(arguments("SASRec", data_path, tmp_path, IN_TIME))
    config.final_config_dict["MAX_ITEM_LIST_LENGTH"] = 3
    test = with_one_input(load_parts(config)[1], knows_validation=False)[2]
    for (user, _), shown in inputs(test).items():
        assert shown == sequence_of(user)[3:6]


@pytest.mark.parametrize("value", ["train", "train_valid", "refit"])
def test_users_are_ranked_once_and_seen_items_are_not(
    data_path: Path, tmp_path: Path, sequence_of: Sequences, value: str
) -> None:
    extra = [IN_TIME, *SMALL_SASREC, f"--test_information={value}"]
    made = prepared("SASRec", data_path, tmp_path, *extra)
    n_users = 0
    for users, (row, seen), positive_row, positives in made.test_data:
        for number, user in enumerate(users["user_id"].tolist()):
            events = sequence_of(str(made.dataset.id2token("user_id", user)))
            found = [
                sorted(made.dataset.id2token("item_id", items[rows == number].numpy()))
                for rows, items in ((row, seen), (positive_row, positives))
            ]
            assert found == [sorted(events[:8]), sorted(events[8:])]
            n_users += 1
    assert n_users == N_USERS


@pytest.mark.parametrize("mode", ["uni5", "total12"])
def test_sampled_candidates_of_sequential_models_are_unseen(
    data_path: Path, tmp_path: Path, sequence_of: Sequences, mode: str
) -> None:
    sampled = IN_TIME.replace("}, 'order'", f"}}, 'mode': '{mode}', 'order'")
    made = prepared("SASRec", data_path, tmp_path, sampled, *SMALL_SASREC)
    for users, _, _, positives in made.test_data:
        drawn = users["item_id"].numpy()
        assert len(drawn) > len(positives)
        for user, item in zip(users["user_id"].numpy(), drawn, strict=True):
            events = sequence_of(str(made.dataset.id2token("user_id", user)))
            assert made.dataset.id2token("item_id", item) not in events[:8]


def test_the_rolling_test_is_recboles(data_path: Path, tmp_path: Path) -> None:
    values = ("rolling", "train", "train_valid", "refit")
    found = {}
    for value in values:
        extra = [IN_TIME, *SMALL_SASREC, f"--test_information={value}", "--learning_rate=0.01"]
        result = run(arguments("SASRec", data_path, tmp_path / value, *extra))
        assert result["test_information"] == value
        found[value] = result["test_result"]["ndcg@5"]
        users = pd.read_csv(tmp_path / value / "per_user.csv")
        assert len(users) == (3 if value == "rolling" else 1) * N_USERS
    assert len(set(found.values())) == 4


# --------------------------------------------------------------------------------------------------
# language models and assistants

SMALL_RUN = [LEAVE_ONE_OUT, "--loss=s_dpo", "--sft_epochs=3", "--epochs=3", "--sft_cache=False"]


def test_a_language_model_is_refit_on_the_union(data_path: Path, tmp_path: Path) -> None:
    """As a run on the union of the epochs that validation chose; and it can be resumed."""
    folder = tmp_path / "refit"
    given = toy_arguments(data_path, folder, *SMALL_RUN, "--test_information=refit")
    result = run(given)
    epochs = result["refit_epochs"]
    assert set(epochs) == {"sft", "preference"} and {"refit-sft", "refit-preference"} <= set(
        result["seconds"]
    )
    union = [
        "--benchmark_filename=['early', 'valid', 'late']",
        f"--sft_epochs={epochs['sft']}",
        f"--epochs={epochs['preference']}",
        "--sft_eval_step=0",
        "--eval_step=0",
    ]
    kept = [text for text in SMALL_RUN if "pochs" not in text and "eval_args" not in text]
    alone = run(toy_arguments(data_path, tmp_path / "union", *kept, *union))
    assert result["test_result"] == alone["test_result"]
    explained = Explainer.load(folder)  # whose reference is refit as well
    assert len(explained._reference.histories.items) == 10 * N_USERS
    (folder / "result.json").unlink()
    assert run([f"--resume={folder}"])["test_result"] == result["test_result"]
    loaded = load_run(folder).model
    assert len(loaded.histories.items) == 10 * N_USERS


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("train", lambda train, valid: train @ ease_weights(train, 10.0)),
        ("train_valid", lambda train, valid: (train + valid) @ ease_weights(train, 10.0)),
        ("refit", lambda train, valid: (train + valid) @ ease_weights(train + valid, 10.0)),
    ],
)
def test_an_assistant_knows_the_same(
    data_path: Path,
    tmp_path: Path,
    value: str,
    expected: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> None:
    extra = ["--assistant=EASE", "--EASE.reg_weight=10", f"--test_information={value}"]
    config, parts, _ = toy_model(data_path, tmp_path, LEAVE_ONE_OUT, *extra)
    assistant = make_assistant(config.assistant, parts[0], parts, None, tmp_path / "assistant")
    train, valid, _ = (matrix(part) for part in parts)
    users = torch.arange(1, N_USERS + 1)
    for found, by_hand in (
        (assistant, train @ ease_weights(train, 10.0)),
        (assistant.at_test(), expected(train, valid)),
    ):
        np.testing.assert_allclose(found.scores_of(users).numpy(), by_hand[1:], atol=1e-4)


def test_an_assistant_that_cannot_is_refused(data_path: Path, tmp_path: Path) -> None:
    given = toy_arguments(data_path, tmp_path, LEAVE_ONE_OUT, "--assistant=BPR")
    with pytest.raises(ConfigError, match="assistant BPR: .*--test_information=refit"):
        load_config(given)


# --------------------------------------------------------------------------------------------------
# comparisons


@pytest.mark.parametrize(
    ("models", "extra", "expected"),
    [
        ("EASE,BPR", [LEAVE_ONE_OUT], "BPR: test_information=train_valid.*BPR keeps"),
        (
            "EASE,ItemKNN",
            [LEAVE_ONE_OUT, "--ItemKNN.test_information=train"],
            "test_information is 'train_valid' for EASE and 'train' for ItemKNN",
        ),
        (
            "SASRec,EASE",
            ["--eval_args={'order': 'TO'}", "--test_information=rolling"],
            "EASE: test_information=rolling is RecBole's test of sequential models",
        ),
        (
            "SASRec,EASE",
            ["--eval_args={'order': 'TO'}", "--SASRec.test_information=rolling"],
            "test_information is 'rolling' for SASRec and 'train' for EASE",
        ),
    ],
)
def test_a_comparison_of_unequal_information_is_refused(
    data_path: Path, tmp_path: Path, models: str, extra: list[str], expected: str
) -> None:
    given = [*arguments(models, data_path, tmp_path / "c", *extra), "--seeds=1"]
    given = [text for text in given if "checkpoint_dir" not in text]
    with pytest.raises(ConfigError, match=expected):
        make_plan(read_request(given))


def test_a_file_with_the_former_name_is_read(data_path: Path, tmp_path: Path) -> None:
    config = load_config(toy_arguments(data_path, tmp_path / "run"))
    saved = {**config.to_dict(), "test_history": "train_valid"}
    del saved["test_information"]
    (tmp_path / "old.yaml").write_text(dump_settings(saved))
    given = load_config([f"--config_files={tmp_path / 'old.yaml'}"])
    assert given["test_information"] == "train_valid"


def test_every_model_of_the_list_exists() -> None:
    assert (READS_ROWS | NO_INPUT) <= recbole_models()
