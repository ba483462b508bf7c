"""The expected time of a run: arithmetic, and that measuring changes nothing."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from recbole_multdpo.quick_start import run
from recbole_multdpo.training.price import Price, Pricing, Work, log_price
from recbole_multdpo.training.stages import StageRunner, train_loader
from tests.integration.toy import toy_arguments, toy_model, write_toy


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


def test_what_is_left_follows_the_speed_so_far() -> None:
    """Of 100 s and 50 s, a quarter of the first took 50 s: twice as long as expected."""
    price = Price({"sft": 100.0, "preference": 50.0, "test": 10.0}, memory=0)
    assert price.total == 160
    assert price.left("sft", 0.25, 50.0) == 150 + 2 * 60
    assert price.left("sft", 1.0, 100.0) == 60
    assert price.left("preference", 0.5, 25.0) == 25 + 10


def test_a_long_run_says_how_to_be_shorter(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_price(Price({"sft": 1700.0}, memory=2**30))
        assert caplog.messages == ["expected: about 28:20 in all (sft 28:20), 1.0 GiB at the peak"]
        log_price(Price({"sft": 1700.0, "test": 200.0}, memory=2**30))
    for setting in ("train_users", "max_steps", "valid_users", "test_users"):
        assert f"--{setting}=N" in caplog.messages[-1]


def test_steps_and_rankings_are_multiplied(data_path: Path, tmp_path: Path) -> None:
    config, parts, model = toy_model(data_path, tmp_path)
    loader = train_loader(config, model, parts[0], "sft", 8)
    users = type("Users", (), {"sample_size": 10})()
    pricing = Pricing(config, model, lambda ranked: 20.0)
    weights = {name: value.clone() for name, value in model.lm.state_dict().items()}
    state = torch.random.get_rng_state()
    price = pricing.price([Work("sft", 3, loader), Work("test", n_validations=2, ranked=users)])
    assert price is not None and price.seconds["test"] == 40.0
    # measured once per model: a hundred times the steps are a hundred times the seconds
    more = pricing.price([Work("sft", 300, loader)])
    assert more is not None and price.seconds["sft"] > 0
    assert more.seconds["sft"] == pytest.approx(100 * price.seconds["sft"])
    assert torch.equal(state, torch.random.get_rng_state())
    assert all(torch.equal(weights[name], value) for name, value in model.lm.state_dict().items())
    assert all(p.grad is None for p in model.lm.parameters())


@pytest.mark.parametrize(
    "extra", [(), ("--negatives=dynamic",), ("--finetune=lora", "--lora_dropout=0.2")]
)
def test_the_run_is_the_one_without_measuring(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: tuple[str, ...]
) -> None:
    measured = run(toy_arguments(data_path, tmp_path / "with/run", *extra))
    assert measured["expected_seconds"].keys() >= {"sft", "preference", "test_sft", "test"}
    assert all(seconds > 0 for seconds in measured["expected_seconds"].values())
    monkeypatch.setattr(StageRunner, "_expect", lambda *_: None)
    plain = run(toy_arguments(data_path, tmp_path / "without/run", *extra))
    assert "expected_seconds" not in plain
    assert plain["model_files"] == measured["model_files"]
    assert plain["test_result"] == measured["test_result"]
