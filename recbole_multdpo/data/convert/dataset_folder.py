"""Writer of a data set's folder: atomic files that RecBole and this package read alike.

Files are written to a hidden sibling folder, which is renamed at the end: a converter that fails or
is killed leaves no partial data set. The next run removes the hidden folder of a killed one.

A file has one row per line, tabs between fields and no quoting. So no field may contain a tab or a
line break, and none may begin with a quotation mark: pandas, with which RecBole reads, would read
everything up to the next quotation mark as one field, or fail.

- A text is normalised by `clean_text`. If it begins with a quotation mark, a space is prepended,
  which `read_item_file` strips (`text_field`).
- A conversation is JSON (`conversation_text`).
- Rows with an unsafe id are rejected (`id_problem`).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any
from urllib.parse import quote

from recbole_multdpo.data.atomic_file import PANDAS_MISSING
from recbole_multdpo.data.item_text import (
    clean_text,
    decode_entities,
    make_item_texts,
    read_item_file,
)
from recbole_multdpo.errors import DataError
from recbole_multdpo.runtime.durable_files import temporary_sibling

REJECTED_FILE = "rejected.jsonl"
REPORT_FILE = "conversion.json"
_SHOWN_REJECTS = 5
_REJECTED_CHARACTERS = 1000


def text_field(text: str) -> str:
    """Encode a text for an atomic file; `read_item_file` returns `clean_text(text)`."""
    line = clean_text(text.encode("utf-8", errors="replace").decode("utf-8"))
    return f" {line}" if line.startswith('"') else line


def title_text(text: str) -> str:
    """Normalise a title as a run does: decode HTML entities, then `clean_text`."""
    return clean_text(decode_entities(text))


def id_problem(token: str) -> str | None:
    """The reason why a text cannot be the id of a user or item; None if it can."""
    if not token:
        return "empty id"
    if token in PANDAS_MISSING:
        return "id that RecBole reads as a missing value"
    if " " in token or not token.isprintable():
        return "id with white space or invisible characters"
    if token.startswith('"'):
        return "id that begins with a quotation mark"
    return None


def safe_id(text: str) -> str:
    """A text as the id of a user or item: what an atomic file cannot hold is percent-encoded.

    `Jane Doe` becomes `Jane%20Doe`, and `NA`, which pandas takes for a missing value, `%4EA`. White
    space around the text is removed.
    """
    text = text.strip()
    if not id_problem(text):
        return text
    coded = (
        char if char.isprintable() and char not in ' "%' else quote(char, errors="replace")
        for char in text
    )
    token = "".join(coded)
    return f"%{ord(token[0]):X}{token[1:]}" if token in PANDAS_MISSING else token


class AtomicFileWriter:
    """Writes an atomic file row by row."""

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        """Create the file with its header, e.g. `["item_id:token", "title:token_seq"]`."""
        self.columns = tuple(columns)
        self.n_rows = 0
        self._path = path
        self._file = path.open("w", encoding="utf-8", newline="\n")
        self._file.write("\t".join(self.columns) + "\n")

    def write(self, *fields: str) -> None:
        """Write a row.

        Raises:
            ValueError: a field would corrupt the file, which is a bug in the converter.
        """
        line = "\t".join(fields)
        if len(fields) != len(self.columns) or line.count("\t") != len(fields) - 1:
            raise ValueError(
                f"{self._path.name}: expected {len(self.columns)} fields, got {fields}"
            )
        if "\n" in line or "\r" in line or any(field.startswith('"') for field in fields):
            raise ValueError(f"{self._path.name}: unsafe field in {fields}")
        self._file.write(line + "\n")
        self.n_rows += 1

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()


class DatasetFolder:
    """The folder of one data set, which gets its name only after all files are written.

    Use it as a context manager and call `finish` as the last step inside; without `finish`, or
    after an error, all files are removed.

    Attributes:
        name: the data set's name, equal to the folder's.
        path: the hidden folder that is written to.
        counts: counts for the report.
        rejected: number of rejected rows by reason.
        notes: sentences for the user, without a full stop.
        n_decoded: number of titles with HTML entities.
    """

    def __init__(self, output: Path) -> None:
        """Create the hidden folder.

        Raises:
            DataError: `output` exists and is not empty, or its parent cannot be written to.
        """
        self.output = output.absolute()
        self.name = self.output.name
        self.counts: dict[str, Any] = {}
        self.rejected: Counter[str] = Counter()
        self.notes: list[str] = []
        self.n_decoded = 0
        self._first_rejects: list[str] = []
        self._tables: dict[str, AtomicFileWriter] = {}
        self._rejects: IO[str] | None = None
        if self.output.exists() and not (self.output.is_dir() and not any(self.output.iterdir())):
            raise DataError(f"--output={output} exists already; remove it or choose another name")
        self._open = ExitStack()
        try:
            self.path = self._open.enter_context(temporary_sibling(self.output))
        except OSError as error:
            raise DataError(
                f"--output={output} cannot be written ({error.strerror}); choose another folder"
            ) from None

    def __enter__(self) -> DatasetFolder:
        """The folder itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove what was written unless `finish` was called.

        Raises:
            DataError: writing failed, for example on a full disk.
        """
        with self._open:
            with suppress(OSError):  # flushing fails on a full disk
                self._close()
        if isinstance(error, OSError):
            raise DataError(
                f"--output={self.output} cannot be written ({error.strerror or error}). Free disk "
                "space, or choose another folder"
            ) from error

    def table(self, suffix: str, columns: Sequence[str]) -> AtomicFileWriter:
        """Create the file `<name>.<suffix>`, e.g. suffix `inter` or `train.inter`."""
        table = AtomicFileWriter(self.path / f"{self.name}.{suffix}", columns)
        self._tables[suffix] = table
        return table

    @property
    def rows(self) -> dict[str, int]:
        """Number of rows written to each file, by suffix."""
        return {suffix: table.n_rows for suffix, table in self._tables.items()}

    def decoded(self, text: str) -> str:
        """Decode a title's HTML entities and count the titles that have any."""
        decoded = decode_entities(text)
        self.n_decoded += decoded != text
        return decoded

    def reject(self, file: str, line: int, reason: str, row: object) -> None:
        """Count a rejected row and write it to the reject file.

        Args:
            file: name of the raw file.
            line: its line number, from 1; in a JSON list, the number of the entry.
            reason: reason for the rejection; rejected rows are counted by this text.
            row: the raw row.
        """
        self.rejected[reason] += 1
        if len(self._first_rejects) < _SHOWN_REJECTS:
            self._first_rejects.append(f"{file}, line {line}: {reason}")
        if self._rejects is None:
            self._rejects = (self.path / REJECTED_FILE).open("w", encoding="utf-8")
        text = row if isinstance(row, str) else json.dumps(row)
        entry = {"file": file, "line": line, "reason": reason, "row": text[:_REJECTED_CHARACTERS]}
        self._rejects.write(json.dumps(entry) + "\n")

    def finish(
        self, *, properties: str, text_field: str, year_field: str | None, report: dict[str, Any]
    ) -> dict[str, Any]:
        """Write property file and report, read the items back, and rename the folder.

        Args:
            properties: the data set's property file, YAML.
            text_field: name of the `.item` column with the item's text.
            year_field: name of the column with its year; None if there is none.
            report: options and sources, written with the counts.

        Returns:
            The report as written.

        Raises:
            DataError: no interaction or no item was written, no item has a text, or the output
                folder was created meanwhile.
        """
        self._close()
        rows = self.rows
        n_inter = sum(n for suffix, n in rows.items() if suffix.endswith("inter"))
        if not n_inter or not rows["item"]:
            raise DataError(
                f"nothing to convert: {n_inter} interactions and {rows['item']} items are left. "
                f"{self.counts or ''} {self.rejects_text()}"
            )
        if self.n_decoded:
            self.counts["titles_with_html_entities"] = self.n_decoded
            self.notes.append(f"{self.n_decoded:,} titles had HTML entities, which were decoded")
        (self.path / f"{self.name}.yaml").write_text(properties, encoding="utf-8")
        written = {
            "dataset": self.name,
            **report,
            "rows": rows,
            "counts": self.counts,
            "rejected": dict(self.rejected.most_common()),
            "item_texts": self._item_texts(text_field, year_field, rows["item"]),
        }
        report_file = self.path / REPORT_FILE
        report_file.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
        try:
            self.path.rename(self.output)
        except OSError as error:
            raise DataError(
                f"the finished folder cannot be renamed to {self.output} ({error.strerror}); "
                "remove that folder and convert again"
            ) from None
        return written

    def rejects_text(self) -> str:
        """Text for the user: the number of rejected rows, and file and line of the first ones."""
        if not self.rejected:
            return "No row was rejected."
        first = "\n".join(f"  {line}" for line in self._first_rejects)
        return f"{self.rejected.total():,} rows were rejected, the first of them:\n{first}"

    def _item_texts(self, text_field: str, year_field: str | None, n_items: int) -> dict[str, int]:
        """Read the items as a run does and return the report of `make_item_texts`."""
        columns = [text_field, *([year_field] if year_field else [])]
        rows = read_item_file(self.path / f"{self.name}.item", columns, "item_id")
        if len(rows) != n_items:
            raise AssertionError(f"{n_items} items were written, {len(rows)} read back")
        return vars(make_item_texts(["[PAD]", *rows], rows, 1)[1])

    def _close(self) -> None:
        for table in self._tables.values():
            table.close()
        if self._rejects is not None:
            self._rejects.close()
