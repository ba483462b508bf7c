"""`benchmark_filename: [train, test]`: a run without a validation part, for every kind of model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from recbole_multdpo.errors import ConfigError, DataError
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.settings.config import load_config
from tests.data.test_times import pairs
from tests.integration.test_conversations import DATA, write_conversations
from tests.integration.toy import CLASSICAL, toy_arguments, write_toy

TWO = "--benchmark_filename=[train, test]"


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy data in parts of files: every fifth row is for test."""
    parent = write_toy(tmp_path_factory.mktemp("data"))
    header, *rows = (parent / "toy/toy.inter").read_text().splitlines()
    for name, part in (
        ("train", [row for n, row in enumerate(rows) if n % 5]),
        ("test", rows[::5]),
    ):
        (parent / f"toy/toy.{name}.inter").write_text("\n".join([header, *part, ""]))
    return parent


def in_file(path: Path) -> set[tuple[str, str]]:
    return {tuple(line.split("\t")[:2]) for line in path.read_text().splitlines()[1:]}


@pytest.mark.parametrize("model", ["LLMRec", "BPR", "FM"])
@pytest.mark.parametrize("mode", ["full", "uni5"])
def test_a_run_without_validation(data_path: Path, tmp_path: Path, model: str, mode: str) -> None:
    evaluation = f"--eval_args={{'mode': '{mode}'}}"
    where = [f"--data_path={data_path}", f"--run_dir={tmp_path / 'run'}", f"--model={model}"]
    argv = [*where, *CLASSICAL, "--epochs=2", TWO, evaluation]
    if model == "LLMRec":
        argv = toy_arguments(data_path, tmp_path / "run", TWO, evaluation, "--sft_eval_step=1")
    result = run(argv)
    assert result["valid_result"] == {} and 0 <= result["test_result"]["ndcg@5"] <= 1
    _, (train, valid, test) = load_parts(load_config(argv))
    assert pairs(train) == in_file(data_path / "toy/toy.train.inter")
    assert pairs(test) == in_file(data_path / "toy/toy.test.inter")
    assert len(valid) == 0


def test_a_sequential_model_reads_sequences(data_path: Path, tmp_path: Path) -> None:
    """RecBole's form: every row brings the items before it."""
    shutil.copytree(data_path, tmp_path / "data")
    for name in ("train", "test"):
        rows = [f"u{u}\ti{u + 3}\ti{u} i{u + 1} i{u + 2}" for u in range(20)]
        text = "\n".join(["user_id:token\titem_id:token\titem_id_list:token_seq", *rows, ""])
        (tmp_path / f"data/toy/toy.{name}.inter").write_text(text)
    where = [f"--data_path={tmp_path / 'data'}", f"--run_dir={tmp_path / 'run'}", "--model=SASRec"]
    argv = [*where, *CLASSICAL, "--epochs=2", TWO, "--eval_args={'order': 'TO'}"]
    with pytest.raises(ConfigError) as found:
        load_config(argv)
    assert "add it to load_col's inter list" in str(found.value)
    assert "--alias_of_item_id=[item_id_list]" in str(found.value)
    assert "Use --test_information=rolling" in str(found.value)
    columns = "--load_col={'inter': ['user_id', 'item_id', 'item_id_list']}"
    remedies = [columns, "--alias_of_item_id=[item_id_list]", "--test_information=rolling"]
    result = run([*argv, *remedies])
    assert result["valid_result"] == {} and result["num_users_evaluated"] == 20


@pytest.mark.parametrize("model", ["LLMRec", "EASE"])
def test_conversations(tmp_path: Path, model: str) -> None:
    data = write_conversations(tmp_path / "data")
    extra = [*[text for text in DATA if "benchmark" not in text], TWO]
    argv = toy_arguments(data, tmp_path / "run", *extra, "--loss=sft")
    if model == "EASE":
        where = [f"--data_path={data}", f"--run_dir={tmp_path / 'run'}", "--model=EASE"]
        argv = [*where, *CLASSICAL, *extra]
    result = run(argv)
    assert result["valid_result"] == {} and result["num_users_evaluated"] == 6


def test_what_needs_a_validation_part_says_so(data_path: Path, tmp_path: Path) -> None:
    argv = toy_arguments(data_path, tmp_path / "run", TWO, "--assistant=EASE", "--loss=sft")
    with pytest.raises(DataError, match="an assistant needs one.*name a file of each part"):
        run(argv)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        ("[train]", "or of training and test, for a run without validation"),
        ("[a, b, c, d]", "must name the files of training, validation and test"),
        ("[]", "must name the files"),
        ("[train, train]", "names a file twice"),
        ("[train, test, test]", "names a file twice"),
    ],
)
def test_other_numbers_of_parts_are_refused(tmp_path: Path, names: str, complaint: str) -> None:
    argv = ["--model=EASE", *CLASSICAL, f"--data_path={tmp_path}", f"--benchmark_filename={names}"]
    with pytest.raises(ConfigError, match=complaint):
        load_config(argv)
