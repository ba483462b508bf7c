"""Command lines of comparisons: recognition, parsing, errors."""

import json

import pytest

from recbole_multdpo.comparison.command import is_comparison, read_request
from recbole_multdpo.comparison.request import REQUEST_FILE, Member, request_text
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


def test_comparison_and_run_folders_are_distinguished(tmp_path):
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


EXPERIMENT = """\
dataset: x
model: [LLMRec, EASE]
loss: [dpo]
systems:
  no reference: {model: LLMRec, loss: mult_dpo, reference: none, level_thresholds: [5, 4]}
seeds: [7, 8]
baseline: dpo
beta: 0.5
EASE.reg_weight: 9
tune: {beta: [0.1, 1], no reference.learning_rate: {low: 1e-4, high: 1e-2, log: True}}
"""


@pytest.fixture
def experiment(tmp_path):
    (tmp_path / "mine.yaml").write_text(EXPERIMENT)
    return f"--experiment={tmp_path / 'mine.yaml'}"


def test_experiment_file_equals_command_line(experiment):
    assert is_comparison([experiment])
    request = read_request([experiment, "--beta=2", "--jobs=3"])
    dpo, ease, own = request.systems
    assert [system.name for system in request.systems] == ["LLMRec dpo", "EASE", "no reference"]
    assert own.loss == "mult_dpo" and Member(own, 7).folder_name == "no-reference-seed7"
    assert request.seeds == (7, 8) and request.baseline == "LLMRec dpo" and request.jobs == 3
    llm = {"beta", "reference", "level_thresholds", "dataset"}
    known = {dpo: llm, ease: {"reg_weight", "dataset"}, own: llm}
    common = {"dataset": "x", "beta": "2"}  # the command line's beta
    assert request.settings_of(dpo, known) == common
    assert request.settings_of(ease, known) == {"dataset": "x", "reg_weight": "9"}
    assert request.settings_of(own, known) == {
        **common,
        "reference": "none",
        "level_thresholds": "[5, 4]",
    }


def test_search_space_by_prefix(experiment):
    request = read_request([experiment])
    dpo, ease, own = request.systems
    known = {dpo: {"beta"}, ease: {"reg_weight"}, own: {"beta"}}
    assert request.search_space(dpo, known) == {"beta": [0.1, 1]}
    assert request.search_space(ease, known) == {}
    rate = {"low": 1e-4, "high": 1e-2, "log": True}
    assert request.search_space(own, known) == {"beta": [0.1, 1], "learning_rate": rate}


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
        (["--model=EASE", "--seeds=-1,2"], "different seeds"),
        (["--model=EASE,Pop", "--seed=abc"], "seed=abc: must be a whole number"),
        (["--model=EASE,Pop", "--seed=-1"], "seed=-1: must be a whole number"),
        (["--model=EASE", "--seeds=1,2", "--seed=3"], "contradict"),
        (["--model=EASE,Pop", "--BPR.epochs=1"], "EASE, Pop"),
        (["--model=EASE,Pop", "--EASE.seed=1"], "before the dot"),
        (["--model=EASE,Pop", "--baseline=BPR"], "EASE, Pop"),
        (["--model=EASE", "--vary={'seed': [1, 2]}"], "must map settings"),
        (["--model=EASE", "--vary={'reg_weight': 1}"], "must map settings"),
        (["--model=EASE", "--vary={'reg_weight': [1, 1]}"], "different values"),
        (["--model=EASE", "--tune=[1]"], "must map settings"),
        (["--model=EASE", "--tune={'reg_weight': []}"], "must map settings"),
        (["--model=EASE", "--tune={'reg_weight': {'low': 2, 'high': 1}}"], "must map settings"),
        (["--model=EASE", "--tune={'x': {'low': 0, 'high': 1, 'log': True}}"], "must map settings"),
        (["--model=EASE", "--tune={'seed': [1, 2]}"], "seed cannot be tuned"),
        (["--model=EASE", "--tune={'BPR.x': [1, 2]}"], "before the dot"),
        (["--model=EASE", "--seeds=1", "--jobs=0"], "jobs=0: must be a whole number"),
        (["--model=EASE", "--seeds=1", "--trials=many"], "trials=many"),
        (["--experiment=nowhere.yaml"], "does not exist"),
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
    with pytest.raises(ConfigError, match="auto looks for a single run"):
        read_request([*argv, "--resume=auto"])


@pytest.mark.parametrize(
    ("systems", "message"),
    [
        ("[EASE]", "must map names"),
        ("{a: {loss: dpo}}", "needs settings with a model"),
        ("{a: {model: EASE, seed: 3}}", "seed cannot be a's own"),
        ("{a b: {model: EASE}, a-b: {model: Pop}}", "same name"),
    ],
)
def test_errors_in_an_experiment(tmp_path, systems, message):
    (tmp_path / "mine.yaml").write_text(f"systems: {systems}\n")
    with pytest.raises(ConfigError, match=message):
        read_request([f"--experiment={tmp_path / 'mine.yaml'}"])


def test_a_saved_experiment_reads_back(experiment, tmp_path):
    request = read_request([experiment, f"--run_dir={tmp_path}"])
    (tmp_path / REQUEST_FILE).write_text(request_text(request))
    assert read_request([f"--resume={tmp_path}"]) == request
    assert read_request([f"--resume={tmp_path}", "--jobs=2"]).jobs == 2


@pytest.mark.parametrize("text", ["{", json.dumps({"seeds": 1})])
def test_a_damaged_request(tmp_path, text):
    (tmp_path / REQUEST_FILE).write_text(text)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_request([f"--resume={tmp_path}"])
