"""Lists of titles as JSON: prompts with quoted titles such as SPRec's, or plain lists.

A row of a file (JSON lines or one JSON list) is a user of its own, in one of two forms:

- `{"input": "... read these: \\"A\\", \\"B\\", please ...", "output": "\\"C\\""}`, or with the keys
  `prompt` and `response`: the titles stand in quotation marks, separated by `", "`;
- `{"history": ["A", "B"], "targets": ["C"]}`.

The file's name may end in json or jsonl. Beside it, `id2name.json` (id -> title) gives ids and
titles that no row has; titles that it lacks get ids of their own, `t1`, `t2`, ... Titles are the
same if a run reads them alike (`clean_text`).
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_multdpo.data.convert.atomic_files import DatasetFolder, Table, id_problem, text_field
from recbole_multdpo.data.convert.raw_files import Reject, find_files, json_rows, read_json
from recbole_multdpo.data.convert.splits import (
    SPLITS,
    add_split_arguments,
    draw_split,
    split_files,
)
from recbole_multdpo.data.item_text import clean_text
from recbole_multdpo.errors import DataError

HELP = "prompts and answers with titles, such as SPRec's: train.json, optionally valid and test"

_TEXT_KEYS = (("input", "output"), ("prompt", "response"))

_LEAVE_ONE_OUT = """\
eval_args:                       # of each user's titles, in their order, the last is for test and
  split: {'LS': valid_and_test}  #   the one before it for validation
  group_by: user
  order: TO
"""
_PARTS = """\
benchmark_filename: [train, valid, test]   # parts of the split, one .inter file each; the histories
                                 #   of validation and test users stand in the training part
"""
PROPERTIES = """\
# {name}, converted from lists of titles: {n_users:,} users, {n_items:,} items.
load_col:                        # columns loaded; timestamp is the place in the list
  inter: [user_id, item_id, timestamp]
  item: [item_id]                # the catalogue is every item of the .item file
val_interval: ~                  # every title is a positive
normalize_all: False
{split}
item_text_fields: [title]        # an item's text
item_year_field: ~
prompt_template: {template}
"""


@dataclass(frozen=True)
class Row:
    """One user: titles in the order of the file."""

    file: str
    line: int
    history: list[str]
    targets: list[str]

    @property
    def user(self) -> str:
        """The user's id: file and line."""
        return f"{self.file.split('.')[0]}-{self.line}"


class Catalogue:
    """Ids of titles, which are compared as a run would read them (`clean_text`)."""

    def __init__(self, id_to_title: dict[str, str]) -> None:
        """Start with given ids; of ids with the same title, only the first is an item."""
        self.id_of: dict[str, str] = {}
        for item, title in id_to_title.items():
            self.id_of.setdefault(clean_text(title), item)
        self.n_added = 0

    def find(self, title: str) -> str:
        """The title's id; a new one for an unknown title."""
        title = clean_text(title)
        if title not in self.id_of:
            self.n_added += 1
            self.id_of[title] = f"t{self.n_added}"
        return self.id_of[title]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How to split, and the words of the prompt."""
    add_split_arguments(parser, unit="user")
    parser.add_argument(
        "--prompt-template",
        default="items",
        choices=["items", "books", "movies"],
        help="words of the prompt, for the property file (default: %(default)s)",
    )


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files; returns the report."""
    names = find_files(options.input, ["id2name.json"])
    id_to_title = _id_to_title(names[0], folder) if names else {}
    catalogue = Catalogue(id_to_title)
    files = split_files(options.input, ["json", "jsonl"])
    counts: Counter[str] = Counter()
    rows = list(_rows(files, catalogue, folder.reject, counts))
    split_of = _splits(rows, files, options)
    columns = ["user_id:token", "item_id:token", "timestamp:float"]
    if split_of is None:
        tables = dict.fromkeys(SPLITS, folder.table("inter", columns))
    else:
        tables = {split: folder.table(f"{split}.inter", columns) for split in SPLITS}
    for row in rows:
        items = [catalogue.find(title) for title in row.history + row.targets]
        counts["titles_repeated_within_a_row"] += len(items) - len(set(items))
        split = "train" if split_of is None else split_of[row.user]
        _write_row(row, items, tables["train"], tables[split])
    table = folder.table("item", ["item_id:token", "title:token_seq"])
    for title, item in catalogue.id_of.items():
        table.write(item, text_field(title))
    counts["users"] = len(rows)
    counts["titles_without_an_id"] = catalogue.n_added
    counts["ids_whose_title_has_another_id"] = len(id_to_title) - table.n_rows + catalogue.n_added
    folder.counts |= counts
    if split_of is not None:
        folder.counts["users_per_part"] = dict(Counter(split_of.values()))
    return folder.finish(
        properties=PROPERTIES.format(
            name=folder.name,
            n_users=len(rows),
            n_items=table.n_rows,
            split=_LEAVE_ONE_OUT if split_of is None else _PARTS,
            template=options.prompt_template,
        ),
        text_field="title",
        year_field=None,
        report={
            "sources": [path.name for path in files.values()],
            "options": {
                "resplit": options.resplit,
                "seed": options.seed if options.resplit else None,
            },
        },
    )


def _id_to_title(path: Path, folder: DatasetFolder) -> dict[str, str]:
    titles = {}
    for entry, (item, title) in enumerate(read_json(path, dict).items(), start=1):
        problem = id_problem(item)
        if problem or not isinstance(title, str) or not clean_text(title):
            folder.reject(path.name, entry, problem or "id without a title", [item, title])
        elif item.startswith("t") and item[1:].isdecimal():
            raise DataError(f"{path}: id {item!r} looks like those given to titles without an id")
        else:
            titles[item] = title
    return titles


def _rows(
    files: dict[str, Path], catalogue: Catalogue, reject: Reject, counts: Counter[str]
) -> Iterator[Row]:
    known = set(catalogue.id_of)
    for path in files.values():
        for line, raw in json_rows(path, reject):
            titles = _plain_lists(raw) or _quoted_titles(raw, known)
            if titles is None:
                reject(path.name, line, "neither quoted titles nor history and targets", raw)
                continue
            history, targets = titles
            if not targets or not all(clean_text(title) for title in history + targets):
                reject(path.name, line, "empty title or no target", raw)
                continue
            yield Row(path.name, line, history, targets)


def _plain_lists(raw: dict[str, Any]) -> tuple[list[str], list[str]] | None:
    """`history` and `targets` as lists of texts; None if they are not there."""
    lists = raw.get("history"), raw.get("targets")
    if not all(isinstance(v, list) and all(isinstance(t, str) for t in v) for v in lists):
        return None
    return lists  # type: ignore[return-value]


def _quoted_titles(raw: dict[str, Any], known: set[str]) -> tuple[list[str], list[str]] | None:
    """Titles in quotation marks in prompt and answer; None without a prompt or an answer."""
    for prompt_key, answer_key in _TEXT_KEYS:
        prompt, answer = raw.get(prompt_key), raw.get(answer_key)
        if isinstance(prompt, str) and isinstance(answer, str):
            return split_titles(prompt, known), split_titles(answer, known)
    return None


def split_titles(text: str, known: set[str]) -> list[str]:
    """The titles between the first and the last quotation mark of a text.

    They are separated by `", "`. A title may contain quotation marks; one that contains the
    separator is found only if it is among `known` titles.
    """
    first, last = text.find('"'), text.rfind('"')
    if first == last:
        return []
    pieces = text[first + 1 : last].split('", "')
    titles, at = [], 0
    while at < len(pieces):
        stops = range(len(pieces), at, -1)  # the longest known title that begins here
        stop = next((s for s in stops if clean_text('", "'.join(pieces[at:s])) in known), at + 1)
        titles.append('", "'.join(pieces[at:stop]))
        at = stop
    return titles


def _splits(
    rows: list[Row], files: dict[str, Path], options: argparse.Namespace
) -> dict[str, str] | None:
    """The part of every user; None for a single file, whose users are all in every part.

    Raises:
        DataError: there are several files, but not all three.
    """
    if options.resplit:
        return draw_split((row.user for row in rows), options.resplit, options.seed)
    if len(files) == 1:
        return None
    missing = [split for split in SPLITS if split not in files]
    if missing:
        raise DataError(
            f"{options.input} has no {' and no '.join(missing)} file. Put it there, or split all "
            "users anew: --resplit 0.8 0.1 0.1"
        )
    part_of_file = {path.name: split for split, path in files.items()}
    return {row.user: part_of_file[row.file] for row in rows}


def _write_row(row: Row, items: list[str], history_table: Table, target_table: Table) -> None:
    """The history goes to the training part, the targets to the user's own."""
    for place, item in enumerate(items, start=1):
        table = history_table if place <= len(row.history) else target_table
        table.write(row.user, item, str(place))
