"""The text of a conversation in one column of a `.user` file: a JSON list of chat messages.

`[{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]`, as chat templates
take it. JSON escapes tabs, line ends and quotation marks inside a message, so a conversation is one
field of one line, and `decode` restores every character.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TypedDict

from recbole_multdpo.errors import DataError

ROLES = ("system", "user", "assistant")

# pandas, with which RecBole reads a .user file, refuses longer fields (Python's csv module)
MAX_FIELD_CHARACTERS = 131_072


class Message(TypedDict):
    """One turn: the speaker's role, one of `ROLES` (the recommender is the assistant), and text."""

    role: str
    content: str


def encode(messages: Sequence[Message]) -> str:
    """Messages as one line of JSON.

    A lone surrogate, which UTF-8 cannot encode, becomes a question mark.

    Raises:
        ValueError: a role is not one of `ROLES`, or the field would be longer than
            `MAX_FIELD_CHARACTERS`.
    """
    unknown = {message["role"] for message in messages} - set(ROLES)
    if unknown:
        raise ValueError(f"unknown role {', '.join(sorted(unknown))}; allowed: {', '.join(ROLES)}")
    text = json.dumps(list(messages), ensure_ascii=False, separators=(",", ":"))
    if len(text) > MAX_FIELD_CHARACTERS:
        raise ValueError(f"conversation of more than {MAX_FIELD_CHARACTERS:,} characters")
    return text.encode("utf-8", errors="replace").decode("utf-8")


def decode(text: str) -> list[Message]:
    """Parse the output of `encode`.

    Raises:
        DataError: the text is not a JSON list of messages.
    """
    try:
        messages = json.loads(text)
        return [Message(role=str(m["role"]), content=str(m["content"])) for m in messages]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"not a conversation ({error!r}): {text[:80]!r}. Expected a JSON list of messages "
            'such as [{"role": "user", "content": "..."}].'
        ) from None
