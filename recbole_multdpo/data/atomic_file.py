"""A checking reader of RecBole's atomic files, for RecBole's tables and for our texts.

A row is a line. In tab-separated files a quotation mark is an ordinary character, unless the whole
file follows the rules of CSV, as written by pandas or a spreadsheet. With any other separator the
rules of CSV apply. Errors name file, line and remedy.
"""

from __future__ import annotations

import codecs
import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import IO, Any

import numpy as np
import pandas as pd

from recbole_multdpo.data.times import EXACT_DIGITS, TimeColumn, check_time_column, times_needed_by
from recbole_multdpo.errors import DataError
from recbole_multdpo.settings.messages import nearest

TYPES = ("token", "token_seq", "float", "float_seq")
# texts that pandas, and so RecBole, reads as missing values
PANDAS_MISSING = frozenset(
    "#N/A|#N/A N/A|#NA|-1.#IND|-1.#QNAN|-NaN|-nan|1.#IND|1.#QNAN|<NA>|N/A|NA|NULL|NaN|None|n/a|nan"
    "|null".split("|")
)
_BLOCK = 2**15  # rows read at once
_LONGEST = 2**31 - 1  # characters per field; csv's default limit is 128 kB
_QUOTING = (
    'In CSV a field that begins with " must end with ", and every " inside must be doubled; '
    "columns separated by tabs need no quoting."
)


@dataclass(frozen=True)
class AtomicFile:
    """An atomic file whose first line has been read.

    Attributes:
        path: the file.
        columns: names of the columns, without their types.
        types: one of `TYPES` per column, or '' if the first line has none.
        separator: between the fields of a row.
        encoding: of the file.
        quoted: True if rows follow the rules of CSV.
        own_id: the file's own name of its column of ids, which has `ITEM_ID_FIELD`'s name in
            `columns`; None if it is the same.
    """

    path: Path
    columns: list[str]
    types: list[str]
    separator: str
    encoding: str
    quoted: bool
    own_id: str | None = None

    def blocks(self) -> Iterator[tuple[list[int], list[list[str]]]]:
        """Line numbers and fields of the rows, in blocks of `_BLOCK` rows, without blank lines.

        Raises:
            DataError: a row has another number of fields, a quotation is not closed, or the
                encoding is wrong.
        """
        read = self._csv_blocks if self.quoted else self._plain_blocks
        with _opened(self.path, self.encoding) as file:
            next(file, "")
            for numbers, rows in read(file):
                if set(map(len, rows)) != {len(self.columns)}:
                    self._refuse_width(numbers, rows)
                yield numbers, rows

    def _plain_blocks(self, file: IO[str]) -> Iterator[tuple[list[int], list[list[str]]]]:
        first = 2
        while lines := list(islice(file, _BLOCK)):
            numbers = list(range(first, first + len(lines)))
            first += len(lines)
            if any(map(str.isspace, lines)):
                numbers = [n for n, line in zip(numbers, lines, strict=True) if not line.isspace()]
                lines = [line for line in lines if not line.isspace()]
            if lines:
                yield numbers, [line.rstrip("\r\n").split(self.separator) for line in lines]

    def _csv_blocks(self, file: IO[str]) -> Iterator[tuple[list[int], list[list[str]]]]:
        rows = self._csv_rows(file)
        while block := list(islice(rows, _BLOCK)):
            numbers, fields = map(list, zip(*block, strict=True))
            yield numbers, fields

    def _csv_rows(self, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
        reader = csv.reader(lines, delimiter=self.separator, strict=True)
        number = 1
        while True:
            number += 1
            where = f"{self.path}, line {number}"
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"{where} cannot be read: {error}. {_QUOTING}") from None
            if reader.line_num + 1 != number:
                raise DataError(
                    f'{where}: a field begins with ", and its closing " is only in line '
                    f"{reader.line_num + 1}. {_QUOTING} Replace line breaks inside texts by spaces."
                )
            if any(map(str.strip, row)):
                yield number, row

    def _refuse_width(self, numbers: Sequence[int], rows: Sequence[Sequence[str]]) -> None:
        number, row = next(
            (number, row)
            for number, row in zip(numbers, rows, strict=True)
            if len(row) != len(self.columns)
        )
        raise DataError(
            f"{self.path}, line {number}: {len(row)} columns instead of {len(self.columns)}. Put "
            f"one value under each of {', '.join(self.columns)}; "
            + (
                "replace line breaks and tabs inside texts by spaces."
                if self.separator == "\t"
                else f"quote texts with a line break or {self.separator!r} by the rules of CSV."
            )
        )


@contextmanager
def _opened(path: Path, encoding: str) -> Iterator[IO[str]]:
    """Open a file whose lines end in LF or CR LF; a CR alone does not end a line."""
    limit = csv.field_size_limit(_LONGEST)
    try:
        with path.open(encoding=encoding, newline="\n") as file:
            yield file
    except UnicodeError as error:
        raise DataError(
            f"{path} is not {encoding} ({error}). Set --encoding to the file's own, such as "
            "--encoding=latin-1, or convert it, e.g. with iconv."
        ) from None
    except (OSError, LookupError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read ({why}). Check file and --encoding.") from None
    finally:
        csv.field_size_limit(limit)


def open_atomic_file(path: Path, separator: str = "\t", encoding: str = "utf-8") -> AtomicFile:
    """Read the first line of an atomic file and detect whether its rows follow the rules of CSV.

    Args:
        path: the file.
        separator: between the fields of a row.
        encoding: of the file; a byte-order mark at its beginning is skipped.

    Raises:
        DataError: the file cannot be read.
    """
    with _opened(path, encoding) as file:
        first = next(file, "").rstrip("\r\n").removeprefix("\ufeff")
    fields = [field.partition(":") for field in _header(first, separator)]
    atomic = AtomicFile(
        path,
        [name for name, _, _ in fields],
        [kind for _, _, kind in fields],
        separator,
        encoding,
        separator != "\t" and len(separator) == 1,
    )
    return replace(atomic, quoted=True) if _follows_csv(atomic) else atomic


def open_file(path: Path, config: Mapping[str, Any]) -> AtomicFile:
    """Read the first line of a run's file; a `.item` file's column of ids gets its usual name.

    If a `.item` file has no `ITEM_ID_FIELD`, the first of `alias_of_item_id` that it has takes that
    name. RecBole's Steam needs it: `product_id` in the `.inter` file is `id` in the `.item` file.
    """
    file = open_atomic_file(path, config["field_separator"], config["encoding"] or "utf-8")
    if path.suffix != ".item":
        return file
    item = config["ITEM_ID_FIELD"]
    found = column_of(" | ".join([item, *(config["alias_of_item_id"] or [])]), file.columns)
    if found in (item, None):
        return file
    columns = [item if name == found else name for name in file.columns]
    return replace(file, columns=columns, own_id=found)


def _header(line: str, separator: str) -> list[str]:
    """The fields of a first line, which may be quoted."""
    if '"' in line and len(separator) == 1:
        try:
            return next(csv.reader([line], delimiter=separator, strict=True))
        except csv.Error:  # the unquoted names are refused later
            pass
    return line.split(separator)


def _follows_csv(file: AtomicFile) -> bool:
    """True if some fields begin with a quotation mark, and all of these are valid in CSV."""
    if file.quoted or len(file.separator) > 1:
        return file.quoted
    begins_field = file.separator + '"'
    with _opened(file.path, file.encoding) as lines:
        if not any(line.startswith('"') or begins_field in line for line in lines):
            return False
    try:
        for _ in replace(file, quoted=True).blocks():
            pass
    except DataError:
        return False
    return True


def column_of(name: str, columns: Sequence[str]) -> str | None:
    """The column that a name such as `movie_title | movie_name` means: the first that exists."""
    return next((each for each in map(str.strip, name.split("|")) if each in columns), None)


def missing_columns(names: Sequence[str], columns: Sequence[str]) -> list[str]:
    """The names for which there is no column."""
    return [name for name in names if column_of(name, columns) is None]


def read_columns(
    path: Path,
    columns: Sequence[str],
    separator: str = "\t",
    encoding: str = "utf-8",
    *,
    need: str,
    remedy: str,
) -> Iterator[tuple[int, list[str]]]:
    """Yield line number and values of `columns` for each row.

    Args:
        path: the file.
        columns: names without their types; `a | b` is `a`, or `b` if the file has no `a`.
        separator: between the fields of a row.
        encoding: of the file.
        need: purpose and required content of the file, for the error if the file is missing.
        remedy: instructions for the error if a column is missing.

    Raises:
        DataError: the file is missing, cannot be read, or lacks a column.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist. {need}")
    file = open_atomic_file(path, separator, encoding)
    missing = missing_columns(columns, file.columns)
    if missing:
        raise DataError(
            f"{path}, line 1: no column {', '.join(map(repr, missing))}; the file has "
            f"{', '.join(filter(None, file.columns)) or 'no header'}. {remedy}"
        )
    at = [file.columns.index(str(column_of(column, file.columns))) for column in columns]
    for numbers, rows in file.blocks():
        for number, row in zip(numbers, rows, strict=True):
            yield number, [row[index] for index in at]


def check_atomic_files(config: Mapping[str, Any]) -> None:
    """Check the first lines of the `.inter`, `.item` and `.user` files that RecBole will load.

    Args:
        config: the run's settings.

    Raises:
        DataError: a first line is malformed, a column of ids is missing, or a column of times that
            a setting needs.
    """
    folder, name = Path(config["data_path"]), config["dataset"]
    user, item = config["USER_ID_FIELD"], config["ITEM_ID_FIELD"]
    parts = config["benchmark_filename"]
    inter = [f"{name}.{part}.inter" for part in parts] if parts else [f"{name}.inter"]
    id_fields = {
        **dict.fromkeys(inter, [user, item]),
        f"{name}.item": [item],
        f"{name}.user": [user],
    }
    for file, fields in id_fields.items():
        columns = config["load_col"]
        loaded = "*" if columns is None else columns.get(file.rsplit(".", 1)[1], [])
        if loaded and (folder / file).is_file():
            atomic = open_file(folder / file, config)
            check_header(atomic, fields)
            _check_named_columns(atomic, getattr(config, "external_config_dict", config))
            if file in inter:
                check_time_column(
                    f"{atomic.path}, line 1",
                    config["TIME_FIELD"],
                    dict(zip(atomic.columns, atomic.types, strict=True)),
                    times_needed_by(config),
                )


def _check_named_columns(file: AtomicFile, given: Mapping[str, Any]) -> None:
    """Refuse a column of `load_col` that the file does not have; RecBole would leave it out.

    Args:
        file: its first line has been read.
        given: the settings of the user and of the data set, without those of RecBole, which name
            columns that only some data sets have.
    """
    columns = given.get("load_col")
    named = (columns or {}).get(file.path.suffix[1:], [])
    unknown = [] if named == "*" else [name for name in named if name not in file.columns]
    if unknown:
        raise DataError(
            f"load_col: {file.path} has no column {unknown[0]!r}"
            f"{nearest(unknown[0], file.columns) or '.'} It has {', '.join(file.columns)}."
        )


def _with_mark(encoding: str) -> str:
    """The name of an encoding for files that begin with a byte-order mark."""
    family = codecs.lookup(encoding).name[:6]
    return family if family in ("utf-16", "utf-32") else "utf-8-sig"


def check_header(file: AtomicFile, id_fields: Sequence[str]) -> None:
    """Refuse a first line that RecBole does not understand; see `check_atomic_files`."""
    if not any(file.columns):
        raise DataError(
            f"{file.path} is empty. Its first line must name the columns, such as "
            "user_id:token<tab>item_id:token<tab>rating:float."
        )
    with _opened(file.path, file.encoding) as lines:
        if next(lines).startswith("\ufeff"):
            raise DataError(
                f"{file.path}, line 1: begins with a byte-order mark, which RecBole reads as part "
                "of the first column's name. Save the file without it, or set "
                f"--encoding={_with_mark(file.encoding)}."
            )
    for number, (field, kind) in enumerate(zip(file.columns, file.types, strict=True)):
        if kind not in TYPES or not field:
            column = f"{field}:{kind}" if kind else field
            raise DataError(
                f"{file.path}, line 1: {column!r} is not a column. Write <name>:<type> with a type "
                f"of {', '.join(TYPES)}, and {file.separator!r} between columns; "
                "--field_separator sets another separator."
            )
        if field in file.columns[:number]:
            raise DataError(f"{file.path}, line 1: two columns are called {field!r}. Rename one.")
    for field in id_fields:
        if field not in file.columns:
            raise DataError(
                f"{file.path}, line 1: no column {field!r}; the file has "
                f"{', '.join(file.columns)}. Rename one, or set --USER_ID_FIELD and "
                "--ITEM_ID_FIELD."
            )


def read_table(
    file: AtomicFile,
    columns: Sequence[str],
    id_fields: Sequence[str],
    may_be_empty: Sequence[str] | None = None,
    times: TimeColumn | None = None,
) -> pd.DataFrame:
    """Read a file as RecBole's table: tokens and sequences as text, floats as float64.

    An empty token is missing (NaN); the token `NA` is an ordinary text.

    Args:
        file: the file.
        columns: names of the columns to read; the table has them in the file's order.
        id_fields: columns that must have an id in every row.
        may_be_empty: float columns in which an empty field is a missing number (NaN); None for
            all of them.
        times: the column of times, which may have dates; empty fields are errors if a setting needs
            times, unless `may_be_empty` contains the column.

    Raises:
        DataError: a row cannot be read, an id is empty, or a field is not a number; the message
            names line, field and remedy.
    """
    at = [index for index, column in enumerate(file.columns) if column in set(columns)]
    pieces: list[list[Any]] = [[] for _ in at]
    seen: dict[str, str] = {}  # equal texts share one object: ids repeat often
    for numbers, rows in file.blocks():
        by_column = list(zip(*rows, strict=True))
        for piece, index in zip(pieces, at, strict=True):
            field, kind = file.columns[index], file.types[index]
            values = by_column[index]
            if field in id_fields and "" in values:
                raise DataError(
                    f"{file.path}, line {numbers[values.index('')]}: {field} is empty. Give it an "
                    "id, or remove the row."
                )
            if kind == "float":
                empty = may_be_empty is None or field in may_be_empty
                if times is None or field != times.field:
                    piece.append(_numbers(file, field, numbers, values, empty))
                else:
                    piece.append(
                        _times(file, times, numbers, values, field in (may_be_empty or ()))
                    )
            else:
                piece.append(list(map(seen.setdefault, values, values)))
    table: dict[str, Any] = {}
    for piece, index in zip(pieces, at, strict=True):
        field, kind = file.columns[index], file.types[index]
        if kind == "float":
            table[field] = np.concatenate(piece) if piece else np.empty(0)
        else:
            column = pd.Series([value for part in piece for value in part], dtype=object)
            table[field] = column.where(column != "", np.nan) if kind == "token" else column
    return pd.DataFrame(table)


def _numbers(
    file: AtomicFile, field: str, numbers: Sequence[int], values: Sequence[str], may_be_empty: bool
) -> np.ndarray:
    """The values as float64; empty ones become NaN if `may_be_empty`."""
    try:
        found = np.array(list(map(float, values)))
        if np.isfinite(found).all():
            return found
    except ValueError:
        pass
    return np.array(
        [
            _number(f"{file.path}, line {number}", field, value, may_be_empty)
            for number, value in zip(numbers, values, strict=True)
        ]
    )


def _times(
    file: AtomicFile,
    times: TimeColumn,
    numbers: Sequence[int],
    values: Sequence[str],
    may_be_empty: bool,
) -> np.ndarray:
    """The values as float64, dates in seconds; empty ones become NaN if `may_be_empty`."""
    try:
        found = np.array(list(map(float, values)))
        if np.isfinite(found).all() and max(map(len, values)) <= EXACT_DIGITS:
            times.number(f"{file.path}, line {numbers[0]}", values[0])
            return found
    except ValueError:
        pass
    may_be_empty |= times.needed_by is None
    return np.array(
        [
            math.nan
            if may_be_empty and _is_empty(value)
            else times.number(f"{file.path}, line {number}", value)
            for number, value in zip(numbers, values, strict=True)
        ]
    )


def _is_empty(value: str) -> bool:
    return not value.strip() or value.strip() in PANDAS_MISSING


def _number(where: str, field: str, value: str, may_be_empty: bool) -> float:
    if may_be_empty and _is_empty(value):
        return math.nan
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{where}: {field} is {value[:40]!r} and not a finite number. Write a number, remove "
            f"the row, or remove {field} from --load_col; if {field} is text, write {field}:token "
            "in line 1."
        )
    return number
