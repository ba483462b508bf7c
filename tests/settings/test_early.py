"""Mistyped commands are answered without torch, and as the complete check would answer them."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_multdpo.errors import ConfigError, DataError
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.settings.early import check_early
from tests.integration.toy import write_toy

ROOT = Path(__file__).resolve().parents[2]
BASE = ["--model=LLMRec", "--dataset=ml-100k"]

MISTAKES = [
    (
        [*BASE, "--lr=0.1"],
        "there is no such setting; did you mean learning_rate?",
    ),
    ([*BASE, "--per_device_train_batch_size=4"], "did you mean train_batch_size?"),
    ([*BASE, "--num-train-epochs=4"], "did you mean epochs?"),
    ([*BASE, "--betta=1"], "did you mean beta?"),
    ([*BASE, "--loss=mult_dop"], "did you mean mult_dpo"),
    ([*BASE, "--beta=big"], "beta (command line): must be a number, got 'big'"),
    (
        [*BASE, "--epochs=-1"],
        "epochs (command line): must be 'auto' or must be greater than or equal to 0",
    ),
    ([*BASE, "--assistant=EASY"], "did you mean EASE?"),
    (["--model=LMRec", "--dataset=ml-100k"], "did you mean LLMRec"),
    (["--model=EASE", "--dataset=ml-100k", "--reg_weight=high"], "reg_weight (command line)"),
    (["--model=EASE", "--dataset=ml-100k", "--beta=1"], "is a setting of LLMRec, not of EASE"),
]


@pytest.mark.parametrize(("argv", "message"), MISTAKES)
def test_a_mistake_has_the_answer_of_the_complete_check(argv: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as early:
        check_early(argv)
    with pytest.raises(ConfigError) as complete:
        load_config(argv)
    assert message in str(early.value) and str(early.value) == str(complete.value)


@pytest.mark.parametrize(
    "argv",
    [
        BASE,
        [*BASE, "--loss=pl_dpo", "--assistant=EASE", "--EASE.reg_weight=100"],
        [*BASE, "--backbone=some/model", "--topk=10", "--metrics=ndcg"],
        ["--model=D3", "--dataset=ml-100k"],
        ["--model=BIGRec", "--dataset=ml-100k"],
        ["--model=BPR", "--dataset=ml-1m", "--embedding_size=8"],
        ["--model=DeepFM", "--dataset=ml-100k", "--embedding_size=8"],
        ["--model=SASRec", "--dataset=ml-100k", "--eval_args={'order': 'TO'}"],
    ],
)
def test_what_is_right_passes(argv: list[str]) -> None:
    check_early(argv)


def test_one_mistake_in_metrics_is_one_error_with_a_way_out() -> None:
    with pytest.raises(ConfigError) as caught:
        check_early([*BASE, "--metrics=ndcg10"])
    advice = "--metrics=ndcg --topk=10 --valid_metric=ndcg@10"
    assert str(caught.value) == (
        f"metrics: ndcg10 names a metric and a cut-off, which are two settings. Use {advice}."
    )
    check_early([*BASE, *advice.split()])


@pytest.mark.parametrize(
    ("argument", "advice"),
    [("--topk=5", "--valid_metric=NDCG@5"), ("--metrics=[Recall]", "--valid_metric=recall@10")],
)
def test_a_metric_that_chooses_and_is_not_computed(argument: str, advice: str) -> None:
    with pytest.raises(ConfigError, match=advice):
        check_early([*BASE, argument])
    check_early([*BASE, argument, advice])


def test_a_misspelt_data_set_is_answered_before_its_columns(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data set ml100k; did you mean ml-100k"):
        check_early(["--model=LLMRec", "--dataset=ml100k"])
    write_toy(tmp_path)
    near = ["--model=LLMRec", "--dataset=toyy", f"--data_path={tmp_path}"]
    with pytest.raises(DataError, match="did you mean toy"):
        check_early(near)
    with pytest.raises(DataError, match="Put RecBole's atomic files there"):
        check_early(["--model=LLMRec", "--dataset=zzzzzz", f"--data_path={tmp_path}"])
    check_early(["--model=EASE", "--dataset=toy", f"--data_path={tmp_path}"])


START = """
import sys
from recbole_multdpo.cli import main
status = main(sys.argv[1:])
heavy = {"torch", "recbole", "numpy", "pandas", "transformers"} & set(sys.modules)
assert status == 2 and not heavy, (status, heavy)
"""


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [*BASE, "--lr=1"],
        ["--model=LLMRec", "--dataset=ml100k"],
        ["--model=LLMRec,EASE", "--dataset=ml-100k", "--lr=1"],
        ["--model=LLMRec,EASE", "--dataset=ml-100k", "--tune={'bta': [1, 2]}"],
    ],
)
def test_a_mistake_imports_nothing_heavy(arguments: list[str]) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", START, *arguments], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0 and done.stderr.startswith("error: "), done.stderr
