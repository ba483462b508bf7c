"""Converter of the conversational files of He et al. (CIKM 2023): Reddit-Movie, ReDial, INSPIRED.

A folder with `train.jsonl`, `valid.jsonl`, `test.jsonl` (one JSON object per turn),
`entity2id.json` (name or DBpedia address -> id) and `item_ids.json` (the ids of movies). A turn has
`context` (the earlier turns, alternating), `rec` (recommended ids), `prev_entity` (ids mentioned
earlier), `dialog_id`, `is_user` (1: the seeker speaks) and usually `input`, the context as one text
that names the speakers.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from recbole_multdpo.data.conversation_text import Message
from recbole_multdpo.data.convert.conversation_files import Turn, properties, write_conversations
from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, id_problem, text_field
from recbole_multdpo.data.convert.raw_files import find_file, json_lines, read_json, title_and_year
from recbole_multdpo.data.convert.splits import SPLITS, draw_split, split_files
from recbole_multdpo.data.times import seconds_of
from recbole_multdpo.errors import DataError

_DBPEDIA = "<http://dbpedia.org/resource/"
_ROLES = {"User": "user", "System": "assistant"}


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    items = _write_items(folder, options.input)
    files = split_files(options.input, ["jsonl"])
    split_of = _splitter(options, files)
    has_time = options.time_field is not None
    turns = _turns(files, items, split_of, options.time_field, folder)
    write_conversations(folder, turns, merge=not options.no_merge, has_time=has_time)
    return folder.finish(
        properties=properties(folder),
        text_field="movie_title",
        year_field="release_year",
        report={
            "sources": [path.name for path in files.values()],
            "options": {
                "resplit": options.resplit,
                "seed": options.seed if options.resplit else None,
                "split_dates": options.split_dates,
                "merged": not options.no_merge,
            },
        },
    )


def _write_items(folder: DatasetFolder, source: Path) -> set[str]:
    """Write the `.item` file, in the order of `item_ids.json`, and return its ids."""
    ids_file = find_file(source, ["item_ids.json"], need="the ids that are items")
    names_file = find_file(source, ["entity2id.json"], need="the names of the ids")
    name_of: dict[str, str] = {}
    for name, number in read_json(names_file, dict).items():
        name_of.setdefault(str(number), name)
    table = folder.table("item", ["item_id:token", "movie_title:token_seq", "release_year:token"])
    items: set[str] = set()
    for entry, number in enumerate(read_json(ids_file, list), start=1):
        item = str(number)
        problem = "item listed twice" if item in items else id_problem(item)
        if problem or item not in name_of:
            reason = problem or "item without a name in entity2id.json"
            folder.reject(ids_file.name, entry, reason, item)
            continue
        items.add(item)
        title, year = title_and_year(folder.decoded(entity_title(name_of[item])))
        table.write(item, text_field(title), text_field(year))
    return items


def entity_title(name: str) -> str:
    """Convert a DBpedia address to a title: `<.../What_Now%3F_(film)>` to `What Now? (film)`."""
    if not name.startswith(_DBPEDIA):
        return name
    return unquote(name.removeprefix(_DBPEDIA).removesuffix(">")).replace("_", " ")


def _splitter(
    options: argparse.Namespace, files: dict[str, Path]
) -> Callable[[str, str, int | None], str]:
    """A function (part of the file, dialog, time) -> part.

    Raises:
        DataError: a part has no file and no option splits the rows, or the dates are invalid.
    """
    if options.resplit:
        rows = (row for path in files.values() for _, row in json_lines(path, lambda *_: None))
        drawn = draw_split((str(r.get("dialog_id")) for r in rows), options.resplit, options.seed)
        return lambda _, dialog, time: drawn[dialog]
    if options.split_dates:
        if options.time_field is None:
            raise DataError("--split-dates needs --time-field: the name of the rows' time")
        dates = [seconds(text) for text in options.split_dates]
        if None in dates or sorted(dates) != dates:  # type: ignore[type-var]
            raise DataError(f"--split-dates={options.split_dates}: expected two dates in order")
        return lambda _, dialog, time: SPLITS[sum(time >= date for date in dates)]  # type: ignore
    missing = [split for split in SPLITS if split not in files]
    if missing:
        raise DataError(
            f"{options.input} has no {' and no '.join(missing)} file. Add it, or split all "
            "files by dialog: --resplit 0.8 0.1 0.1"
        )
    return lambda split, dialog, time: split


def seconds(value: Any) -> int | None:
    """Unix time of a number or a date (`times.seconds_of`), an integer; None for anything else."""
    found = seconds_of(str(value))
    return None if found is None else int(found[0])


def _turns(
    files: dict[str, Path],
    items: set[str],
    split_of: Callable[[str, str, int | None], str],
    time_field: str | None,
    folder: DatasetFolder,
) -> Iterator[Turn]:
    counts: Counter[str] = Counter()
    for split, path in files.items():
        for line, row in json_lines(path, folder.reject):
            time = seconds(row.get(time_field)) if time_field else None
            problem = _problem(row)
            if time_field and time is None:
                problem = f"{time_field} is missing or not a time"
            if problem:
                folder.reject(path.name, line, problem, row)
                continue
            recommended = list(dict.fromkeys(map(str, row["rec"])))
            if not recommended or row.get("is_user") == 1:
                reason = "recommendation" if not recommended else "recommender"
                counts[f"turns_without_a_{reason}"] += 1
                continue
            known = [item for item in recommended if item in items]
            counts["recommended_ids_that_are_no_items"] += len(recommended) - len(known)
            if not known:
                folder.reject(path.name, line, "no recommended id is an item", row)
                continue
            messages, guessed = _messages(row)
            counts["turns_with_guessed_speakers"] += guessed
            dialog = str(row.get("dialog_id"))
            yield Turn(
                file=path.name,
                line=line,
                split=split_of(split, dialog, time),
                dialog=dialog,
                messages=messages,
                items=known,
                mentioned=[
                    item for item in map(str, row.get("prev_entity") or []) if item in items
                ],
                time=time,
            )
    folder.counts |= counts


def _problem(row: dict[str, Any]) -> str | None:
    context = row.get("context")
    if not isinstance(context, list) or not all(isinstance(text, str) for text in context):
        return "context is not a list of texts"
    for key in ("rec", "prev_entity"):
        ids = row.get(key, [] if key == "prev_entity" else None)
        if not isinstance(ids, list) or not all(type(i) in (int, str) for i in ids):
            return f"{key} is not a list of ids"
    return None


def _messages(row: dict[str, Any]) -> tuple[list[Message], bool]:
    """The context as messages, and True if the speakers had to be guessed.

    `input` names the speaker of every turn ("\\nUser: ...\\nSystem: ..."). Without it, or if it
    does not match the context, speakers are assumed to alternate, counted back from the
    recommender's turn. This is wrong if one of them spoke twice in a row.
    """
    texts = [text for text in row["context"] if text.strip()]
    written, at, roles = row.get("input"), 0, []
    for text in texts:
        for speaker, role in _ROLES.items():
            beginning = f"\n{speaker}: {text}"
            if isinstance(written, str) and written.startswith(beginning, at):
                at += len(beginning)
                roles.append(role)
                break
    guessed = len(roles) != len(texts)
    if guessed:
        roles = ["assistant" if back % 2 else "user" for back in range(len(texts))][::-1]
    messages = zip(roles, texts, strict=True)
    return [Message(role=role, content=text) for role, text in messages], guessed
