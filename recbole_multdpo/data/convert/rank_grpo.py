"""Converter of Rank-GRPO's processed Reddit-V2: prompts as chats, films as (title, year).

Each part is a Hugging Face `datasets` folder (`train/`, `validation/`, `test/` with .arrow files)
or a file of JSON lines (`train.jsonl`, ...), with the columns `prompt` (chat messages),
`groundtruth_with_release_year` ([[title, year], ...]) and `seen_titles`. The catalogue is published
as a pickle, which can run any code and is never read; the converter needs it as JSON.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from recbole_multdpo.data.conversation_text import ROLES, Message
from recbole_multdpo.data.convert.conversation_files import Turn, properties, write_conversations
from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, text_field
from recbole_multdpo.data.convert.raw_files import (
    Reject,
    find_files,
    json_lines,
    read_json,
    title_and_year,
)
from recbole_multdpo.data.convert.splits import SPLITS, split_files
from recbole_multdpo.errors import DataError

ANSWERS = "groundtruth_with_release_year"
_PICKLE_HELP = (
    "A pickle can run any code, so it is not read. If you trust it, convert it to JSON yourself: "
    'python -c "import json, pickle; json.dump(sorted([t, str(y)] for t, y in '
    "pickle.load(open('gt_catalog.pkl', 'rb'))), open('gt_catalog.json', 'w'))\""
)

Film = tuple[str, str]  # title, year


def is_rank_grpo(source: Path) -> bool:
    """True if a folder has this format: it has neither of the two lists of He et al.'s format."""
    return not find_files(source, ["item_ids.json", "entity2id.json"])


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    if options.resplit or options.split_dates:
        raise DataError("--resplit and --split-dates: these data are already split by time")
    parts = _parts(options.input)
    films = _catalogue(options.input, parts)
    table = folder.table("item", ["item_id:token", "movie_title:token_seq", "release_year:token"])
    for number, (title, year) in enumerate(films, start=1):
        table.write(str(number), text_field(folder.decoded(title)), text_field(year))
    write_conversations(
        folder, _turns(parts, films, folder), merge=not options.no_merge, has_time=False
    )
    return folder.finish(
        properties=properties(folder),
        text_field="movie_title",
        year_field="release_year",
        report={
            "sources": [path.name for path in parts.values()],
            "options": {"merged": not options.no_merge},
        },
    )


def _parts(source: Path) -> dict[str, Path]:
    """The folder or file of each of the three parts."""
    folders = {"train": "train", "valid": "validation", "test": "test"}
    parts = {
        split: source / name for split, name in folders.items() if (source / name).is_dir()
    } or split_files(source, ["jsonl", "json"])
    missing = [split for split in SPLITS if split not in parts]
    if missing:
        raise DataError(
            f"{source} has no {' and no '.join(missing)} part: expected the folders train, "
            "validation and test, or a .jsonl file of each"
        )
    return parts


def _rows(part: Path, reject: Reject) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of a part with their numbers, from 1."""
    if part.is_file():
        yield from json_lines(part, reject)
        return
    try:
        import pyarrow
    except ImportError:
        raise DataError(
            f"{part} is a Hugging Face datasets folder, which needs pyarrow: pip install pyarrow. "
            f"Or export it where datasets is installed: load_from_disk(...).to_json("
            f"'{part.name}.jsonl')"
        ) from None
    number = 0
    for path in sorted(part.glob("*.arrow")):
        try:
            with pyarrow.memory_map(str(path)) as source:
                for batch in pyarrow.ipc.open_stream(source):
                    for row in batch.to_pylist():
                        number += 1
                        yield number, row
        except pyarrow.ArrowException as error:
            raise DataError(f"{path} cannot be read ({error}); copy it again") from None
    if not number:
        raise DataError(f"{part} has no rows: expected .arrow files there")


def _film(entry: Any) -> Film | None:
    """Parse a [title, year] pair; None for anything else."""
    if not isinstance(entry, list | tuple) or len(entry) < 2 or not isinstance(entry[0], str):
        return None
    title, year = entry[0].strip(), str(entry[1] or "").strip()
    return (title, year) if title else None


def _catalogue(source: Path, parts: dict[str, Path]) -> list[Film]:
    """The catalogue, sorted: the films of gt_catalog.json, or else of all answers.

    Raises:
        DataError: the catalogue is only there as a pickle, or an entry is not a [title, year].
    """
    for folder in (source, source.absolute().parent):
        path = folder / "gt_catalog.json"
        if path.is_file():
            films = [_film(entry) for entry in read_json(path, list)]
            if None in films:
                raise DataError(
                    f"{path}, entry {films.index(None) + 1}: expected a list of [title, year]"
                )
            return sorted({film for film in films if film is not None})
        if (folder / "gt_catalog.pkl").is_file():
            raise DataError(f"{folder / 'gt_catalog.pkl'}: {_PICKLE_HELP}")
    answers = (
        _film(entry)
        for part in parts.values()
        for _, row in _rows(part, lambda *_: None)
        for entry in row.get(ANSWERS) or []
    )
    return sorted({film for film in answers if film is not None})


def _turns(parts: dict[str, Path], films: list[Film], folder: DatasetFolder) -> Iterator[Turn]:
    number_of = {film: str(number) for number, film in enumerate(films, start=1)}
    by_title: dict[str, list[str]] = defaultdict(list)
    for (title, _), number in number_of.items():
        by_title[title.lower()].append(number)
    counts: Counter[str] = Counter()
    for split, part in parts.items():
        for line, row in _rows(part, folder.reject):
            answers = [_film(entry) for entry in row.get(ANSWERS) or []]
            items = [number_of[film] for film in answers if film in number_of]
            counts["answers_outside_the_catalogue"] += len(answers) - len(items)
            messages = _messages(row.get("prompt"))
            if messages is None or not items:
                reason = "no answer in the catalogue" if messages else "prompt is not a chat"
                folder.reject(part.name, line, reason, row)
                continue
            mentioned = []
            for text in row.get("seen_titles") or []:
                found = _mentioned(str(text), number_of, by_title)
                counts["seen_titles_without_a_unique_film"] += found is None
                mentioned += [found] if found else []
            name = f"{split}-{line}"
            yield Turn(part.name, line, split, name, messages, items, mentioned)
    folder.counts |= counts


def _mentioned(text: str, number_of: dict[Film, str], by_title: dict[str, list[str]]) -> str | None:
    """The number of the film "Heat" or "Heat (1995)"; None if it is unknown or ambiguous."""
    title, year = title_and_year(text)
    if (title, year) in number_of:
        return number_of[title, year]
    same_title = by_title.get(text.strip().lower()) or by_title.get(title.lower()) or []
    return same_title[0] if len(same_title) == 1 else None


def _messages(prompt: Any) -> list[Message] | None:
    """The chat messages of a prompt; None if it is not a chat."""
    if not isinstance(prompt, list) or not prompt:
        return None
    messages = []
    for message in prompt:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            return None
        messages.append(Message(role=message["role"], content=str(message.get("content", ""))))
    return messages
