"""The documents: links lead somewhere, commands are valid, code is code."""

from __future__ import annotations

import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from recbole_multdpo.comparison.command import _OWN_KEYS, is_comparison, read_request
from recbole_multdpo.comparison.plan import make_plan
from recbole_multdpo.settings.config import load_config, settings_of
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS
from tests.docs.markdown import DOCUMENTS, ROOT, anchors, blocks, commands, links, name_of, prose

each_document = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
PROGRAM = "run_recbole_multdpo.py"
OURS = ("recbole_multdpo", "benchmarks", "docs")
# models whose settings the documents speak of
ELIDED = ("--model=LLMRec", "--dataset=ml-100k")
MODELS = (*LANGUAGE_MODELS, "EASE", "BPR", "LightGCN", "ItemKNN", "SASRec", "MultiVAE")


@each_document
def test_links_lead_to_files_and_headings_that_exist(path: Path) -> None:
    for link in links(path):
        if path == ROOT / "README.md" and (page := re.match(r"\.\./\.\./actions/(.+?\.yml)", link)):
            assert (ROOT / ".github" / page[1]).is_file(), f"{link}: no such workflow"
            continue  # GitHub's own page
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{link}: no such file"
        if anchor:
            assert anchor in anchors(file), f"{link}: no such heading"


def filled_in(argument: str) -> str:
    """An argument with an example in place of `<name>`."""
    return re.sub(r"<[^>]+>", "example", argument)


def check_program(arguments: list[str]) -> None:
    """Check settings as the program does before it loads anything."""
    names = {argument.partition("=")[0] for argument in arguments}
    if names & {"--help", "-h", "--version", "--resume"}:
        return  # nothing to check, or a folder that only the reader has
    if any("<" in argument for argument in arguments if argument.startswith("--config_files=")):
        return
    if "..." in arguments:  # "and what you like": with a model and a data set it must be complete
        arguments = [argument for argument in arguments if argument != "..."]
        arguments += [text for text in ELIDED if text.partition("=")[0] not in names]
    if find_spec("deepspeed") is None:
        arguments = [text for text in arguments if not text.startswith("--deepspeed=")]
    arguments = [filled_in(argument) for argument in arguments]
    if is_comparison(arguments):
        make_plan(read_request(arguments))
    else:
        load_config(arguments)


def check_module(name: str, arguments: list[str]) -> None:
    """Check that a module exists, and that its command line takes the arguments."""
    assert find_spec(name) is not None, f"no module {name}"
    if find_spec(name).submodule_search_locations:  # type: ignore[union-attr]
        name = f"{name}.__main__"
    module = import_module(name)
    for make_parser in ("parser", "_parser"):
        if hasattr(module, make_parser) and "--help" not in arguments:
            getattr(module, make_parser)().parse_args(arguments)


def check_extras(argument: str) -> None:
    """Check that the extras of `.[a,b]` or `recbole-multdpo[a]` are there."""
    match = re.fullmatch(r"(?:\.|recbole-multdpo)\[(?P<extras>.+)\]", argument)
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for extra in match["extras"].split(",") if match else ():
        assert re.search(rf"^{re.escape(extra.strip())} = \[", declared, re.MULTILINE), argument


def films(path: Path, parent: Path) -> list[str]:
    """The argument that leads to the tutorial's data set, with the settings that the page gives."""
    (parent / "films").mkdir(exist_ok=True)
    (parent / "films" / "films.yaml").write_text(blocks(path, "yaml")[0], encoding="utf-8")
    return [f"--data_path={parent}"]


@each_document
def test_commands_are_valid(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)  # experiments/ and properties are named relative to it
    for words in commands(path):
        if PROGRAM in words:
            own = films(path, tmp_path) if "--dataset=films" in words else []
            check_program(words[words.index(PROGRAM) + 1 :] + own)
        elif words[:2] == ["python", "-m"] and words[2].startswith(OURS):
            check_module(words[2], words[3:])
        elif words[0] == "make":
            targets = (ROOT / "Makefile").read_text(encoding="utf-8")
            assert re.search(rf"^{words[1]}:", targets, re.MULTILINE), words
        elif "install" in words:
            for argument in words:
                check_extras(argument)


@pytest.mark.parametrize(
    "command",
    [
        ["--model=LLMRec", "--dataset=ml-100k", "--los=mult_dpo"],
        ["--model=LLMRec,EASE", "--dataset=ml-100k", "--seeds=3", "--epoch=2"],
    ],
)
def test_a_mistyped_setting_would_be_noticed(command: list[str]) -> None:
    with pytest.raises(Exception, match="did you mean|is a setting of none|no setting"):
        check_program(command)


@each_document
def test_settings_in_the_text_exist(path: Path) -> None:
    if path.name in ("CHANGELOG.md", "experiments.md", "performance.md"):
        return  # these speak of the past too, or of the benchmarks' options
    known = set().union(*(settings_of(model) for model in MODELS)) | _OWN_KEYS
    known |= {"key"}  # the word that stands for any setting
    for source in (ROOT / "recbole_multdpo").rglob(
        "*.py"
    ):  # options of python -m recbole_multdpo...
        known |= set(re.findall(r'"--(\w+)"', source.read_text(encoding="utf-8")))
    for name in re.findall(r"`--([\w.]+)=", prose(path)):
        assert name.rpartition(".")[2] in known, f"--{name} is no setting"


@each_document
def test_code_blocks_can_be_read(path: Path) -> None:
    for code in blocks(path, "python"):
        compile(code, str(path), "exec")
    for code in blocks(path, "yaml"):
        assert isinstance(yaml.safe_load(code), dict)
