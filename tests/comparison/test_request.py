"""What makes a command a comparison, what is compared, and what users get wrong."""

import json

import pytest

from recbole_multdpo.comparison.request import (
    REQUEST_FILE,
    Member,
    System,
    is_comparison,
    read_request,
    request_text,
)
from recbole_multdpo.errors import ConfigError


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--model=LLMRec", "--loss=dpo"], False),
        (["--model=EASE,Pop"], True),
        (["--model=LLMRec", "--loss=dpo,s_dpo"], True),
        (["--model=EASE", "--seeds=3"], True),
        (["--model=EASE", "--topk=5,10"], False),
        (["--resume=nowhere"], False),
    ],
)
def test_comparison_or_single_run(argv, expected):
    assert is_comparison(argv) is expected


def test_a_comparisons_folder_is_told_from_a_runs(tmp_path):
    assert not is_comparison([f"--resume={tmp_path}"])
    (tmp_path / REQUEST_FILE).write_text("{}")
    assert is_comparison([f"--resume={tmp_path}"])


def test_losses_are_llmrecs_only():
    request = read_request(["--model=Pop,LLMRec,EASE", "--loss=dpo,sft", "--dataset=x"])
    names = [system.name for system in request.systems]
    assert names == ["Pop", "LLMRec dpo", "LLMRec sft", "EASE"]
    assert Member(request.systems[1], 7).folder_name == "LLMRec-dpo-seed7"
    assert read_request(["--model=LLMRec,Pop"]).systems[0].name == "LLMRec"


@pytest.mark.parametrize(
    ("text", "seeds"),
    [("3", 3), ("2020,2021", (2020, 2021)), ("[4, 5]", (4, 5)), ("2020,", (2020,))],
)
def test_seeds(text, seeds):
    assert read_request(["--model=EASE,Pop", f"--seeds={text}"]).seeds == seeds


def test_settings_go_where_they_are_known():
    argv = ["--model=LLMRec,EASE", "--loss=dpo,kpo", "--dataset=x", "--beta=2", "--kpo_k=3"]
    request = read_request([*argv, "--EASE.reg_weight=9", "--dpo.beta=5", "--LLMRec.epochs=1"])
    dpo, kpo, ease = request.systems
    knows = {dpo: {"dataset", "beta"}, kpo: {"dataset", "beta", "kpo_k"}, ease: {"dataset"}}
    common = ["--dataset=x", "--beta=2"]
    assert request.arguments_of(kpo, knows) == [*common, "--kpo_k=3", "--epochs=1"]
    assert request.arguments_of(dpo, knows) == ["--dataset=x", "--beta=5", "--epochs=1"]
    assert request.arguments_of(ease, knows) == ["--dataset=x", "--reg_weight=9"]


def test_a_setting_that_nobody_knows_goes_to_all_for_its_message():
    request = read_request(["--model=EASE,Pop", "--bta=1"])
    knows = {system: {"beta"} for system in request.systems}
    assert all(request.arguments_of(system, knows) == ["--bta=1"] for system in request.systems)


def test_baseline_by_name_or_loss():
    argv = ["--model=LLMRec,EASE", "--loss=dpo,sft"]
    assert read_request([*argv, "--baseline=EASE"]).baseline == "EASE"
    assert read_request([*argv, "--baseline=sft"]).baseline == "LLMRec sft"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--seeds=3"], "no model is given"),
        (["--model=EASE,EASE"], "empty or given twice"),
        (["--model=EASE,"], "empty or given twice"),
        (["--model=EASE,Pop", "--loss=dpo"], "losses are LLMRec's"),
        (["--model=EASE", "--seeds=0"], "from 1 to 100"),
        (["--model=EASE", "--seeds=2020"], "--seeds=2020,"),
        (["--model=EASE", "--seeds=1,1"], "different seeds"),
        (["--model=EASE", "--seeds=a,b"], "different seeds"),
        (["--model=EASE", "--seeds=True"], "from 1 to 100"),
        (["--model=EASE", "--seeds=1,2", "--seed=3"], "contradict"),
        (["--model=EASE,Pop", "--BPR.epochs=1"], "EASE, Pop"),
        (["--model=EASE,Pop", "--EASE.seed=1"], "before the dot"),
        (["--model=EASE,Pop", "--baseline=BPR"], "EASE, Pop"),
    ],
)
def test_mistakes(argv, message):
    with pytest.raises(ConfigError, match=message):
        read_request(argv)


def test_a_saved_request_reads_back(tmp_path):
    argv = ["--model=LLMRec,EASE", "--loss=dpo", "--dataset=x", "--seeds=1,2", "--baseline=EASE"]
    request = read_request([*argv, f"--run_dir={tmp_path}"])
    (tmp_path / REQUEST_FILE).write_text(request_text(request))
    assert read_request([f"--resume={tmp_path}"]) == request
    with pytest.raises(ConfigError, match="leave out beta"):
        read_request([f"--resume={tmp_path}", "--beta=1"])


@pytest.mark.parametrize("text", ["{", json.dumps({"seeds": 1})])
def test_a_damaged_request(tmp_path, text):
    (tmp_path / REQUEST_FILE).write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_request([f"--resume={tmp_path}"])


def test_systems_are_equal_by_content():
    assert System("LLMRec", "dpo") == System("LLMRec", "dpo") != System("LLMRec", "sft")
