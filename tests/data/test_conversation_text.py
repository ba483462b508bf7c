"""Conversations as one field of a file."""

import io

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from recbole_multdpo.data.conversation_text import (
    MAX_FIELD_CHARACTERS,
    ROLES,
    Message,
    decode,
    encode,
)
from recbole_multdpo.errors import DataError

NASTY = 'a\tb\nc\r\n"d" \\t \\ \u2028\u0085\x00 é 👩‍👧'
MESSAGES = st.lists(
    st.builds(Message, role=st.sampled_from(ROLES), content=st.text(max_size=30)), max_size=4
)


@given(MESSAGES)
def test_every_character_comes_back(messages):
    text = encode(messages)
    assert decode(text) == messages
    assert not set("\t\n\r") & set(text) and not text.startswith('"')


def test_recbole_reads_it_as_one_field():
    """The same call as in RecBole's `_load_feat`."""
    text = encode([Message(role="user", content=NASTY)])
    file = io.StringIO(f"user_id:token\ttext:token\nu1\t{text}\nu2\t[]\n", newline="")
    frame = pd.read_csv(file, delimiter="\t", dtype=str, engine="python")
    assert frame["text:token"].tolist() == [text, "[]"]
    assert decode(frame["text:token"][0])[0]["content"] == NASTY


def test_a_lone_surrogate_becomes_a_question_mark():
    assert decode(encode([Message(role="user", content="a\ud800b")]))[0]["content"] == "a?b"


def test_invalid_messages_are_refused():
    with pytest.raises(ValueError, match="unknown role bot; allowed: system, user, assistant"):
        encode([Message(role="bot", content="")])
    with pytest.raises(ValueError, match="more than 131,072"):
        encode([Message(role="user", content="x" * MAX_FIELD_CHARACTERS)])


@pytest.mark.parametrize("text", ["", "hello", "3", '["a"]', '[{"role": "user"}]', "null"])
def test_malformed_conversations(text):
    with pytest.raises(DataError, match="not a conversation"):
        decode(text)
