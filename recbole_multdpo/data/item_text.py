"""Item texts, read unchanged from a RecBole `.item` file.

RecBole would split titles at spaces (`token_seq`) or pad them into its feature table; the language
model needs the original text.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from recbole_multdpo.data.atomic_file import read_columns
from recbole_multdpo.errors import DataError
from recbole_multdpo.settings.item_template import ItemTemplate


@dataclass(frozen=True)
class TextReport:
    """Counts of missing, empty and shared texts, for the log and for `result.json`."""

    n_items: int
    n_missing: int  # catalogue items without a row in the .item file
    n_empty: int  # rows whose text columns are all empty
    n_with_year: int  # texts that got a year to disambiguate them
    n_shared: int  # items that still share their text with another item
    n_entities: int = 0  # texts in which HTML entities were decoded

    def __str__(self) -> str:
        return (
            f"{self.n_items} item texts: {self.n_missing} items missing in the .item file, "
            f"{self.n_empty} without text, {self.n_with_year} disambiguated by year, "
            f"{self.n_shared} that share a text with another item, "
            f"{self.n_entities} with HTML entities decoded"
        )


OTHER_COLUMNS = (
    "Set --item_text_fields and --item_year_field to columns of this file, or name them in "
    "--item_text_template."
)

_ENTITY = re.compile(r"&(#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});")


def decode_entities(text: str) -> str:
    """Decode HTML entities: `Pen &amp;amp; Ink` becomes `Pen & Ink`.

    Only entities that end in a semicolon, such as `&#39;`, are decoded: `AT&T` and `&copy that` are
    text. Text that was escaped twice is decoded twice.
    """
    for _ in range(3):
        decoded = _ENTITY.sub(lambda match: html.unescape(match[0]), text)
        if decoded == text:
            break
        text = decoded
    return text


def clean_text(text: str) -> str:
    """Normalise a text to one line in Unicode's composed form (NFC).

    Control characters (category Cc) become spaces, and every run of white space becomes one space.
    Joiners and direction marks stay: emoji and right-to-left titles need them.
    """
    text = unicodedata.normalize("NFC", text)
    text = "".join(" " if unicodedata.category(char) == "Cc" else char for char in text)
    return " ".join(text.split())


def text_columns(fields: Sequence[str], template: str | None) -> list[str]:
    """The columns that make an item's text: those of the template, if there is one."""
    return [*fields] if template is None else ItemTemplate(template).columns


def read_item_file(
    path: Path,
    columns: Sequence[str],
    id_column: str,
    separator: str = "\t",
    encoding: str = "utf-8",
) -> dict[str, tuple[str, ...]]:
    """Read `columns` of a RecBole `.item` file (`atomic_file.read_columns`).

    Returns:
        The cleaned values of `columns` by item token (the id as written).

    Raises:
        DataError: the file cannot be read as an atomic file, or has a duplicate item.
    """
    rows: dict[str, tuple[str, ...]] = {}
    for number, (item, *values) in read_columns(
        path,
        [id_column, *columns],
        separator,
        encoding,
        need=(
            "A language model needs item texts: put a RecBole .item file there, with the columns "
            f"{id_column} and {', '.join(columns)}."
        ),
        remedy=OTHER_COLUMNS,
    ):
        if item in rows:
            raise DataError(f"{path}, line {number}: duplicate item {item!r}. Keep one row.")
        rows[item] = tuple(clean_text(value) for value in values)
    return rows


def make_item_texts(
    tokens: Sequence[str],
    rows: Mapping[str, tuple[str, ...]],
    n_text_columns: int,
    template: str | None = None,
) -> tuple[list[str], TextReport]:
    """Make one text per inner item id.

    The text columns fill the template, or are joined by ", " without one, and HTML entities in them
    are decoded. Items with the same text but different years get the year appended, as in
    "Hamlet (1996)"; other items do not, since it would double their tokens. Items that still share
    a text stay separate items. An item without a text is named by its id, as in "item 42".

    Args:
        tokens: external item ids in inner order; entry 0 is [PAD].
        rows: from `read_item_file`: text columns, then optionally the year.
        n_text_columns: number of text columns in `rows`.
        template: an `ItemTemplate`, whose columns these are.

    Returns:
        The texts, entry 0 "[PAD]", and a report on them.

    Raises:
        DataError: no item of the catalogue has a text.
    """
    fill = _joined if template is None else ItemTemplate(template).fill
    texts, years = ["[PAD]"], [""]
    n_missing = n_empty = n_entities = 0
    for token in tokens[1:]:
        row = rows.get(token)
        text = "" if row is None else fill(row[:n_text_columns])
        decoded = clean_text(decode_entities(text))
        n_entities += decoded != text
        text = decoded
        n_missing += row is None
        n_empty += row is not None and not text
        texts.append(text or f"item {token}")
        years.append(row[n_text_columns] if row is not None and len(row) > n_text_columns else "")
    if n_missing + n_empty == len(tokens) - 1:
        raise DataError(
            "no item of the catalogue has a text in the .item file; check that its item ids are "
            "those of the .inter file and that --item_text_fields names the right columns"
        )
    years_of: dict[str, set[str]] = defaultdict(set)
    for text, year in zip(texts[1:], years[1:], strict=True):
        years_of[text].add(year)
    ambiguous = [i for i in range(1, len(texts)) if len(years_of[texts[i]]) > 1 and years[i]]
    for item in ambiguous:
        texts[item] = f"{texts[item]} ({years[item]})"
    counts = Counter(texts[1:])
    n_shared = sum(count for count in counts.values() if count > 1)
    return texts, TextReport(
        len(texts) - 1, n_missing, n_empty, len(ambiguous), n_shared, n_entities
    )


def _joined(values: Sequence[str]) -> str:
    return ", ".join(filter(None, values))
