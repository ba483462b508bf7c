"""The command line: help, version, exit status and messages."""

import os
import re
import subprocess
import sys
import types
from pathlib import Path

import pytest

from recbole_multdpo import __version__, cli
from recbole_multdpo.errors import DataError
from recbole_multdpo.losses import LOSSES
from recbole_multdpo.settings.help import explain_setting
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS

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
    for part in ("--key=value", "--config_files", "model/LLMRec.yaml", "result.json"):
        assert part in text
    for name in (*LOSSES, "LLMRec", "BIGRec", "D3", "ml-100k", "recommend", "losses"):
        assert re.search(rf"\b{name}\b", text)
    assert run.calls == []


@pytest.mark.parametrize(
    ("called", "shown"),
    [
        ("/usr/bin/recbole-multdpo", "recbole-multdpo"),
        ("run_recbole_multdpo.py", "python run_recbole_multdpo.py"),
        ("/somewhere/recbole_multdpo/__main__.py", "python -m recbole_multdpo"),
    ],
)
def test_the_help_shows_how_it_was_called(called, shown, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [called])
    text = cli.usage()
    assert text.startswith(f"usage: {shown} --model=NAME")
    monkeypatch.chdir(tmp_path)  # as with a wheel, whose files are not in the working directory
    folder = re.search(r"described, in (/.+)$", cli.usage(), re.MULTILINE)
    names = re.findall(r"^  ([\w/]+\.yaml) ", cli.usage(), re.MULTILINE)
    assert folder and len(names) == 2
    assert all((Path(folder[1]) / name).is_file() for name in names)


@pytest.mark.parametrize(
    ("topic", "parts"),
    [
        ("losses", ["mult_dpo", "Mult-DPO", "zero_shot"]),
        ("models", ["LLMRec", "traditional", "EASE"]),
        ("datasets", ["ml-100k", "data.convert", "amazon-beauty,", "gowalla-merged"]),
        ("settings", ["beta", "topk", "val_interval"]),
        ("beta", ["--beta=3.0 (float > 0)", "Acts in: preference", "another backbone than tiny"]),
        ("--topk", ["--topk=[5, 10, 15, 20] (list of int)"]),
        ("pl_dpo", ["--loss=pl_dpo", "pl_nodes"]),
        ("reg_weight", ["EASE (250.0)"]),
        ("eval_batch_size", ["A setting of RecBole"]),
    ],
)
def test_help_on_a_topic(run, capsys, topic, parts):
    assert cli.main([f"--help={topic}"]) == 0
    text = capsys.readouterr().out
    assert all(part in " ".join(text.split()) for part in parts) and run.calls == []
    assert all(len(line) <= 100 for line in text.splitlines())


@pytest.mark.parametrize(
    ("topic", "near"), [("lr", "learning_rate"), ("bta", "beta"), ("", "losses")]
)
def test_help_on_what_does_not_exist(capsys, topic, near):
    assert cli.main([f"--help={topic}"]) == 2
    assert near in capsys.readouterr().err


def test_all_of_our_settings_are_explained():
    for model in LANGUAGE_MODELS:
        for name in LANGUAGE_MODELS[model].model_fields:
            assert f"--{name}=" in explain_setting(name)


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


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        ([], True),
        (["--model=BPR"], True),
        (["--model", "BPR"], True),
        ([*BPR, "--lr=1"], False),
        (["--model=BPR", "--dataset=ml100k"], False),
    ],
)
def test_the_help_is_named_where_a_setting_is_not_written_as_one(run, capsys, argv, hint):
    assert cli.main(argv) == 2
    assert ("(--help shows" in capsys.readouterr().err) == hint


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
        "heavy = {'torch', 'recbole', 'transformers', 'numpy', 'pandas'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)


@pytest.mark.parametrize("command", [["run_recbole_multdpo.py"], ["-m", "recbole_multdpo"]])
def test_from_a_clone(command):
    done = subprocess.run(
        [sys.executable, *command, "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, f"recbole-multdpo {__version__}\n")
