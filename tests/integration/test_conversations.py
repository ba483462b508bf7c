"""Conversations through sampler, training, ranking and classical models."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_multdpo.classical.conversations import conversation_model
from recbole_multdpo.data.dataset import ContextDataset
from recbole_multdpo.data.loader import evaluation_loaders
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.quick_start import run
from recbole_multdpo.ranking import make_ranker
from recbole_multdpo.runs.load import load_dataset, split_dataset
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.training.sft_cache import sft_key
from recbole_multdpo.training.stages import train_loader
from tests.integration.toy import (
    N_ITEMS,
    SMALL,
    classical_arguments,
    cut_short,
    toy_model,
    write_toy,
)

pytestmark = pytest.mark.integration
PART_SIZES = {"train": 16, "valid": 6, "test": 6}
DATA = [
    "--benchmark_filename=[train, valid, test]",
    "--load_col={'inter': ['user_id', 'item_id'], 'item': ['item_id']}",
    "--context=conversation",
]


def write_conversations(parent: Path) -> Path:
    """Toy films; conversation n mentions films n and n + 3, is answered by n + 6, n + 9 and n."""
    folder = write_toy(parent) / "toy"
    (folder / "toy.inter").unlink()
    users, number = ["user_id:token\tcontext_items:token_seq\tconversation:token"], 0
    for part, size in PART_SIZES.items():
        rows = ["user_id:token\titem_id:token"]
        for name in (f"{part}-{n}" for n in range(size)):
            said = [
                {"role": "user", "content": f"I liked film {number}\nand {number + 3}"},
                {"role": "assistant", "content": f"Only in {part}?"},
            ]
            ids = [f"i{(number + step) % N_ITEMS}" for step in (0, 3, 6, 9)]
            users.append(f"{name}\t{ids[0]} {ids[1]}\t{json.dumps(said)}")
            rows += [f"{name}\t{item}" for item in (ids[2], ids[3], ids[0])]
            number += 1
        (folder / f"toy.{part}.inter").write_text("\n".join(rows) + "\n")
    (folder / "toy.user").write_text("\n".join(users) + "\n")
    return parent


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_conversations(tmp_path_factory.mktemp("data"))


def names(ids, dataset, field):  # type: ignore[no-untyped-def]
    return [str(dataset.field2id_token[field][int(i)]) for i in ids]


def expected_items(user: str, steps) -> set[str]:  # type: ignore[no-untyped-def]
    part, n = user.split("-")
    offset = {"train": 0, "valid": 16, "test": 22}[part]
    return {f"i{(offset + int(n) + step) % N_ITEMS}" for step in steps}


@pytest.mark.parametrize("mentioned", ["exclude", "keep"])
def test_answers_negatives_and_rankings(data_path: Path, tmp_path: Path, mentioned: str) -> None:
    config, parts, model = toy_model(
        data_path, tmp_path, *DATA, f"--mentioned_items={mentioned}", "--num_negatives=40"
    )
    loader = train_loader(config, model, parts[0], "mult_dpo", 16)
    batch = next(iter(loader))
    assert len(batch) == PART_SIZES["train"]
    answers, seen = ((6, 9), (0, 3)) if mentioned == "exclude" else ((6, 9, 0), ())
    for user, items, levels in zip(batch.user_ids, batch.candidates, batch.levels, strict=True):
        name = model.user_name(int(user))
        positives = set(names(items[levels > 0], parts[0], "item_id"))
        negatives = set(names(items[levels == 0], parts[0], "item_id"))
        assert positives == expected_items(name, answers)
        assert len(negatives) == N_ITEMS - len(answers) - len(seen)
        assert not negatives & (positives | expected_items(name, seen))
    _, _, test = evaluation_loaders(config, parts[0], parts)
    for users, history, rows, items in test:
        for row, user in enumerate(users["user_id"]):
            name = model.user_name(int(user))
            hidden = set(names(history[1][history[0] == row], parts[0], "item_id"))
            wanted = set(names(items[rows == row], parts[0], "item_id"))
            assert hidden == expected_items(name, seen) and wanted == expected_items(name, answers)


def test_sampled_candidates_leave_out_mentioned_items(data_path: Path, tmp_path: Path) -> None:
    sampled = "--eval_args={'mode': {'valid': 'uni20', 'test': 'full'}}"
    config, parts, model = toy_model(data_path, tmp_path, *DATA, sampled)
    _, valid, _ = evaluation_loaders(config, parts[0], parts)
    for rows, *_ in valid:
        for user, item in zip(rows["user_id"], rows["item_id"], strict=True):
            mentioned = expected_items(model.user_name(int(user)), (0, 3))
            assert names([item], parts[0], "item_id")[0] not in mentioned


def test_a_prompt_depends_on_what_is_said_and_not_on_the_user(tmp_path: Path) -> None:
    data_path = write_conversations(tmp_path / "data")
    file = data_path / "toy" / "toy.user"
    rows = file.read_text().splitlines()
    of_train, of_test = (n for n, r in enumerate(rows) if r.startswith(("train-3\t", "test-2\t")))
    rows[of_test] = "test-2\t" + rows[of_train].split("\t", 1)[1]
    file.write_text("\n".join(rows) + "\n")
    _, parts, model = toy_model(data_path, tmp_path, *DATA)
    tokens = parts[0].field2id_token["user_id"].tolist()
    users = torch.tensor([tokens.index(name) for name in ("train-3", "test-2", "test-1")])
    ranker = make_ranker(model.eval(), model.histories)
    topk = ranker.topk(users, None, 5)
    assert topk.items[0].tolist() == topk.items[1].tolist()
    torch.testing.assert_close(topk.scores[0], topk.scores[1], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(topk.scores[0], topk.scores[2], atol=1e-5)
    (prompt,) = ranker.prompts(users[2:]).ids
    assert model.tokenizer.decode(prompt) == (
        "A user asks for items:\nUser: I liked film 23 and 26\nRecommender: Only in test?"
        "\nThe item recommended next:"
    )


def test_the_example_of_the_log_is_a_prompt_of_the_model(data_path: Path, tmp_path: Path) -> None:
    _, _, model = toy_model(data_path, tmp_path, *DATA)
    texts = [model.tokenizer.decode(model.prompts.build([said]).ids[0]) for said in turns(model)]
    example = model.example_prompt()
    assert example in texts and example.startswith("A user asks for items:\nUser: I liked film")


def turns(model):  # type: ignore[no-untyped-def]
    return map(model.conversations.of, np.flatnonzero(model.histories.counts).tolist())


def test_the_tokenizer_and_the_cache_know_the_training_conversations(tmp_path: Path) -> None:
    def changed(name: str, old: str, new: str):  # type: ignore[no-untyped-def]
        data_path = write_conversations(tmp_path / name)
        file = data_path / "toy" / "toy.user"
        file.write_text(file.read_text().replace(old, new))
        config, _, model = toy_model(data_path, tmp_path / name, *DATA)
        return model.tokenizer.get_vocab(), sft_key(config, model)

    vocabulary, key = changed("same", "", "")
    assert changed("again", "", "") == (vocabulary, key)
    other_vocabulary, other_key = changed("test", "Only in test?", "zq " * 200)
    assert other_vocabulary == vocabulary and other_key != key
    other_vocabulary, other_key = changed("train", "Only in train?", "zq " * 200)
    assert other_vocabulary != vocabulary and other_key != key


def test_an_interrupted_run_resumes_to_the_same_result(data_path: Path, tmp_path: Path) -> None:
    def arguments(folder: Path) -> list[str]:
        texts = ["--item_text_fields=[movie_title]", "--sft_cache=False"]
        return [*SMALL, *DATA, *texts, f"--data_path={data_path}", f"--run_dir={folder}"]

    whole = run(arguments(tmp_path / "whole"))
    assert whole["num_users_evaluated"] == PART_SIZES["test"]
    assert whole["answers_left_out"] == [16, 6, 6]
    cut_short(arguments(tmp_path / "cut"))
    resumed = run([f"--resume={tmp_path / 'cut'}"])
    assert resumed["test_result"] == whole["test_result"]


# -------------------------------------------------------------------------------------------------
# classical models


def classical(data_path: Path, folder: Path, model: str, *extra: str):  # type: ignore[no-untyped-def]
    return classical_arguments(model, data_path, folder, *DATA, *extra)


@pytest.mark.parametrize("name", ["EASE", "ItemKNN", "SLIMElastic"])
def test_rows_of_new_conversations_are_what_they_mention(
    data_path: Path, tmp_path: Path, name: str
) -> None:
    """Scores are x W: x the mentioned items, W of a model that never saw another part."""
    config = load_config(classical(data_path, tmp_path, name))
    parts = split_dataset(config, load_dataset(config, ContextDataset))
    model = conversation_model(config, parts[0])
    items = parts[0].field2id_token["item_id"].tolist()
    users = parts[0].field2id_token["user_id"].tolist()
    learnt = np.zeros((len(users), len(items)), dtype=np.float32)
    shown = np.zeros_like(learnt)
    for user, token in enumerate(users[1:], start=1):
        for item in expected_items(token, (0, 3)):
            shown[user, items.index(item)] = 1
        if token.startswith("train"):
            for item in expected_items(token, (0, 3, 6, 9)):
                learnt[user, items.index(item)] = 1
    if name == "EASE":  # Steck 2019, eq. 8
        inverse = np.linalg.inv(learnt.T @ learnt + config["reg_weight"] * np.eye(len(items)))
        weights = -inverse / np.diag(inverse)
        np.fill_diagonal(weights, 0)
    elif name == "ItemKNN":  # cosine of the items' columns; k is more than there are items
        norms = np.linalg.norm(learnt, axis=0)
        weights = learnt.T @ learnt / (norms[:, None] * norms[None] + 1e-6)
        np.fill_diagonal(weights, 0)
    else:
        weights = np.asarray(model.item_similarity.todense())
    test_users = [user for user, token in enumerate(users) if token.startswith("test")]
    scores = model.full_sort_predict({"user_id": torch.tensor(test_users)})
    expected = (shown @ weights)[test_users]
    np.testing.assert_allclose(scores.view(len(test_users), -1), expected, atol=1e-4)
    assert np.abs(expected).max() > 0


@pytest.mark.parametrize("name", ["EASE", "ItemKNN", "Pop"])
def test_the_command_evaluates_them(data_path: Path, tmp_path: Path, name: str) -> None:
    result = run(classical(data_path, tmp_path / "run", name))
    assert result["num_users_evaluated"] == PART_SIZES["test"]
    assert result["context"] == "conversation" and result["answers_left_out"] == [16, 6, 6]
    assert 0 <= result["test_result"]["ndcg@5"] <= 1


@pytest.mark.parametrize(
    ("name", "extra"), [("BPR", []), ("MultiVAE", []), ("ItemKNN", ["--knn_method=user"])]
)
def test_models_that_need_a_known_user_are_refused(
    data_path: Path, tmp_path: Path, name: str, extra: list[str]
) -> None:
    with pytest.raises(ConfigError, match=f"model={name} knows users by their id.*EASE"):
        run(classical(data_path, tmp_path / "run", name, *extra))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--rank_history=5"], "rank_history: no effect with context=conversation"),
        (["--benchmark_filename=~"], "context=conversation: a split by user"),
        (["--context=chat"], "context.*'history' or 'conversation'"),
        (["--mentioned_items=drop"], "mentioned_items.*'exclude' or 'keep'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(data_path: Path, extra: list[str], message) -> None:  # type: ignore[no-untyped-def]
    keys = {argument.split("=")[0] for argument in extra}
    base = ["--model=LLMRec", "--dataset=toy", "--item_text_fields=[movie_title]"]
    data = [a for a in DATA if a.split("=")[0] not in keys]
    with pytest.raises(ConfigError, match=message):
        load_config([*base, *data, f"--data_path={data_path}", *extra])
