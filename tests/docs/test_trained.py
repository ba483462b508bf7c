"""The commands and programs of docs/trained.md, run as written on a small data set."""

from __future__ import annotations

import importlib
import re
import shlex
import sys
from pathlib import Path

import pytest

from recbole_multdpo.demo import main as demo_main
from recbole_multdpo.quick_start import run
from tests.integration.toy import N_ITEMS, N_USERS, classical_arguments, toy_arguments, write_toy

pytestmark = pytest.mark.integration
PAGE = Path(__file__).parents[2] / "docs" / "trained.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def commands() -> list[list[str]]:
    lines = "\n".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line.startswith("python -m recbole_multdpo.")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the page's runs, on toy films of which two have the page's titles."""
    folder = tmp_path_factory.mktemp("work")
    data = write_toy(folder / "data")
    items, rows = data / "toy" / "toy.item", data / "toy" / "toy.inter"
    text = items.read_text().replace("Red Night 0", "Toy Story").replace("Blue River 0", "Fargo")
    items.write_text(text)
    rows.write_text(rows.read_text().replace("\nu", "\n"))  # users 0, 1, 2, ...
    (data / "toy" / "toy.yaml").write_text("item_text_fields: [movie_title]\n")
    run(toy_arguments(data, folder / "saved" / "mult_dpo"))
    run(classical_arguments("EASE", data, folder / "saved" / "ease"))
    (folder / "users.txt").write_text("1\n2\n")
    ranked = [f"{u} Q0 i{n} {n + 1} {-n} first\n" for u in range(N_USERS) for n in range(N_ITEMS)]
    (folder / "first_stage.trec").write_text("".join(ranked))
    pairs = [f"{u},i{n}\n" for u in range(N_USERS) for n in range(N_ITEMS)]
    (folder / "candidates.csv").write_text("user,item\n" + "".join(pairs))
    return folder


def test_page_in_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    ran = set()
    for _, _, module, *arguments in commands():
        name = module.rpartition(".")[2]
        if name == "demo":
            continue
        arguments = arguments[: arguments.index(">")] if ">" in arguments else arguments
        assert importlib.import_module(module).main(arguments) == 0, arguments
        assert capsys.readouterr().out
        ran.add(name)
    assert ran == {"recommend", "explain", "evaluate", "export"}
    recommending, exporting = blocks("python")
    for program in (recommending, exporting):
        exec(compile(program, str(PAGE), "exec"), {})
        assert len(capsys.readouterr().out.splitlines()) >= 3
    sys.modules.pop("rank_catalogue")
    sys.path.remove("exported")


def test_the_web_pages_command_is_understood(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (command,) = [words for words in commands() if words[2].endswith(".demo")]
    pytest.importorskip("gradio")
    assert demo_main(command[3:]) == 2  # understood, but the runs are not here
    assert "saved/sft is not the folder of a run" in capsys.readouterr().err
