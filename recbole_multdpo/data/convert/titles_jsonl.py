"""Converter of lists of titles as JSON: prompts with quoted titles such as SPRec's, or plain lists.

A row of a file (JSON lines or one JSON list) is a reader's list of titles, or a piece of it, in one
of the forms `title_rows.FORMS`. Pieces of one list are merged (`merging`).

The file name ends in json, jsonl or parquet (`pip install 'recbole-multdpo[arrow]'`). An optional
`id2name.json` (id -> title) in the same folder gives ids, and titles that no row has; other titles
get the ids `t1`, `t2`, ... Titles are compared as a run reads them: normalised by `title_text`.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_multdpo.data.convert.dataset_folder import (
    DatasetFolder,
    id_problem,
    text_field,
    title_text,
)
from recbole_multdpo.data.convert.merging import Readers, merge_rows
from recbole_multdpo.data.convert.raw_files import find_files, read_json
from recbole_multdpo.data.convert.splits import SPLITS, add_split_arguments, draw_split, split_files
from recbole_multdpo.data.convert.title_rows import FORMS, Row, title_rows
from recbole_multdpo.data.item_text import decode_entities
from recbole_multdpo.errors import DataError

HELP = "prompts and answers with titles, such as SPRec's: train.json, optionally valid and test"

_SAME_HISTORY = 5  # rows that share a history of at least so many titles have one reader
_NO_LINK = 2**62  # more titles than any list has

_LEAVE_ONE_OUT = """\
eval_args:                       # each user's last title is for test, the one before it for
  split: {'LS': valid_and_test}  #   validation
  group_by: user
  order: TO
"""
_PARTS = """\
benchmark_filename: [train, valid, test]   # parts of the split, one .inter file each; the training
                                 #   part has the histories of validation and test users too
"""
PROPERTIES = """\
# {name}, converted from lists of titles: {n_users:,} users, {n_items:,} items.
load_col:                        # columns loaded; timestamp is the position in the list
  inter: [user_id, item_id, timestamp]
  item: [item_id]                # the catalogue is every item of the .item file
val_interval: ~                  # every title is a positive
normalize_all: False
{split}
item_text_fields: [title]        # an item's text
item_year_field: ~
prompt_template: {template}
"""


class TitleIds:
    """Ids of titles, which are normalised by `title_text`.

    Attributes:
        id_of: the id of each title.
        n_added: number of titles that got a new id.
        decoded: titles that had HTML entities.
    """

    def __init__(self, id_to_title: dict[str, str]) -> None:
        """Start with given ids; if several ids have the same title, the first one is used."""
        self.id_of: dict[str, str] = {}
        self.n_added = 0
        self.decoded: set[str] = set()
        for item, title in id_to_title.items():
            self.id_of.setdefault(self._read(title), item)

    def find(self, title: str) -> str:
        """The id of a title; an unknown title gets a new one."""
        title = self._read(title)
        if title not in self.id_of:
            self.n_added += 1
            self.id_of[title] = f"t{self.n_added}"
        return self.id_of[title]

    def _read(self, title: str) -> str:
        text = title_text(title)
        if decode_entities(title) != title:
            self.decoded.add(text)
        return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for splitting, for merging rows, and for the prompt template."""
    add_split_arguments(parser, unit="reader")
    parser.add_argument(
        "--link",
        default="auto",
        metavar="auto|none|N",
        help="rows that fit together by N or more consecutive titles (windows, growing prefixes) "
        "are pieces of one reader's list; auto estimates N from the rows, none makes every row a "
        "separate reader (default: %(default)s)",
    )
    parser.add_argument(
        "--reader-key",
        metavar="FIELD",
        help="field of a row with its reader; by default one with a usual name, such as user_id",
    )
    parser.add_argument(
        "--prompt-template",
        default="items",
        choices=["items", "books", "movies"],
        help="words of the prompt, for the property file (default: %(default)s)",
    )
    parser.epilog = f"A row of a file is one of these:\n{FORMS}"
    parser.formatter_class = argparse.RawDescriptionHelpFormatter


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    min_overlap = _min_overlap(options.link)
    names = find_files(options.input, ["id2name.json"])
    id_to_title = _id_to_title(names[0], folder) if names else {}
    title_ids = TitleIds(id_to_title)
    files = split_files(options.input, ["json", "jsonl", "parquet"])
    _check_parts(files, options)
    known = set(title_ids.id_of)
    rows = [
        row
        for path in files.values()
        for row in title_rows(path, known, folder.reject, options.reader_key)
    ]
    if not rows:
        raise DataError(
            f"{options.input} has no row with titles. {folder.rejects_text()}\n"
            f"A row should be one of these:\n{FORMS}"
        )
    _check_histories(rows, folder)
    items = [[title_ids.find(title) for title in row.history + row.targets] for row in rows]
    for title in dict.fromkeys(title for row in rows for title in row.others):
        title_ids.find(title)  # an item of the catalogue
    numbers = {item: number for number, item in enumerate(title_ids.id_of.values())}
    readers = merge_rows(
        [[numbers[item] for item in row] for row in items],
        [None] * len(rows) if min_overlap == _NO_LINK else _keys(rows),
        min_overlap,
    )
    for row in readers.contradicting:
        reason = "continues another reader's list in another way"
        folder.reject(rows[row].file, rows[row].line, reason, rows[row].history + rows[row].targets)
    parts = _Parts(rows, readers, files, options)
    folder.counts["titles_repeated_within_a_row"] = sum(len(r) - len(set(r)) for r in items)
    _write_interactions(folder, parts, _users(rows, readers), list(numbers))
    table = folder.table("item", ["item_id:token", "title:token_seq"])
    for title, item in title_ids.id_of.items():
        table.write(item, text_field(title))
    folder.n_decoded = len(title_ids.decoded)
    folder.counts |= {
        "users": len(readers.lists),
        "titles_without_an_id": title_ids.n_added,
        "ids_whose_title_has_another_id": len(id_to_title) - table.n_rows + title_ids.n_added,
    }
    if parts.of_reader is not None:
        folder.counts["users_per_part"] = dict(Counter(parts.of_reader))
    _report_readers(folder, rows, readers, parts, options.link)
    return folder.finish(
        properties=PROPERTIES.format(
            name=folder.name,
            n_users=len(readers.lists),
            n_items=table.n_rows,
            split=_LEAVE_ONE_OUT if parts.of_reader is None else _PARTS,
            template=options.prompt_template,
        ),
        text_field="title",
        year_field=None,
        report={
            "sources": [path.name for path in files.values()],
            "options": {
                "resplit": options.resplit,
                "seed": options.seed if options.resplit else None,
                "link": options.link,
                "reader_key": options.reader_key,
            },
        },
    )


def _min_overlap(link: str) -> int | None:
    """The number of `--link`; None for auto."""
    if link in ("auto", "none"):
        return None if link == "auto" else _NO_LINK
    if link.isdecimal() and int(link) > 0:
        return int(link)
    raise DataError(f"--link={link} must be auto, none or a number of titles, e.g. 4")


def _id_to_title(path: Path, folder: DatasetFolder) -> dict[str, str]:
    titles = {}
    for entry, (item, title) in enumerate(read_json(path, dict).items(), start=1):
        problem = id_problem(item)
        if problem or not isinstance(title, str) or not title_text(title):
            folder.reject(path.name, entry, problem or "id without a title", [item, title])
        elif item.startswith("t") and item[1:].isdecimal():
            raise DataError(f"{path}: id {item!r} has the form reserved for titles without an id")
        else:
            titles[item] = title
    return titles


def _check_parts(files: Mapping[str, Path], options: argparse.Namespace) -> None:
    missing = [split for split in SPLITS if split not in files]
    if missing and len(files) > 1 and not options.resplit:
        raise DataError(
            f"{options.input} has no {' and no '.join(missing)} file. Add it, or split all readers "
            "again: --resplit 0.8 0.1 0.1"
        )


def _check_histories(rows: Sequence[Row], folder: DatasetFolder) -> None:
    """Count rows without a title before their targets; refuse files in which all rows are so."""
    without = [row for row in rows if not row.history]
    folder.counts["rows_without_history"] = len(without)
    if len(without) == len(rows):
        raise DataError(
            f"{rows[0].file}: no row has a title before its targets. Put the titles of a prompt "
            f'into quotation marks, separated by ", ", or write lists. A row should be one of '
            f"these:\n{FORMS}"
        )
    if without:
        folder.notes.append(
            f"{len(without):,} of {len(rows):,} rows have no title before their targets, the first "
            f"of them {without[0].file}, line {without[0].line}"
        )


def _keys(rows: Sequence[Row]) -> list[Hashable]:
    """A key of each row's reader: the row's own key, or else its history if that is long."""
    return [
        row.reader
        or (tuple(map(title_text, row.history)) if len(row.history) >= _SAME_HISTORY else None)
        for row in rows
    ]


def _users(rows: Sequence[Row], readers: Readers) -> list[str]:
    """Ids of the readers: their keys if usable, or else file and line of their first rows."""
    first = [rows[members[0]] for members in readers.rows]
    keys = [row.reader for row in first if row.reader and not id_problem(row.reader)]
    return keys if len(set(keys)) == len(first) else [row.name for row in first]


class _Parts:
    """The part of the split of every title of every reader.

    With one file, the last two titles of a reader are for validation and test, and `of_reader` is
    None. With one file per part, the targets of validation and test rows are held out; with
    `--resplit`, the targets of the last row of the drawn readers. Titles before the first held-out
    one are for training; later titles that are not held out are left out.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        readers: Readers,
        files: Mapping[str, Path],
        options: argparse.Namespace,
    ) -> None:
        part_of_file = {path.name: split for split, path in files.items()}
        self._rows, self._readers = rows, readers
        self.of_row: list[str] | None = None  # part of each row
        self.of_reader: list[str] | None = None  # part of each reader: its rows' latest part
        if options.resplit:
            names = [rows[members[0]].name for members in readers.rows]
            drawn = draw_split(names, options.resplit, options.seed)
            self.of_reader = [drawn[name] for name in names]
            self.of_row = ["train"] * len(rows)
            for part, members in zip(self.of_reader, readers.rows, strict=True):
                self.of_row[max(members, key=lambda row: readers.places[row][-1])] = part
        elif len(files) > 1:
            self.of_row = [part_of_file[row.file] for row in rows]
            self.of_reader = [
                max((self.of_row[row] for row in members), key=SPLITS.index)
                for members in readers.rows
            ]

    def held_out(self, reader: int) -> dict[int, str]:
        """Held-out positions in a reader's list, and their parts."""
        if self.of_row is None:
            last = len(self._readers.lists[reader]) - 1
            return {last: "test"} | ({last - 1: "valid"} if last else {})
        held_out: dict[int, str] = {}
        for part in ("valid", "test"):  # test takes precedence
            for row in self._readers.rows[reader]:
                if self.of_row[row] == part:
                    places = self._readers.places[row][len(self._rows[row].history) :]
                    held_out |= dict.fromkeys(places, part)
        return held_out

    def titles(self, reader: int) -> Iterator[tuple[int, int, str | None]]:
        """Yield position, item and part of every title of a reader; part None: left out."""
        items, held_out = self._readers.lists[reader], self.held_out(reader)
        if len(self._readers.rows[reader]) == 1:
            for place, item in enumerate(items):
                yield place, item, held_out.get(place, "train")
            return
        first = min(held_out, default=len(items))
        answers = {items[place] for place in held_out}
        tests = {items[place] for place, part in held_out.items() if part == "test"}
        for place, item in enumerate(items):
            part = held_out.get(place)
            if part is None:
                yield place, item, "train" if place < first and item not in answers else None
            else:
                yield place, item, None if part == "valid" and item in tests else part

    def answers_in_training(self) -> int:
        """Number of test answers that would leak into another row's training list if unmerged."""
        n = 0
        for members in self._readers.rows:
            lists = [self._split(row) for row in members]
            n_lists = Counter(title for training, _ in lists for title in training)
            n += sum(n_lists[title] > (title in own) for own, test in lists for title in test)
        return n

    def _split(self, row: int) -> tuple[set[str], list[str]]:
        """Training and test titles of a row if it were a separate reader."""
        history, targets = self._rows[row].history, self._rows[row].targets
        titles = [*map(title_text, history + targets)]
        if self.of_row is None:
            return set(titles[:-2]), titles[-1:]
        n_training = len(titles) if self.of_row[row] == "train" else len(history)
        return set(titles[:n_training]), titles[n_training:] if self.of_row[row] == "test" else []


def _write_interactions(
    folder: DatasetFolder, parts: _Parts, users: list[str], ids: list[str]
) -> None:
    columns = ["user_id:token", "item_id:token", "timestamp:float"]
    if parts.of_reader is None:
        tables = dict.fromkeys(SPLITS, folder.table("inter", columns))
    else:
        tables = {split: folder.table(f"{split}.inter", columns) for split in SPLITS}
    n_left_out = 0
    for reader, user in enumerate(users):
        for place, item, part in parts.titles(reader):
            n_left_out += part is None
            if part is not None:
                tables[part].write(user, ids[item], str(place + 1))
    folder.counts["titles_left_out_beside_held_out_ones"] = n_left_out


def _report_readers(
    folder: DatasetFolder, rows: Sequence[Row], readers: Readers, parts: _Parts, link: str
) -> None:
    """Report the merged rows and the evidence for merging them."""
    links, several = readers.links, [members for members in readers.rows if len(members) > 1]
    n_joined, n_answers = sum(map(len, several)), parts.answers_in_training()
    trusted = [level for level in links.levels if level.overlap >= (links.min_overlap or 0)]
    by_chance = sum(level.expected for level in trusted)
    folder.counts["rows_of_one_reader"] = {
        "rows": len(rows),
        "rows_joined": n_joined,
        "readers": len(readers.lists),
        "test_answers_that_stood_in_training": n_answers,
        "rows_that_contradict": len(readers.contradicting),
        "titles_shared_at_least": links.min_overlap if link != "none" else None,
        "links_by_titles_shared": [
            {"titles": level.overlap, "links": level.links, "by_chance": round(level.expected, 2)}
            for level in links.levels
        ],
    }
    n_named = sum(row.reader is not None for row in rows)
    folder.counts["rows_of_one_reader"]["rows_that_name_their_reader"] = n_named
    if not n_named:
        folder.notes.append(
            "no row names its reader in a field such as user_id; set --reader-key to the field"
        )
    if link == "none":
        folder.notes.append("--link=none: every row is a separate reader, even if rows overlap")
    elif not several:
        folder.notes.append("no two rows look like pieces of one reader's list")
    else:
        folder.notes.append(
            f"{n_joined:,} of {len(rows):,} rows overlap with others of the same reader (windows, "
            f"prefixes, equal keys): {len(readers.lists):,} readers. {n_answers:,} test answers "
            "were in the training list of another row of their reader and would have leaked. "
            f"{len(links.first):,} links by {links.min_overlap} or more titles, {by_chance:.1f} of "
            "them expected by chance; --link=none keeps rows separate"
        )
