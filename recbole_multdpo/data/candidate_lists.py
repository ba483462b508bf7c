"""Candidates of every test user from a file: published lists, or those of a first stage.

Two forms, told apart by the first line:

- a run as TREC's tools read it, `user Q0 item rank score tag`, divided by spaces, without a header;
- a table, divided by tabs or commas, whose first line names the columns of users and items. Types
  may follow the names, as in RecBole's atomic files (`user_id:token`). Other columns are not read.

A list is a set: the order of its items, their ranks and scores play no part.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from recbole.config import Config
from recbole.data.dataset import Dataset

from recbole_multdpo.errors import DataError
from recbole_multdpo.runtime.csv_table import TABLE_LIMIT, read_table
from recbole_multdpo.runtime.reading import check_regular, readable
from recbole_multdpo.settings.protocol import lists_in_words

TREC_COLUMNS = ("user", "Q0", "item", "rank", "score", "tag")
USER_NAMES = ("user_id", "user", "userid", "uid", "qid")
ITEM_NAMES = ("item_id", "item", "itemid", "iid", "docid", "docno")
NAMED = 5  # ids in a message
_FORMS = (
    "Set --candidate_lists to a run of TREC (user Q0 item rank score tag, without a header), or "
    "to a CSV or TSV file whose first line names the columns, such as user,item."
)


@dataclass(frozen=True)
class CandidateLists:
    """Candidates of the tested users.

    Attributes:
        file: the file that they are from.
        items: long [n] for every tested user, ascending inner ids of distinct items.
        n_with_target: number of users with a held-out item in their list.
        fingerprint: hash of the pairs of user and item, 16 hexadecimal digits.
    """

    file: Path
    items: Mapping[int, np.ndarray]
    n_with_target: int
    fingerprint: str

    @property
    def sizes(self) -> np.ndarray:
        """Length of every list, int64 [n_users]."""
        return np.array([len(items) for items in self.items.values()], dtype=np.int64)

    def as_dict(self) -> dict[str, Any]:
        """Plain data for `result.json`."""
        return {
            "file": self.file.name,
            "users": len(self.items),
            "shortest": int(self.sizes.min()),
            "longest": int(self.sizes.max()),
            "users_with_target": self.n_with_target,
            "valid_ratio": 1.0,  # only items of the list are scored
            "fingerprint": self.fingerprint,
        }


def read_pairs(path: Path, users: str = "user_id", items: str = "item_id") -> pd.DataFrame:
    """Read a file of lists.

    Args:
        path: the file, see the module.
        users: a further name of the column of users.
        items: a further name of the column of items.

    Returns:
        Columns `user` and `item`, text as in the file, one row per candidate.

    Raises:
        DataError: the file cannot be read, is of no known form, or names a pair twice.
    """
    with readable(path, _FORMS):
        check_regular(path, TABLE_LIMIT)
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline().rstrip("\r\n")
        pairs = _read(path, first, (users, *USER_NAMES), (items, *ITEM_NAMES))
        if pairs.isna().any(axis=None) or (pairs == "").any(axis=None):
            raise ValueError("a row has no user or no item")
        if pairs.empty:
            raise ValueError("it has no rows")
    repeated = pairs[pairs.duplicated()]
    if len(repeated):
        named = (f"user {user} item {item}" for user, item in repeated.to_numpy()[:NAMED])
        raise DataError(
            f"candidate_lists={path}: {len(repeated):,} rows repeat a pair, {', '.join(named)}. "
            "Write every candidate of a user once."
        )
    return pairs


def _read(path: Path, first: str, users: Sequence[str], items: Sequence[str]) -> pd.DataFrame:
    """The file's rows; `first` is its first line, the others are names of columns."""
    options: dict[str, Any] = {"encoding": "utf-8-sig", "keep_default_na": False}
    as_text = {"user": str, "item": str}
    fields = first.split()
    if len(fields) == len(TREC_COLUMNS) and fields[1].upper() in ("Q0", "0"):
        options |= {"sep": r"\s+", "header": None, "names": TREC_COLUMNS, "index_col": False}
        numbers = {"rank": float, "score": float}
        table = read_table(path, numbers, dtype=as_text, quoting=csv.QUOTE_NONE, **options)
        return table[["user", "item"]]
    separator = "\t" if "\t" in first else ","
    header = [name.strip(' "').partition(":")[0] for name in first.split(separator)]
    places = [_place(header, names) for names in (users, items)]
    names = [f"column {number}" for number in range(len(header))]
    for place, name in zip(places, as_text, strict=True):
        names[place] = name
    quoting = csv.QUOTE_NONE if separator == "\t" else csv.QUOTE_MINIMAL
    options |= {"sep": separator, "header": 0, "names": names, "quoting": quoting}
    return read_table(path, as_text, usecols=list(as_text), dtype=str, **options)[[*as_text]]


def _place(header: Sequence[str], names: Sequence[str]) -> int:
    lower = [name.lower() for name in header]
    found = [lower.index(name.lower()) for name in names if name.lower() in lower]
    if not found:
        shown = ", ".join(header)[:80]
        raise ValueError(f"its first line, {shown!r}, names no column {' or '.join(names[:3])}")
    return found[0]


def candidate_lists(config: Config, part: Dataset) -> CandidateLists:
    """The lists of the users of a test part, from the file that `candidate_lists` names.

    Lists of users who are not tested are left out.

    Args:
        config: the run's configuration (candidate_lists, topk).
        part: the rows to be tested.

    Raises:
        DataError: the file is wrong, users or items are unknown, a tested user has no list, a list
            is shorter than the largest of `topk`, or no list has a held-out item.
    """
    path = Path(config["candidate_lists"])
    pairs = read_pairs(path, part.uid_field, part.iid_field)
    users, items = (
        _inner_ids(path, part, field, pairs[column], column)
        for field, column in ((part.uid_field, "user"), (part.iid_field, "item"))
    )
    tested = part.inter_feat[part.uid_field].unique().numpy()
    without = np.setdiff1d(tested, users)
    if len(without):
        raise DataError(
            f"candidate_lists={path}: {len(without):,} of {len(tested):,} tested users have no "
            f"list, {_names(part, part.uid_field, without)}. Add their lists, or test the users of "
            "the file alone: another split (--eval_args) or its own data set."
        )
    is_tested = np.isin(users, tested)
    left_out = len(np.unique(users[~is_tested]))
    order = np.lexsort([items[is_tested], users[is_tested]])
    users, items = users[is_tested][order], items[is_tested][order]
    distinct, starts = np.unique(users, return_index=True)
    of_user = dict(zip(distinct.tolist(), np.split(items, starts[1:]), strict=True))

    held_out, targets = (part.inter_feat[f].numpy() for f in (part.uid_field, part.iid_field))
    stride = part.item_num
    found = np.isin(held_out * stride + targets, users * stride + items)
    n_with_target = len(np.unique(held_out[found]))
    tokens = pairs[is_tested]
    lists = CandidateLists(path, of_user, n_with_target, _digest(tokens["user"], tokens["item"]))
    _check(lists, part, max(config["topk"]))
    if left_out:
        getLogger().info(f"candidate_lists: {left_out:,} lists of users who are not tested")
    return lists


def _inner_ids(path: Path, part: Dataset, field: str, tokens: pd.Series, column: str) -> np.ndarray:
    """Inner ids int64 [n] of tokens.

    Raises:
        DataError: with the number of unknown ones and the first of them.
    """
    known = pd.Index([str(token) for token in part.field2id_token[field][1:]])
    ids = known.get_indexer(pd.Index(tokens)) + 1
    unknown = tokens[ids == 0].unique()
    if len(unknown):
        named = ", ".join(unknown[:NAMED])
        rows = (ids == 0).sum()
        raise DataError(
            f"candidate_lists={path}: {len(unknown):,} {column}s in {rows:,} rows are not in the "
            f"data set as it is filtered ({field}): {named}. Write ids as in the data files, such "
            f"as {', '.join(known[:2])}, and leave the others out."
        )
    return ids


def _check(lists: CandidateLists, part: Dataset, largest: int) -> None:
    """Refuse lists that measure nothing; log their size."""
    name, sizes = f"candidate_lists={lists.file}", lists.sizes
    if not lists.n_with_target:
        raise DataError(
            f"{name}: no list has a test item of its user, so that nothing can be found. Are they "
            "lists of this split? Ids are as in the data files."
        )
    if sizes.min() < largest:
        short = np.array([user for user, items in lists.items.items() if len(items) < largest])
        raise DataError(
            f"{name}: {len(short):,} lists are shorter than the largest cut-off, {largest}, the "
            f"shortest with {sizes.min()} items: {_names(part, part.uid_field, short)}. Lower "
            f"--topk to at most {sizes.min()}, and --valid_metric with it."
        )
    getLogger().info(f"test: {lists_in_words(lists.as_dict())}")
    if sizes.max() == largest:
        getLogger().warning(
            f"{name}: at {largest}, the length of the lists, Hit and Recall only say which lists "
            "have the test items. Read them at a lower cut-off: --topk=[1, 5]."
        )


def _names(part: Dataset, field: str, ids: np.ndarray) -> str:
    shown = ", ".join(map(str, part.id2token(field, ids[:NAMED])))
    return shown + (", ..." if len(ids) > NAMED else "")


def _digest(users: Iterable[str], items: Iterable[str]) -> str:
    pairs = sorted(f"{user}\t{item}" for user, item in zip(users, items, strict=True))
    return hashlib.sha256("\n".join(pairs).encode()).hexdigest()[:16]
