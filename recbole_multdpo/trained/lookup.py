"""Lookup of typed users and titles, with suggestions for near misses.

A typed title need not repeat the catalogue's punctuation, capitals or order of the article: "the
usual suspects" finds "Usual Suspects, The". `id:50` names an item by its id in the data files.
"""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from recbole_multdpo.errors import DataError

N_SUGGESTIONS = 5
_ARTICLES = ("the", "a", "an", "der", "die", "das", "le", "la", "les", "il", "el")
_YEAR = re.compile(r"\s*\(\d{4}\)\s*$")


def title_key(title: str) -> str:
    """Normalised title: lower case, words only, without an article at either end."""
    words = re.findall(r"\w+", title.casefold().replace("'", "").replace("’", ""))
    if len(words) > 1 and words[-1] in _ARTICLES:
        words.pop()
    elif len(words) > 1 and words[0] in _ARTICLES:
        words.pop(0)
    return " ".join(words)


class TitleIndex:
    """Index of a catalogue's titles for typed text."""

    def __init__(self, titles: Sequence[str], item_names: Sequence[str]) -> None:
        """Index titles.

        Args:
            titles: one per inner item id; entry 0 is [PAD].
            item_names: the items' ids in the data files, in the same order.
        """
        self.titles, self.item_names = list(titles), list(item_names)
        self._by_name = {name: item for item, name in enumerate(item_names) if item}
        self._exact: dict[str, list[int]] = defaultdict(list)
        self._by_key: dict[str, list[int]] = defaultdict(list)
        for item, title in enumerate(titles):
            if item:
                self._exact[title].append(item)
                self._by_key[title_key(title)].append(item)

    def find(self, typed: str) -> int:
        """The inner id of the item with this title; of several with the same text, the first.

        Raises:
            DataError: no item or several texts match; the message names them or the nearest ones.
        """
        typed = " ".join(typed.split())
        if typed.startswith("id:"):
            return self._of_name(typed[3:])
        plain = _YEAR.sub("", typed)
        found = (
            self._exact.get(typed)
            or self._by_key.get(title_key(typed))
            or self._by_key.get(title_key(plain))
        )
        if not found:
            raise DataError(f"no title like {typed!r} in the catalogue{self._hint(plain)}")
        if len({self.titles[item] for item in found}) > 1:
            choices = ", ".join(f"id:{self.item_names[i]} ({self.titles[i]})" for i in found)
            raise DataError(f"{typed!r} may be one of several titles; choose one: {choices}")
        return found[0]

    def find_all(self, typed: Sequence[str]) -> list[int]:
        """The distinct items of several titles; all problems are reported together.

        Raises:
            DataError: as `find`; or no title is given.
        """
        found, problems = [], []
        for title in typed:
            try:
                found.append(self.find(title))
            except DataError as error:
                problems.append(str(error))
        if problems:
            raise DataError("\n".join(problems))
        if not found:
            raise DataError("no title is given; type at least one")
        return list(dict.fromkeys(found))

    def same_text(self, items: Iterable[int]) -> list[int]:
        """All items with the text of one of these."""
        texts = dict.fromkeys(self.titles[item] for item in items)
        return [item for text in texts for item in self._exact[text]]

    def mentioned_in(self, text: str) -> list[int]:
        """Items whose titles occur in a text as whole words, case-sensitive, in their order there.

        If several items share a title, the first is returned. A title inside a longer one that
        occurs ("Alien" in "Alien Nation") is not returned.
        """
        spans: list[tuple[int, int, int]] = []
        for title in sorted(self._exact, key=len, reverse=True):
            if title not in text:
                continue
            for match in re.finditer(rf"(?<!\w){re.escape(title)}(?!\w)", text):
                start, stop = match.span()
                if all(stop <= other or start >= end for other, end, _ in spans):
                    spans.append((start, stop, self._exact[title][0]))
        return list(dict.fromkeys(item for _, _, item in sorted(spans)))

    def _of_name(self, name: str) -> int:
        if name not in self._by_name:
            raise DataError(f"no item has the id {name!r}{_did_you_mean(name, self._by_name)}")
        return self._by_name[name]

    def _hint(self, typed: str) -> str:
        key = title_key(typed)
        words = set(key.split())
        # titles with all words, the shortest first, then similar spellings
        containing = [other for other in self._by_key if words and words <= set(other.split())]
        near = difflib.get_close_matches(key, self._by_key, n=N_SUGGESTIONS, cutoff=0.6)
        keys = dict.fromkeys([*sorted(containing, key=len)[:N_SUGGESTIONS], *near])
        names = [self.titles[self._by_key[other][0]] for other in list(keys)[:N_SUGGESTIONS]]
        return f"; did you mean {' or '.join(map(repr, names))}?" if names else ""


def find_users(names: Sequence[str], known: Sequence[str], where: str) -> list[int]:
    """Inner ids of users by their ids in the data files.

    Args:
        names: as typed.
        known: all users' ids in inner order; entry 0 is [PAD].
        where: name of the data set, for the message.

    Raises:
        DataError: no name is given, or some are unknown; the message names the first ones and the
            nearest known ids.
    """
    if not names:
        raise DataError("no user is given; name at least one")
    inner = {str(name): user for user, name in enumerate(known) if user}
    unknown = [name for name in names if name not in inner]
    if unknown:
        first = "; ".join(f"{name!r}{_did_you_mean(name, inner)}" for name in unknown[:3])
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        raise DataError(
            f"{len(unknown)} of {len(names)} users are not in {where}: {first}{more}. Ids are "
            "those of the .inter file; users without interactions after filtering are left out."
        )
    return [inner[name] for name in names]


def _did_you_mean(name: str, known: dict[str, int]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f" (near: {', '.join(near)})" if near else ""
