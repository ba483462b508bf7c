"""User errors; their messages name the setting or file and the remedy."""

import re
import shlex
from importlib import metadata
from pathlib import Path

_PAGE = re.compile(r"\bdocs/(\w+)\.md\b")


class MultDPOError(Exception):
    """Base of all errors that this package raises on purpose."""


def system_error(error: OSError) -> str:
    """Sentence about an error of the operating system, such as a full disk or denied permission."""
    place = f" {error.filename}" if error.filename is not None else ""
    return (
        f"the system refuses{place}: {error.strerror or error}. Check that the folder may be read "
        "and written by you and that the disk has room."
    )


class ConfigError(MultDPOError, ValueError):
    """A setting is unknown, mistyped, of the wrong type, or impossible together with another."""


class DataError(MultDPOError, ValueError):
    """A data file is missing, malformed, or lacks what the chosen settings need."""


class CheckpointError(MultDPOError, RuntimeError):
    """A checkpoint or cache is absent, truncated, or belongs to other settings."""


class ProcessError(MultDPOError, RuntimeError):
    """Another process of the run has ended, so that this one cannot continue."""


class TrainingError(MultDPOError, RuntimeError):
    """Training cannot continue, for example because the loss is not finite."""


def install_extra(extra: str) -> str:
    """The command that installs an extra's packages, by their names: with or without a clone."""
    try:
        wanted = metadata.requires("recbole-multdpo") or []
    except metadata.PackageNotFoundError:
        wanted = []
    marker = f"extra == '{extra}'"
    names = [text.split(";")[0].strip() for text in wanted if marker in text.replace('"', "'")]
    if not names:  # a clone that is not installed, or was before there was this extra
        return f"pip install '.[{extra}]'"
    return shlex.join(["pip", "install", *names])


def doc_page(name: str) -> str:
    """The place of a page of the documentation, such as `datasets`, for a message.

    In a clone it is the file; elsewhere, as the wheel has no documents, the site's address, or the
    page's name where the package was built without an address.
    """
    file = Path(__file__).parents[1] / "docs" / f"{name}.md"
    if file.is_file():
        return f"docs/{name}.md"
    try:
        urls = metadata.metadata("recbole-multdpo").get_all("Project-URL") or []
    except metadata.PackageNotFoundError:
        urls = []
    sites = [
        address
        for kind, _, address in (url.partition(", ") for url in urls)
        if kind == "Documentation"
    ]
    return f"{sites[0].rstrip('/')}/{name}/" if sites else f"the page {name!r} of the documentation"


def with_doc_pages(text: str) -> str:
    """A text that names files of the documentation, `docs/NAME.md`, with `doc_page` for each."""
    return _PAGE.sub(lambda match: doc_page(match[1]), text)
