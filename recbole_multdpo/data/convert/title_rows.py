"""Parsers of published rows with titles: prompts with quoted titles, lists, chats.

Titles in a prompt are in quotation marks and separated by `", "`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from recbole_multdpo.data.convert.dataset_folder import title_text
from recbole_multdpo.data.convert.raw_files import Reject, json_rows
from recbole_multdpo.data.convert.tables import parquet_rows

FORMS = """\
{"history": ["A", "B"], "targets": ["C"]}
{"input": "Read: \\"A\\", \\"B\\". What next?", "output": "\\"C\\""}    (also prompt and response)
{"prompt": "Read: \\"A\\", \\"B\\". What next?", "chosen": "\\"C\\"", "rejected": "\\"D\\""}
{"messages": [{"role": "user", "content": "Read: \\"A\\", \\"B\\"."},
              {"role": "assistant", "content": "\\"C\\""}]}
{"historyList": "A::B", "trueSelection": "C"}
Each may name its reader: "user_id": "u1". Titles in a prompt must be in quotation marks; an
"instruction" is read if "input" has no title."""

_TEXT_KEYS = (
    ("input", "output"),
    ("instruction", "output"),
    ("prompt", "response"),
    ("prompt", "completion"),
    ("prompt", "chosen"),
)
# names of the reader's field, ignoring case and punctuation: user_id, userID, raw_user_idx
_READER_FIELD = re.compile(
    r"uid|(raw|orig(inal)?|the)?"
    r"(user|reader|reviewer|customer|client|member|account|visitor|person|session)"
    r"(?P<kind>id|idx|index|key|name|no|number|num|hash|uuid)?"
)
_LONGEST_KEY = 64  # characters; longer texts under "user" are messages

Titles = tuple[list[str], list[str]]


@dataclass(frozen=True)
class Row:
    """One parsed row: titles in order of time.

    Attributes:
        file: name of the raw file.
        line: line number, or number in the list, from 1.
        history: titles before the targets.
        targets: titles that follow; at least one.
        reader: the reader's key in the raw row; None if there is none.
        others: titles that the row names beside these: rejected ones, candidates.
    """

    file: str
    line: int
    history: list[str]
    targets: list[str]
    reader: str | None = None
    others: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """An id made of file and line."""
        return f"{self.file.split('.')[0]}-{self.line}"


def title_rows(
    path: Path, known: set[str], reject: Reject, reader_key: str | None = None
) -> Iterator[Row]:
    """Yield the rows of a file that have titles.

    Args:
        path: JSON lines, or one JSON list.
        known: cleaned titles; see `split_titles`.
        reject: called for all other rows.
        reader_key: field with the reader; None: a field with a usual name, such as `user_id`.
    """
    rows = parquet_rows(path) if ".parquet" in path.suffixes else json_rows(path, reject)
    for line, raw in rows:
        titles = next(filter(None, (form(raw, known) for form in _FORMS)), None)
        if titles is None:
            reject(path.name, line, "neither quoted titles nor history and targets", raw)
        elif not titles[1] or not all(map(title_text, titles[0] + titles[1])):
            reject(path.name, line, "empty title or no target", raw)
        else:
            others = tuple(filter(title_text, _others(raw, known)))
            yield Row(path.name, line, *titles, _reader(raw, reader_key), others)


def split_titles(text: str, known: set[str]) -> list[str]:
    """Split the text between the first and the last quotation mark into titles at `", "`.

    A title may contain quotation marks. A title that contains the separator is found only if it is
    one of the `known` titles.
    """
    first, last = text.find('"'), text.rfind('"')
    if first == last:
        return []
    pieces = text[first + 1 : last].split('", "')
    titles, at = [], 0
    while at < len(pieces):
        stops = range(len(pieces), at, -1)  # prefer the longest known title that begins here
        stop = next((s for s in stops if title_text('", "'.join(pieces[at:s])) in known), at + 1)
        titles.append('", "'.join(pieces[at:stop]))
        at = stop
    return titles


def _plain_lists(raw: dict[str, Any], known: set[str]) -> Titles | None:
    """Titles in the lists `history` and `targets`."""
    history, targets = raw.get("history"), raw.get("targets")
    return (history, targets) if _is_texts(history) and _is_texts(targets) else None


def _selection(raw: dict[str, Any], known: set[str]) -> Titles | None:
    """Titles in S-DPO's or LLaRA's `historyList`, list or joined by `::`, and `trueSelection`."""
    history, target = raw.get("historyList"), raw.get("trueSelection")
    if isinstance(history, str):
        history = history.split("::") if history.strip() else []
    return (history, [target]) if _is_texts(history) and isinstance(target, str) else None


def _quoted(raw: dict[str, Any], known: set[str]) -> Titles | None:
    """Titles in prompt and answer, which are texts or chats (TRL's `chosen`)."""
    for prompt_key, answer_key in _TEXT_KEYS:
        prompt, answer = _said(raw.get(prompt_key)), _said(raw.get(answer_key))
        if prompt is not None and answer is not None:
            history = split_titles(prompt, known)
            if not history and isinstance(raw.get("instruction"), str):
                history = split_titles(raw["instruction"], known)
            return history, split_titles(answer, known)
    return None


def _chat(raw: dict[str, Any], known: set[str]) -> Titles | None:
    """Titles in a chat whose last message is the answer."""
    messages = raw.get("messages")
    if not isinstance(messages, list) or len(messages) < 2:
        return None
    prompt, answer = _said(messages[:-1]), _said(messages[-1:])
    if prompt is None or answer is None:
        return None
    return split_titles(prompt, known), split_titles(answer, known)


_FORMS: tuple[Callable[[dict[str, Any], set[str]], Titles | None], ...] = (
    _plain_lists,
    _selection,
    _quoted,
    _chat,
)


def _others(raw: dict[str, Any], known: set[str]) -> list[str]:
    """Titles in TRL's `rejected` and in S-DPO's and LLaRA's candidates, `itemList`."""
    candidates = raw.get("itemList")
    if isinstance(candidates, str):
        candidates = candidates.split("::")
    rejected = _said(raw.get("rejected"))
    titles = [] if rejected is None else split_titles(rejected, known)
    return titles + (candidates if _is_texts(candidates) else [])


def _is_texts(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _said(value: Any) -> str | None:
    """A text, or a chat's messages without the system's as one text; None for anything else."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(turn, dict) for turn in value):
        return None
    texts = [turn.get("content") for turn in value if turn.get("role") != "system"]
    return "\n".join(texts) if texts and _is_texts(texts) else None


def _reader(raw: dict[str, Any], field: str | None) -> str | None:
    """The key of the row's reader; None if the row does not name one."""
    if field is not None:
        return _as_key(raw.get(field), spaces=True)
    found: dict[bool, str] = {}
    for name, value in _fields(raw):
        match = _READER_FIELD.fullmatch(re.sub(r"[\W_]", "", name).lower())
        key = _as_key(value, spaces=match["kind"] is not None) if match else None
        if match and key is not None:
            is_id = match["kind"] != "name"  # use a name only if there is no id
            found.setdefault(is_id, key)
    return found.get(True, found.get(False))


def _fields(raw: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the fields of a row, then the fields of objects in it, such as `extra_info`."""
    yield from raw.items()
    for value in raw.values():
        if isinstance(value, dict):
            yield from value.items()


def _as_key(value: Any, *, spaces: bool) -> str | None:
    """A number or a short text as a key; with `spaces`, the text may contain spaces."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # pandas makes integers with gaps floats
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if isinstance(value, str) and 0 < len(value) <= _LONGEST_KEY and (spaces or " " not in value):
        return value
    return None
