"""Sentences of errors that name a remedy."""

import ast
import re
from collections.abc import Iterator
from email.message import Message
from importlib import metadata
from pathlib import Path

from recbole_multdpo import errors
from recbole_multdpo.errors import doc_page, install_extra, with_doc_pages
from recbole_multdpo.settings.help import explained


def test_an_extra_is_named_by_its_packages(monkeypatch) -> None:
    wanted = ["torch>=2.6", 'gguf>=0.10; extra == "smollm2"', "accelerate>=1.1; extra == 'smollm2'"]
    monkeypatch.setattr(metadata, "requires", lambda name: wanted)
    assert install_extra("smollm2") == "pip install 'gguf>=0.10' 'accelerate>=1.1'"


def test_a_clone_that_is_not_installed(monkeypatch) -> None:
    def requires(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert install_extra("demo") == "pip install '.[demo]'"


def test_a_clone_has_the_file_and_others_the_address_or_the_name(monkeypatch, tmp_path) -> None:
    assert doc_page("datasets") == "docs/datasets.md"
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "recbole_multdpo" / "errors.py"))
    urls = Message()
    urls["Project-URL"] = "Paper, https://arxiv.org/abs/2606.10078"
    monkeypatch.setattr(metadata, "metadata", lambda name: urls)
    assert doc_page("datasets") == "the page 'datasets' of the documentation"
    urls["Project-URL"] = "Documentation, https://example.github.io/multdpo/"
    assert doc_page("datasets") == "https://example.github.io/multdpo/datasets/"
    told = with_doc_pages("errors are in docs/losses.md; see docs/scaling.md#memory")
    assert told == (
        "errors are in https://example.github.io/multdpo/losses/; "
        "see https://example.github.io/multdpo/scaling/#memory"
    )

    def requires(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", requires)
    assert doc_page("datasets") == "the page 'datasets' of the documentation"


PACKAGE = Path(errors.__file__).parent
FILE = re.compile(r"\bdocs/\w+\.md\b")


def said(tree: ast.AST) -> Iterator[str]:
    """Texts of a module that its user may read: all but docstrings."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            if id(node) not in docstrings:
                yield node.value


def test_no_message_names_a_file_that_only_a_clone_has() -> None:
    """The wheel has no documents: messages say `doc_page("datasets")`."""
    assert list(filter(FILE.search, said(ast.parse("f'see docs/faq.md, {1}'")))) != []  # a control
    found = {
        f"{path.relative_to(PACKAGE)}: {text}"
        for path in PACKAGE.rglob("*.py")
        for text in said(ast.parse(path.read_text(encoding="utf-8")))
        if FILE.search(text)
    }
    assert not found
    pages = set()
    for path in PACKAGE.rglob("*.py"):
        pages |= set(re.findall(r"doc_page\([\"'](\w+)[\"']\)", path.read_text(encoding="utf-8")))
    assert {"datasets", "scaling"} <= pages
    for name in pages:
        assert (PACKAGE.parent / "docs" / f"{name}.md").is_file(), name


def test_help_says_what_a_wheel_has(monkeypatch, tmp_path) -> None:
    assert "docs/losses.md" in explained("loss") and "docs/losses.md" in explained("losses")
    monkeypatch.setattr(errors, "__file__", str(tmp_path / "recbole_multdpo" / "errors.py"))
    topics = ("losses", "datasets", "loss", "deepspeed", "context", "test_information")
    assert not any(FILE.search(explained(topic)) for topic in topics)
