"""The prompt stored in a run's folder."""

import json

import pytest

from recbole_multdpo.data.prompt import PromptFrame
from recbole_multdpo.data.prompt_file import PROMPT_FILE, StoredPrompt, read_prompt, write_prompt
from recbole_multdpo.errors import CheckpointError

FRAME = PromptFrame("Liked — ☃:", "\n-", "{{ 7 * 7 }}", "", {"user": "\nUser:"})
PROMPT = StoredPrompt(FRAME, {"head": [1, 2], "tail": [3], "before_turn": {"user": [4]}})


def test_the_file_is_read_back_as_text_and_not_as_a_template(tmp_path):
    write_prompt(tmp_path, PROMPT)
    assert read_prompt(tmp_path) == PROMPT
    assert read_prompt(tmp_path).frame.tail == "{{ 7 * 7 }}"
    assert read_prompt(tmp_path).fingerprint == PROMPT.fingerprint


def test_a_folder_without_one(tmp_path):
    assert read_prompt(tmp_path) is None


def edited(change):
    def edit(content):
        change(content)
        return json.dumps(content)

    return edit


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: "",
        lambda content: "[1]",
        lambda content: "null",
        lambda content: '"text"',
        lambda content: json.dumps(content)[:-9],
        lambda content: "[" * 100_000,
        lambda content: "{}",
        edited(lambda c: c.update(format=2)),
        edited(lambda c: c.update(checksum="0")),
        edited(lambda c: c.update(text=None)),
        edited(lambda c: c.update(tokens=None)),
        edited(lambda c: c["text"].update(head="Hated:")),
        edited(lambda c: c["text"].update(head=7)),
        edited(lambda c: c["text"].pop("tail")),
        edited(lambda c: c["text"].update(speakers=["user"])),
        edited(lambda c: c["tokens"].update(tail=[5])),
    ],
)
def test_a_file_that_was_edited_or_damaged_is_an_error_in_words(tmp_path, spoil):
    write_prompt(tmp_path, PROMPT)
    file = tmp_path / PROMPT_FILE
    file.write_text(spoil(json.loads(file.read_text(encoding="utf-8"))), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"prompt\.json, the prompt .* cannot be used"):
        read_prompt(tmp_path)


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / PROMPT_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CheckpointError, match="cannot be used"):
        read_prompt(tmp_path)


def test_a_tokenizer_with_other_ids_is_refused():
    PROMPT.check_tokens({"head": [1, 2], "tail": [3], "before_turn": {"user": [4]}})
    with pytest.raises(CheckpointError, match="differently than when the run began"):
        PROMPT.check_tokens({"head": [1, 2], "tail": [9], "before_turn": {"user": [4]}})
