"""Conversations read from a `.user` file: turns, mentioned items, and rejected files."""

import json
from pathlib import Path

import numpy as np
import pytest

from recbole_multdpo.data.conversations import Conversations, read_conversations
from recbole_multdpo.errors import DataError

HI, HELLO = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
USERS, ITEMS = ["[PAD]", "c1", "c2", "c3"], ["[PAD]", "10", "20", "30"]


def row(user: str, messages: object, items: str = "") -> str:
    return f"{user}\t{items}\t{json.dumps(messages)}"


def read(folder: Path, *rows: str) -> Conversations:
    path = folder / "toy.user"
    header = "user_id:token\tcontext_items:token_seq\tconversation:token"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return read_conversations(path, USERS, ITEMS, id_column="user_id")


def three(folder: Path, *, last: str = "Heat?") -> Conversations:
    return read(
        folder,
        row("c3", [HI, HELLO, {"role": "user", "content": last}], "30 10 99"),
        row("stranger", [HI]),
        row("c1", [HI], "20"),
        row("c2", []),
    )


def test_turns_follow_the_inner_ids_and_are_kept_once(tmp_path):
    """By hand: c1 says "Hi", c2 nothing, c3 three turns, the first equal to c1's."""
    found = three(tmp_path)
    said = [[found.turns[turn] for turn in found.of(user)] for user in range(4)]
    hi, hello, heat = ("user", "Hi"), ("assistant", "Hello"), ("user", "Heat?")
    assert said == [[], [hi], [], [hi, hello, heat]]
    assert found.turns[0] == ("", "") and sorted(found.turns[1:]) == sorted([hi, hello, heat])
    # 99 is not in the catalogue; ids in the order of ITEMS
    assert [found.mentioned.history(user).tolist() for user in range(4)] == [[], [2], [], [3, 1]]
    assert found.sizes().tolist() == [0, 2, 0, 2 + 5 + 5]
    assert sorted(found.texts(np.array([1, 2]))) == ["Hi"]
    assert sorted(found.texts(np.array([3]))) == ["Heat?", "Hello", "Hi"]


def test_a_turn_is_one_line_and_empty_turns_are_left_out(tmp_path):
    text = "Hi\n\tthere\u2028Recommender: Up\r\x00"
    messages = [{"role": "user", "content": text}, {"role": "user", "content": " \n"}]
    found = read(tmp_path, row("c1", messages), row("c2", []), row("c3", []))
    assert [found.turns[turn] for turn in found.of(1)] == [("user", "Hi there Recommender: Up")]


def test_the_digest_covers_texts_roles_and_mentioned_items(tmp_path):
    base = three(tmp_path).digest()
    assert three(tmp_path).digest() == base
    others = [
        three(tmp_path, last="Heat!"),
        read(tmp_path, row("c1", [HI], "20"), row("c2", []), row("c3", [HI], "30")),
        read(tmp_path, row("c1", [HI], "20"), row("c2", []), row("c3", [HI], "10")),
        read(tmp_path, row("c1", [HI], "20"), row("c2", [HI]), row("c3", [], "10")),
        read(tmp_path, row("c1", [HELLO], "20"), row("c2", []), row("c3", [HELLO], "10")),
    ]
    assert len({base, *(other.digest() for other in others)}) == 6


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([row("c1", [])], r"no row for 2 users of the \.inter files: c2, c3"),
        ([row("c1", []), row("c1", [])], r"line 3: duplicate user 'c1'"),
        (["c1\t\tnot json"], r"line 2: not a conversation"),
        ([row("c1", {"role": "user"})], r"line 2: not a conversation"),
        ([row("c1", [{"role": "tool", "content": "x"}])], r"line 2: unknown role 'tool'; allowed"),
        (["c1\t[]"], r"line 2: 2 columns instead of 3"),
    ],
)
def test_a_malformed_conversation_is_named(tmp_path, rows, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, *rows)


def test_the_error_for_a_missing_file_names_its_purpose(tmp_path):
    with pytest.raises(DataError, match=r"toy\.user does not exist.*context=conversation"):
        read_conversations(tmp_path / "toy.user", USERS, ITEMS, id_column="user_id")
