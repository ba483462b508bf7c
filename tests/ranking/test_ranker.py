"""Rankers are values: the histories, the assistant and the choices of one are not another's."""

from __future__ import annotations

import ast
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest
import torch

import recbole_multdpo
from recbole_multdpo.classical.assistant import make_assistant
from recbole_multdpo.ranking import make_ranker
from recbole_multdpo.ranking.ranker import Ranker
from recbole_multdpo.runs.load import known_at_test
from tests.integration.toy import toy_model

PACKAGE = Path(recbole_multdpo.__file__).parent
EASE = ["--assistant=EASE", "--EASE.reg_weight=10"]


def assignments_to_a_model(source: str) -> list[str]:
    """The statements that assign an attribute of something called `model`."""
    found = []
    for node in ast.walk(ast.parse(source)):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        for target in (part for whole in targets if whole for part in ast.walk(whole)):
            if isinstance(target, ast.Attribute) and isinstance(target.ctx, ast.Store):
                owner = target.value
                if "model" in (getattr(owner, "id", ""), getattr(owner, "attr", "")):
                    found.append(ast.unparse(node))
    return found


def test_nobody_assigns_an_attribute_of_the_model() -> None:
    """A model gets all it ranks or trains with as arguments, so that no order can be wrong."""
    own = {"model", "ranking", "classical"}  # the last one's models are RecBole's
    found = {
        str(path.relative_to(PACKAGE)): assignments_to_a_model(path.read_text(encoding="utf-8"))
        for path in PACKAGE.rglob("*.py")
        if path.relative_to(PACKAGE).parts[0] not in own
    }
    assert len(found) > 100
    assert {path: lines for path, lines in found.items() if lines} == {}


@pytest.mark.parametrize(
    "line",
    [
        "model.histories = known",
        "run.model.assistant = None",
        "self.model.assistant_weight += 1",
        "model.lm: object = merged",
        "trainer, model.lm = made()",
    ],
)
def test_an_assignment_would_be_found(line: str) -> None:
    assert assignments_to_a_model(f"if True:\n    {line}") == [line]
    assert assignments_to_a_model("model = made(); x = model.histories; self.model = model") == []


def test_a_ranker_for_the_test_leaves_the_one_for_validation(
    data_path: Path, tmp_path: Path
) -> None:
    config, parts, model = toy_model(data_path, tmp_path, *EASE, "--test_information=train_valid")
    assistant = make_assistant(config.assistant, parts[0], parts, None, tmp_path / "assistant")
    valid = replace(make_ranker(model.eval(), model.histories), assistant=assistant, weight=20.0)
    users = parts[2].inter_feat["user_id"].unique()
    before = valid.topk(users, None, 5)
    test = valid.for_test(known_at_test(config, parts))
    after = test.topk(users, None, 5)
    assert len(test.histories.items) == len(valid.histories.items) + len(parts[1])
    assert test.weight == 20.0 and not torch.equal(after.scores, before.scores)
    # neither ranking has changed what the other sees
    assert torch.equal(valid.topk(users, None, 5).scores, before.scores)
    assert torch.equal(test.topk(users, None, 5).scores, after.scores)
    # the control: with the validation's scores or histories the test would be another one
    for other in (replace(test, assistant=assistant), replace(test, histories=model.histories)):
        assert not torch.equal(other.topk(users, None, 5).scores, after.scores)
    with pytest.raises(FrozenInstanceError):
        test.weight = 0.0


def test_hooks_of_the_model_know_training_items_and_no_assistant(
    data_path: Path, tmp_path: Path
) -> None:
    """RecBole's own functions may call them at any time."""
    config, parts, model = toy_model(data_path, tmp_path, *EASE)
    users = parts[2].inter_feat["user_id"].unique()
    found = model.eval().full_sort_predict({model.USER_ID: users}).view(len(users), -1)
    ranker = make_ranker(model, model.histories)
    best = ranker.topk(users, None, 5)
    torch.testing.assert_close(found.topk(5).values, best.scores, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("weight", [0.0, 20.0])
def test_a_search_among_candidates_finds_the_best_scores(
    data_path: Path, tmp_path: Path, weight: float
) -> None:
    """Users of unequal numbers of candidates, one with a single one."""
    config, parts, model = toy_model(data_path, tmp_path, *EASE, "--expand_per_step=2")
    assistant = make_assistant(config.assistant, parts[0], parts, None, tmp_path / "assistant")
    ranker = replace(make_ranker(model.eval(), model.histories), assistant=assistant, weight=weight)
    users = parts[1].inter_feat["user_id"].unique()
    share = torch.linspace(0.1, 0.9, len(users))[:, None]
    generator = torch.Generator().manual_seed(0)
    candidates = torch.rand(len(users), model.n_items, generator=generator) < share
    candidates[:, 0] = False
    candidates[0] = torch.arange(model.n_items) == 3
    (slow,) = Ranker.topk_among(ranker, [weight], users, candidates, 6)
    (fast,) = ranker.topk_among([weight], users, candidates, 6)
    assert fast.items.equal(slow.items) and fast.items[0].tolist() == [3, 0, 0, 0, 0, 0]
    torch.testing.assert_close(fast.scores, slow.scores, atol=1e-4, rtol=1e-5)
    every_score = model.score_all(ranker.prompts(users)) + weight * assistant.log_probs(users)
    expected = every_score.masked_fill(~candidates, -torch.inf)
    (found,) = ranker.scores_among([weight], users, candidates)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    assert not ranker.topk(users, None, 6).items.equal(slow.items)  # the control: of all items
