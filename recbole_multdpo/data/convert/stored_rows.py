"""Interactions on disk while a converter filters them: repeated pairs and the k-core.

A row takes 24 bytes in the hidden output folder. Memory grows with the number of users and items,
and with that of the rows that pass the k-core.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from math import isnan, nan
from typing import Any

import numpy as np

from recbole_multdpo.data.convert.dataset_folder import DatasetFolder
from recbole_multdpo.errors import DataError

ROWS_PER_CHUNK = 1_000_000
_ROW = np.dtype([("user", "<i4"), ("item", "<i4"), ("rating", "<f8"), ("time", "<f8")])


def add_filter_arguments(parser: argparse.ArgumentParser, k_core: int) -> None:
    """Options of `StoredRows.keep`."""
    parser.add_argument(
        "--k-core",
        type=int,
        default=k_core,
        metavar="K",
        help="keep users and items with at least K kept interactions, repeated until nothing "
        "changes; 1 keeps all (default: %(default)s)",
    )
    parser.add_argument(
        "--repeats",
        choices=["first", "last", "all"],
        default="first",
        help="of rows of one user with one item, keep the earliest, the latest or all "
        "(default: %(default)s)",
    )


class StoredRows:
    """Interactions in the order of their file.

    Attributes:
        users: number of each user, by id, in the order of their first row.
        items: number of each item, likewise.
        user_kept: after `keep`, [n_users] bool.
        item_kept: after `keep`, [n_items] bool.
    """

    def __init__(
        self, folder: DatasetFolder, k_core: int = 1, items: dict[str, int] | None = None
    ) -> None:
        """Create the file in the hidden output folder.

        Args:
            folder: the data set's folder.
            k_core: the least number of rows of a user and of an item.
            items: numbers of items that are known already.

        Raises:
            DataError: `k_core` is less than 1.
        """
        if k_core < 1:
            raise DataError(f"--k-core={k_core} must be at least 1")
        self._k_core = k_core
        self.users: dict[str, int] = {}
        self.items: dict[str, int] = {} if items is None else items
        self.user_kept = self.item_kept = np.ones(0, dtype=bool)
        self._folder = folder
        self._path = folder.path / "rows.bin"
        self._file = self._path.open("wb")
        self._chunk: list[tuple[int, int, float, float]] = []
        self._has_rating = self._has_time = True
        self._n_rows = 0
        self._repeated = np.zeros(0, dtype=np.int64)  # numbers of the rows left out as repeats

    def add(self, user: str, item: str, rating: float = nan, time: float = nan) -> None:
        """Store a row; NaN is no rating or no time."""
        number = self.users.setdefault(user, len(self.users))
        thing = self.items.setdefault(item, len(self.items))
        self._chunk.append((number, thing, rating, time))
        self._has_rating &= not isnan(rating)
        self._has_time &= not isnan(time)
        self._n_rows += 1
        if len(self._chunk) >= ROWS_PER_CHUNK:
            self._flush()

    def _flush(self) -> None:
        np.array(self._chunk, dtype=_ROW).tofile(self._file)
        self._chunk.clear()

    def keep(self, repeats: str = "all", at_least: float = nan) -> None:
        """Find the rows to keep: the k-core, the largest part with k rows of each user and item.

        Args:
            repeats: which of the rows of a pair to keep: `first`, `last` or `all`.
            at_least: rows with a lower rating do not count, but stay with their user and item. With
                a k-core of 1 all rows count.
        """
        self._flush()
        self._file.close()
        self.user_kept = np.ones(len(self.users), dtype=bool)
        self.item_kept = np.ones(len(self.items), dtype=bool)
        rounds = self._find_core(at_least)
        if repeats != "all" and self._n_rows:
            # without repeated rows the core only shrinks, so that they need be known inside of it
            self._find_repeats(repeats == "last")
            if len(self._repeated):
                rounds += self._find_core(at_least)
        self._folder.counts |= {
            "interactions_read": self._n_rows,
            "interactions_repeated": len(self._repeated),
            "k_core_rounds": rounds,
            "users": int(self.user_kept.sum()),
        }

    def _find_core(self, at_least: float) -> int:
        """Shrink the masks to the k-core; returns the number of passes over the rows."""
        passes, before = 0, -1
        while (left := int(self.user_kept.sum() + self.item_kept.sum())) != before:
            before = left
            users = np.zeros(len(self.users), dtype=np.int64)
            items = np.zeros(len(self.items), dtype=np.int64)
            for rows in self._kept_chunks():
                if not isnan(at_least) and self._k_core > 1:
                    rows = rows[~(rows["rating"] < at_least)]
                users += np.bincount(rows["user"], minlength=len(users))
                items += np.bincount(rows["item"], minlength=len(items))
            self.user_kept, self.item_kept = users >= self._k_core, items >= self._k_core
            passes += 1
        return passes

    def _find_repeats(self, last: bool) -> None:
        pieces, numbers, first = [], [], 0
        for rows in self._chunks():
            kept = self.user_kept[rows["user"]] & self.item_kept[rows["item"]]
            pieces.append(rows[kept])
            numbers.append(first + np.flatnonzero(kept))
            first += len(rows)
        rows, number = np.concatenate(pieces), np.concatenate(numbers)
        # rows of a pair in order of time; without times in that of the file
        order = np.lexsort((number, rows["time"], rows["item"], rows["user"]))
        pairs = rows[["user", "item"]][order]
        same = pairs[1:] == pairs[:-1]
        self._repeated = np.sort(number[order[:-1] if last else order[1:]][same])

    def _chunks(self) -> Iterator[np.ndarray]:
        with self._path.open("rb") as file:
            while len(rows := np.fromfile(file, dtype=_ROW, count=ROWS_PER_CHUNK)):
                yield rows

    def _kept_chunks(self) -> Iterator[np.ndarray]:
        first = 0
        for rows in self._chunks():
            kept = self.user_kept[rows["user"]] & self.item_kept[rows["item"]]
            begin, end = np.searchsorted(self._repeated, [first, first + len(rows)])
            kept[self._repeated[begin:end] - first] = False
            first += len(rows)
            yield rows[kept]

    def write(self, more: Sequence[str] = ("rating", "timestamp")) -> list[str]:
        """Write the `.inter` file and remove the stored rows.

        Args:
            more: columns beside the ids; one that some row lacks is left out, and said to be.

        Returns:
            The names of the columns written.
        """
        has = {"rating": self._has_rating, "timestamp": self._has_time}
        columns = ["user_id", "item_id", *(name for name in more if has[name])]
        kinds = [f"{name}:{'token' if name.endswith('_id') else 'float'}" for name in columns]
        table = self._folder.table("inter", kinds)
        users, items = list(self.users), list(self.items)
        for rows in self._kept_chunks():
            for user, item, rating, time in rows.tolist():
                values = {"rating": rating, "timestamp": time}
                numbers = (_text(values[name]) for name in columns[2:])
                table.write(users[user], items[item], *numbers)
        self._path.unlink()
        return columns

    def kept_items(self) -> list[str]:
        """Ids of the items that are kept, in the order of their first row."""
        return [item for item, number in self.items.items() if self.item_kept[number]]

    @property
    def numbers(self) -> dict[str, Any]:
        """Kept users, and rows written, for a property file."""
        return {"n_users": int(self.user_kept.sum()), "n_inter": self._folder.rows["inter"]}


def _text(number: float) -> str:
    return str(int(number)) if number.is_integer() else repr(number)
