"""Reading what others publish: plain or gzip, line by line, never a whole file at once.

Nothing here runs code from a file: JSON, CSV and text only, no pickles.
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
_UNCLOSED = 1000  # lines of one CSV row, of which no text has so many

_YEAR = r"(1[89]|20)\d\d"
_TRAILING_BRACKETS = re.compile(r"^(?P<title>.*\S)\s*\((?P<inside>[^()]*)\)$", re.DOTALL)


@contextmanager
def reading_as(encoding: str | None) -> Iterator[None]:
    """Read all raw files of the block in this encoding; None: UTF-8, or what a format finds out.

    Raises:
        DataError: Python has no such encoding of texts.
    """
    try:
        "".encode(encoding or "utf-8")
    except LookupError:
        raise DataError(
            f"--encoding={encoding} is no encoding that is known. Try utf-8-sig, latin-1, cp1252, "
            "utf-16 or gb18030"
        ) from None
    token = _ENCODING.set(encoding)
    try:
        yield
    finally:
        _ENCODING.reset(token)


def find_file(folder: Path, names: Sequence[str], *, need: str) -> Path:
    """The only file of `folder` that has one of `names`, each also with `.gz`.

    Args:
        folder: where to look, not in its folders.
        names: file names or glob patterns.
        need: what the file is, for the message.

    Raises:
        DataError: none or several are there.
    """
    found = find_files(folder, names)
    if len(found) == 1:
        return found[0]
    wanted = " or ".join(names)
    if found:
        raise DataError(
            f"{folder} holds several files of the same kind ({', '.join(f.name for f in found)}); "
            "leave one of them there"
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
    """Lines with their number from 1, line ends included, without a byte-order mark.

    Within `reading_as` an encoding, they are UTF-8 made of that.

    Raises:
        DataError: the file is missing, unreadable, not in that encoding, or its compressed data
            are damaged.
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
    """Lines of a file in an encoding as UTF-8; None: as they are."""
    if encoding is None:
        return iter(file)
    text = io.TextIOWrapper(file, encoding, newline="\n")
    return (line.encode("utf-8") for line in text)


def _bar(path: Path, progress: bool) -> tqdm:
    """Progress in bytes of the file on disk; none where there is no terminal."""
    return tqdm(
        total=path.stat().st_size,
        desc=path.name,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,  # None: where there is no terminal
    )


def text_encoding(path: Path) -> str:
    """`utf-8` if the whole file is UTF-8, else `latin-1`, which older GroupLens files are in."""
    try:
        for _, line in byte_lines(path, progress=False):
            line.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def text_lines(path: Path, reject: Reject, encoding: str = "utf-8") -> Iterator[tuple[int, str]]:
    """Lines with their number, without line ends; blank ones are left out, undecodable rejected."""
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
    path: Path, columns: Sequence[str], reject: Reject, encoding: str = "utf-8"
) -> Iterator[tuple[int, list[str]]]:
    """Values of `columns` in each row of a CSV file with a header, and the line where it ends.

    Quoted values may contain separators, quotation marks and line ends.

    Raises:
        DataError: the header is damaged or lacks a column, the file is empty, not in this encoding,
            or a quotation mark in it is never closed.
    """
    reader = csv.reader(_decoded_lines(path, encoding))
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"{path}: the header is no row of a CSV file: {error}.") from error
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
                f"{path}: the row that begins in line {begin} goes on for more than {_UNCLOSED:,} "
                "lines, as a quotation mark in it is not closed. Close it, or put the field in "
                "quotation marks and double those within"
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
    """The objects of a file with one JSON object per line, with their line numbers."""
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
    """As `json_lines`, or the objects of a JSON list, which is read as a whole, numbered from 1."""
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
    """A small JSON file as a whole.

    Raises:
        DataError: it is not UTF-8, not JSON, or of another kind.
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

    A year in brackets at the end goes, alone (`1995`, `2006-2007`, whose first year is kept) or
    before a kind of film (`1995 film`, `2004 American film`); so does `film` without a year. Other
    brackets are part of the title, as in "Saw (franchise)".

    Returns:
        Title, and the year or an empty text.
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
