"""The expected time of a run: arithmetic, and that measuring changes nothing."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest
import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader

from recbole_multdpo.data.loader import evaluation_loaders
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.quick_start import run
from recbole_multdpo.training import stages
from recbole_multdpo.training.price import Price, Pricing, Work, log_price
from recbole_multdpo.training.stages import StageRunner, train_loader
from tests.integration.toy import cut_short, toy_arguments, toy_model, write_toy


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
        log_price(Price({"sft": 60.0}, memory=2**30), is_rest=True)
        assert caplog.messages[-1].startswith("expected: about 1:00 for the rest (sft 1:00)")
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
    step = price.steps["sft"]
    assert step.seconds == pytest.approx(price.seconds["sft"] / 3) and 0 < step.tokens < 100
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
    monkeypatch.setattr(StageRunner, "_expect", lambda *_, **__: None)
    plain = run(toy_arguments(data_path, tmp_path / "without/run", *extra))
    assert "expected_seconds" not in plain
    assert plain["model_files"] == measured["model_files"]
    assert plain["test_result"] == measured["test_result"]


@pytest.mark.parametrize("extra", [("--model=BIGRec", "--loss=sft"), ("--model=D3", "--loss=sft")])
def test_rankings_by_written_titles_have_a_price(
    data_path: Path, tmp_path: Path, extra: tuple[str, ...]
) -> None:
    config, parts, model = toy_model(data_path, tmp_path, *extra, "--tiny_title_tokens=False")
    _, _, test = evaluation_loaders(config, parts[0], parts)
    pricing = Pricing(config, model, lambda ranked: 60.0)
    loader = train_loader(config, model, parts[0], "sft", 8)
    price = pricing.price([Work("sft", 1, loader), Work("test", n_validations=2, ranked=test)])
    assert price is not None
    seconds = price.seconds["test"] / 2
    if model.settings.search == "beam":
        assert seconds == pytest.approx(
            seconds_by_hand(pricing, test, model.settings.beam_size * mean_length(model))
        )
        return
    # a trained model ends its titles, the timed one writes all tokens that it may
    share = (mean_length(model) + 1) / model.settings.generation_tokens
    prompts = seconds_by_hand(pricing, test, 0)
    assert share < 1 and seconds == pytest.approx(prompts + (60.0 - prompts) * share)


def mean_length(model: LLMRec) -> float:
    return float(model.catalogue.items.lengths[1:].float().mean())


def seconds_by_hand(pricing: Pricing, test: AbstractDataLoader, n_tokens: float) -> float:
    """Seconds of feeding prompts and `n_tokens` more of every user, at the measured speed."""
    model = pricing.model
    prompts = model.user_prompts(torch.as_tensor(test.uid_list), model.histories).lengths
    assert pricing._forward is not None
    return pricing._forward * float((prompts + n_tokens).sum())


def recorded_works(
    monkeypatch: pytest.MonkeyPatch,
) -> list[dict[str, tuple[int, int]]]:
    """Steps and rankings of every priced run, by part; nothing is measured."""
    found: list[dict[str, tuple[int, int]]] = []

    def price(self: Pricing, works: list[Work]) -> None:
        found.append({work.name: (work.n_steps, work.n_validations) for work in works})

    monkeypatch.setattr(Pricing, "price", price)
    return found


def test_a_resumed_run_is_priced_by_what_remains(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = recorded_works(monkeypatch)
    argv = toy_arguments(data_path, tmp_path / "run", "--eval_on_start=True")
    cut_short(argv, epoch=1)
    whole = {"sft": (3, 0), "test_sft": (0, 1), "preference": (6, 3), "test": (0, 1)}
    assert found == [whole]
    run([f"--resume={tmp_path / 'run'}"])
    assert found[1] == {"sft": (0, 0), "preference": (3, 1), "test": (0, 1)}
    # the first stage is cached, and a run without a test has none to pay for
    run(toy_arguments(data_path, tmp_path / "other", "--final_test=False"))
    assert found[2] == {"sft": (0, 0), "preference": (6, 2)}


def test_a_refit_is_priced_too(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = recorded_works(monkeypatch)
    run(toy_arguments(data_path, tmp_path / "run", "--test_information=refit"))
    (works,) = found
    assert works["refit-sft"] == (3, 0) and works["refit-preference"] == (6, 0)
    assert "test_sft" not in works  # it is ranked after the refit's first stage


def test_every_loader_is_made_once(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    make = stages.train_loader

    def counting(config, model, train, loss_name, batch_size):  # type: ignore[no-untyped-def]
        made.append(loss_name)
        return make(config, model, train, loss_name, batch_size)

    monkeypatch.setattr(stages, "train_loader", counting)
    run(toy_arguments(data_path, tmp_path / "run", "--sft_teacher=EASE"))
    assert made == ["sft", "mult_dpo"]


def test_steps_are_told_as_expected_and_as_measured(
    data_path: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        run(toy_arguments(data_path, tmp_path / "run", "--sft_epochs=2"))
    said = "\n".join(caplog.messages)
    assert re.search(
        r"2 epochs x 3 steps of 8 examples of about \d+ tokens, about \S+ s per step", said
    )
    epochs = [
        text for text in caplog.messages if re.match(r"(sft|preference) epoch \d/2: loss", text)
    ]
    measured = [bool(re.search(r" s per step, \S+ were expected\)$", text)) for text in epochs]
    assert measured == [True, False] * 2  # the first epoch of both stages
