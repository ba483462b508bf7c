"""Read untrusted files: within limits, with clear errors.

A run folder may come from somebody else. Its files may be damaged, edited, or malicious: a pipe in
place of a file, gigabytes of brackets, a number of a million digits. The readers here return plain
data or raise `OSError` or `ValueError`, nothing else; their callers name the file and the remedy.
"""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from recbole_multdpo.errors import DataError, MultDPOError

MB = 2**20
TEXT_LIMIT = 16 * MB  # of JSON: results are kilobytes
MAX_DEPTH = 32
MAX_VALUES = 1_000_000
MAX_NUMBER = 2**64


def check_regular(path: Path, limit: int) -> None:
    """Refuse a file that is too large or not regular, such as a pipe, whose reader would hang.

    Raises:
        OSError: it does not exist, is not accessible, or is a circular link.
        ValueError: it is not a regular file, or has more than `limit` bytes.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("it is not a regular file")
    if status.st_size > limit:
        raise ValueError(f"it has {status.st_size:,} bytes, more than {limit:,}")


def is_file(path: Path) -> bool:
    """True if the file exists; False also where its folder may not be searched."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


@contextmanager
def readable(
    path: Path,
    remedy: str,
    error: type[MultDPOError] = DataError,
    also: tuple[type[Exception], ...] = (),
) -> Iterator[None]:
    """Replace exceptions raised inside by `error` with `PATH cannot be read (...). REMEDY`.

    Args:
        path: the file that is read inside.
        remedy: a sentence for the user.
        error: type to raise in place of `OSError` and `ValueError`.
        also: further exceptions to replace.
    """
    causes: tuple[type[Exception], ...] = (OSError, ValueError, *also)
    try:
        yield
    except causes as cause:
        raise error(f"{path} cannot be read ({cause}). {remedy}") from cause


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, 64 hexadecimal digits."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(MB):
            digest.update(block)
    return digest.hexdigest()


def read_bytes(path: Path, limit: int = TEXT_LIMIT) -> bytes:
    """Read the bytes of a regular file; raises as `check_regular`."""
    check_regular(path, limit)
    with path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:  # it grew while it was read
        raise ValueError(f"it has more than {limit:,} bytes")
    return data


def read_json(path: Path, *, finite: bool = True) -> Any:
    """Read a JSON file as plain data.

    Args:
        path: a UTF-8 file.
        finite: refuse NaN and Infinity, which Python writes although they are not JSON.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not a regular file, too large, not UTF-8 or not JSON; it has a duplicate
            key, or data that `plain` refuses.
    """
    text = read_bytes(path).decode("utf-8")
    constant = _refuse_constant if finite else float
    try:
        found = json.loads(text, object_pairs_hook=_unique_keys, parse_constant=constant)
        return plain(found)
    except (RecursionError, TypeError) as error:
        raise ValueError(str(error)) from error


def plain(value: Any) -> Any:
    """Check that a value holds only plain data; returns it with tuples as lists.

    Raises:
        TypeError: it holds an object, set, complex number or bytes; it is nested too deeply or has
            too many values (a YAML alias can make it endless); a number has more than 64 bits, or
            a text holds a zero byte or half a character.
    """
    return _plain(value, MAX_DEPTH, [MAX_VALUES])


def _plain(value: Any, depth: int, left: list[int]) -> Any:
    left[0] -= 1
    if left[0] < 0:
        raise TypeError(f"more than {MAX_VALUES:,} values")
    if isinstance(value, str):
        return _checked_text(value)
    if value is None or isinstance(value, bool | float):
        return value
    if isinstance(value, int):
        if abs(value) > MAX_NUMBER:
            raise TypeError("a number of more than 64 bits")
        return value
    if depth < 0 and isinstance(value, list | tuple | Mapping):
        raise TypeError(f"nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, list | tuple):
        return [_plain(item, depth - 1, left) for item in value]
    if isinstance(value, Mapping):
        return {_plain_key(key): _plain(item, depth - 1, left) for key, item in value.items()}
    raise TypeError(
        f"{type(value).__name__} is neither text, number, True, False, None, list nor mapping"
    )


def _plain_key(key: Any) -> Any:
    if isinstance(key, str):
        return _checked_text(key)
    if key is None or isinstance(key, bool | float):
        return key
    if isinstance(key, int) and abs(key) <= MAX_NUMBER:
        return key
    raise TypeError("a mapping's key must be text or a number")


def _checked_text(text: str) -> str:
    if "\0" in text:
        raise TypeError("a text with a zero byte")
    if any("\ud800" <= letter <= "\udfff" for letter in text):
        raise TypeError("a text with half a character")
    return text


def _unique_keys(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("duplicate key")
    return found


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not a JSON number")


def fitted(kind: TypeAdapter[Any], value: Any) -> Any:
    """Check that a value has the form of a type and return it unchanged; raises as `parsed`."""
    parsed(kind, value, strict=True)
    return value


def parsed(kind: TypeAdapter[Any], value: Any, *, strict: bool = False) -> Any:
    """Convert a value to a type, such as a mapping to a dataclass.

    Args:
        kind: the type.
        value: plain data.
        strict: convert nothing, such as a list to a tuple.

    Raises:
        ValueError: it does not fit; the message names the field.
    """
    try:
        return kind.validate_python(value, strict=strict)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"])) or "it"
        raise ValueError(f"{place}: {first['msg']}") from error
