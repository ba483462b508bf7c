"""BIGRec: rankings of written titles against hand-made tables, and what its settings choose."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_multdpo.classical.assistant import Assistant
from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.ranking import make_ranker
from recbole_multdpo.ranking.grounding import GAMMAS, GroundingRanker
from recbole_multdpo.ranking.ranker import Ranker
from recbole_multdpo.scoring.grounding import min_max
from tests.integration.toy import N_ITEMS, toy_model

SETTINGS = ["--model=BIGRec", "--generation_tokens=8"]
LORA = ["--finetune=lora", "--lora_r=4"]
ASSISTED = ["--grounding_layer=0", "--grounding_weight=assistant", "--assistant=EASE"]


@pytest.fixture
def make(data_path: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    def ranker(*extra: str) -> GroundingRanker:
        model = toy_model(data_path, tmp_path, *SETTINGS, *extra)[2].eval()
        made = make_ranker(model, model.histories)
        assert isinstance(made, GroundingRanker)
        return made

    return ranker


def writes(
    ranker: GroundingRanker, texts: dict[int, str], monkeypatch: pytest.MonkeyPatch
) -> list[int]:
    """Let the model write a given text for each user; the numbers of texts written at once."""
    known = {tuple(ranker.prompts(torch.tensor([u])).ids[0].tolist()): texts[u] for u in texts}
    calls = []

    def write(ranker: GroundingRanker, prompts: Prompts) -> list[str]:
        calls.append(len(prompts))
        rows = zip(prompts.ids.tolist(), prompts.lengths.tolist(), strict=True)
        return [known[tuple(ids[:length])] for ids, length in rows]

    monkeypatch.setattr(GroundingRanker, "write", write)
    return calls


def on_a_line(model: LLMRec) -> None:
    """Layer 0, a title's token: item i is at i on one axis, so that nearest means next id."""
    weight = model.lm.get_input_embeddings().weight
    with torch.no_grad():
        weight.zero_()
        for item, text in enumerate(model.item_texts[1:], start=1):
            (token,) = model.tokenizer(f" {text}", add_special_tokens=False)["input_ids"]
            weight[token, 0] = item


def assistant_of(*users: dict[int, float], others: float = 0.0) -> Assistant:
    """Of users 1, 2, ...: their scores of some items, `others` for the rest, 99 for [PAD]."""
    scores = np.full((len(users), N_ITEMS + 1), others, dtype=np.float32)
    scores[:, 0] = 99
    for row, given in zip(scores, users, strict=True):
        row[list(given)] = list(given.values())
    return Assistant("EASE", scores, scores, np.array([-1, *range(len(users))]), {})


def test_nearest_titles_by_hand(make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Item 7's title is written: items at distance 0, 1, 1, 2, 2, of equal distance the lower id.

    Farthest is item 30 at 23, so that item 9 scores −2/23.
    """
    ranker = make("--grounding_layer=0")
    on_a_line(ranker.model)
    titles = ranker.model.item_texts
    writes(ranker, {1: titles[7], 2: titles[1], 3: titles[30]}, monkeypatch)
    users = torch.tensor([1, 2, 3])
    topk = ranker.topk(users, None, 5)
    assert topk.items.tolist() == [[7, 6, 8, 5, 9], [1, 2, 3, 4, 5], [30, 29, 28, 27, 26]]
    expected = torch.tensor([0, 1, 1, 2, 2]) / -23
    torch.testing.assert_close(topk.scores[0], expected)

    excluded = torch.zeros(3, N_ITEMS + 1, dtype=torch.bool)
    excluded[0, [7, 8]] = True
    assert ranker.topk(users, excluded, 3).items[0].tolist() == [6, 5, 9]

    # every item has a place, and pairs have the same scores
    assert sorted(ranker.topk(users, None, N_ITEMS).items[0].tolist()) == [*range(1, N_ITEMS + 1)]
    found = ranker.pair_scores(torch.tensor([3, 1, 3]), torch.tensor([30, 9, 2]))
    torch.testing.assert_close(found, torch.tensor([0, -2 / 23, -28 / 29]))


def test_popularity_moves_items_as_the_formula_says(make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """On the line, item 9 has all the popularity: it passes item 8 where 2 : 2^gamma < 1."""
    ranker = make("--grounding_layer=0", "--grounding_weight=popularity", "--grounding_gamma=0.9")
    on_a_line(ranker.model)
    writes(ranker, {1: ranker.model.item_texts[7]}, monkeypatch)
    assert ranker.popularity.sum() == len(ranker.model.histories.items)
    ranker.popularity.zero_()
    ranker.popularity[0, 9 - 1] = 5
    assert ranker.topk(torch.tensor([1]), None, 5).items.tolist() == [[7, 6, 8, 9, 5]]
    stronger = replace(ranker, gamma=1.1)
    assert stronger.topk(torch.tensor([1]), None, 5).items.tolist() == [[7, 9, 6, 8, 5]]


def test_an_assistants_scores_weigh_for_each_user(make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Both users' text is item 7's, at 1/23 of items 6 and 8, at 2/23 of items 5 and 9.

    User 1's scores are 0, and 5 for item 9; user 2's are −1, 3 for item 5 and 1 for item 6. Scaled
    for each user the best item has 1 and user 2's item 6 has 1/2, so that with gamma 1.1 item 9
    (2 : 2^1.1 < 1), or item 5, ranks before what is at 1/23, and item 6 (1 : 1.5^1.1 = 0.64)
    before all of them.
    """
    ranker = make(*ASSISTED, "--grounding_gamma=1.1")
    on_a_line(ranker.model)
    writes(ranker, dict.fromkeys((1, 2), ranker.model.item_texts[7]), monkeypatch)
    users = torch.tensor([1, 2])
    plain = ranker.topk(users, None, 5)
    assert plain.items.tolist() == [[7, 6, 8, 5, 9]] * 2  # nothing assists while it is trained
    assistant = assistant_of({9: 5.0}, {5: 3.0, 6: 1.0})
    assistant.scores[1][assistant.scores[1] == 0] = -1
    ranker = replace(ranker, assistant=assistant)
    topk = ranker.topk(users, None, 5)
    assert topk.items.tolist() == [[7, 9, 6, 8, 5], [7, 6, 5, 8, 9]]
    expected = torch.tensor([0, 1.5**-1.1, 2 * 2**-1.1, 1, 2]) / -23
    torch.testing.assert_close(topk.scores[1], expected)
    assert ranker.topk(users.flip(0), None, 5).items.tolist() == topk.items.flip(0).tolist()

    # pairs have the same scores
    found = ranker.pair_scores(users.repeat_interleave(5), topk.items.flatten())
    torch.testing.assert_close(found, topk.scores.flatten())
    found = ranker.pair_scores(torch.tensor([2, 1, 2]), torch.tensor([5, 9, 9]))
    torch.testing.assert_close(found, torch.tensor([2 * 2**-1.1, 2 * 2**-1.1, 2.0]) / -23)
    # the control: scaled over both users together, user 2's best item has 2/3 and stays behind
    scores = ranker.weights_for(users)
    together = (scores - scores.min()) / (scores.max() - scores.min())
    distance = ranker.item_distances([ranker.model.item_texts[7]])
    worse = -min_max(distance) * (1 + together[1]).pow(-1.1)
    assert worse[0, 5 - 1] < worse[0, 8 - 1]


def test_without_gamma_there_is_the_distance_alone(make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    ranker = make(*ASSISTED, "--grounding_gamma=0")
    on_a_line(ranker.model)
    writes(ranker, {1: ranker.model.item_texts[7]}, monkeypatch)
    users = torch.tensor([1])
    plain = ranker.topk(users, None, N_ITEMS)
    ranker = replace(ranker, assistant=assistant_of({9: 5.0}))
    found = ranker.topk(users, None, N_ITEMS)
    assert torch.equal(found.items, plain.items) and torch.equal(found.scores, plain.scores)
    ranker = replace(ranker, gamma=2.0)  # the control
    assert not torch.equal(ranker.topk(users, None, N_ITEMS).items, plain.items)


def test_a_large_gamma_leaves_the_assistants_order(make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """But for the item whose title was written: its distance is 0.

    Scores are such that from favourite to favourite 1 + weight falls by 2^(1/10): to the power of
    100 more than 1000, and distances differ by less than a factor of 30.
    """
    favourites = [30, 1, 28, 3, 20, 12, 9, 25, 17, 2]
    ranker = make(*ASSISTED, "--grounding_gamma=100")
    on_a_line(ranker.model)
    writes(ranker, {1: ranker.model.item_texts[7]}, monkeypatch)
    scores = {item: 2 ** (1 - n / 10) - 1 for n, item in enumerate(favourites)}
    ranker = replace(ranker, assistant=assistant_of(scores))
    topk = ranker.topk(torch.tensor([1]), None, 15)
    assert topk.items.tolist() == [[7, *favourites, 6, 8, 5, 4]]  # 9 is among the favourites
    assert (topk.scores.diff() < 0).sum() == 13  # all differ but items 6 and 8: none has become 0
    mild = replace(ranker, gamma=1.0)
    assert mild.topk(torch.tensor([1]), None, 2).items.tolist() != [[7, *favourites[:1]]]


def test_a_log_softmax_of_the_scores_weighs_the_same() -> None:
    assistant = assistant_of({9: 5.0, 4: 0.3}, {5: 3.0, 6: -1.0})
    users = torch.tensor([1, 2])
    torch.testing.assert_close(
        min_max(assistant.log_probs(users)[:, 1:]), min_max(assistant.scores_of(users)[:, 1:])
    )


@pytest.mark.parametrize("weight", ["popularity", "assistant"])
def test_gamma_is_the_best_on_validation(make, monkeypatch, weight) -> None:  # type: ignore[no-untyped-def]
    """Validation wants item 9 above items 6 and 8: any gamma above 1, of which 2 is the first."""
    assistant = ["--assistant=EASE"] if weight == "assistant" else []
    ranker = make("--grounding_layer=0", f"--grounding_weight={weight}", *assistant)
    on_a_line(ranker.model)
    written = writes(ranker, dict.fromkeys((1, 2), ranker.model.item_texts[7]), monkeypatch)
    if weight == "assistant":
        ranker = replace(ranker, assistant=assistant_of({9: 5.0}, {9: 2.0}))
    else:
        ranker.popularity.zero_()
        ranker.popularity[0, 9 - 1] = 5

    def validate(tried: Ranker) -> float:
        items = tried.prepared().topk(torch.tensor([1, 2]), None, 5).items
        return -float((items == 9).float().argmax(1)[0])

    tuned, found = ranker.tune(validate)
    assert found["grounding_gamma"] == tuned.gamma == 2.0
    assert [gamma for gamma, _ in found["grounding_gamma_curve"]] == list(GAMMAS)
    assert written == [2]  # two users' texts once for all values
    tuned.topk(torch.tensor([1]), None, 5)
    assert written == [2, 1]  # and nothing is remembered afterwards

    for fixed in (["--grounding_gamma=0.5"], []):
        weight = "--grounding_weight=popularity" if fixed else "--grounding_weight=none"
        other = make("--grounding_layer=0", weight, *fixed)
        same, described = other.tune(lambda tried: pytest.fail("nothing to choose"))
        assert same is other and described == {"grounding_by": "tuned"}


@pytest.mark.parametrize("finetune", [[], LORA])
@pytest.mark.parametrize("reader", ["base", "tuned"])
def test_hidden_states_are_of_the_chosen_model(make, finetune, reader) -> None:  # type: ignore[no-untyped-def]
    ranker = make(f"--grounding_model={reader}", *finetune)
    before = ranker.item_distances([ranker.model.item_texts[7]])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in ranker.model.lm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    after = ranker.item_distances([ranker.model.item_texts[7]])
    assert torch.equal(before, after) == (reader == "base")
    assert ranker.model.lm.training is False


def test_auto_reads_with_the_fine_tuned_tiny_model(make) -> None:  # type: ignore[no-untyped-def]
    assert make().base is None
    assert make("--grounding_model=base").base is not None
    assert make("--grounding_model=base", *LORA).base is None  # the adapter is switched off


def test_items_of_one_text_stand_at_one_distance(make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    ranker = make()
    ranker.model.item_texts[3] = ranker.model.item_texts[8]
    writes(ranker, {1: ranker.model.item_texts[8]}, monkeypatch)
    distance = ranker.item_distances([ranker.model.item_texts[8], ""])
    assert torch.equal(distance[:, 3 - 1], distance[:, 8 - 1])
    assert ranker.topk(torch.tensor([1]), None, 2).items.tolist() == [[3, 8]]
    assert distance[1].isfinite().all()  # where nothing was written


def test_the_model_writes_for_itself(make) -> None:  # type: ignore[no-untyped-def]
    ranker = make()
    texts = ranker.written_for(torch.tensor([1, 2]))
    assert len(texts) == 2 and all(isinstance(text, str) for text in texts)
    prompts = ranker.prompts(torch.tensor([1, 2]))
    ranked, by_user = ranker.rank(prompts, None, 5), ranker.topk(torch.tensor([1, 2]), None, 5)
    assert torch.equal(ranked.items, by_user.items)


def test_a_finished_run_ranks_as_it_did(make) -> None:  # type: ignore[no-untyped-def]
    ranker = make("--grounding_weight=popularity", "--grounding_model=base")
    loaded = ranker.restore({"grounding_by": "tuned", "grounding_gamma": 0.7})
    assert loaded.gamma == 0.7 and loaded.base is None
    with pytest.raises(ConfigError, match="--grounding_model=tuned"):
        ranker.restore({"grounding_by": "base"})


def test_a_layer_that_is_not_there_is_refused_with_those_that_are(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=r"grounding_layer=2.*layers 0 .* to 1"):
        make("--grounding_layer=2")


@pytest.mark.parametrize(
    "setting",
    ["--loss=mult_dpo", "--normalize_over=catalogue", "--grounding_gamma=-1"]
    + ["--grounding_gamma=101", "--grounding_weight=rating"],
)
def test_settings_that_bigrec_does_not_have(make, setting: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=setting[2:].split("=")[0]):
        make(setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--grounding_weight=assistant"], "needs an assistant. Add --assistant=EASE"),
        (["--assistant=EASE"], "grounding_weight=none. Add --grounding_weight=assistant"),
        (["--assistant=EASE", "--grounding_weight=popularity"], "part in .*=popularity. Add"),
        ([*ASSISTED, "--assistant_weight=3"], "assistant_weight: .* Use --grounding_gamma"),
        (["--assistant_weight=3"], "assistant_weight: no effect with BIGRec"),
        ([*ASSISTED[:2], "--assistant=EASY"], "did you mean EASE"),
        (["--EASE.reg_weight=9"], "Add --assistant=EASE"),
        (["--grounding_gamma=2"], "grounding_gamma: .* Add --grounding_weight=popularity"),
    ],
)
def test_what_weighs_and_an_assistant_belong_together(make, settings, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ConfigError, match=message):
        make(*settings)


def test_a_file_for_other_models_too_may_set_assistant_weight(make, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "shared.yaml").write_text("assistant_weight: 3\ngrounding_gamma: 2\n")
    ranker = make(f"--config_files={tmp_path / 'shared.yaml'}")
    assert ranker.settings.assistant_weight == 3 and ranker.settings.assistant_weights == ()
