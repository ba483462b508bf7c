"""The Python examples of the documents, run as written, on a toy data set with a toy model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import recbole_multdpo.quick_start as quick_start
from recbole_multdpo.losses import LOSSES
from recbole_multdpo.ranking import RANKERS, make_ranker
from recbole_multdpo.settings.llmrec import LLMRecSettings
from tests.docs.markdown import ROOT, blocks
from tests.integration.toy import toy_arguments, toy_model, write_toy

pytestmark = pytest.mark.integration
EXTENDING = dict(
    zip(
        ("loss", "ranker", "data set", "backbone"),
        blocks(ROOT / "docs" / "extending.md", "python"),
        strict=True,
    )
)
RUN = quick_start.run  # the tests replace it


@pytest.fixture
def execute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], dict[str, Any]]:
    """Executes an example in an empty folder; returns what its call of `run` returned.

    `run` gets the settings of a toy model besides, and the toy data set in place of ml-100k.
    """
    monkeypatch.chdir(tmp_path)
    results = []

    def run(arguments: list[str]) -> dict[str, Any]:
        own = [argument for argument in arguments if argument != "--dataset=ml-100k"]
        brings_data = len(own) == len(arguments)
        folder = Path("dataset") if brings_data else write_toy(tmp_path / "toy")
        complete = toy_arguments(folder, tmp_path / "run", *own)
        unwanted = ("--item_", "--load_col") if brings_data else ()
        if any(argument.startswith("--backbone=") for argument in own):
            unwanted = (*unwanted, "--tiny_")
        results.append(RUN([a for a in complete if not a.startswith(unwanted)]))
        return results[-1]

    monkeypatch.setattr(quick_start, "run", run)

    def execute(code: str) -> dict[str, Any]:
        exec(compile(code, "example", "exec"), {})
        (result,) = results
        return result

    return execute


@pytest.mark.parametrize("code", EXTENDING.values(), ids=EXTENDING)
def test_examples_have_ten_lines_besides_imports(code: str) -> None:
    lines = [line for line in code.splitlines() if line and not line.startswith(("from", "import"))]
    assert len(lines) <= 10


def test_own_loss(execute, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(LOSSES, "mean_margin", None)  # removed again after the test
    result = execute(EXTENDING["loss"])
    assert result["loss"] == "mean_margin" and result["seconds"]["preference"] > 0


def test_own_ranker(execute, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setitem(RANKERS, LLMRecSettings, None)  # LLMRec's own again after the test
    assert execute(EXTENDING["ranker"])["test_result"]["ndcg@5"] > 0
    several_tokens = ["--loss=sft", "--tiny_title_tokens=False"]
    model = toy_model(write_toy(tmp_path / "data"), tmp_path, *several_tokens)[2].eval()
    ranker, users = make_ranker(model, model.histories), torch.arange(1, 4)
    assert type(ranker).__name__ == "PerToken"
    found = ranker.topk(users, torch.zeros(3, model.n_items, dtype=torch.bool), 3)
    logps = ranker.pair_scores(users.repeat_interleave(3), found.items.flatten()).view(3, 3)
    lengths = model.catalogue.items.lengths
    torch.testing.assert_close(found.scores, logps / lengths[found.items], atol=1e-5, rtol=1e-5)
    assert lengths[1:].unique().numel() > 1  # else the order would be LLMRec's


def test_own_data_set(execute, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    toy = write_toy(tmp_path / "source") / "toy"
    for name, ours in (("inter", "liked"), ("item", "titles")):
        rows = [line.split("\t")[:2] for line in (toy / f"toy.{name}").read_text().splitlines()[1:]]
        Path(f"{ours}.csv").write_text("\n".join(map(",".join, rows)) + "\n")
    result = execute(EXTENDING["data set"])
    assert result["dataset"] == "films" and result["num_items"] == 30
    assert result["item_texts"]["n_missing"] == 0


def test_own_backbone(execute, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    data = write_toy(tmp_path / "data")
    RUN(toy_arguments(data, Path("saved/my_run"), "--loss=sft", "--sft_epochs=0"))
    result = execute(EXTENDING["backbone"])
    assert "--backbone=my_backbone" in result["command"]
    config = (tmp_path / "run" / "model" / "config.json").read_text()
    assert '"LlamaForCausalLM"' in config


def test_losses_as_a_library() -> None:
    namespace: dict[str, Any] = {}
    example = blocks(ROOT / "docs" / "losses.md", "python")[0]
    exec(compile(example, "example", "exec"), namespace)
    preference_loss = namespace["preference_loss"]
    logps = [namespace[name] for name in ("policy_logps", "reference_logps", "levels")]
    assert preference_loss("mult_dpo", *logps, beta=1.0).shape == (1,)
