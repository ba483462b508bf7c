"""The command line: help, version, exit status and messages."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from recbole_multdpo import __version__, cli
from recbole_multdpo.errors import ConfigError, DataError

BPR = ["--model=BPR", "--dataset=ml-100k"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def run(monkeypatch):
    """A stand-in for the run: a function whose calls are recorded and whose effect can be set."""
    calls = []

    def record(argv):
        calls.append(argv)
        if record.error is not None:
            raise record.error
        return Path("saved/run"), {}

    record.error, record.calls = None, calls
    module = types.ModuleType("recbole_multdpo.quick_start")
    module.run_in_folder = record
    monkeypatch.setitem(sys.modules, "recbole_multdpo.quick_start", module)
    return record


def test_arguments_are_passed_on(run):
    assert cli.main(BPR) == 0
    assert run.calls == [BPR]


def test_the_processs_arguments_are_the_default(run, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", *BPR])
    assert cli.main() == 0
    assert run.calls == [BPR]


@pytest.mark.parametrize("argv", [["--help"], ["-h"], ["--model=BPR", "--help"]])
def test_help(run, capsys, argv):
    assert cli.main(argv) == 0
    text = capsys.readouterr().out
    for part in ("--key=value", "--config_files", "properties/model/LLMRec.yaml", "result.json"):
        assert part in text
    assert run.calls == []


def test_the_files_that_the_help_names_exist():
    for name in (
        "overall.yaml",
        "model/LLMRec.yaml",
        "dataset/ml-100k.yaml",
        "dataset/ml-10m.yaml",
    ):
        assert (ROOT / "properties" / name).is_file()
    assert f"properties/{'overall.yaml'}" in cli.USAGE


def test_version(run, capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"recbole-multdpo {__version__}\n"
    assert run.calls == []


def test_user_error_is_one_message_without_a_traceback(run, capsys):
    run.error = DataError("items.csv is empty.")
    assert cli.main(BPR) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: items.csv is empty.\n")
    assert "Traceback" not in captured.err


@pytest.mark.parametrize(("error", "hint"), [(ConfigError, True), (DataError, False)])
def test_errors_in_settings_alone_name_the_help(run, capsys, error, hint):
    run.error = error("no such thing")
    assert cli.main(BPR) == 2
    assert ("--help" in capsys.readouterr().err) == hint


def test_an_interruption(run, capsys):
    run.error = KeyboardInterrupt("interrupted; continue with --resume=saved/run")
    assert cli.main(BPR) == 130
    assert capsys.readouterr().err == "interrupted; continue with --resume=saved/run\n"
    run.error = KeyboardInterrupt()  # while torch is imported: there is nothing to resume
    assert cli.main(BPR) == 130
    assert capsys.readouterr().err == "interrupted before the run began\n"


def test_a_bug_is_raised(run):
    run.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        cli.main(BPR)


def test_help_imports_nothing_heavy():
    code = (
        "import sys; from recbole_multdpo.cli import main; main(['--help'])\n"
        "heavy = {'torch', 'recbole', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)


@pytest.mark.parametrize("command", [["run_recbole_multdpo.py"], ["-m", "recbole_multdpo.cli"]])
def test_from_a_clone(command):
    done = subprocess.run(
        [sys.executable, *command, "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"recbole-multdpo {__version__}\n")
