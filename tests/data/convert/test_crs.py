"""Conversations in He et al.'s format: speakers, merging, splits, titles, rejects."""

import random

import pytest

from recbole_multdpo.data.conversation_text import decode
from recbole_multdpo.data.convert.cikm import entity_title, seconds

ITEMS = {
    "item_ids.json": "[3, 1, 2]",
    "entity2id.json": '{"<http://dbpedia.org/resource/Super_Troopers>": 1, "Heat (1995)": 2, '
    '"<http://dbpedia.org/resource/What_About_Bob%3F_(1991_film)>": 3, "Comedy": 7}',
}


def turn(context, rec, dialog="d", **more):
    """A raw row; `more` overrides."""
    return {
        "context": context,
        "resp": "answer",
        "rec": rec,
        "prev_entity": [],
        "dialog_id": dialog,
        "turn_id": "t",
        "is_user": 0,
        **more,
    }


def parts(train=(), valid=(), test=()):
    """All three files; a missing part gets one row."""
    given = {"train": train, "valid": valid, "test": test}
    return {
        **ITEMS,
        **{f"{n}.jsonl": list(rows) or [turn([n], [1])] for n, rows in given.items()},
    }


def conversation(made, user):
    """The row of `.user`, by column."""
    columns = [column.split(":")[0] for column in made.header("user")]
    return next(dict(zip(columns, r, strict=True)) for r in made.rows("user") if r[0] == user)


def test_files_and_titles(convert):
    made = convert("crs", parts(train=[turn(["", "Hi!"], [2, 1], prev_entity=[7, 3, 3])]))
    assert made.header("user") == [
        "user_id:token",
        "split:token",
        "dialog:token",
        "context_items:token_seq",
        "conversation:token",
    ]
    assert made.rows("train.inter") == [["train-1", "2", "1"], ["train-1", "1", "1"]]
    assert made.rows("valid.inter") == [["valid-1", "1", "1"]]
    row = conversation(made, "train-1")
    assert (row["split"], row["dialog"], row["context_items"]) == ("train", "d", "3")
    assert decode(row["conversation"]) == [{"role": "user", "content": "Hi!"}]
    assert made.items("movie_title", "release_year") == {
        "3": ("What About Bob?", "1991"),
        "1": ("Super Troopers", ""),
        "2": ("Heat", "1995"),
    }
    assert "benchmark_filename: [train, valid, test]" in made.yaml


def test_names_that_are_no_addresses_stay():
    assert entity_title("Heat_(1995)") == "Heat_(1995)"
    assert entity_title("<http://dbpedia.org/resource/A_%26_B>") == "A & B"


def test_ids_may_be_texts(convert):
    """As in Reddit-Movie, which uses IMDb's ids."""
    files = parts(train=[turn(["q"], ["tt1"], prev_entity=["tt2"])])
    files["valid.jsonl"] = files["test.jsonl"] = [turn(["v"], ["tt2"])]
    files["item_ids.json"] = '["tt1", "tt2"]'
    files["entity2id.json"] = '{"Heat (1995)": "tt1", "Alien (1979)": "tt2"}'
    made = convert("crs", files)
    assert made.rows("train.inter") == [["train-1", "tt1", "1"]]
    assert conversation(made, "train-1")["context_items"] == "tt2"


def test_speakers_are_those_of_input(convert):
    """Two turns of one speaker in a row, as in most turns of ReDial."""
    texts = ["", "Hello", "Anything funny?", 'Tabs\tand\n"quotes"']
    written = '\nSystem: Hello\nUser: Anything funny?\nUser: Tabs\tand\n"quotes"\nSystem: '
    made = convert("crs", parts(train=[turn(texts, [1], input=written)]))
    assert decode(conversation(made, "train-1")["conversation"]) == [
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Anything funny?"},
        {"role": "user", "content": 'Tabs\tand\n"quotes"'},
    ]
    assert made.report["counts"]["turns_with_guessed_speakers"] == 2  # of valid and test


@pytest.mark.parametrize("written", [None, 3, "\nUser: other\nSystem: "])
def test_speakers_alternate_if_input_does_not_name_them(convert, written):
    made = convert("crs", parts(train=[turn(["a", "b", "c"], [1], input=written)]))
    roles = [m["role"] for m in decode(conversation(made, "train-1")["conversation"])]
    assert roles == ["user", "assistant", "user"]


def test_answers_to_one_conversation_become_one_set(convert):
    rows = [
        turn(["Something like Heat?"], [1], dialog="a"),
        turn(["Another question"], [3], dialog="b"),
        turn(["Something like Heat?"], [3, 1], dialog="c"),
        turn([""], [1], dialog="d"),  # no question: these two are not merged
        turn([], [2], dialog="e"),
    ]
    made = convert("crs", parts(train=rows, test=[turn(["Something like Heat?"], [2])]))
    assert made.rows("train.inter") == [
        ["train-1", "1", "2"],
        ["train-1", "3", "1"],
        ["train-2", "3", "1"],
        ["train-4", "1", "1"],
        ["train-5", "2", "1"],
    ]
    assert made.rows("test.inter") == [["test-1", "2", "1"]]
    counts = made.report["counts"]
    assert counts["turns"] == 7 and counts["conversations"] == 6
    assert counts["conversations_in_several_parts"] == 1
    assert counts["turns_without_a_conversation"] == 2
    assert counts["conversations_of_several_items"] == 1
    assert counts["conversations_per_part"] == {"train": 4, "valid": 1, "test": 1}


def test_answers_kept_apart(convert):
    rows = [turn(["q"], [1]), turn(["q"], [3, 1])]
    made = convert("crs", parts(train=rows), "--no-merge")
    assert made.rows("train.inter") == [
        ["train-1", "1", "1"],
        ["train-2", "3", "1"],
        ["train-2", "1", "1"],
    ]
    assert made.report["options"]["merged"] is False


def test_items_mentioned_before_stay_positives_and_are_counted(convert):
    made = convert("crs", parts(train=[turn(["q"], [1, 2, 2], prev_entity=[1])]))
    assert len(made.rows("train.inter")) == 2
    assert made.report["counts"]["answers_that_were_mentioned_before"] == 1


def test_splitting_again_keeps_dialogs_together(convert, conversion_error):
    generator = random.Random(0)
    rows = [turn([f"q{n}"], [1], dialog=f"d{generator.randrange(20)}") for n in range(60)]
    files = {**ITEMS, "test.jsonl.gz": rows}
    message = conversion_error("crs", files)
    assert "no train and no valid file" in message and "--resplit 0.8 0.1 0.1" in message
    made = convert("crs", files, "--resplit", 0.5, 0.25, 0.25, "--seed", 1)
    part_of_dialog = {}
    for row in made.rows("user"):
        assert part_of_dialog.setdefault(row[2], row[1]) == row[1]
    assert sorted(set(part_of_dialog.values())) == ["test", "train", "valid"]
    again = convert("crs", files, "--resplit", 0.5, 0.25, 0.25, "--seed", 1, name="again")
    other = convert("crs", files, "--resplit", 0.5, 0.25, 0.25, "--seed", 2, name="other")
    assert again.rows("user") == made.rows("user") != other.rows("user")


def test_splitting_by_date(convert, conversion_error):
    times = ["2022-10-31T23:59:59", "2022-11-01", 1669852799, "2022-12-01T00:00:00+00:00", None]
    rows = [turn([f"q{n}"], [1], created=time) for n, time in enumerate(times)]
    files = {**ITEMS, "train.jsonl": rows}
    dates = ["--split-dates", "2022-11-01", "2022-12-01"]
    assert "needs --time-field" in conversion_error("crs", files, *dates)
    message = conversion_error("crs", files, "--time-field", "created", *dates[:2], "then")
    assert "expected two dates in order" in message
    made = convert("crs", files, "--time-field", "created", *dates)
    assert made.rows("train.inter") == [["train-1", "1", "1", "1667260799"]]
    assert [row[0] for row in made.rows("valid.inter")] == ["train-2", "train-3"]
    assert [row[0] for row in made.rows("test.inter")] == ["train-4"]
    assert made.header("test.inter")[3] == "timestamp:float"
    assert made.reasons() == [("train.jsonl", 5, "created is missing or not a time")]


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0, 0), ("12.9", 12), ("1970-01-02", 86400), ("1970-01-01T01:00:00+01:00", 0),
     ("1970-01-01T00:00:05Z", 5), ("x", None), (None, None), (float("nan"), None), ("inf", None)],
)  # fmt: skip
def test_seconds(value, expected):
    assert seconds(value) == expected


def test_rejected_and_skipped_rows(convert):
    rows = [
        turn(["q"], [1]),
        turn("q", [1]),
        turn([3], [1]),
        turn(["q"], "x"),
        turn(["q"], [1.5]),
        turn(["q"], [7]),  # a known entity, but no movie
        turn(["q"], [7, 2], prev_entity={}),
        turn(["q"], []),  # small talk
        turn(["q"], [1], is_user=1),  # the seeker names what they like
        turn(["q"], [7, 2]),
        turn(["x" * 140_000], [1]),
    ]
    made = convert("crs", parts(train=rows))
    assert made.reasons() == [
        ("train.jsonl", 2, "context is not a list of texts"),
        ("train.jsonl", 3, "context is not a list of texts"),
        ("train.jsonl", 4, "rec is not a list of ids"),
        ("train.jsonl", 5, "rec is not a list of ids"),
        ("train.jsonl", 6, "no recommended id is an item"),
        ("train.jsonl", 7, "prev_entity is not a list of ids"),
        ("train.jsonl", 11, "conversation of more than 131,072 characters"),
    ]
    assert made.rows("train.inter") == [["train-1", "1", "1"], ["train-1", "2", "1"]]
    counts = made.report["counts"]
    assert counts["turns_without_a_recommendation"] == 1
    assert counts["turns_without_a_recommender"] == 1
    assert counts["recommended_ids_that_are_no_items"] == 2


@pytest.mark.parametrize("name", ["item_ids.json", "entity2id.json"])
def test_one_of_the_lists_is_missing(conversion_error, name):
    files = parts()
    del files[name]
    assert f"has no {name}" in conversion_error("crs", files)


def test_items_without_a_name_and_items_listed_twice(convert):
    files = parts()
    files["item_ids.json"] = '[1, 9, 1, "NA"]'
    made = convert("crs", files)
    assert list(made.items("movie_title")) == ["1"]
    assert made.reasons() == [
        ("item_ids.json", 2, "item without a name in entity2id.json"),
        ("item_ids.json", 3, "item listed twice"),
        ("item_ids.json", 4, "id that RecBole reads as a missing value"),
    ]
