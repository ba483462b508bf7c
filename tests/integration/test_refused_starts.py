"""A start that is refused leaves nothing; a comparison is refused before its first process."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from recbole_multdpo.comparison.runs import compare
from recbole_multdpo.errors import MultDPOError
from recbole_multdpo.quick_start import run
from tests.integration.toy import classical_arguments, toy_arguments, write_toy


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_toy(tmp_path_factory.mktemp("data"))


WRONG = {
    "--dataset=nosuch": "there is no|no folder",
    "--backbone=./nosuch": "is not a folder",
    "--prompt_template=nosuch": "prompt_template='nosuch' is unknown",
    "--item_text_fields=[title]": "no column 'title'",
    "--topk=[200]": "asks for more items",  # known with the data only
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_refused_start_leaves_no_folder(data: Path, tmp_path: Path, wrong: str) -> None:
    arguments = toy_arguments(data, tmp_path / "x", wrong, f"--checkpoint_dir={tmp_path / 'saved'}")
    arguments = [text for text in arguments if not text.startswith("--run_dir=")]
    if wrong.startswith("--topk"):
        arguments.append("--valid_metric=NDCG@200")
        arguments.remove("--valid_metric=NDCG@5")
    with pytest.raises(MultDPOError, match=WRONG[wrong]):
        run(arguments)
    assert not list((tmp_path / "saved").glob("LLMRec*"))


def test_a_refused_model_of_recbole_leaves_no_folder(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.raises(MultDPOError):
        run(classical_arguments("EASE", data, folder, "--topk=[200]", "--valid_metric=NDCG@200"))
    assert not folder.exists()


def test_what_has_begun_stays(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recbole_multdpo.errors import ConfigError
    from recbole_multdpo.training.trainer import SetwiseTrainer

    def failing(*_: object) -> None:
        raise ConfigError("late")

    monkeypatch.setattr(SetwiseTrainer, "_finish_epoch", failing)
    with pytest.raises(ConfigError, match="late"):
        run(toy_arguments(data, tmp_path / "run"))
    assert (tmp_path / "run/run.log").is_file()


@pytest.mark.parametrize("wrong", [name for name in WRONG if "topk" not in name])
def test_a_comparison_is_refused_before_its_first_run(
    data: Path, tmp_path: Path, wrong: str
) -> None:
    started: list[list[str]] = []

    def started_run(argv: list[str]) -> int:
        started.append(argv)
        return 1

    folder = tmp_path / "cmp"
    arguments = toy_arguments(data, folder, "--model=LLMRec,EASE", "--loss=mult_dpo,sft", wrong)
    with pytest.raises(MultDPOError, match=WRONG[wrong]):
        compare(arguments, started_run)
    assert not started and not folder.exists()


def test_a_common_cause_is_told_once(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Members are quiet: their output is in their logs."""
    arguments = [
        *("--model=EASE,Pop", f"--data_path={data}", "--dataset=toy", "--seeds=1"),
        *("--device=cpu", "--topk=[200]", "--valid_metric=NDCG@200"),
        f"--run_dir={tmp_path / 'cmp'}",
    ]
    with pytest.raises(MultDPOError, match="no run of the comparison"):
        compare(arguments)
    out, err = capsys.readouterr()
    assert err.count("asks for more items") <= 2  # when it happens, and in the list at the end
    assert "for the same reason" in err
    assert not re.search(r"INFO|WARNING", out + err)
