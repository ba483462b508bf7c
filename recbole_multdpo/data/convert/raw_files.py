"""Readers of published raw files, plain or gzip, line by line.

They never run code from a file: JSON, CSV and text only, no pickles.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from tqdm import tqdm

from recbole_multdpo.errors import DataError

Reject = Callable[[str, int, str, object], None]  # file, line, reason, row

_ENCODING: ContextVar[str | None] = ContextVar("encoding", default=None)
_UNCLOSED = 1000  # lines in one CSV row, more than any text has: a quotation mark is unclosed

_YEAR = r"(1[89]|20)\d\d"
_TRAILING_BRACKETS = re.compile(r"^(?P<title>.*\S)\s*\((?P<inside>[^()]*)\)$", re.DOTALL)


@contextmanager
def raw_encoding(encoding: str | None) -> Iterator[None]:
    """Context manager in which raw files have this encoding; None: UTF-8 or the format's default.

    Raises:
        DataError: Python has no such text encoding.
    """
    try:
        "".encode(encoding or "utf-8")
    except LookupError:
        raise DataError(
            f"--encoding={encoding} is not a known encoding. Try utf-8-sig, latin-1, cp1252, "
            "utf-16 or gb18030"
        ) from None
    token = _ENCODING.set(encoding)
    try:
        yield
    finally:
        _ENCODING.reset(token)


def find_file(folder: Path, names: Sequence[str], *, need: str) -> Path:
    """Find the only file of `folder` with one of `names`, plain or `.gz`.

    Args:
        folder: the folder; its subfolders are not searched.
        names: file names or glob patterns.
        need: content of the file, for the error message.

    Raises:
        DataError: there is no such file, or several.
    """
    found = find_files(folder, names)
    if len(found) == 1:
        return found[0]
    wanted = " or ".join(names)
    if found:
        raise DataError(
            f"{folder} has several files of the same kind ({', '.join(f.name for f in found)}); "
            "keep one of them"
        )
    raise DataError(f"{folder} has no {wanted} (.gz is fine): {need}")


def find_files(folder: Path, names: Sequence[str]) -> list[Path]:
    """All files of `folder` with one of `names` (or patterns), plain or `.gz`, sorted.

    Raises:
        DataError: there is no such folder.
    """
    if not folder.is_dir():
        raise DataError(f"--input={folder}: there is no such folder")
    found = {path for name in names for end in ("", ".gz") for path in folder.glob(name + end)}
    return sorted(path for path in found if path.is_file())


def byte_lines(path: Path, progress: bool = True) -> Iterator[tuple[int, bytes]]:
    """Yield line numbers from 1 and lines with their line ends, without a byte-order mark.

    Inside `raw_encoding` with an encoding, the lines are re-encoded to UTF-8.

    Raises:
        DataError: the file is missing, unreadable, in another encoding, or its compressed data are
            damaged.
    """
    number, encoding = 0, _ENCODING.get()
    try:
        with path.open("rb") as raw, _bar(path, progress) as bar:
            unpacked = gzip.open(raw) if path.suffix == ".gz" else raw
            for number, line in enumerate(_as_utf8(unpacked, encoding), start=1):
                if number % 4096 == 0:
                    bar.update(raw.tell() - bar.n)
                yield number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataError(
            f"{path} is damaged after line {number} ({error}); download it again"
        ) from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
    except UnicodeError as error:
        raise DataError(
            f"{path} is not {encoding} after line {number} ({error}). Set --encoding to the file's "
            "own"
        ) from None


def _as_utf8(file: Any, encoding: str | None) -> Iterator[bytes]:
    """The lines of a file re-encoded from `encoding` to UTF-8; None: unchanged."""
    if encoding is None:
        return iter(file)
    text = io.TextIOWrapper(file, encoding, newline="\n")
    return (line.encode("utf-8") for line in text)


def _bar(path: Path, progress: bool) -> tqdm:
    """Progress bar in bytes of the file on disk; disabled without a terminal."""
    return tqdm(
        total=path.stat().st_size,
        desc=path.name,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: disabled without a terminal
    )


def text_encoding(path: Path) -> str:
    """Detect the encoding: `utf-8` if the whole file is valid UTF-8, else `latin-1`."""
    try:
        for _, line in byte_lines(path, progress=False):
            line.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def text_lines(path: Path, reject: Reject, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Yield line numbers and lines without line ends; skip blank lines, reject undecodable ones."""
    for number, line in byte_lines(path):
        try:
            text = line.decode(encoding).rstrip("\r\n")
        except UnicodeDecodeError:
            reason = f"not {encoding}: --encoding reads others"
            reject(path.name, number, reason, line.decode(encoding, errors="replace"))
            continue
        if text.strip():
            yield number, text


def csv_rows(
    path: Path,
    columns: Sequence[str],
    reject: Reject,
    encoding: str = "utf-8",
    separator: str = ",",
    header: Sequence[str] | None = None,
    escape: str | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """Yield the last line number and the values of `columns` of each row of a CSV file.

    Quoted values may contain separators, quotation marks and line ends. RecBole's types are no part
    of a column's name: `user_id:token` is `user_id`.

    Args:
        path: the file.
        columns: names of columns.
        reject: called for rows that cannot be read.
        encoding: of the file.
        separator: between values, one character.
        header: names of the columns if the first line does not have them.
        escape: character before a quotation mark inside of a value; None: it is doubled.

    Raises:
        DataError: the header is damaged or lacks a column, the file is empty or in another
            encoding, or a quotation mark is not closed.
    """
    lines = _decoded_lines(path, encoding)
    reader = csv.reader(lines, delimiter=separator, escapechar=escape)
    try:
        if header is None:
            header = [name.strip().partition(":")[0] for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"{path}: the header is not valid CSV: {error}.") from error
    missing = [name for name in columns if name not in header]
    if missing:
        raise DataError(
            f"{path}, line 1: no column {', '.join(missing)}; it has "
            f"{', '.join(header) or 'no header'}"
        )
    at = [header.index(name) for name in columns]
    while True:
        begin, problem, row = reader.line_num + 1, "", []
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            problem = f"not CSV: {error}"
        if reader.line_num - begin > _UNCLOSED:
            raise DataError(
                f"{path}: the row that begins in line {begin} has more than {_UNCLOSED:,} lines: a "
                "quotation mark in it is not closed. Close it, or put the field in quotation marks "
                "and double those inside"
            )
        if row and len(row) != len(header):
            problem = f"{len(row)} columns instead of {len(header)}"
        if problem:
            reject(path.name, reader.line_num, problem, row or "")
        elif row:
            yield reader.line_num, [row[index] for index in at]


def _decoded_lines(path: Path, encoding: str) -> Iterator[str]:
    for number, line in byte_lines(path):
        try:
            yield line.decode(encoding)
        except UnicodeDecodeError:
            raise DataError(
                f"{path}, line {number}: not {encoding}. Set --encoding to the file's own, such as "
                "latin-1"
            ) from None


def json_lines(path: Path, reject: Reject) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line numbers and objects of a file with one JSON object per line."""
    for number, text in text_lines(path, reject):
        try:
            value = json.loads(text)
        except (json.JSONDecodeError, RecursionError):
            reject(path.name, number, "not JSON", text)
            continue
        if isinstance(value, dict):
            yield number, value
        else:
            reject(path.name, number, "not a JSON object", text)


def json_rows(path: Path, reject: Reject) -> Iterator[tuple[int, dict[str, Any]]]:
    """`json_lines`, or the objects of one JSON list, numbered from 1, which is read at once."""
    lines = (line.strip() for _, line in byte_lines(path, progress=False))
    if not next(filter(None, lines), b"").startswith(b"["):
        yield from json_lines(path, reject)
        return
    for number, value in enumerate(read_json(path, list), start=1):
        if isinstance(value, dict):
            yield number, value
        else:
            reject(path.name, number, "not a JSON object", value)


def read_json(path: Path, kind: type[list] | type[dict]) -> Any:
    """Read a small JSON file.

    Raises:
        DataError: it is not UTF-8, not JSON, or not of the type `kind`.
    """
    try:
        value = json.loads(b"".join(line for _, line in byte_lines(path, progress=False)))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 ({error}); set --encoding to its own") from None
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error})") from None
    if not isinstance(value, kind):
        expected = "list" if kind is list else "object"
        raise DataError(f"{path} is not a JSON {expected}; is it another file?")
    return value


def title_and_year(text: str) -> tuple[str, str]:
    """Split "Heat (1995)" into title and year.

    Brackets at the end are removed if they contain a year (`1995`; of `2006-2007` the first year is
    kept), a year and a kind of film (`1995 film`, `2004 American film`), or `film` alone. Other
    brackets are part of the title, as in "Saw (franchise)".

    Returns:
        The title, and the year or an empty text.
    """
    text = text.strip()
    match = _TRAILING_BRACKETS.match(text)
    if match is None:
        return text, ""
    inside = match["inside"].strip()
    year = re.fullmatch(rf"({_YEAR})(\s*[-\u2013]\s*(\d{{4}})?)?", inside)
    film = re.fullmatch(rf"(({_YEAR})\s+)?([\w\s-]*\s)?film", inside)
    if year:
        return match["title"], year[1]
    if film:
        return match["title"], film[2] or ""
    return text, ""
