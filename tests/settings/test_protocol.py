"""Protocols by name, deviations from them, refusals, and protocols in words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.plan import SAME_PROTOCOL, make_plan
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.config import Config, load_config
from recbole_multdpo.settings.help import explained
from recbole_multdpo.settings.layers import protocol_names, protocol_settings
from recbole_multdpo.settings.protocol import deviations, named_protocol, protocol_in_words

RANDOM = {"split": {"RS": [8, 1, 1]}, "order": "RO", "group_by": "user", "mode": {"test": "full"}}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"val_interval": {"rating": "[4,inf)"}, "eval_args": RANDOM},
            "positives: rating in [4,inf); split of each user's rows at random, 80 / 10 / 10 %; "
            "all items are ranked",
        ),
        (
            {"eval_args": {"split": {"LS": "valid_and_test"}, "order": "TO", "mode": "uni100"}},
            "positives: all interactions; the last row of a user is for test, the one before for "
            "validation; 100 candidates drawn uniformly",
        ),
        (
            {"benchmark_filename": ["train", "test"], "eval_args": {"mode": "total50"}},
            "positives: all interactions; split of the files train, test; 50 candidates in total",
        ),
        (
            {"eval_args": {"split": {"RS": [0.5, 0.5]}, "order": "TO"}},
            "positives: all interactions; split in order of time, 50 / 50 %",
        ),
        ({}, "positives: all interactions"),
        ({"eval_args": None, "val_interval": "odd"}, "positives: odd"),
    ],
)
def test_in_words(settings, words):
    assert protocol_in_words(settings) == words


# ---- by name ----

BASE = ["--dataset=ml-100k", "--device=cpu", "--model=LLMRec"]
LOO = "--protocol=leave_one_out"


def config(*argv: str) -> Config:
    return load_config([*BASE, *argv])


def as_arguments(settings: dict[str, Any]) -> list[str]:
    return [f"--{key}={value}" for key, value in settings.items()]


@pytest.mark.parametrize("name", protocol_names())
def test_a_protocol_is_its_keys(name: str) -> None:
    named = config(f"--protocol={name}").to_dict()
    by_hand = config(*as_arguments(protocol_settings(name))).to_dict()
    assert named.pop("protocol") == name and by_hand.pop("protocol") is None
    assert named == by_hand
    assert config().to_dict() != {**by_hand, "protocol": None}


@pytest.mark.parametrize("name", protocol_names())
def test_a_protocol_says_all_that_makes_figures_comparable(name: str) -> None:
    wanted = {"eval_args", "test_information", "test_users", "metrics", "topk"}
    assert {*wanted, "valid_metric", "history_split"} <= protocol_settings(name).keys()
    assert protocol_settings(name)["eval_args"].keys() == {"split", "order", "group_by", "mode"}
    assert wanted <= {*SAME_PROTOCOL}


def test_precedence(tmp_path: Path) -> None:
    """Command line, the user's files, the protocol, the data set's file; the name in a file too."""
    file = tmp_path / "mine.yaml"
    file.write_text("protocol: leave_one_out\ntopk: [7]\nvalid_metric: Recall@7\n")
    found = config(f"--config_files={file}", "--valid_metric=NDCG@7")
    assert (found["topk"], found["valid_metric"]) == ([7], "NDCG@7")
    assert found["metrics"] == ["NDCG", "Recall"]  # the protocol's
    assert found["val_interval"] is None  # ml-100k.yaml has [4,inf)
    assert deviations(found.to_dict()) == {"topk": [7], "valid_metric": "NDCG@7"}


def test_the_folder_of_the_data_set_is_weaker(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    own = "topk: [3]\nmetrics: [MRR]\nvalid_metric: MRR@3\nnormalize_all: False\n"
    (folder / "mine.yaml").write_text(own)
    argv = ["--model=Pop", "--dataset=mine", f"--data_path={tmp_path}", "--load_col=~"]
    assert load_config(argv)["topk"] == [3]
    found = load_config([*argv, LOO])
    assert (found["topk"], found["normalize_all"]) == ([5, 10], False)
    (folder / "mine.yaml").write_text("protocol: leave_one_out\n")
    with pytest.raises(ConfigError, match="may not set protocol"):
        load_config(argv)


def test_a_saved_run_keeps_what_its_protocol_was(tmp_path: Path) -> None:
    """A file of the protocol that changes later does not change runs of before."""
    (tmp_path / "config.yaml").write_text(
        "model: Pop\ndataset: ml-100k\nprotocol: leave_one_out\ntopk: [3]\nvalid_metric: NDCG@3\n"
    )
    saved = load_config([], run_folder=tmp_path)
    assert saved["topk"] == [3] and saved["eval_args"]["order"] == "RO"
    assert load_config([LOO], run_folder=tmp_path)["topk"] == [5, 10]  # asked for now


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ([], "leave_one_out"),
        (["--metrics=[Recall,NDCG]", "--topk=[10,5]"], "leave_one_out"),
        (["--metrics=[ndcg, recall, ItemCoverage, GiniIndex]"], "leave_one_out"),
        (["--metrics=[NDCG,MRR]"], "leave_one_out, but metrics [NDCG, MRR]"),
        (
            ["--eval_args={'mode': {'test': 'uni100'}}", "--test_information=refit"],
            "leave_one_out, but eval_args.mode {valid: full, test: uni100}, test_information refit",
        ),
        (
            ["--val_interval={'rating': '[4,inf)'}", "--test_users=50"],
            "leave_one_out, but val_interval {rating: [4,inf)}, test_users 50",
        ),
        (["--history_split=random"], "leave_one_out, but history_split random"),
    ],
)
def test_deviations(given: list[str], words: str) -> None:
    found = config(LOO, *given)
    assert named_protocol(found.to_dict()) == named_protocol(found.final_config_dict) == words
    assert protocol_in_words(found.to_dict()).startswith(f"{words}; positives: ")


def test_without_a_name_there_is_no_deviation() -> None:
    assert named_protocol(config().to_dict()) == "" and deviations(config().to_dict()) == {}
    assert named_protocol({"protocol": "../another", "topk": [1]}) == "../another"  # of elsewhere


def test_models_without_a_setting_do_not_deviate() -> None:
    found = load_config(["--model=EASE", "--dataset=ml-100k", LOO])
    assert named_protocol(found.to_dict()) == "leave_one_out"
    assert found.warnings == []


def test_comparisons_and_what_they_add() -> None:
    argv = ["--model=LLMRec,SASRec,EASE,Pop", "--dataset=ml-100k", LOO, "--seeds=2"]
    plan = make_plan(read_request(argv))
    for settings in plan.settings.values():
        run = load_config([f"--{key}={text}" for key, text in settings.items()])
        assert named_protocol(run.to_dict()) == "leave_one_out"
        assert "ItemCoverage" in run["metrics"]
    with pytest.raises(ConfigError, match="BPR keeps what it knows"):
        make_plan(read_request(["--model=EASE,BPR", "--dataset=ml-100k", LOO]))


# ---- refusals ----


@pytest.mark.parametrize(
    ("given", "parts"),
    [
        (["--protocol=leave-one-out"], ["did you mean leave_one_out?", "--help=protocol"]),
        (["--protocol=../dataset/ml-100k"], ["there is no protocol '../dataset/ml-100k'"]),
        (
            [LOO, "--load_col={'inter': ['user_id', 'item_id']}"],
            [
                "protocol=leave_one_out is in order of time",
                "ml-100k has no timestamp",
                "add --load",
            ],
        ),
        (
            ["--protocol=paper", "--load_col={'inter': ['user_id', 'item_id']}"],
            ["protocol=paper limits rating (val_interval [4,inf))", "has no rating"],
        ),
        (
            [LOO, "--benchmark_filename=['train', 'test']"],
            ["protocol=leave_one_out splits the data itself", "Leave protocol out"],
        ),
        ([LOO, "--context=conversation"], ["is about histories", "Leave protocol out"]),
    ],
)
def test_refusals(given: list[str], parts: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        config(*given)
    assert all(part in str(error.value) for part in parts), error.value


def test_the_remedy_for_a_column_works() -> None:
    with pytest.raises(ConfigError) as error:
        config(LOO, "--load_col={'inter': ['user_id', 'item_id'], 'item': ['item_id']}")
    remedy = str(error.value).partition("add --")[2].partition("; otherwise")[0]
    assert config(LOO, "--" + remedy.replace('"', ""))["load_col"]["inter"][-1] == "timestamp"


def test_another_order_needs_no_times() -> None:
    columns = "--load_col={'inter': ['user_id', 'item_id']}"
    mine = "--eval_args={'order': 'RO'}"
    found = config(LOO, columns, mine, "--history_split=random")
    assert named_protocol(found.to_dict()).startswith("leave_one_out, but eval_args.order RO")


def test_help() -> None:
    for topic in ("protocol", "protocols"):
        text = explained(topic)
        assert all(name in text for name in protocol_names())
        assert "valid_metric=NDCG@10" in text
    assert explained("protocol").startswith("--protocol=~ ")
