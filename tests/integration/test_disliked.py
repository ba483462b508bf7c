"""Low ratings in prompts: what is shown, drawn and cut, from training to the exported model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_multdpo.data.prompt import PromptBuilder, prompt_frame
from recbole_multdpo.data.prompt_file import read_prompt
from recbole_multdpo.data.soft_targets import SoftTargets
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.evaluate import main as evaluate
from recbole_multdpo.export import export
from recbole_multdpo.model.tiny import add_whole_texts, fit_tokenizer
from recbole_multdpo.quick_start import run
from recbole_multdpo.recommend import main as recommend
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.trained.exported import Catalogue
from recbole_multdpo.trained.recommender import Recommender
from recbole_multdpo.training.sft_cache import sft_key
from recbole_multdpo.training.stages import train_loader
from tests.integration.toy import N_USERS, classical_arguments, toy_arguments, toy_model, write_toy

FIVES = "--val_interval={'rating': '[5,inf)'}"
SHOWN = (FIVES, "--disliked_in_prompt=4", "--eval_args={'split': {'RS': [0.5, 0.2, 0.3]}}")
TEXTS = ["[PAD]", "Toy Story", "Heat", "Up", "Fargo"]
LIKED, DISLIKED = ["Red Night 0", "Blue River 0"], ["Green Moon 0", "Red Stone 0"]
BY_TEXT = "--tiny_title_tokens=False"


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data with six low ratings of each user instead of three."""
    data = write_toy(tmp_path_factory.mktemp("data"))
    (data / "toy" / "toy.yaml").write_text("item_text_fields: [movie_title]\n")
    file = data / "toy" / "toy.inter"
    more = []
    for user in range(N_USERS):
        own = {row.split("\t")[1] for row in file.read_text().split("\n") if f"u{user}\t" in row}
        free = [item for item in range(30) if f"i{item}" not in own][:3]
        more += [f"u{user}\ti{item}\t3\t{20 + n}" for n, item in enumerate(free)]
    file.write_text(file.read_text() + "\n".join(more) + "\n")
    return data


@pytest.fixture(scope="module")
def runs(data_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for name, extra in (("titles", []), ("texts", [BY_TEXT])):
        run(toy_arguments(data_path, folder / name, *SHOWN, *extra))
    return folder


def frame_and_tokenizer(*, marked: bool):  # type: ignore[no-untyped-def]
    frame = prompt_frame("movies", None, "auto", shows_disliked=True)
    tokenizer = fit_tokenizer(TEXTS[1:] + frame.texts() * 9, vocab_size=300, max_positions=512)
    if marked:
        add_whole_texts(tokenizer, [*TEXTS[1:], *map(frame.marked, TEXTS[1:])])
    return frame, tokenizer


@pytest.mark.parametrize("marked", [True, False])
def test_a_prompt_marks_what_is_disliked(marked: bool) -> None:
    frame, tokenizer = frame_and_tokenizer(marked=marked)
    prompts = PromptBuilder(
        tokenizer, TEXTS, frame, max_history=9, max_prompt_tokens=500, max_disliked=2
    )
    built = prompts.build([np.array([1, 2])], disliked=[np.array([1, 4, 3])])
    text = tokenizer.decode(built.ids[0])
    assert (
        text
        == (
            "A user liked these movies:\n- Toy Story\n- Heat\nDisliked: Fargo\nDisliked: Up"
            "\nAnother movie for this user:"
        )
        or marked
    )
    without = prompts.build([np.array([1, 2])])
    if marked:  # one token each, other than those of the titles
        low = set(built.ids[0].tolist()) - set(without.ids[0].tolist())
        assert built.ids.shape[1] - without.ids.shape[1] == len(low) == 2
        assert tokenizer.convert_ids_to_tokens(sorted(low)) == ["Disliked: Fargo", "Disliked: Up"]
    assert int(built.lengths[0]) <= prompts.longest(9)


def test_the_example_of_the_log_is_a_prompt_of_the_model(data_path: Path, tmp_path: Path) -> None:
    _, _, model = toy_model(data_path, tmp_path, *SHOWN, BY_TEXT)
    assert model.disliked is not None
    users = np.flatnonzero(model.histories.counts > 1)
    shown, low = (
        [items.history(user)[-n:] for user in users]
        for items, n in ((model.histories, 2), (model.disliked, 1))
    )
    built = model.prompts.build(shown, disliked=low)
    rows = zip(built.ids, built.lengths, strict=True)
    example = model.example_prompt()
    assert example in [model.tokenizer.decode(ids[:length]) for ids, length in rows]
    assert example.startswith("A user liked these items:\n- ") and "\nDisliked: " in example


def test_what_is_disliked_is_cut_first() -> None:
    frame, tokenizer = frame_and_tokenizer(marked=False)
    wide = PromptBuilder(
        tokenizer, TEXTS, frame, max_history=9, max_prompt_tokens=500, max_disliked=3
    )
    history, low = [np.array([1, 2])], [np.array([3, 4])]
    alone, whole = (int(wide.build(history, disliked=d).lengths[0]) for d in (None, low))
    last = int(wide.build(history, disliked=[low[0][1:]]).lengths[0])
    assert alone < last < whole
    for limit, shown in ((whole, whole), (whole - 1, last), (last - 1, alone), (alone, alone)):
        narrow = PromptBuilder(
            tokenizer, TEXTS, frame, max_history=9, max_prompt_tokens=limit, max_disliked=3
        )
        assert int(narrow.build(history, disliked=low).lengths[0]) == shown


def test_frames_without_it_are_as_before(data_path: Path, tmp_path: Path) -> None:
    _, _, model = toy_model(data_path, tmp_path, FIVES)
    assert "disliked" not in model.prompts.frame.content()
    assert "before_disliked" not in model.prompts.frame_ids()
    assert model.disliked is None


def test_training_prompts_show_a_drawn_share(data_path: Path, tmp_path: Path) -> None:
    config, parts, model = toy_model(data_path, tmp_path, *SHOWN, "--target_share=0.5")
    loader = train_loader(config, model, parts[0], "sft", 8)
    sampler = loader.setwise_sampler
    users = np.array([1, 2, 3, 4])
    known = [set(parts[0].low_rated_items().history(user).tolist()) for user in users]
    assert all(len(items) == 4 for items in known)  # of six; RecBole's share of 0.5, 0.2, 0.3
    drawn = [sampler.split(users, epoch).disliked for epoch in range(8)]
    for found in drawn:
        assert all(set(f.tolist()) < own and len(f) == 2 for f, own in zip(found, known))  # noqa: B905
    assert any(not np.array_equal(drawn[0][0], found[0]) for found in drawn[1:])
    again = sampler.split(users[2:], 3).disliked  # of (seed, epoch, user) alone
    assert all(np.array_equal(one, other) for one, other in zip(again, drawn[3][2:], strict=True))
    split = sampler.split(users, 0)
    prompts = model.prompts.build(split.histories, disliked=split.disliked)
    assert torch.equal(sampler.sample(users, 0).prompts.ids, prompts.ids)
    plain = model.prompts.build(split.histories)
    assert (prompts.lengths - plain.lengths).tolist() == [2] * 4  # one token each


def test_no_prompt_knows_more_than_the_training_share(data_path: Path, tmp_path: Path) -> None:
    _, parts, model = toy_model(data_path, tmp_path, *SHOWN, "--test_information=train_valid")
    users = np.arange(1, N_USERS + 1)
    low = model.shown_disliked(users, model.shown_histories(users, model.histories))
    train = parts[0].low_rated_items([0])
    for user, shown in zip(users, low, strict=True):
        assert set(shown.tolist()) == set(train.history(user).tolist()) and len(shown)
    ids = torch.from_numpy(users)
    with_low = model.user_prompts(ids, model.histories)
    plain = model.history_prompts(model.shown_histories(users, model.histories))
    assert (with_low.lengths - plain.lengths).tolist() == [len(shown) for shown in low]


def test_the_key_of_the_first_stage_knows_them(data_path: Path, tmp_path: Path) -> None:
    config, _, model = toy_model(data_path, tmp_path, *SHOWN)
    before = sft_key(config, model)
    assert model.disliked is not None
    model.disliked.items[0] = model.disliked.items[0] % 29 + 1
    assert sft_key(config, model) != before


@pytest.mark.parametrize("name", ["titles", "texts"])
def test_a_run_is_tested_again_and_exported(name: str, runs: Path, tmp_path: Path) -> None:
    folder = runs / name
    stored = read_prompt(folder)
    assert stored is not None and stored.frame.disliked == "\nDisliked:"
    assert evaluate([str(folder), f"--output={tmp_path / 'again.json'}"]) == 0
    recommender = Recommender.load(folder)
    answer = recommender.for_titles(LIKED, k=5, disliked=DISLIKED)
    assert [item.title for item in answer.disliked] == DISLIKED
    assert not {item.title for item in answer.recommendations} & {*LIKED, *DISLIKED}
    plain = recommender.for_titles(LIKED, k=5)
    assert [i.score for i in answer.recommendations] != [i.score for i in plain.recommendations]
    user = next(iter(recommender.for_users(["u1"], k=3)))
    assert len(user.disliked) == 4
    # the exported model computes the same from its own files
    export(folder, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    catalogue = Catalogue.read(tmp_path / "out")
    prompt = catalogue.history_prompt(tokenizer, LIKED, DISLIKED)
    query = recommender.titles_query(LIKED, DISLIKED)
    assert prompt == recommender.prompts([query]).ids[0].tolist()
    numbers = {item["id"]: number for number, item in enumerate(catalogue.items)}
    found = [catalogue.logp(model, prompt, numbers[item.id]) for item in answer.recommendations]
    assert found == pytest.approx([item.score for item in answer.recommendations], abs=2e-4)


def test_typed_dislikes(
    runs: Path, data_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(runs / "titles")
    assert recommend([folder, "--liked", *LIKED, "--disliked", *DISLIKED, "--k=2"]) == 0
    assert f"disliked: {'; '.join(DISLIKED)}" in capsys.readouterr().out
    assert recommend([folder, "--users=u1", "--disliked", *DISLIKED]) == 2
    assert "--disliked goes with --liked" in capsys.readouterr().err
    scores = {}
    for weight in (0, 0.5):
        ease = tmp_path / f"ease-{weight}"
        extra = (FIVES, f"--low_rating_weight={weight}", "--reg_weight=3")
        run(classical_arguments("EASE", data_path, ease, *extra))
        scores[weight] = Recommender.load(ease)
    with pytest.raises(ConfigError, match="was not told what users dislike"):
        scores[0].for_titles(LIKED, disliked=DISLIKED)
    one, other = (scores[0.5].for_titles(LIKED, disliked=low) for low in ([], DISLIKED))
    assert [i.score for i in one.recommendations] != [i.score for i in other.recommendations]


def test_a_teacher_reads_them_too(data_path: Path, tmp_path: Path) -> None:
    class Teacher:
        name, by_user, popularity = "EASE", False, np.ones(6)

        def scores(self, users, shown, disliked=None):  # type: ignore[no-untyped-def]
            found = np.arange(6.0)[None].repeat(len(users), 0).astype(np.float32)
            found[0, disliked[0]] += 9
            return found

    targets = SoftTargets(Teacher(), 1.0, np.ones(6, np.float32), np.arange(6), None, None)
    probs = targets.probabilities(np.array([1]), [np.array([2])], [np.array([5])])
    assert (probs[0] > 0).tolist() == [False, True, False, True, True, False]
    taught = ["--loss=sft", "--sft_teacher=EASE", "--EASE.low_rating_weight=0.5"]
    results = [
        run(toy_arguments(data_path, tmp_path / str(n), *SHOWN, *taught, f"--EASE.reg_weight={n}"))
        for n in (1, 50)
    ]
    assert results[0]["valid_result"] != results[1]["valid_result"]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--disliked_in_prompt=4"], "val_interval does not limit rating"),
        ([FIVES, "--disliked_in_prompt=4", "--history_split=temporal"], "after its targets"),
    ],
)
def test_refusals(data_path: Path, tmp_path: Path, extra: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(toy_arguments(data_path, tmp_path / "run", *extra))


def test_parts_are_loaded_with_their_shares(data_path: Path, tmp_path: Path) -> None:
    config = load_config(toy_arguments(data_path, tmp_path / "run", *SHOWN))
    dataset, _ = load_parts(config)
    assert [int(dataset.low_rated_items([n]).counts.sum()) for n in range(3)] == [
        4 * N_USERS,
        N_USERS,
        N_USERS,
    ]
