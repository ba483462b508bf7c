"""Writing the folder of a data set: atomic files that RecBole and this package read alike.

Everything is written into a hidden folder beside the target and renamed at the end, so that a
converter that fails or is killed leaves no half data set behind. The hidden folder of one that was
killed is removed by the next one.

A file has one row per line and tabs between fields, and no quoting rules. So no field may contain
a tab or a line end, and none may begin with a quotation mark, because RecBole reads with pandas,
which would take everything up to the next quotation mark for one field, or give up:

- a text is written as `clean_text` gives it back when `read_item_file` reads it: white space and
  control characters as single spaces. If it begins with a quotation mark, a space is put before
  it, which `clean_text` takes away again (`text_field`);
- a conversation is JSON (`conversation_text`);
- an id must be safe as it is (`id_problem`); a row with another one is rejected.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any

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
    """A text as it stands in an atomic file; `read_item_file` gives back `clean_text(text)`."""
    line = clean_text(text.encode("utf-8", errors="replace").decode("utf-8"))
    return f" {line}" if line.startswith('"') else line


def title_text(text: str) -> str:
    """A title as a run reads it: HTML entities decoded, `clean_text`."""
    return clean_text(decode_entities(text))


def id_problem(token: str) -> str | None:
    """Why a text cannot be a user's or an item's id; None if it can."""
    if not token:
        return "empty id"
    if token in PANDAS_MISSING:
        return "id that RecBole reads as a missing value"
    if " " in token or not token.isprintable():
        return "id with white space or invisible characters"
    if token.startswith('"'):
        return "id that begins with a quotation mark"
    return None


class AtomicFileWriter:
    """One atomic file being written, row by row."""

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
            ValueError: a field would break the file; converters must not let that happen.
        """
        line = "\t".join(fields)
        if len(fields) != len(self.columns) or line.count("\t") != len(fields) - 1:
            raise ValueError(f"{self._path.name}: {len(self.columns)} fields wanted, got {fields}")
        if "\n" in line or "\r" in line or any(field.startswith('"') for field in fields):
            raise ValueError(f"{self._path.name}: unsafe field in {fields}")
        self._file.write(line + "\n")
        self.n_rows += 1

    def close(self) -> None:
        """Flush and close the file."""
        self._file.close()


class DatasetFolder:
    """The folder of one data set, which appears under its name only when all is written.

    Use as a context manager and call `finish` as the last step inside; without it, or after an
    error, nothing is left.

    Attributes:
        name: the data set's name, that of the folder.
        path: the hidden folder that is written to.
        counts: what happened, for the report.
        rejected: rejected rows per reason.
        notes: what the user should read, sentences without a full stop.
        n_decoded: titles that had HTML entities.
    """

    def __init__(self, output: Path) -> None:
        """Choose the folder to make.

        Raises:
            DataError: it exists and is not empty, or its parent cannot be written to.
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
            DataError: something could not be written, as on a full disk.
        """
        with self._open:
            with suppress(OSError):  # what is not written yet, on a full disk
                self._close()
        if isinstance(error, OSError):
            raise DataError(
                f"--output={self.output} cannot be written ({error.strerror or error}). Free disk "
                "space, or choose another folder"
            ) from error

    def table(self, suffix: str, columns: Sequence[str]) -> AtomicFileWriter:
        """A new file `<name>.<suffix>`, e.g. suffix `inter` or `train.inter`."""
        table = AtomicFileWriter(self.path / f"{self.name}.{suffix}", columns)
        self._tables[suffix] = table
        return table

    @property
    def rows(self) -> dict[str, int]:
        """Rows written to each file so far, by its suffix."""
        return {suffix: table.n_rows for suffix, table in self._tables.items()}

    def decoded(self, text: str) -> str:
        """A title with its HTML entities decoded; the titles that had any are counted."""
        decoded = decode_entities(text)
        self.n_decoded += decoded != text
        return decoded

    def reject(self, file: str, line: int, reason: str, row: object) -> None:
        """Set a row aside: counted, and written to the reject file.

        Args:
            file: name of the raw file.
            line: line number in it, from 1; in a JSON list, the number of the entry.
            reason: why; the same words for the same kind of reason, as they are counted.
            row: what stood there.
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
        """Write property file and report, read the items back, and give the folder its name.

        Args:
            properties: the data set's property file, YAML.
            text_field: name of the `.item` column with the item's text.
            year_field: name of the column with its year, if there is one.
            report: options and sources, to be kept with the counts.

        Returns:
            The report as written.

        Raises:
            DataError: no interaction or no item was written, no item has a text, or somebody made
                the output folder meanwhile.
        """
        self._close()
        rows = self.rows
        n_inter = sum(n for suffix, n in rows.items() if suffix.endswith("inter"))
        if not n_inter or not rows["item"]:
            raise DataError(
                f"nothing to convert: {n_inter} interactions and {rows['item']} items were left. "
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
                f"{self.output} could not be given its name ({error.strerror}); remove what is "
                "there and convert again"
            ) from None
        return written

    def rejects_text(self) -> str:
        """The rejected rows in words: how many, the first ones, and where they are."""
        if not self.rejected:
            return "No row was rejected."
        first = "\n".join(f"  {line}" for line in self._first_rejects)
        return f"{self.rejected.total():,} rows were rejected, the first of them:\n{first}"

    def _item_texts(self, text_field: str, year_field: str | None, n_items: int) -> dict[str, int]:
        """Read the items as a run will; what `make_item_texts` reports on them."""
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
