"""Recommendations from run folders: the ranking that the test measured, and what users type."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_multdpo import Recommender
from recbole_multdpo.errors import CheckpointError, ConfigError, DataError
from recbole_multdpo.quick_start import run
from recbole_multdpo.recommend import main
from recbole_multdpo.runs.per_user import FILE_NAME, read_per_user
from recbole_multdpo.trained.commands import parse_turns
from recbole_multdpo.trained.run import load_run
from tests.integration.test_conversations import DATA, write_conversations
from tests.integration.toy import N_ITEMS, N_USERS, classical_arguments, toy_arguments, write_toy

pytestmark = pytest.mark.integration
CLASSICAL = ("EASE", "ItemKNN", "SLIMElastic", "Pop", "BPR", "LightGCN")
LLMREC = ("mult_dpo", "lora", "vocabulary", "train_valid")
EXTRA = {
    "lora": ["--finetune=lora"],
    "vocabulary": ["--normalize_over=vocabulary", "--tiny_title_tokens=False"],
    "train_valid": ["--test_information=train_valid", "--history_split=temporal"],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs, by name; the data set brings its own property file."""
    data = write_toy(tmp_path_factory.mktemp("data"))
    (data / "toy" / "toy.yaml").write_text(
        "item_text_fields: [movie_title]\nitem_year_field: release_year\n", encoding="utf-8"
    )
    folder = tmp_path_factory.mktemp("runs")
    for name in LLMREC:
        run(toy_arguments(data, folder / name, *EXTRA.get(name, [])))
    for model in CLASSICAL:
        epochs = ["--epochs=2"] if model in ("BPR", "LightGCN") else []
        run(classical_arguments(model, data, folder / model, *epochs))
    return folder


@pytest.fixture(scope="module")
def talks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Finished runs on conversations."""
    data = write_conversations(tmp_path_factory.mktemp("talk-data"))
    folder = tmp_path_factory.mktemp("talk-runs")
    (data / "toy" / "toy.yaml").write_text("item_text_fields: [movie_title]\n", encoding="utf-8")
    run(toy_arguments(data, folder / "LLMRec", *DATA, "--mentioned_items=exclude"))
    extra = [*DATA, "--mentioned_items=exclude"]
    run(classical_arguments("EASE", data, folder / "EASE", *extra))
    return folder


# not Pop: RecBole leaves the order of equal scores open
@pytest.mark.parametrize("name", [*LLMREC, *(name for name in CLASSICAL if name != "Pop")])
def test_lists_are_those_that_the_test_measured(runs: Path, name: str) -> None:
    measured = read_per_user(runs / name / FILE_NAME).set_index("user")
    answers = list(Recommender.load(runs / name).for_users(list(measured.index), k=5))
    assert [answer.user for answer in answers] == list(measured.index)
    for answer in answers:
        hits = [item.in_test for item in answer.recommendations]
        assert measured.loc[answer.user, "precision@5"] == pytest.approx(sum(hits) / 5)
        assert measured.loc[answer.user, "precision@2"] == pytest.approx(sum(hits[:2]) / 2)
        scores = [item.score for item in answer.recommendations]
        assert scores == sorted(scores, reverse=True)
        shown = {item.id for item in answer.history}
        assert not shown & {item.id for item in answer.recommendations}
    assert sum(measured["precision@5"]) > 0  # a ranking without any hit would prove nothing


@pytest.mark.parametrize("name", ["mult_dpo", "vocabulary"])
def test_typed_titles_rank_by_the_models_own_scores(runs: Path, name: str) -> None:
    recommender = Recommender.load(runs / name)
    liked = ["red night 0", "Blue River 0"]
    answer = recommender.for_titles(liked, k=N_ITEMS - 2)
    model = recommender.run.model
    items = [recommender.titles.find(title) for title in liked]
    prompt = model.history_prompts([np.array(items)])
    others = [item for item in range(1, N_ITEMS + 1) if item not in items]
    scores = model.score(prompt, torch.tensor([others]))[0]
    expected = {recommender.run.item_name(i): float(s) for i, s in zip(others, scores, strict=True)}
    found = {item.id: item.score for item in answer.recommendations}
    assert found == pytest.approx(expected, abs=1e-4)
    assert answer.user is None and all(item.in_test is None for item in answer.recommendations)
    assert [item.title for item in answer.history] == ["Red Night 0", "Blue River 0"]
    other = recommender.for_titles(["Green Moon 0"], k=3)
    assert [i.score for i in other.recommendations] != [i.score for i in answer.recommendations[:3]]


@pytest.mark.parametrize("name", ["EASE", "ItemKNN", "SLIMElastic"])
def test_typed_titles_of_a_user_are_that_users_ranking(runs: Path, name: str) -> None:
    recommender = Recommender.load(runs / name)
    (user,) = recommender.for_users(["u3"], k=8)
    typed = recommender.for_titles([item.title for item in user.history], k=10)
    by_id = {item.id: item.score for item in typed.recommendations}
    for item in user.recommendations:
        if item.id in by_id:
            assert by_id[item.id] == pytest.approx(item.score, abs=1e-5)
    assert len(by_id.keys() & {item.id for item in user.recommendations}) >= 6


def test_popularity_needs_nobody_and_bpr_a_user(runs: Path) -> None:
    pop = Recommender.load(runs / "Pop")
    assert len(pop.for_titles(["Red Night 0"], k=3).recommendations) == 3
    with pytest.raises(ConfigError, match="BPR knows users by their id"):
        Recommender.load(runs / "BPR").for_titles(["Red Night 0"])


def test_conversation_of_the_data_set_and_the_same_one_typed(talks: Path) -> None:
    recommender = Recommender.load(talks / "LLMRec")
    (known,) = recommender.for_users(["test-0"], k=5)
    assert known.conversation is not None and known.conversation[0]["role"] == "user"
    typed = recommender.for_conversation(known.conversation, k=N_ITEMS)
    scores = {item.id: item.score for item in typed.recommendations}
    # the typed one does not write its films as the catalogue does, so that none is excluded
    for item in known.recommendations:
        assert scores[item.id] == pytest.approx(item.score, abs=1e-4)
    mentioned = [item.id for item in known.history]
    assert len(mentioned) == 2 and not set(mentioned) & {i.id for i in known.recommendations}
    talk = parse_turns(["I loved Red Night 0", "recommender: Why?", "it was fun"])
    assert [message["role"] for message in talk] == ["user", "assistant", "user"]
    answer = recommender.for_conversation(talk, k=N_ITEMS - 1)
    assert [item.title for item in answer.history] == ["Red Night 0"]
    assert "Red Night 0" not in [item.title for item in answer.recommendations]


def test_conversation_for_a_model_of_mentioned_items(talks: Path) -> None:
    recommender = Recommender.load(talks / "EASE")
    answer = recommender.for_conversation(parse_turns(["I loved Red Night 0!"]), k=3)
    titles = recommender.for_titles(["Red Night 0"], k=3)
    assert answer.recommendations == titles.recommendations
    with pytest.raises(DataError, match="mentions none"):
        recommender.for_conversation(parse_turns(["anything good?"]))


def test_histories_and_conversations_are_not_mixed_up(runs: Path, talks: Path) -> None:
    with pytest.raises(ConfigError, match="trained on histories"):
        Recommender.load(runs / "mult_dpo").for_conversation(parse_turns(["hello"]))
    recommender = Recommender.load(talks / "LLMRec")
    with pytest.raises(ConfigError, match="trained on conversations"):
        recommender.for_titles(["Red Night 0"])
    for wrong in ([], [{"role": "user", "content": "  "}]):
        with pytest.raises(DataError, match="empty"):
            recommender.for_conversation(wrong)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="unknown role 'robot'"):
        recommender.for_conversation([{"role": "robot", "content": "hello"}])


def test_command_for_users_of_a_file(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "users.txt"
    file.write_text("".join(f"u{user}\n\n" for user in range(N_USERS)), encoding="utf-8")
    arguments = [str(runs / "mult_dpo"), f"--users_file={file}", "--k=3", "--json"]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    lines = [json.loads(line) for line in captured.out.splitlines()]
    assert [line["user"] for line in lines] == [f"u{user}" for user in range(N_USERS)]
    assert all([item["rank"] for item in line["recommendations"]] == [1, 2, 3] for line in lines)
    assert captured.err == ""  # no progress bar without a terminal


def test_command_for_people(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs / "mult_dpo"), "--users=u1,u2", "--k=2"]) == 0
    text = capsys.readouterr().out
    assert "log-probability among the catalogue's titles" in text and "user u2 liked: " in text
    assert main([str(runs / "EASE"), "--liked", "red night 0", "--k=2"]) == 0
    assert "liked: Red Night 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--users=u1,u99"], "1 of 2 users are not in toy"),
        (["--liked", "Red Nigth 0"], "did you mean 'Red Night 0'"),
        (["--users=u1", "--k=0"], "k=0 must be between 1 and the 30 items"),
        (["--users=u1", "--k=31"], "k=31 must be between"),
        (["--users=,"], "no user"),
        (["--users_file=nowhere.txt"], "nowhere.txt cannot be read"),
        (["--conversation", "[{}]"], "not a conversation"),
        (["--users=u1", "--data_path=/nowhere"], "there is no folder"),
        (["--users=u1", "--device=tpu"], "device"),
    ],
)
def test_command_mistakes(
    runs: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(runs / "mult_dpo"), *arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and captured.out == ""


def test_folders_that_are_no_finished_runs(runs: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        load_run(tmp_path)
    with pytest.raises(ConfigError, match="holds several runs. Name one of them: .*BPR"):
        load_run(runs)
    copied = tmp_path / "copy"
    shutil.copytree(runs / "EASE", copied)
    (copied / "result.json").unlink()
    with pytest.raises(ConfigError, match="did not finish. Continue it: --resume="):
        load_run(copied)
    shutil.copy(runs / "EASE" / "result.json", copied)
    (copied / "model" / "weights.safetensors").write_bytes(b"\0" * 64)
    with pytest.raises(CheckpointError, match="damaged"):
        load_run(copied)
    (copied / "model" / "weights.safetensors").unlink()
    with pytest.raises(CheckpointError, match="[Rr]un its command again"):
        load_run(copied)


def test_a_sequential_model_is_refused(runs: Path, tmp_path: Path) -> None:
    data = load_run(runs / "EASE").config["data_path"]
    arguments = classical_arguments("SASRec", Path(data).parent, tmp_path / "run")
    small = ["--hidden_size=8", "--inner_size=8", "--n_layers=1", "--epochs=1"]
    run([*arguments, *small, "--eval_args={'order': 'TO'}", "--train_neg_sample_args=None"])
    with pytest.raises(ConfigError, match="sequential models are not supported"):
        Recommender.load(tmp_path / "run")


@pytest.mark.parametrize("model", ["LLMRec", "EASE"])
def test_what_a_user_rated_low_is_not_recommended(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, folder = write_toy(tmp_path / "data"), tmp_path / "run"
    fives = ["--val_interval={'rating': '[5,inf)'}", "--topk=[2, 5]"]
    if model == "LLMRec":
        run(toy_arguments(data, folder, "--loss=sft", *fives))
    else:
        run(classical_arguments(model, data, folder, *fives))
    rows = [row.split("\t") for row in (data / "toy" / "toy.inter").read_text().split("\n")]
    low = {
        f"u{user}": {row[1] for row in rows if row[0] == f"u{user}" and row[2] == "4"}
        for user in range(N_USERS)
    }

    def shown(**options: str) -> dict[str, set[str]]:
        loaded = Recommender.load(folder, **options)
        return {
            str(answer.user): {item.id for item in answer.recommendations}
            for answer in loaded.for_users(list(low), k=15)
        }

    capsys.readouterr()  # what the run printed
    found, as_tested = shown(), shown(seen_items="positives")
    assert all(not found[user] & low[user] for user in low)
    assert any(as_tested[user] & low[user] for user in low)
    user = next(user for user in low if as_tested[user] & low[user])
    lists = []
    capsys.readouterr()  # the run's own table
    for extra in ([], ["--seen_items=positives"]):
        assert main([str(folder), f"--users={user}", "--k=15", "--json", *extra]) == 0
        answer = json.loads(capsys.readouterr().out)
        lists.append({item["id"] for item in answer["recommendations"]})
    assert lists == [found[user], as_tested[user]]
