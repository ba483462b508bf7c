"""Conversations in place of histories: the turns and mentioned items of each RecBole user.

With context=conversation a "user" of `.inter` is a conversation, and its items are the
recommendations that followed. The `.user` file, as `recbole_multdpo.data.convert` writes it, holds
the conversations. Nothing is learnt per user: a test conversation is a text like any other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from recbole_multdpo.data.atomic_file import read_columns
from recbole_multdpo.data.conversation_text import ROLES, decode
from recbole_multdpo.data.item_text import clean_text
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.errors import DataError, doc_page

CONVERSATION, CONTEXT_ITEMS = "conversation", "context_items"  # columns of the .user file


@dataclass(frozen=True)
class Conversations:
    """The conversation of every user, in compressed rows.

    Attributes:
        turns: every distinct turn of the data set as (role, text on one line); entry 0 is unused,
            like item 0, so that a prompt is built from turns as it is from items.
        start: int64 [n_users + 1]; user u has `turn_ids[start[u]:start[u + 1]]`, oldest first.
        turn_ids: int64 [n_spoken], indices into `turns`.
        mentioned: catalogue items that each conversation mentions.
    """

    turns: list[tuple[str, str]]
    start: np.ndarray
    turn_ids: np.ndarray
    mentioned: UserItems

    def of(self, user: int) -> np.ndarray:
        """Indices of a conversation's turns, oldest first."""
        return self.turn_ids[self.start[user] : self.start[user + 1]]

    def texts(self, users: np.ndarray) -> list[str]:
        """The distinct texts of these users' turns."""
        ids = {turn for user in users.tolist() for turn in self.of(user).tolist()}
        return [self.turns[turn][1] for turn in sorted(ids)]

    def sizes(self) -> np.ndarray:
        """Characters of each conversation, int64 [n_users]: a measure of its prompt's length."""
        lengths = np.array([len(text) for _, text in self.turns], dtype=np.int64)
        total = np.concatenate([[0], lengths[self.turn_ids].cumsum()])
        return total[self.start[1:]] - total[self.start[:-1]]

    def digest(self) -> str:
        """SHA-256 of all turns and mentioned items."""
        hashed = hashlib.sha256(json.dumps(self.turns).encode())
        for array in (self.start, self.turn_ids, self.mentioned.start, self.mentioned.items):
            hashed.update(np.ascontiguousarray(array).tobytes())
        return hashed.hexdigest()


def read_conversations(
    path: Path,
    user_tokens: Sequence[str],
    item_tokens: Sequence[str],
    *,
    id_column: str,
    separator: str = "\t",
    encoding: str = "utf-8",
    items_separator: str = " ",
) -> Conversations:
    """Read the columns `conversation` and `context_items` of a `.user` file.

    A turn becomes one line of text (`clean_text`), so that no text can imitate the start of another
    turn in a prompt. Turns without text are left out, rows of unknown users are skipped, and so are
    mentioned ids outside the catalogue.

    Args:
        path: the `.user` file.
        user_tokens: external user ids in inner order; entry 0 is [PAD].
        item_tokens: external item ids likewise.
        id_column: the column with the user ids.
        separator: between columns.
        encoding: of the file.
        items_separator: between the ids in `context_items`.

    Raises:
        DataError: the file cannot be read, has a duplicate user or lacks one, or a conversation is
            not a JSON list of messages with known roles.
    """
    inner_user = {str(token): user for user, token in enumerate(user_tokens) if user}
    inner_item = {str(token): item for item, token in enumerate(item_tokens) if item}
    turn_index: dict[tuple[str, str], int] = {("", ""): 0}
    spoken: dict[int, list[int]] = {}
    mentioned: dict[int, list[int]] = {}
    for number, (token, conversation, items) in read_columns(
        path,
        [id_column, CONVERSATION, CONTEXT_ITEMS],
        separator,
        encoding,
        need=(
            f"context=conversation needs it, with the columns {id_column}, {CONVERSATION} and "
            f"{CONTEXT_ITEMS}."
        ),
        remedy=f"See {doc_page('datasets')}, or use --context=history.",
    ):
        user = inner_user.get(token)
        if user is None:
            continue
        if user in spoken:
            raise DataError(f"{path}, line {number}: duplicate user {token!r}. Keep one row.")
        turns = _turns(f"{path}, line {number}", conversation)
        spoken[user] = [turn_index.setdefault(turn, len(turn_index)) for turn in turns]
        ids = filter(None, items.split(items_separator))
        mentioned[user] = [inner_item[item] for item in ids if item in inner_item]
    absent = [token for token, user in inner_user.items() if user not in spoken]
    if absent:
        raise DataError(
            f"{path} has no row for {len(absent)} users of the .inter files: "
            f"{', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}. Convert the data again."
        )
    users = range(len(user_tokens))
    counts = [len(spoken.get(user, ())) for user in users]
    return Conversations(
        list(turn_index),
        np.concatenate([[0], np.cumsum(counts)]),
        np.array([turn for user in users for turn in spoken.get(user, ())], dtype=np.int64),
        UserItems.from_lists([mentioned.get(user, []) for user in users]),
    )


def _turns(where: str, conversation: str) -> list[tuple[str, str]]:
    try:
        messages = decode(conversation)
    except DataError as error:
        raise DataError(f"{where}: {error}") from None
    unknown = {message["role"] for message in messages}.difference(ROLES)
    if unknown:
        raise DataError(
            f"{where}: unknown role {', '.join(map(repr, sorted(unknown)))}; "
            f"allowed: {', '.join(ROLES)}"
        )
    turns = [(message["role"], clean_text(message["content"])) for message in messages]
    return [turn for turn in turns if turn[1]]
