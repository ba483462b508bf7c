"""Policy and reference: figures that agree with the model's own, and where both come from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from recbole_multdpo.errors import CheckpointError, ConfigError, DataError
from recbole_multdpo.explain import main
from recbole_multdpo.quick_start import run
from recbole_multdpo.trained.explanation import Explainer
from recbole_multdpo.trained.recommender import Recommender
from tests.integration.toy import N_ITEMS, toy_arguments, toy_runs

pytestmark = pytest.mark.integration
RUNS = {
    "tiny": ["--learning_rate=3e-3", "--beta=0.5"],
    "lora": ["--finetune=lora", "--learning_rate=3e-3", "--tiny_title_tokens=False"],
    "texts": [
        "--tiny_title_tokens=False",
        "--normalize_over=vocabulary",
        "--learning_rate=3e-3",
        "--sft_epochs=0",
    ],
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toy_runs(tmp_path_factory.mktemp("runs"), RUNS)


@pytest.mark.parametrize("name", RUNS)
def test_figures_are_the_models_own(runs: Path, name: str) -> None:
    explainer = Explainer.load(runs / name)
    found = explainer.for_user("u3", k=4)
    assert found.user == "u3" and found.beta == (0.5 if name == "tiny" else 3.0)
    (answer,) = explainer.recommender.for_users(["u3"], k=4)
    top = [(item.id, item.rank) for item in found.items if item.rank and item.rank <= 4]
    assert top == [(item.id, item.rank) for item in answer.recommendations]
    model = explainer.run.model
    ids = [explainer.recommender.titles.find(f"id:{item.id}") for item in found.items]
    user = explainer.run.dataset.token2id("user_id", "u3")
    prompt = explainer.run.ranker.prompts(torch.tensor([user]))
    for lm, field in ((model.lm, "logp"), (explainer._reference.lm, "reference_logp")):
        own = model.score(prompt, torch.tensor([ids]), lm=lm)[0].tolist()
        assert [getattr(item, field) for item in found.items] == pytest.approx(own, abs=1e-4)
    for item in found.items:
        assert item.reward == pytest.approx(found.beta * (item.logp - item.reference_logp))
        assert sum(part.logp for part in item.tokens) == pytest.approx(item.logp, abs=1e-4)
        parts = sum(part.reference_logp for part in item.tokens)
        assert parts == pytest.approx(item.reference_logp, abs=1e-4)
    assert max(abs(item.reward) for item in found.items) > 1e-3  # training changed something
    before = [item for item in found.items if (item.reference_rank or N_ITEMS) <= 4]
    assert len(before) == 4
    order = sorted(before, key=lambda item: -item.reference_logp)
    assert [item.reference_rank for item in order] == [1, 2, 3, 4]


def test_tokens_spell_the_title(runs: Path) -> None:
    explainer = Explainer.load(runs / "texts")
    (item, *_) = explainer.for_titles(["Red Night 0"], k=1).items
    assert "".join(part.text for part in item.tokens).strip().startswith(item.title)
    assert len(item.tokens) > 2


def test_reference_is_the_sft_run(runs: Path, tmp_path: Path) -> None:
    """A run that stops after the first stage ranks as the reference does."""
    explainer = Explainer.load(runs / "tiny")
    data = Path(explainer.run.config["data_path"]).parent
    run(toy_arguments(data, tmp_path / "sft", "--loss=sft"))
    found = explainer.for_user("u5", k=3)
    (sft,) = Recommender.load(tmp_path / "sft").for_users(["u5"], k=3)
    by_rank = {item.reference_rank: item for item in found.items}
    for item in sft.recommendations:
        assert by_rank[item.rank].id == item.id
        assert by_rank[item.rank].reference_logp == pytest.approx(item.score, abs=1e-4)


def test_known_items_have_no_rank(runs: Path) -> None:
    found = Explainer.load(runs / "tiny").for_titles(
        ["Red Night 0"], k=2, also=["red night 0", "Blue River 0"]
    )
    by_title = {item.title: item for item in found.items}
    assert by_title["Red Night 0"].rank is None and by_title["Blue River 0"].rank is not None
    assert found.user is None and by_title["Red Night 0"].in_test is None


def test_weights_of_the_first_stage_are_looked_for(runs: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved" / "run"
    shutil.copytree(runs / "tiny", moved)
    assert Explainer.load(moved).for_user("u1", k=1).items  # the folder's own checkpoint
    shutil.rmtree(moved / "checkpoints" / "sft")
    assert Explainer.load(moved).for_user("u1", k=1).items  # sft_cache_dir of the run's settings
    config = moved / "config.yaml"
    lines = config.read_text().splitlines()
    kept = [line for line in lines if not line.startswith("sft_cache_dir")]
    config.write_text("\n".join([*kept, f"sft_cache_dir: {tmp_path / 'empty'}"]) + "\n")
    with pytest.raises(CheckpointError, match="supervised stage.*--sft_cache=False"):
        Explainer.load(moved)


def test_another_models_weights_are_refused(runs: Path, tmp_path: Path) -> None:
    mixed = tmp_path / "run"
    shutil.copytree(runs / "tiny", mixed)
    shutil.rmtree(mixed / "checkpoints" / "sft")
    shutil.copytree(runs / "lora" / "checkpoints" / "sft", mixed / "checkpoints" / "sft")
    with pytest.raises(CheckpointError, match="are of different runs"):
        Explainer.load(mixed)


def test_command(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(runs / "lora")
    assert main([folder, "--user=u2", "--k=3", "--also", "Green Moon 0"]) == 0
    text = capsys.readouterr().out
    assert "log π_ref" in text and "Green Moon 0" in text and " | " in text  # several tokens
    assert main([folder, "--liked", "Red Night 0", "--k=2", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["history"] == [{"id": "i0", "title": "Red Night 0"}]
    assert {"rank", "reference_rank", "reward", "tokens"} <= found["items"][0].keys()


def test_mistakes(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(runs / "tiny"), "--user=u99"]) == 2
    assert "u99" in capsys.readouterr().err
    explainer = Explainer.load(runs / "tiny")
    with pytest.raises(DataError, match="did you mean 'Red Night 0'"):
        explainer.for_user("u1", also=["Red Nigt 0"])
    with pytest.raises(ConfigError, match="k=0"):
        explainer.for_user("u1", k=0)
    sft = tmp_path / "sft"
    shutil.copytree(runs / "tiny", sft)
    result = json.loads((sft / "result.json").read_text())
    (sft / "result.json").write_text(json.dumps({**result, "loss": "sft"}))
    with pytest.raises(ConfigError, match=r"\(sft\) has no preference stage"):
        Explainer.load(sft)
    (sft / "result.json").write_text(json.dumps({**result, "loss": "zero_shot"}))
    with pytest.raises(ConfigError, match=r"\(zero_shot\) has no preference stage"):
        Explainer.load(sft)
