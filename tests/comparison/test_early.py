"""Mistyped comparisons are answered before any system's settings are checked."""

import pytest

from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.early import check_names
from recbole_multdpo.errors import ConfigError, DataError

BASE = ["--model=LLMRec,EASE,D3", "--dataset=ml-100k"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=LLMRec,EASY", "--dataset=ml-100k"], "no model 'EASY'; did you mean EASE"),
        ([*BASE, "--loss=sft,mult_dop"], "there is no 'mult_dop'; did you mean mult_dpo"),
        (
            [*BASE, "--lr=1"],
            "did you mean learning_rate",
        ),
        (
            [*BASE, "--tune={'bta': [1, 2]}"],
            "tune: bta: there is no such setting",
        ),
        ([*BASE, "--tune={'EASE.reg_wight': [1, 2]}"], "did you mean reg_weight"),
        (
            [*BASE, "--vary={'bta': [1, 2]}"],
            "vary: bta: there is no such setting",
        ),
    ],
)
def test_mistakes(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_names(read_request(arguments))
    assert message in str(caught.value)


def test_a_data_set_that_is_missing() -> None:
    with pytest.raises(DataError, match="no data set ml100k; did you mean ml-100k"):
        check_names(read_request(["--model=LLMRec,EASE", "--dataset=ml100k"]))


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--loss=sft,mult_dpo,zero_shot", "--tune={'beta': [1, 3], 'EASE.reg_weight': [1, 2]}"],
        ["--beam_size=4", "--assistant=EASE", "--EASE.reg_weight=3"],
        ["--vary={'beta': [1, 2]}", "--seeds=2"],
    ],
)
def test_what_is_right_passes(arguments: list[str]) -> None:
    check_names(read_request([*BASE, *arguments]))
