"""BIGRec: rankings of written titles against hand-made tables, and what its settings choose."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from recbole.data.interaction import Interaction

from recbole_multdpo.classical.assistant import Assistant
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.losses.batch import Prompts
from recbole_multdpo.model.bigrec import GAMMAS, BIGRec
from recbole_multdpo.scoring.grounding import min_max
from tests.integration.toy import N_ITEMS, toy_model

SETTINGS = ["--model=BIGRec", "--generation_tokens=8"]
LORA = ["--finetune=lora", "--lora_r=4"]
ASSISTED = ["--grounding_layer=0", "--grounding_weight=assistant", "--assistant=EASE"]


@pytest.fixture
def make(data_path: Path, tmp_path: Path):  # type: ignore[no-untyped-def]
    def model(*extra: str) -> BIGRec:
        made = toy_model(data_path, tmp_path, *SETTINGS, *extra)[2].eval()
        assert isinstance(made, BIGRec)
        return made

    return model


def writes(model: BIGRec, texts: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the model write a given text for each user."""
    known = {tuple(model.user_prompts(torch.tensor([u])).ids[0].tolist()): texts[u] for u in texts}

    def write(prompts: Prompts) -> list[str]:
        rows = zip(prompts.ids.tolist(), prompts.lengths.tolist(), strict=True)
        return [known[tuple(ids[:length])] for ids, length in rows]

    monkeypatch.setattr(model, "write", write)


def on_a_line(model: BIGRec) -> None:
    """Layer 0, a title's token: item i stands at i on one axis, so that nearest means next id."""
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
    model = make("--grounding_layer=0")
    on_a_line(model)
    texts = {1: model.item_texts[7], 2: model.item_texts[1], 3: model.item_texts[30]}
    writes(model, texts, monkeypatch)
    users = torch.tensor([1, 2, 3])
    topk = model.topk(users, None, 5)
    assert topk.items.tolist() == [[7, 6, 8, 5, 9], [1, 2, 3, 4, 5], [30, 29, 28, 27, 26]]
    expected = torch.tensor([0, 1, 1, 2, 2]) / -23
    torch.testing.assert_close(topk.scores[0], expected)

    excluded = torch.zeros(3, N_ITEMS + 1, dtype=torch.bool)
    excluded[0, [7, 8]] = True
    assert model.topk(users, excluded, 3).items[0].tolist() == [6, 5, 9]

    # every item has a place, and RecBole's other hooks say the same
    assert sorted(model.topk(users, None, N_ITEMS).items[0].tolist()) == [*range(1, N_ITEMS + 1)]
    full = model.full_sort_predict(Interaction({"user_id": users})).view(3, -1)
    assert torch.isneginf(full[:, 0]).all()
    pairs = Interaction({"user_id": torch.tensor([3, 1, 3]), "item_id": torch.tensor([30, 9, 2])})
    found = model.predict(pairs)
    torch.testing.assert_close(found, torch.stack([full[2, 30], full[0, 9], full[2, 2]]))
    torch.testing.assert_close(found, torch.tensor([0, -2 / 23, -28 / 29]))


def test_popularity_moves_items_as_the_formula_says(make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """On the line, item 9 has all the popularity: it passes item 8 where 2 : 2^gamma < 1."""
    model = make("--grounding_layer=0", "--grounding_weight=popularity", "--grounding_gamma=0.9")
    on_a_line(model)
    writes(model, {1: model.item_texts[7]}, monkeypatch)
    assert model.popularity.sum() == len(model.histories.items)
    model.popularity.zero_()
    model.popularity[0, 9 - 1] = 5
    assert model.topk(torch.tensor([1]), None, 5).items.tolist() == [[7, 6, 8, 9, 5]]
    model.gamma = 1.1
    assert model.topk(torch.tensor([1]), None, 5).items.tolist() == [[7, 9, 6, 8, 5]]


def test_an_assistants_scores_weigh_for_each_user(make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Both users' text is item 7's, at 1/23 of items 6 and 8, at 2/23 of items 5 and 9.

    User 1's scores are 0, and 5 for item 9; user 2's are −1, 3 for item 5 and 1 for item 6. Scaled
    for each user the best item has 1 and user 2's item 6 has 1/2, so that with gamma 1.1 item 9
    (2 : 2^1.1 < 1), or item 5, stands before what is at 1/23, and item 6 (1 : 1.5^1.1 = 0.64)
    before all of them.
    """
    model = make(*ASSISTED, "--grounding_gamma=1.1")
    on_a_line(model)
    writes(model, dict.fromkeys((1, 2), model.item_texts[7]), monkeypatch)
    users = torch.tensor([1, 2])
    plain = model.topk(users, None, 5)
    assert plain.items.tolist() == [[7, 6, 8, 5, 9]] * 2  # nothing assists while it is trained
    model.assistant = assistant_of({9: 5.0}, {5: 3.0, 6: 1.0})
    model.assistant.scores[1][model.assistant.scores[1] == 0] = -1
    topk = model.topk(users, None, 5)
    assert topk.items.tolist() == [[7, 9, 6, 8, 5], [7, 6, 5, 8, 9]]
    expected = torch.tensor([0, 1.5**-1.1, 2 * 2**-1.1, 1, 2]) / -23
    torch.testing.assert_close(topk.scores[1], expected)
    assert model.topk(users.flip(0), None, 5).items.tolist() == topk.items.flip(0).tolist()

    # RecBole's other hooks say the same
    full = model.full_sort_predict(Interaction({"user_id": users})).view(2, -1)
    torch.testing.assert_close(full.gather(1, topk.items), topk.scores)
    pairs = Interaction({"user_id": torch.tensor([2, 1, 2]), "item_id": torch.tensor([5, 9, 9])})
    torch.testing.assert_close(
        model.predict(pairs), torch.tensor([2 * 2**-1.1, 2 * 2**-1.1, 2.0]) / -23
    )
    # the control: scaled over both users together, user 2's best item has 2/3 and stays behind
    scores = model.weights_for(users)
    together = (scores - scores.min()) / (scores.max() - scores.min())
    worse = -min_max(model.item_distances([model.item_texts[7]])) * (1 + together[1]).pow(-1.1)
    assert worse[0, 5 - 1] < worse[0, 8 - 1]


def test_without_gamma_there_is_the_distance_alone(make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    model = make(*ASSISTED, "--grounding_gamma=0")
    on_a_line(model)
    writes(model, {1: model.item_texts[7]}, monkeypatch)
    users = torch.tensor([1])
    plain = model.topk(users, None, N_ITEMS)
    model.assistant = assistant_of({9: 5.0})
    found = model.topk(users, None, N_ITEMS)
    assert torch.equal(found.items, plain.items) and torch.equal(found.scores, plain.scores)
    model.gamma = 2.0  # the control
    assert not torch.equal(model.topk(users, None, N_ITEMS).items, plain.items)


def test_a_large_gamma_leaves_the_assistants_order(make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """But for the item whose title was written: its distance is 0.

    Scores are such that from favourite to favourite 1 + weight falls by 2^(1/10): to the power of
    100 more than 1000, and distances differ by less than a factor of 30.
    """
    favourites = [30, 1, 28, 3, 20, 12, 9, 25, 17, 2]
    model = make(*ASSISTED, "--grounding_gamma=100")
    on_a_line(model)
    writes(model, {1: model.item_texts[7]}, monkeypatch)
    model.assistant = assistant_of(
        {item: 2 ** (1 - n / 10) - 1 for n, item in enumerate(favourites)}
    )
    topk = model.topk(torch.tensor([1]), None, 15)
    assert topk.items.tolist() == [[7, *favourites, 6, 8, 5, 4]]  # 9 is among the favourites
    assert (topk.scores.diff() < 0).sum() == 13  # all differ but items 6 and 8: none has become 0
    model.gamma = 1.0
    assert model.topk(torch.tensor([1]), None, 2).items.tolist() != [[7, *favourites[:1]]]


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
    model = make("--grounding_layer=0", f"--grounding_weight={weight}", *assistant)
    on_a_line(model)
    writes(model, {1: model.item_texts[7], 2: model.item_texts[7]}, monkeypatch)
    if weight == "assistant":
        model.assistant = assistant_of({9: 5.0}, {9: 2.0})
    else:
        model.popularity.zero_()
        model.popularity[0, 9 - 1] = 5
    written = []
    monkeypatch.setattr(model, "write", _counted(model.write, written))

    def validate() -> float:
        model.eval()  # as the trainer does
        return float((model.topk(torch.tensor([1, 2]), None, 5).items == 9).float().argmax(1)[0])

    found = model.tune_ranking(lambda: -validate())
    assert found["grounding_gamma"] == model.gamma == 2.0
    assert [gamma for gamma, _ in found["grounding_gamma_curve"]] == list(GAMMAS)
    assert written == [2]  # two users' texts once for all values
    model.topk(torch.tensor([1]), None, 5)
    assert written == [2, 1]  # and nothing is remembered afterwards

    for fixed in (["--grounding_gamma=0.5"], []):
        weight = "--grounding_weight=popularity" if fixed else "--grounding_weight=none"
        other = make("--grounding_layer=0", weight, *fixed)
        assert other.tune_ranking(lambda: pytest.fail("nothing to choose")) == {
            "grounding_by": "tuned"
        }


def _counted(write, calls):  # type: ignore[no-untyped-def]
    def counted(prompts: Prompts) -> list[str]:
        calls.append(len(prompts))
        return write(prompts)

    return counted


@pytest.mark.parametrize("finetune", [[], LORA])
@pytest.mark.parametrize("reader", ["base", "tuned"])
def test_hidden_states_are_of_the_chosen_model(make, finetune, reader) -> None:  # type: ignore[no-untyped-def]
    model = make(f"--grounding_model={reader}", *finetune)
    before = model.item_distances([model.item_texts[7]])
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.lm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.eval()
    after = model.item_distances([model.item_texts[7]])
    assert torch.equal(before, after) == (reader == "base")
    assert model.lm.training is False


def test_auto_reads_with_the_fine_tuned_tiny_model(make) -> None:  # type: ignore[no-untyped-def]
    assert make().base_lm is None
    assert make("--grounding_model=base").base_lm is not None
    assert make("--grounding_model=base", *LORA).base_lm is None  # the adapter is switched off


def test_items_of_one_text_stand_at_one_distance(make, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    model = make()
    model.item_texts[3] = model.item_texts[8]
    writes(model, {1: model.item_texts[8]}, monkeypatch)
    distance = model.item_distances([model.item_texts[8], ""])
    assert torch.equal(distance[:, 3 - 1], distance[:, 8 - 1])
    assert model.topk(torch.tensor([1]), None, 2).items.tolist() == [[3, 8]]
    assert distance[1].isfinite().all()  # where nothing was written


def test_the_model_writes_for_itself(make) -> None:  # type: ignore[no-untyped-def]
    model = make()
    texts = model.written_for(torch.tensor([1, 2]))
    assert len(texts) == 2 and all(isinstance(text, str) for text in texts)
    prompts = model.user_prompts(torch.tensor([1, 2]))
    ranked, by_user = model.rank(prompts, None, 5), model.topk(torch.tensor([1, 2]), None, 5)
    assert torch.equal(ranked.items, by_user.items)


def test_a_finished_run_ranks_as_it_did(make) -> None:  # type: ignore[no-untyped-def]
    model = make("--grounding_weight=popularity", "--grounding_model=base")
    model.restore_ranking({"grounding_by": "tuned", "grounding_gamma": 0.7})
    assert model.gamma == 0.7 and model.base_lm is None
    with pytest.raises(ConfigError, match="--grounding_model=tuned"):
        model.restore_ranking({"grounding_by": "base"})


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
    model = make(f"--config_files={tmp_path / 'shared.yaml'}")
    assert model.settings.assistant_weight == 3 and model.settings.assistant_weights == ()
