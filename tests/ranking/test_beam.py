"""D3 on the toy data: its score, its beam, and what it shares with LLMRec."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from recbole_multdpo.classical.assistant import make_assistant
from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.plan import make_plan
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.quick_start import run
from recbole_multdpo.ranking import make_ranker
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS
from recbole_multdpo.settings.layers import properties_folder
from recbole_multdpo.settings.llmrec import D3Settings, LLMRecSettings
from recbole_multdpo.settings.text import read_settings_file
from tests.integration.toy import toy_arguments, write_toy

# titles of several tokens, some of the same text, so that the beam has something to drop
D3 = ["--model=D3", "--tiny_title_tokens=False", "--item_year_field=~", "--EASE.reg_weight=10"]


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parent = write_toy(tmp_path_factory.mktemp("data"))
    file = parent / "toy" / "toy.item"  # every title twice
    file.write_text(file.read_text().replace(" 1\t", " 0\t"))
    return parent


def untrained(data_path: Path, tmp_path: Path, *extra: str):  # type: ignore[no-untyped-def]
    """(users, ranker) with EASE as the assistant, its share being 3/4."""
    config = load_config(toy_arguments(data_path, tmp_path / "run", *D3, *extra))
    dataset, parts = load_parts(config)
    model = config.model_class(config, parts[0]).eval()
    assistant = make_assistant(config.assistant, dataset, parts, None, tmp_path / "assistant")
    ranker = replace(make_ranker(model, model.histories), assistant=assistant, weight=0.75)
    return parts[1].inter_feat["user_id"].unique(), ranker


def mixture(ranker, users):  # type: ignore[no-untyped-def]
    """1/4 log pi + 3/4 log m of every item, m being the shares of all items of its text."""
    model = ranker.model
    catalogue = torch.arange(model.n_items).expand(len(users), -1)
    logps = model.score(ranker.prompts(users), catalogue)
    shares = ranker.assistant.log_probs(users, 0.05).exp()
    texts = model.item_texts
    same = torch.tensor([[a == b for b in texts] for a in texts]).float()
    same[0] = same[:, 0] = 0
    assert (same.sum(1) > 1).any()
    return 0.25 * logps + 0.75 * (shares @ same).log()


def test_the_exact_ranking_is_by_the_mixture(data_path: Path, tmp_path: Path) -> None:
    users, ranker = untrained(data_path, tmp_path, "--ranker=best_first")
    expected = mixture(ranker, users)
    topk = ranker.topk(users, None, 6)
    best = expected[:, 1:].topk(6)
    torch.testing.assert_close(topk.scores * 0.25, best.values, atol=1e-5, rtol=1e-5)
    pairs = torch.cartesian_prod(users, torch.arange(1, ranker.model.n_items))
    found = ranker.pair_scores(*pairs.T).view(len(users), -1)
    torch.testing.assert_close(found * 0.25, expected[:, 1:], atol=1e-5, rtol=1e-5)
    alone = replace(ranker, assistant=None)
    assert not alone.topk(users, None, 6).items.equal(topk.items)


def test_a_full_beam_is_the_exact_ranking_and_a_narrow_one_is_not(
    data_path: Path, tmp_path: Path
) -> None:
    users, exact = untrained(data_path, tmp_path, "--ranker=best_first")
    expected = exact.topk(users, None, 5)
    _, full = untrained(data_path, tmp_path, "--beam_size=500")
    found = full.topk(users, None, 5)
    assert found.items.equal(expected.items)
    torch.testing.assert_close(found.scores, expected.scores, atol=1e-5, rtol=1e-5)
    _, narrow = untrained(data_path, tmp_path, "--beam_size=1")
    assert not narrow.topk(users, None, 5).items.equal(expected.items)


@pytest.mark.parametrize("ranker", ["beam", "best_first"])
def test_a_loaded_run_ranks_prompts_as_the_test_ranked_users(
    data_path: Path, tmp_path: Path, ranker: str
) -> None:
    """`Recommender` ranks prompts: without an assistant they are all that there is to know."""
    own = ["--beam_size=2"] if ranker == "beam" else []
    users, made = untrained(data_path, tmp_path, f"--ranker={ranker}", *own)
    ranked = replace(made, assistant=None).topk(users, None, 6)
    of_prompts = made.rank(made.prompts(users), None, 6)
    assert of_prompts.items.equal(ranked.items) and of_prompts.scores.equal(ranked.scores)


@pytest.mark.integration
def test_the_command(data_path: Path, tmp_path: Path) -> None:
    """The supervised stage is LLMRec's, taken from the same cache."""
    small = ["--assistant_weight=[0, 0.5]", "--beam_size=3"]
    result = run(toy_arguments(data_path, tmp_path / "d3", *D3, *small))
    assert (result["model"], result["loss"]) == ("D3", "sft")
    assert [point["weight"] for point in result["assistant"]["curve"]] == [0, 0.5]
    cached = {path.name for path in (tmp_path / "cache").glob("sft-*")}
    llmrec = [text for text in D3[1:] if not text.startswith("--EASE")]
    llmrec += ["--sft_teacher=~", "--weight_decay=1.0"]
    run(toy_arguments(data_path, tmp_path / "llmrec", *llmrec, "--loss=sft"))
    assert {path.name for path in (tmp_path / "cache").glob("sft-*")} == cached
    alone = ["--assistant=~", "--ranker=best_first"]
    plain = run(toy_arguments(data_path, tmp_path / "plain", *D3[:-1], *alone))
    sft = run(toy_arguments(data_path, tmp_path / "sft", *llmrec, "--loss=sft"))
    assert plain["test_result"] == sft["test_result"] and "assistant" not in plain


# --------------------------------------------------------------------------------------------------
# settings


@pytest.mark.parametrize("name", [name for name in LANGUAGE_MODELS if name != "LLMRec"])
def test_the_property_file_has_every_setting_of_its_own(name: str) -> None:
    file = read_settings_file(properties_folder() / f"model/{name}.yaml")
    kind = LANGUAGE_MODELS[name]
    assert kind.model_fields.keys() - LLMRecSettings.model_fields.keys() <= file.keys()
    own = {key: value for key, value in file.items() if key in kind.model_fields}
    assert own, "nothing differs from LLMRec"


def test_defaults(data_path: Path, tmp_path: Path) -> None:
    config = load_config(["--model=D3", "--dataset=ml-100k"])
    settings = config.settings
    assert isinstance(settings, D3Settings)
    assert (settings.loss, settings.ranker, settings.beam_size) == ("sft", "beam", 10)
    assert settings.assistant == "EASE" and config.assistant is not None
    assert config["backbone"] == "tiny"  # LLMRec's default


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--loss=dpo", "loss .command line.: must be 'sft'"),
        ("--assistant_weight=1", "assistant_weight .*less than 1"),
        ("--assistant_weight=[0.5, 1.5]", "assistant_weight .*less than 1"),
        ("--beam_size=0", "beam_size .*greater than or equal to 1"),
        ("--ranker=greedy", "must be 'beam', 'best_first' or 'exhaustive'"),
    ],
)
def test_mistakes(argument: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(["--model=D3", "--dataset=ml-100k", argument])


def test_its_settings_are_not_llmrecs() -> None:
    with pytest.raises(ConfigError, match="beam_size .*is a setting of D3, not of LLMRec"):
        load_config(["--model=LLMRec", "--dataset=ml-100k", "--beam_size=3"])
    with pytest.raises(ConfigError, match="'best_first' or 'exhaustive', got 'beam'"):
        load_config(["--model=LLMRec", "--dataset=ml-100k", "--ranker=beam"])


def test_in_a_comparison_the_assistants_settings_go_where_it_assists() -> None:
    argv = ["--model=LLMRec,D3,EASE", "--loss=sft,lipo_bt", "--dataset=ml-100k", "--beta=2"]
    argv += ["--lipo_pairs=mean", "--EASE.reg_weight=9", "--D3.beam_size=4"]
    given = {s.name: settings for s, settings in make_plan(read_request(argv)).settings.items()}
    assert given["EASE"]["reg_weight"] == "9"
    assert given["D3"]["EASE.reg_weight"] == "9" and given["D3"]["beam_size"] == "4"
    assert not {"loss", "lipo_pairs", "beta"} & given["D3"].keys()
    assert "EASE.reg_weight" not in given["LLMRec sft"]
    fused = make_plan(read_request([*argv, "--lipo_bt.assistant=EASE"])).settings
    given = {system.name: settings for system, settings in fused.items()}
    assert given["LLMRec lipo_bt"]["EASE.reg_weight"] == "9"
    assert "EASE.reg_weight" not in given["LLMRec sft"]
    with pytest.raises(ConfigError, match="BPR.*the part before the dot"):
        make_plan(read_request([*argv, "--BPR.epochs=3"]))
