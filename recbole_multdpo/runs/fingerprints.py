"""Fingerprints of the inputs of a run: its data, its backbone, its prompt.

They are in every checkpoint (`state.json`) and in `result.json`. With changed inputs, a resumed run
would mix two runs, and a finished one would be shown on data that it was not tested on; another
order of the rows can put training rows into the test part.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from recbole.data.dataset import Dataset
from recbole.utils import FeatureType

from recbole_multdpo.errors import CheckpointError

INTERACTIONS, SPLIT, ORDER = "interactions", "split", "order"
TEXTS, CONVERSATIONS = "item_texts", "conversations"
BACKBONE, PROMPT = "backbone", "prompt"

# descriptions for messages
NAMES = {
    INTERACTIONS: "the interactions (rows or values of the .inter file)",
    SPLIT: "the split (which rows are training, validation and test)",
    ORDER: "the order of the rows (it numbers users and items, and decides a random split)",
    TEXTS: "the item texts (.item file)",
    CONVERSATIONS: "the conversations (.user file)",
    BACKBONE: "the backbone (its weights, configuration or tokenizer)",
    PROMPT: "the fixed text of the prompt (prompt.json)",
}


def data_fingerprints(dataset: Dataset, parts: Sequence[Dataset]) -> dict[str, str]:
    """Fingerprints of a data set as the settings filter and split it.

    Args:
        dataset: the whole data set; `item_texts` and `conversations` are included if it has them.
        parts: training, validation and test part.

    Returns:
        16 hexadecimal digits by name. `interactions`, `item_texts` and `conversations` do not
        depend on the order of rows; `split` does only if the split depends on it.
    """
    users, items = (_tokens(dataset, field) for field in (dataset.uid_field, dataset.iid_field))
    user_rank, item_rank = (np.argsort(np.argsort(tokens)) for tokens in (users, items))

    def pairs(user_ids: np.ndarray, item_ids: np.ndarray) -> np.ndarray:
        """One number per pair of user and item, from the ranks of their names: int64 [n]."""
        return user_rank[user_ids] * len(items) + item_rank[item_ids]

    ids = [[part.inter_feat[f].numpy() for f in (part.uid_field, part.iid_field)] for part in parts]
    found = [pairs(*of_part) for of_part in ids]
    values = np.concatenate([_values(part) for part in parts], 1)
    every = np.concatenate(found)
    in_order = np.lexsort([*values, every])
    names = ["\0".join(sorted(tokens)) for tokens in (users, items)]
    low = getattr(dataset, "low_pairs", None)  # ratings that val_interval drops, as negatives
    low_rows = () if low is None else (np.sort(pairs(*low)),)
    of_users = np.argsort(ids[0][0], kind="stable")
    prints = {
        INTERACTIONS: _digest(*names, every[in_order], values[:, in_order], *low_rows),
        SPLIT: _digest(*names, *map(np.sort, found)),
        ORDER: _digest("\0".join(users), "\0".join(items), found[0][of_users]),
    }
    texts = getattr(dataset, "item_texts", None)
    if texts is not None:
        prints[TEXTS] = _digest(*(f"{items[i]}\0{texts[i]}" for i in np.argsort(items)))
    conversations = getattr(dataset, "conversations", None)
    if conversations is not None:
        prints[CONVERSATIONS] = _digest(*_conversations(conversations, users, items))
    return prints


def pairs_fingerprint(part: Dataset) -> str:
    """Fingerprint of a part's pairs of user and item, to compare the test parts of two runs."""
    users, items = (
        part.id2token(field, part.inter_feat[field].numpy())
        for field in (part.uid_field, part.iid_field)
    )
    pairs = sorted({f"{user}\t{item}" for user, item in zip(users, items, strict=True)})
    return hashlib.sha256("\n".join(pairs).encode()).hexdigest()[:16]


def changed(saved: Mapping[str, Any], current: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the fingerprints that differ; those missing on one side are skipped."""
    return tuple(
        key for key in NAMES if key in saved and saved[key] != current.get(key, saved[key])
    )


def describe(names: Iterable[str]) -> str:
    """Describe the fingerprints that differ, for a message."""
    return "; ".join(NAMES[name] for name in names)


def check_resumed(folder: object, saved: Mapping[str, Any], current: Mapping[str, Any]) -> None:
    """Refuse to continue a run on other data, another backbone or another prompt.

    Args:
        folder: the run, for the message.
        saved: fingerprints of its checkpoint.
        current: fingerprints computed so far.

    Raises:
        CheckpointError: it names the inputs that differ.
    """
    different = changed(saved, current)
    if different:
        raise CheckpointError(
            f"--resume={folder} continues a run as it was, but its input has changed: "
            f"{describe(different)}. Restore them (--data_path and --backbone may name a new "
            "place), or start a new run without --resume."
        )


def _tokens(dataset: Dataset, field: str) -> np.ndarray:
    """Names in the data files by inner id, str [n]."""
    return np.array([str(token) for token in dataset.field2id_token[field]])


def _values(part: Dataset) -> np.ndarray:
    """The numbers of every row (ratings, times), float64 [n_columns, n]."""
    feat = part.inter_feat
    names = [
        field
        for field in sorted(feat.interaction)
        if part.field2type.get(field) == FeatureType.FLOAT and feat[field].dim() == 1
    ]
    columns = [feat[field].numpy().astype(np.float64) for field in names]
    return np.stack(columns) if columns else np.empty((0, len(feat)))


def _conversations(conversations: Any, users: np.ndarray, items: np.ndarray) -> Iterable[str]:
    for user in np.argsort(users):
        said = [conversations.turns[turn] for turn in conversations.of(user)]
        mentioned = sorted(items[conversations.mentioned.history(user)])
        yield "\0".join([users[user], *(f"{role}\1{text}" for role, text in said), *mentioned])


def _digest(*pieces: str | np.ndarray) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        data = piece.encode() if isinstance(piece, str) else np.ascontiguousarray(piece).tobytes()
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.hexdigest()[:16]
