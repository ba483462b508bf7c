"""Writer of a data set of conversations: a "user" is a conversation up to a recommendation.

Files (docs/datasets.md describes the columns):

- `<name>.train.inter`, `.valid.inter`, `.test.inter`: a row per conversation and recommended item;
- `<name>.user`: a row per conversation with its text and the items mentioned in it;
- `<name>.item`: the catalogue.

Rows are streamed; only a digest and the items of each conversation stay in memory.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from recbole_multdpo.data.conversation_text import Message, encode
from recbole_multdpo.data.convert.dataset_folder import DatasetFolder, text_field
from recbole_multdpo.data.convert.splits import SPLITS
from recbole_multdpo.data.item_text import decode_entities

PROPERTIES = """\
# {name}, converted from conversations with recommendations. The "users" are conversations:
# {n_users} of them, with their text in {name}.user; {n_items:,} items.
benchmark_filename: [train, valid, test]   # parts of the split, one .inter file each
load_col:                        # columns that RecBole loads; it does not load the .user file
  inter: [user_id, item_id]
  item: [item_id]                # the catalogue is every item of the .item file
context: conversation            # prompts show the text of the .user file
val_interval: ~                  # every recommended item is a positive
normalize_all: False

item_text_fields: [movie_title]  # an item's text
item_year_field: release_year    # disambiguates films of the same title
prompt_template: movies
"""


@dataclass(frozen=True)
class Turn:
    """A turn in which items were recommended.

    Attributes:
        file: raw file.
        line: line number there; file and line make the id.
        split: `train`, `valid` or `test`.
        dialog: the dialog's id in the raw data.
        messages: the conversation before this turn, oldest first; may be empty.
        items: ids of the recommended items, the positives; at least one.
        mentioned: ids of the items mentioned before this turn, in the raw order.
        time: Unix time in seconds; None if unknown.
    """

    file: str
    line: int
    split: str
    dialog: str
    messages: list[Message]
    items: list[str]
    mentioned: list[str]
    time: int | None = None


@dataclass
class _Conversation:
    """A conversation's data for the `.inter` files, which are written last."""

    user: str
    split: str
    time: int | None
    answers: Counter[str] = field(default_factory=Counter)  # item -> answers that recommend it


def write_conversations(
    folder: DatasetFolder, turns: Iterable[Turn], *, merge: bool, has_time: bool
) -> None:
    """Write the `.user` file and the three `.inter` files.

    Args:
        folder: the data set being made.
        turns: in the order of the files.
        merge: True to merge turns of one part that have the same conversation, such as several
            people's answers to one question; the positives are the items of all turns. Empty
            conversations are never merged.
        has_time: True to add a `timestamp` column to the files.
    """
    time_column = ["timestamp:float"] if has_time else []
    table = folder.table(
        "user",
        [
            "user_id:token",
            "split:token",
            "dialog:token",
            *time_column,
            "context_items:token_seq",
            "conversation:token",
        ],
    )
    conversations: dict[tuple[str, bytes], _Conversation] = {}
    counts: Counter[str] = Counter()
    for turn in turns:
        messages = [
            Message(role=message["role"], content=decode_entities(message["content"]))
            for message in turn.messages
        ]
        counts["messages_with_html_entities"] += sum(
            new != old for new, old in zip(messages, turn.messages, strict=True)
        )
        try:
            text = encode(messages)
        except ValueError as error:
            folder.reject(turn.file, turn.line, str(error), turn.messages)
            continue
        user = f"{turn.file.split('.')[0]}-{turn.line}"
        unique = text if merge and turn.messages else user
        key = turn.split, hashlib.blake2b(unique.encode(), digest_size=16).digest()
        counts["turns"] += 1
        counts["turns_without_a_conversation"] += not turn.messages
        counts["answers"] += len(turn.items)
        counts["answers_that_were_mentioned_before"] += len({*turn.items} & {*turn.mentioned})
        if key not in conversations:
            conversations[key] = _Conversation(user, turn.split, turn.time)
            time = [str(turn.time)] if has_time else []
            mentioned = " ".join(dict.fromkeys(turn.mentioned))
            table.write(user, turn.split, text_field(turn.dialog), *time, mentioned, text)
        conversations[key].answers.update(dict.fromkeys(turn.items, 1))
    _write_answers(folder, conversations.values(), has_time)
    texts = Counter(digest for _, digest in conversations)
    counts["conversations"] = len(conversations)
    counts["conversations_in_several_parts"] = sum(n > 1 for n in texts.values())
    counts["conversations_of_several_items"] = sum(
        len(conversation.answers) > 1 for conversation in conversations.values()
    )
    folder.counts |= counts
    folder.counts["conversations_per_part"] = dict(
        Counter(conversation.split for conversation in conversations.values())
    )


def _write_answers(
    folder: DatasetFolder, conversations: Iterable[_Conversation], has_time: bool
) -> None:
    columns = ["user_id:token", "item_id:token", "answers:float"]
    columns += ["timestamp:float"] if has_time else []
    tables = {split: folder.table(f"{split}.inter", columns) for split in SPLITS}
    for conversation in conversations:
        time = [str(conversation.time)] if has_time else []
        for item, answers in conversation.answers.items():
            tables[conversation.split].write(conversation.user, item, str(answers), *time)


def properties(folder: DatasetFolder) -> str:
    """Text of the property file; call it after all other files are written."""
    per_part = folder.counts["conversations_per_part"]
    n_users = ", ".join(f"{per_part.get(split, 0):,} {split}" for split in SPLITS)
    return PROPERTIES.format(name=folder.name, n_users=n_users, n_items=folder.rows["item"])
