"""Published figures beside a comparison's own, where protocol and test items are the same.

They are never ranked with ours, nor tested against: of a published system there are no values per
user. What is published is in `properties/test_sets`, with the place and what is doubtful about it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, with_config
from typing_extensions import NotRequired, TypedDict

from recbole_multdpo.comparison.request import Member
from recbole_multdpo.errors import MultDPOError
from recbole_multdpo.runs.folder import CONFIG_FILE, RESULT_FILE, read_result
from recbole_multdpo.runs.known_sets import Match, known, known_text, matches_of
from recbole_multdpo.runtime.reading import is_file, readable
from recbole_multdpo.settings.information import KEY
from recbole_multdpo.settings.protocol import deviations
from recbole_multdpo.settings.text import read_settings_file

# keys of a protocol that decide what a figure on given test items means; the rest decides which
# items they are, how many figures there are, or how a language model is trained
_DECIDING = ("eval_args.mode", "candidate_lists", KEY, "test_users")
_ALSO_ALLOWED = {KEY: "refit"}  # knows as much, in another way


@dataclass(frozen=True)
class Row:
    """A published system: its figures by metric, where they are printed, and doubts."""

    system: str
    figures: Mapping[str, float]
    source: str
    doubt: str


@dataclass(frozen=True)
class Published:
    """Knowledge of the test items of a comparison.

    Attributes:
        sentences: which published test set they are, one sentence each; no known one is none.
        title: the set whose figures can stand beside ours; empty if there is none.
        rows: its published figures.
        caution: a warning about the set.
    """

    sentences: Sequence[str] = ()
    title: str = ""
    rows: Sequence[Row] = field(default_factory=tuple)
    caution: str = ""

    def notes(self) -> list[str]:
        """Sources and doubts, numbered as in `numbered`, then the caution."""
        numbers = self._numbers()
        doubts = {row.source: row.doubt for row in self.rows}
        sources = [
            f"[{number}] {source}{f' (doubtful: {doubts[source]})' if doubts[source] else ''}."
            for source, number in numbers.items()
        ]
        return [*sources, *filter(None, [self.caution])]

    def numbered(self, row: Row) -> str:
        """Name of a row with the number of its source."""
        return f"{row.system} [{self._numbers()[row.source]}]"

    def _numbers(self) -> dict[str, int]:
        sources = dict.fromkeys(row.source for row in self.rows)
        return {source: number for number, source in enumerate(sources, 1)}


def read_published(members: Sequence[Member], folder: Path) -> Published:
    """Recognise the test items of finished runs.

    Args:
        members: the finished runs, one at least.
        folder: the comparison's folder.

    Raises:
        MultDPOError: a file of a run is damaged.
    """
    runs = [folder / member.folder_name for member in members]
    results = [read_result(run / RESULT_FILE) for run in runs]
    # a model of RecBole may be given fewer rows; whoever has the same test items is meant with it
    by_test: dict[Any, Match] = {}
    for run, result in zip(runs, results, strict=True):
        with readable(run / RESULT_FILE, "Run it again.", MultDPOError):
            by_test |= {result.get("test_set"): match for match in matches_of(result)}
    found = [by_test.get(result.get("test_set")) for result in results]
    matches = [match for match in found if match is not None]
    sentences = list(dict.fromkeys(map(_sentence, matches)))
    if len(matches) < len(found) or len(set(matches)) != 1:
        return Published(sentences)
    first, content = matches[0], _read(matches[0].name)
    if "published" not in content:
        return Published(sentences)
    reason = _unlike(runs, results, first, content["protocol"])
    if reason:
        sentences.append(f"Published figures of {content['title']} are not beside ours: {reason}.")
        return Published(sentences)
    return Published(sentences, content["title"], _rows(content), content.get("caution", ""))


class _Source(TypedDict):
    where: str
    doubt: NotRequired[str]


@with_config(ConfigDict(extra="forbid"))
class _Content(TypedDict):
    """A file of `properties/test_sets`."""

    title: str
    protocol: NotRequired[str]
    caution: NotRequired[str]
    sources: NotRequired[dict[str, _Source]]
    published: NotRequired[list[dict[str, str | float]]]


def _read(name: str) -> _Content:
    return TypeAdapter(_Content).validate_python(read_settings_file(known_text(name)))


def _sentence(match: Match) -> str:
    title = _read(match.name)["title"]
    by = {
        "ids": "by the ids of the data files",
        "graph": "by who has which items, as the ids are others",
    }[match.by]
    if match.equal:
        return f"Test items: equal to {title} ({by})."
    if match.n_same == match.n_compared:
        return f"Test items: those of {title} for the tested users, who are not all ({by})."
    share = 100 * (1 - match.n_same / match.n_compared)
    return (
        f"Test items: about {share:.0f} % of users have another test item than in {title} (of "
        f"{match.n_compared:,} compared, {by}): its published figures are of another test."
    )


def _unlike(
    runs: Sequence[Path], results: Sequence[Mapping[str, Any]], match: Match, protocol: str
) -> str:
    """Why published figures do not fit, as the end of a sentence; empty if they do."""
    if not match.equal:
        return "other test items"
    for run, result in zip(runs, results, strict=True):
        written = run / CONFIG_FILE
        settings = read_settings_file(written) if is_file(written) else {}
        differing = deviations({**settings, "protocol": protocol})
        wrong = [
            f"{key} {value}"
            for key, value in differing.items()
            if key in _DECIDING and _ALSO_ALLOWED.get(key) != value
        ]
        missing = [key for key in (KEY, "eval_args") if key not in settings]
        if wrong or missing:
            return f"they are of {protocol}, and {run.name} has {', '.join(wrong or missing)}"
        whole = known(match.name)
        size = {"rows": whole.n_rows, "users": whole.n_users, "items": whole.n_items}
        if (result.get("rows", {}).get("kept"), result.get("num_items")) != (size, whole.n_items):
            return f"{run.name} has other rows or another catalogue"
    return ""


def _rows(content: _Content) -> tuple[Row, ...]:
    rows = []
    for given in content["published"]:
        source = content["sources"][str(given["source"])]
        figures = {key: float(v) for key, v in given.items() if "@" in key}
        rows.append(Row(str(given["system"]), figures, source["where"], source.get("doubt", "")))
    return tuple(rows)
