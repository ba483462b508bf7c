"""Lists of titles: quoted in prompts as in SPRec's files, or plain."""

import json

import pytest

from recbole_multdpo.data.convert.titles_jsonl import split_titles


def prompt(titles, answer):
    quoted = ", ".join(f'"{title}"' for title in titles)
    return {"instruction": "x", "input": f"Read: {quoted}, please", "output": f'"{answer}"\n'}


NAMES = json.dumps({"0": "It", "1": 'A Child Called "It" (Dave Pelzer #1)', "2": "Never read"})


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ('Read: "A", "B, C", "D (E, #1)", now', ["A", "B, C", "D (E, #1)"]),
        ('"A"\n', ["A"]),
        ('x "Called "It" (#1)", "It" y', ['Called "It" (#1)', "It"]),
        ('x "One", "Two" y', ["One", "Two"]),
        ('x "Say "hi", "bye"!", "One" y', ['Say "hi', 'bye"!', "One"]),  # cannot be known
        ("none", []),
        ('one " mark', []),
        ('""', [""]),
    ],
)
def test_split_titles(text, titles):
    assert split_titles(text, known=set()) == titles


def test_a_known_title_may_contain_the_separator():
    text = 'x "Say "hi", "bye"!", "One", "bye"!" y'
    known = {'Say "hi", "bye"!', "One"}
    assert split_titles(text, known) == ['Say "hi", "bye"!', "One", 'bye"!']


def test_one_file_is_leave_one_out(convert):
    rows = [prompt(["It", 'A Child Called "It" (Dave Pelzer #1)'], "New\tone"), prompt([], "It")]
    made = convert("titles-jsonl", {"train.json": json.dumps(rows), "id2name.json": NAMES})
    assert made.rows("inter") == [
        ["train-1", "0", "1"],
        ["train-1", "1", "2"],
        ["train-1", "t1", "3"],
        ["train-2", "0", "1"],
    ]
    assert made.items("title") == {
        "0": ("It",),
        "1": ('A Child Called "It" (Dave Pelzer #1)',),
        "2": ("Never read",),
        "t1": ("New one",),
    }
    assert made.report["counts"]["titles_without_an_id"] == 1
    assert "LS" in made.yaml and "prompt_template: items" in made.yaml


def test_plain_lists_and_other_keys(convert):
    rows = [
        {"history": ["A", "B"], "targets": ["C", "D"]},
        {"prompt": '"A" and', "response": '"C"'},
    ]
    made = convert("titles-jsonl", {"train.jsonl": rows}, "--prompt-template", "books")
    assert [row[:2] for row in made.rows("inter")] == [
        ["train-1", "t1"],
        ["train-1", "t2"],
        ["train-1", "t3"],
        ["train-1", "t4"],
        ["train-2", "t1"],
        ["train-2", "t3"],
    ]
    assert "prompt_template: books" in made.yaml


def test_three_files_put_histories_into_the_training_part(convert, conversion_error):
    raw = {
        f"{name}.jsonl": [{"history": ["A", name], "targets": ["T"]}] for name in ("train", "test")
    }
    assert "no valid file" in conversion_error("titles-jsonl", raw)
    raw["valid.jsonl"] = [{"history": ["A"], "targets": ["V", "T"]}]
    made = convert("titles-jsonl", raw)
    assert [row[0] for row in made.rows("train.inter")] == [
        *["train-1"] * 3,
        "valid-1",
        *["test-1"] * 2,
    ]
    assert [(row[0], row[2]) for row in made.rows("valid.inter")] == [
        ("valid-1", "2"),
        ("valid-1", "3"),
    ]
    assert [row[0] for row in made.rows("test.inter")] == ["test-1"]
    assert made.report["counts"]["users_per_part"] == {"train": 1, "valid": 1, "test": 1}


def test_splitting_users_anew(convert):
    rows = [{"history": ["A"], "targets": [f"T{n}"]} for n in range(20)]
    made = convert("titles-jsonl", {"train.jsonl": rows}, "--resplit", 0.8, 0.1, 0.1)
    assert made.report["counts"]["users_per_part"] == {"train": 16, "valid": 2, "test": 2}
    assert len(made.rows("train.inter")) == 20 + 16
    held_out = {row[0] for part in ("valid", "test") for row in made.rows(f"{part}.inter")}
    assert len(held_out) == 4


def test_titles_are_the_same_if_a_run_reads_them_alike(convert):
    rows = [{"history": ["Cafe\u0301  Noir", "Caf\u00e9 Noir"], "targets": ["\tCaf\u00e9\nNoir"]}]
    made = convert("titles-jsonl", {"train.jsonl": rows})
    assert made.items("title") == {"t1": ("Caf\u00e9 Noir",)}
    assert made.report["counts"]["titles_repeated_within_a_row"] == 2


def test_ids_of_the_same_title_are_one_item(convert):
    names = json.dumps({"5": "Sabriel (Abhorsen,  #1)", "3": "Sabriel (Abhorsen, #1)", "4": "Up"})
    rows = [{"history": ["Up"], "targets": ["Sabriel (Abhorsen, #1)", "New"]}]
    made = convert("titles-jsonl", {"train.jsonl": rows, "id2name.json": names})
    assert list(made.items("title")) == ["5", "4", "t1"]
    assert [row[1] for row in made.rows("inter")] == ["4", "5", "t1"]
    assert made.report["counts"]["ids_whose_title_has_another_id"] == 1


def test_rejects(convert):
    rows = [
        {"history": ["A"], "targets": ["B"]},
        {"history": ["A"], "targets": []},
        {"history": [" "], "targets": ["B"]},
        {"history": "A", "targets": ["B"]},
        {"input": "no titles", "output": "none"},
        {"input": 'only "A"', "output": ""},
    ]
    names = json.dumps({"0": "A", "nan": "X", "1": "", "2": 3})
    made = convert("titles-jsonl", {"train.jsonl": rows, "id2name.json": names})
    assert made.reasons() == [
        ("id2name.json", 2, "id that RecBole reads as a missing value"),
        ("id2name.json", 3, "id without a title"),
        ("id2name.json", 4, "id without a title"),
        ("train.jsonl", 2, "empty title or no target"),
        ("train.jsonl", 3, "empty title or no target"),
        ("train.jsonl", 4, "neither quoted titles nor history and targets"),
        ("train.jsonl", 5, "empty title or no target"),
        ("train.jsonl", 6, "empty title or no target"),
    ]


def test_ids_like_our_own_are_refused(conversion_error):
    raw = {"train.jsonl": [{"history": [], "targets": ["B"]}], "id2name.json": '{"t1": "A"}'}
    assert "'t1' looks like those given to titles" in conversion_error("titles-jsonl", raw)
