"""Exported folders: plain transformers must find the run's own log-probabilities in them."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_multdpo import Recommender
from recbole_multdpo.errors import ConfigError, MultDPOError
from recbole_multdpo.export import export, main
from recbole_multdpo.quick_start import run
from recbole_multdpo.trained.commands import parse_turns
from recbole_multdpo.trained.exported import Catalogue
from tests.integration.test_conversations import DATA, write_conversations
from tests.integration.toy import N_ITEMS, toy_arguments, toy_runs

pytestmark = pytest.mark.integration
TEXTS = "--tiny_title_tokens=False"
RUNS = {
    "tiny": [],
    "texts": [TEXTS],
    "vocabulary": [TEXTS, "--normalize_over=vocabulary"],
    "lora": [TEXTS, "--finetune=lora", "--learning_rate=1e-2"],
    "refit": [TEXTS, "--finetune=lora", "--learning_rate=1e-2", "--test_information=refit"],
}
LIKED = ["Red Night 0", "Green Moon 1", "Blue River 0"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_runs(tmp_path_factory.mktemp("runs"), RUNS)


def plain(folder: Path) -> tuple[Any, Any, Catalogue]:
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    return model, AutoTokenizer.from_pretrained(folder), Catalogue.read(folder)


def own_scores(folder: Path) -> dict[str, float]:
    answer = Recommender.load(folder).for_titles(LIKED, k=N_ITEMS)
    return {item.id: item.score for item in answer.recommendations}


def exported_scores(model: Any, tokenizer: Any, catalogue: Catalogue) -> dict[str, float]:
    prompt = catalogue.history_prompt(tokenizer, LIKED)
    return {
        item["id"]: catalogue.logp(model, prompt, number)
        for number, item in enumerate(catalogue.items)
        if item["title"] not in LIKED
    }


@pytest.mark.parametrize("name", RUNS)
def test_plain_transformers_finds_the_same_log_probabilities(
    runs: Path, tmp_path: Path, name: str
) -> None:
    export(runs / name, tmp_path / "out")
    model, tokenizer, catalogue = plain(tmp_path / "out")
    own, found = own_scores(runs / name), exported_scores(model, tokenizer, catalogue)
    assert found == pytest.approx(own, abs=2e-4)
    prompt = catalogue.history_prompt(tokenizer, LIKED)
    total = sum(math.exp(catalogue.logp(model, prompt, item)) for item in range(N_ITEMS))
    if name == "vocabulary":
        assert total < 0.99  # the rest of the probability lies on other texts
    else:
        assert total == pytest.approx(1, abs=1e-4)
        catalogue.over_catalogue = False  # the control: the plain probability is another one
        assert exported_scores(model, tokenizer, catalogue) != pytest.approx(own, abs=1e-2)


@pytest.mark.parametrize("name", RUNS)
def test_wide_beam_search_is_the_exact_ranking(runs: Path, tmp_path: Path, name: str) -> None:
    export(runs / name, tmp_path / "out")
    model, tokenizer, catalogue = plain(tmp_path / "out")
    prompt = catalogue.history_prompt(tokenizer, LIKED)
    decoded = catalogue.beam_search(model, prompt, k=N_ITEMS)
    assert len(decoded) == N_ITEMS
    decoded = [(title, logp) for title, logp in decoded if title not in LIKED]
    answer = Recommender.load(runs / name).for_titles(LIKED, k=N_ITEMS - 3)
    exact = [(item.title, item.score) for item in answer.recommendations]
    assert dict(decoded) == pytest.approx(dict(exact), abs=2e-4)
    assert decoded == sorted(decoded, key=lambda pair: -pair[1])
    # excluded before the search: the k best of the others, with unchanged log-probabilities
    k = N_ITEMS - 3
    for wanted in (k, 2):
        others = catalogue.beam_search(model, prompt, k=wanted, beams=k, exclude=LIKED)
        assert [title for title, _ in others] == [title for title, _ in exact[:wanted]]
        assert dict(others) == pytest.approx(dict(exact[:wanted]), abs=2e-4)
    assert {title for title, _ in catalogue.beam_search(model, prompt, k=k)} & set(LIKED)
    with pytest.raises(ValueError, match="Nowhere"):
        catalogue.beam_search(model, prompt, k=1, exclude=["Nowhere"])


@pytest.mark.parametrize("name", ["lora", "refit"])
def test_adapter_beside_its_base(runs: Path, tmp_path: Path, name: str) -> None:
    export(runs / name, tmp_path / "out", adapter=True)
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "base")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out" / "base")
    catalogue = Catalogue.read(tmp_path / "out")
    before = exported_scores(base.eval(), tokenizer, catalogue)
    model = PeftModel.from_pretrained(base, str(tmp_path / "out" / "adapter")).eval()
    found = exported_scores(model, tokenizer, catalogue)
    assert found == pytest.approx(own_scores(runs / name), abs=2e-4)
    assert before != pytest.approx(found, abs=1e-2)  # the base is the model before alignment


def test_conversations(tmp_path: Path) -> None:
    data = write_conversations(tmp_path / "data")
    run(toy_arguments(data, tmp_path / "run", *DATA))
    export(tmp_path / "run", tmp_path / "out")
    model, tokenizer, catalogue = plain(tmp_path / "out")
    talk = parse_turns(["I liked  Red Night 0", "assistant: Why?", "user: it was long"])
    prompt = catalogue.conversation_prompt(tokenizer, talk)  # type: ignore[arg-type]
    answer = Recommender.load(tmp_path / "run").for_conversation(talk, k=N_ITEMS - 1)
    own = {item.id: item.score for item in answer.recommendations}
    numbers = {item["id"]: number for number, item in enumerate(catalogue.items)}
    found = {name: catalogue.logp(model, prompt, numbers[name]) for name in own}
    assert found == pytest.approx(own, abs=2e-4)
    named = catalogue.mentioned(talk)  # type: ignore[arg-type]
    assert named == ["Red Night 0"]
    ranked = catalogue.beam_search(model, prompt, k=N_ITEMS - 1, exclude=named)
    best = [(item.title, item.score) for item in answer.recommendations]
    assert dict(ranked) == pytest.approx(dict(best), abs=2e-4)
    with pytest.raises(ValueError, match="use conversation_prompt"):
        catalogue.history_prompt(tokenizer, LIKED)


def test_long_histories_are_cut_alike(runs: Path, tmp_path: Path) -> None:
    export(runs / "texts", tmp_path / "out")
    _, tokenizer, catalogue = plain(tmp_path / "out")
    recommender = Recommender.load(runs / "texts")
    model = recommender.run.model
    items = list(range(1, N_ITEMS + 1))
    titles = [recommender.run.titles[item] for item in items]
    model.prompts._budget = catalogue._room - 40  # a tighter limit on both sides
    catalogue.frame["max_prompt_tokens"] -= 40
    (ids,) = model.history_prompts([recommender.titles.find_all(titles)]).ids
    prompt = catalogue.history_prompt(tokenizer, titles)
    assert prompt == ids.tolist() and len(prompt) < 1024


def test_readme_runs_as_written(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, adapter in (("tiny", False), ("lora", True)):
        out = tmp_path / name
        export(runs / name, out, adapter=adapter)
        card = (out / "README.md").read_text(encoding="utf-8")
        code = card.split("```python\n")[1].split("```")[0]
        monkeypatch.chdir(out)
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), {})
        sys.modules.pop("rank_catalogue")
        sys.path.remove(".")
        lines = printed.getvalue().splitlines()
        shown = set(json.loads("[" + code.split("liked = [")[1].split("]")[0] + "]"))
        assert len(lines) == 10 and len(shown) == 2
        assert not shown & {line[8:].strip() for line in lines}  # what was named is left out
        result = json.loads((runs / name / "result.json").read_text())
        assert f"| ndcg@5 | {result['valid_result']['ndcg@5']} |" in card
        assert Catalogue.read(out).items[0]["title"] in shown
        assert str(tmp_path) not in card + (out / "config.yaml").read_text()


def test_generation_settings_hide_no_sampling(runs: Path, tmp_path: Path) -> None:
    export(runs / "tiny", tmp_path / "out")
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert not {"top_k", "top_p", "temperature", "do_sample"} & written.keys()


def test_helper_needs_torch_only() -> None:
    import recbole_multdpo.trained.exported as helper

    tree = ast.parse(Path(helper.__file__).read_text(encoding="utf-8"))
    modules = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert modules <= {"torch", *sys.stdlib_module_names}


def test_mistakes(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert main([str(runs / "tiny"), str(tmp_path / "full")]) == 2
    assert "not empty" in capsys.readouterr().err
    assert (tmp_path / "full" / "thesis.txt").read_text() == "mine"
    with pytest.raises(ConfigError, match="no LoRA adapter"):
        export(runs / "tiny", tmp_path / "out", adapter=True)
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="only LLMRec's"):
        other = tmp_path / "ease"
        other.mkdir()
        result = json.loads((runs / "tiny" / "result.json").read_text())
        (other / "result.json").write_text(json.dumps({**result, "model": "EASE"}))
        export(other, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(MultDPOError):
        export(runs / "tiny", tmp_path / "file" / "out")
    assert main([str(runs / "tiny"), str(tmp_path / "out")]) == 0
    assert "MB; README.md says how" in capsys.readouterr().out
