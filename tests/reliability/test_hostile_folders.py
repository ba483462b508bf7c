"""Files of a run folder that were edited to hurt: every command ends with an error in words.

Every broken form of a file is given to every command that reads it: no traceback, no endless wait,
no memory for what was never there.
"""

from __future__ import annotations

import errno
import io
import json
import os
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from safetensors import SafetensorError

from recbole_multdpo import cli, evaluate, explain, export, recommend
from recbole_multdpo.comparison.runs import run_comparison
from recbole_multdpo.errors import CheckpointError, ConfigError, MultDPOError
from recbole_multdpo.plots import __main__ as plots
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.checkpoint import check_checkpoint
from recbole_multdpo.runs.folder import read_result
from recbole_multdpo.runs.model_files import file_checksums
from recbole_multdpo.runs.resume import find_resume_point
from recbole_multdpo.runtime.reading import read_json
from recbole_multdpo.settings.text import read_settings_file
from tests.integration.toy import CLASSICAL, toy_arguments, write_toy
from tests.reliability.test_planted_code import unfinished

ALIASES = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{','.join(['*' + chr(97 + n)] * 9)}]\n" for n in range(12)
)
MERGES = "a: &a {x: 1, y: 2, z: 3}\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} {{<<: [{','.join(['*' + chr(97 + n)] * 9)}]}}\n"
    for n in range(12)
)

# no file at all, in the place of one
NO_FILES: dict[str, Callable[[Path], object]] = {
    "a folder": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a device without end": lambda path: path.symlink_to("/dev/zero"),
    "a link to nothing": lambda path: path.symlink_to("/nothing/there"),
    "a link to itself": lambda path: path.symlink_to(path),
    "gigabytes of nothing": lambda path: _sparse(path, 2**36),
}
# what is neither YAML settings nor JSON
BYTES: dict[str, bytes] = {
    "nothing": b"",
    "zero bytes": bytes(1000),
    "all bytes": bytes(range(256)),
    "no UTF-8": b'{"model": "caf\xe9"}',
    "UTF-16": '{"model": "EASE"}'.encode("utf-16"),
    "cut": b'{"model": "EA',
    "a number": b"7",
    "a text": b'"text"',
    "a list": b"[1, 2]",
    "null": b"null",
    "true": b"true",
    "a key twice": b'{"model": "EASE", "model": "BPR"}',
    "brackets": b"[" * 20_000,
    "braces": b'{"a":' * 20_000,
    "nested": b'{"a": ' + b"[" * 200 + b"]" * 200 + b"}",
    "many digits": b'{"seed": ' + b"9" * 100_000 + b"}",
    "80 bits": b'{"seed": ' + str(2**80).encode() + b"}",
    "a zero byte in a text": b'{"data_path": "a\\u0000b", "model": "EASE"}',
    "half a character": b'{"model": "\\ud800"}',
    "an open comment": b"/* {",
    "HTML": b"<html><body>404</body></html>",
    "a pickle": b"\x80\x04\x95\x1e\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94.",
    "a program": b"#!/bin/sh\nrm -rf /\n",
    "a tab first": b"\tmodel: EASE\n",
}
YAML: dict[str, bytes] = {
    "aliases": ALIASES.encode(),
    "merges": MERGES.encode(),
    "an alias of itself": b"a: &a [*a]\n",
    "a mapping of itself": b"a: &a {b: *a}\n",
    "an unknown alias": b"a: *b\n",
    "a tag that makes": b"a: !!python/object/apply:os.getcwd []\n",
    "a tag that imports": b"a: !!python/name:os.system\n",
    "a tag of another kind": b"a: !!bool maybe\n",
    "a tag of a number": b"a: !!int x\n",
    "a set": b"a: !!set {x, y}\n",
    "bytes": b"a: !!binary YQ==\n",
    "a date": b"a: !!timestamp 2020-01-01\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "a list as a key": b"? [1, 2]\n: 3\n",
    "hexadecimals": b"seed: 0x" + b"f" * 50_000 + b"\n",
    "question marks": b"? " * 30_000,
    "dashes": b"- " * 30_000,
    "indented": b"".join(b" " * n + b"a:\n" for n in range(400)),
    "a zero byte by escape": b'data_path: "a\\0b"\n',
    "megabytes": b"a: 1 #" + b"x" * 2**21 + b"\n",
}
JSON: dict[str, bytes] = {
    "NaN": b'{"model": NaN, "test_result": {"ndcg@5": NaN}}',
    "infinity": b'{"model": "EASE", "test_result": {"ndcg@5": Infinity}}',
    "single quotes": b"{'model': 'EASE'}",
    "a comma too many": b'{"model": "EASE",}',
    "words after it": b'{"model": "EASE"} and more',
    "an empty mapping": b"{}",
    "wrong types": b'{"model": 3, "dataset": [], "test_result": 7}',
    "metrics as text": b'{"model": "EASE", "dataset": "toy", "test_result": {"ndcg@5": "high"}}',
    "lacks the metrics": b'{"model": "EASE", "dataset": "toy"}',
    "megabytes": b'{"model": "' + b"x" * 2**25 + b'"}',
    "many values": b"[" + b"0," * 2**21 + b"0]",
    "a control character": b'{"model": "a\nb"}',
    "a byte-order mark": b"\xef\xbb\xbf{}",
}


def _sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


Form = Callable[[Path], object]


def forms(*tables: dict[str, bytes]) -> dict[str, Form]:
    """Ways to break a file, by name."""
    found: dict[str, Form] = dict(NO_FILES)
    for table in tables:
        for name, content in table.items():
            found[name] = lambda path, content=content: path.write_bytes(content)
    return found


YAML_FORMS, JSON_FORMS = forms(BYTES, YAML), forms(BYTES, JSON)


@contextmanager
def broken(file: Path, form: Form, seconds: int = 100) -> Iterator[None]:
    """The file in a broken form; what happens meanwhile may not last long."""

    def late(number: int, frame: object) -> None:
        raise AssertionError(f"no end after {seconds} seconds")

    kept = file.with_name(f"{file.name}.kept")
    if file.exists():
        file.rename(kept)
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        form(file)
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
        if file.is_dir() and not file.is_symlink():
            file.rmdir()
        else:
            file.unlink(missing_ok=True)
        if kept.exists():
            kept.rename(file)


def test_there_are_forms_enough() -> None:
    assert len(YAML_FORMS) >= 40 and len(JSON_FORMS) >= 40


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set with its own file, a run of LLMRec, an unfinished copy, and a comparison."""
    folder = tmp_path_factory.mktemp("hostile")
    data = write_toy(folder / "data")
    (data / "toy" / "toy.yaml").write_text("item_text_fields: [movie_title]\n", encoding="utf-8")
    arguments = toy_arguments(data, folder / "lm", "--epochs=1", "--sft_cache=False")
    assert cli.main(arguments) == 0
    unfinished(folder / "lm", folder / "stopped")
    both = ["--model=EASE,Pop", *CLASSICAL, f"--data_path={data}", "--seeds=1"]
    assert run_comparison([*both, f"--run_dir={folder / 'both'}"], cli.main) == 0
    return folder


Command = Callable[[Path], object]
SETTINGS: dict[str, dict[str, Command]] = {
    "lm/config.yaml": {
        "recommend": lambda f: recommend.main([str(f / "lm"), "--user", "u1"]),
        "explain": lambda f: explain.main([str(f / "lm"), "--user", "u1"]),
        "export": lambda f: export.main([str(f / "lm"), str(f / "out")]),
        "evaluate": lambda f: evaluate.main([str(f / "lm")]),
        "plots": lambda f: plots.main(["bars", str(f / "lm"), "--metric=NDCG@5"]),
        "resume": lambda f: cli.main([f"--resume={f / 'lm'}"]),
        "config_files": lambda f: cli.main([f"--config_files={f / 'lm' / 'config.yaml'}"]),
    },
    "experiment.yaml": {
        "experiment": lambda f: cli.main([f"--experiment={f / 'experiment.yaml'}"]),
    },
}
RESULTS: dict[str, dict[str, Command]] = {
    "lm/result.json": {
        "recommend": SETTINGS["lm/config.yaml"]["recommend"],
        "explain": SETTINGS["lm/config.yaml"]["explain"],
        "export": SETTINGS["lm/config.yaml"]["export"],
        "evaluate": SETTINGS["lm/config.yaml"]["evaluate"],
        "plots": SETTINGS["lm/config.yaml"]["plots"],
    },
    "both/comparison.json": {
        "resume": lambda f: cli.main([f"--resume={f / 'both'}"]),
    },
}


def pairs(table: dict[str, dict[str, Command]], known: dict[str, Form]) -> list[Any]:
    return [
        pytest.param(file, command, form, id=f"{file}: {form}, {name}")
        for file, commands in table.items()
        for name, command in commands.items()
        for form in known
    ]


def ends_in_words(command: Command, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    try:
        status = command(folder)
    except MultDPOError as error:
        assert str(error)
        return
    said = capfd.readouterr().err
    assert status == 2 and "error: " in said and "Traceback" not in said


@pytest.mark.parametrize(("file", "command", "form"), pairs(SETTINGS, YAML_FORMS))
def test_settings(
    made: Path, file: str, command: Command, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with broken(made / file, YAML_FORMS[form]):
        ends_in_words(command, made, capfd)


@pytest.mark.parametrize(("file", "command", "form"), pairs(RESULTS, JSON_FORMS))
def test_results(
    made: Path, file: str, command: Command, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with broken(made / file, JSON_FORMS[form]):
        ends_in_words(command, made, capfd)


@pytest.mark.parametrize("form", JSON_FORMS)
def test_states_of_checkpoints(made: Path, form: str) -> None:
    """All checkpoints of the newest stage broken in one way: none is used."""
    checkpoints = made / "stopped" / "checkpoints"
    (step,) = (checkpoints / "preference").glob("step-*")
    sft = list((checkpoints / "sft").glob("step-*"))
    for folder in sft:
        shutil.rmtree(folder)
    with broken(step / "state.json", JSON_FORMS[form]), pytest.raises(CheckpointError):
        find_resume_point(checkpoints)


def with_checksum(state: dict[str, Any]) -> str:
    """The state as somebody writes it who knows how its checksum is made."""
    state.pop("checksum", None)
    return json.dumps({**state, "checksum": zlib.crc32(json.dumps(state).encode())})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("logs", {"../../outside": -1}),
        ("logs", ["steps.csv"]),
        ("global_step", "7"),
        ("global_step", -1),
        ("position", 3),
        ("cur_step", None),
        ("best_valid_score", "high"),
        ("max_rows", 0),
        ("schedule", [1]),
        ("settings", "all"),
        ("checksums", {"../model.safetensors": 1}),
        ("checksums", []),
        ("format", "2"),
    ],
)
def test_a_state_of_wrong_form_with_a_right_checksum(made: Path, key: str, value: object) -> None:
    (step,) = (made / "lm" / "checkpoints" / "preference").glob("step-*")
    state = json.loads((step / "state.json").read_text(encoding="utf-8"))
    check_checkpoint(step)  # control
    assert key in state
    text = with_checksum({**state, key: value})
    with broken(step / "state.json", lambda path: path.write_text(text, encoding="utf-8")):
        with pytest.raises(CheckpointError):
            check_checkpoint(step)


TABLES: dict[str, bytes] = {
    "nothing": b"",
    "no header": b"1,2,3\n4,5,6\n",
    "other columns": b"a,b\n1,2\n",
    "text for numbers": b"user,n_train,n_test,ndcg@5\nu1,many,1,0.5\n",
    "quotation": b'stage,step\n"sft,1\n',
    "binary": bytes(range(256)) * 9,
    "no UTF-8": b"user,stage\n\xe9,\xff\n",
    "long rows": b"stage,step,metric,value\nsft,1,2,3,4,5,6\n",
}


@pytest.mark.parametrize("form", [*NO_FILES, *TABLES])
@pytest.mark.parametrize(
    ("file", "command"),
    [
        ("lm/steps.csv", lambda f: plots.main(["training", str(f / "lm")])),
        ("lm/validations.csv", lambda f: plots.main(["training", str(f / "lm")])),
        ("both/EASE-seed2020/per_user.csv", lambda f: cli.main([f"--resume={f / 'both'}"])),
        ("both/results.json", lambda f: plots.main(["bars", str(f / "both"), "--metric=NDCG@5"])),
    ],
)
def test_tables(
    made: Path, file: str, command: Command, form: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with broken(made / file, forms(TABLES)[form]):
        status = command(made)  # a figure may leave out a log that is not there
        said = capfd.readouterr().err
        assert status == 0 or (status == 2 and "error: " in said)
        assert "Traceback" not in said


def test_no_run_writes_through_links(made: Path, tmp_path: Path) -> None:
    outside = tmp_path / "precious"
    outside.write_text("mine\n", encoding="utf-8")
    for name in ("run.log", "steps.csv", ".lock", "per_user.csv"):
        copy = unfinished(made / "lm", tmp_path / "copy")
        (copy / name).unlink(missing_ok=True)
        (copy / name).symlink_to(outside)
        with pytest.raises(ConfigError, match=f"{name} is a link"):
            run([f"--resume={copy}"])
        assert outside.read_text(encoding="utf-8") == "mine\n"


def test_a_run_without_its_model_asks_no_hub(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """`somebody/model`, a relative path that is not there, is what a name of the hub looks like."""
    shutil.copytree(made / "lm", tmp_path / "somebody")
    shutil.rmtree(tmp_path / "somebody" / "model")
    result = read_json(made / "lm" / "result.json")
    del result["model_files"]
    text = json.dumps(result)
    (tmp_path / "somebody" / "result.json").write_text(text, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert recommend.main(["somebody", "--user", "u1"]) == 2
    assert "there is no somebody/model" in capfd.readouterr().err


def test_an_export_takes_nothing_along(made: Path, tmp_path: Path) -> None:
    """Neither a link to a secret nor foreign code goes into a folder that is made to be shared."""
    copy = tmp_path / "lm"
    shutil.copytree(made / "lm", copy)
    secret = tmp_path / "secret"
    secret.write_text("{}", encoding="utf-8")
    (copy / "model" / "notes.json").symlink_to(secret)
    (copy / "model" / "run.sh").write_text("rm -rf /", encoding="utf-8")
    result = json.loads((copy / "result.json").read_text(encoding="utf-8"))
    result["model_files"] = file_checksums(copy / "model")
    (copy / "result.json").write_text(json.dumps(result), encoding="utf-8")
    assert export.main([str(copy), str(tmp_path / "out")]) == 0
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in names and not names & {"notes.json", "run.sh"}


@pytest.mark.parametrize("key", ["model", "dataset", "loss", "test_result", "versions", "seconds"])
@pytest.mark.parametrize("value", [7, [1], {"a": [1]}, "text"])
def test_results_of_wrong_types(made: Path, tmp_path: Path, key: str, value: object) -> None:
    result = read_json(made / "lm" / "result.json")
    if value == "text" and key in ("model", "dataset", "loss"):
        return
    file = tmp_path / "result.json"
    file.write_text(json.dumps({**result, key: value}), encoding="utf-8")
    with pytest.raises(MultDPOError, match=rf"result\.json cannot be read \({key}"):
        read_result(file)


def test_folders_that_may_not_be_searched(
    made: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the system refuses it to others than root."""
    real = Path.stat

    def refused(self: Path, *args: Any, **kwargs: Any) -> Any:
        if "lm" in self.parts and self.name != "lm":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "stat", refused)
    for name, command in SETTINGS["lm/config.yaml"].items():
        assert command(made) == 2, name
        assert "Permission denied" in capfd.readouterr().err


@pytest.mark.parametrize("step", ["copyfile", "weights", "card"])
def test_a_full_disk_leaves_no_export(
    made: Path,
    tmp_path: Path,
    step: str,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        if step == "weights":  # as safetensors says it
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        raise OSError(errno.ENOSPC, "No space left on device")

    target = {"card": (export, "model_card")}.get(step, (shutil, "copyfile"))
    monkeypatch.setattr(*target, full)
    assert export.main([str(made / "lm"), str(tmp_path / "out")]) == 2
    assert "cannot write" in capfd.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_evaluation(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MultDPOError, match="cannot write.*No space left"):
        evaluate.write_evaluation({"test_result": {}}, made / "lm", tmp_path / "again.json")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_figure(
    made: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from matplotlib.figure import Figure

    def full(self: Figure, file: Path, **kwargs: Any) -> None:
        file.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(file))

    monkeypatch.setattr(Figure, "savefig", full)
    assert plots.main(["bars", str(made / "lm"), "--metric=NDCG@5", "--formats=svg"]) == 2
    assert "No space left" in capfd.readouterr().err
    assert not (made / "lm" / "bars.svg").exists()


def test_recommendations_on_an_ascii_terminal(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Titles of any script and with escape sequences are printed, as signs that ASCII has."""
    data = tmp_path / "data"
    shutil.copytree(made / "data", data)
    item = data / "toy" / "toy.item"
    text = item.read_text(encoding="utf-8").replace("Red Night", "Красная \x1b[2Jночь \u202e")
    item.write_text(text, encoding="utf-8")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    given = [str(made / "lm"), "--user", "u0", "--k=20", f"--data_path={data}"]
    for extra in ([], ["--json"]):
        assert recommend.main([*given, *extra]) == 0
    sys.stdout.flush()
    *shown, as_json = raw.getvalue().decode("ascii").splitlines()
    assert any(r"\u041a" in line for line in shown)
    assert "\x1b" not in "".join(shown)
    titles = [entry["title"] for entry in json.loads(as_json)["recommendations"]]
    assert any("Красная" in title for title in titles)


def test_settings_with_limits(tmp_path: Path) -> None:
    """Control: what a person writes, anchors and merges too, is read."""
    file = tmp_path / "mine.yaml"
    text = "base: &base {beta: 1, topk: [5, 10]}\nother: {<<: *base, beta: 0x10, x: 1e-3}\n"
    file.write_text(text, encoding="utf-8")
    assert read_settings_file(file)["other"] == {"beta": 16, "topk": [5, 10], "x": 1e-3}
