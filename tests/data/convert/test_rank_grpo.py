"""Rank-GRPO's processed conversations: chats, (title, year) answers, no pickles."""

import json
import pickle

import pytest

from recbole_multdpo.data.conversation_text import decode

FILMS = [["Heat", "1995"], ["Alien", 1979], ["Heat", "1986"], ["Emma", ""]]


def row(text, answers, seen=()):
    return {
        "prompt": [{"content": text, "role": "user"}],
        "groundtruth_with_release_year": answers,
        "seen_titles": list(seen),
    }


def files(**parts):
    """JSON lines of each part; a missing part gets one row."""
    names = {"train": "train.jsonl", "valid": "validation.jsonl", "test": "test.jsonl"}
    rows = {name: parts.get(split, [row("q", [FILMS[0]])]) for split, name in names.items()}
    return {**rows, "gt_catalog.json": json.dumps(FILMS)}


def test_json_lines(convert):
    seen = ["Alien", "Heat", "Heat (1986)", "heat", "Unknown"]
    train = [
        row("q\t1", [["Heat", 1995], ["Nope", "2000"]], seen),
        row("q\t1", [["Alien", "1979"]]),
    ]
    made = convert("crs", files(train=train))
    assert made.items("movie_title", "release_year") == {
        "1": ("Alien", "1979"),
        "2": ("Emma", ""),
        "3": ("Heat", "1986"),
        "4": ("Heat", "1995"),
    }
    assert made.rows("train.inter") == [["train-1", "4", "1"], ["train-1", "1", "1"]]
    user = made.rows("user")[0]
    assert user[:4] == ["train-1", "train", "train-1", "1 3"]
    assert decode(user[4]) == [{"role": "user", "content": "q\t1"}]
    counts = made.report["counts"]
    assert counts["answers_outside_the_catalogue"] == 1
    assert counts["seen_titles_without_a_unique_film"] == 3  # Heat, heat, Unknown
    apart = convert("crs", files(train=train), "--no-merge", name="apart")
    assert [r[0] for r in apart.rows("train.inter")] == ["train-1", "train-2"]


def test_rejects(convert):
    train = [row("q", [["Heat", "1995"]]), row("q", [["Nope", "2000"]]), row("q", None)]
    train += [{**row("q", [FILMS[0]]), "prompt": "text"}]
    train += [{**row("q", [FILMS[0]]), "prompt": [{"role": "bot", "content": "x"}]}]
    train += [row("q", "Heat (1995)"), row("q", [["Heat"], "Heat", 3])]
    made = convert("crs", files(train=train))
    assert made.reasons() == [
        ("train.jsonl", 2, "no answer in the catalogue"),
        ("train.jsonl", 3, "no answer in the catalogue"),
        ("train.jsonl", 4, "prompt is not a chat"),
        ("train.jsonl", 5, "prompt is not a chat"),
        ("train.jsonl", 6, "no answer in the catalogue"),
        ("train.jsonl", 7, "no answer in the catalogue"),
    ]


def test_without_a_catalogue_it_is_all_answers(convert):
    raw = files(test=[row("q", [["Alien", "1979"]])])
    del raw["gt_catalog.json"]
    made = convert("crs", raw)
    assert made.items("movie_title") == {"1": ("Alien",), "2": ("Heat",)}


class Bomb:
    """A pickle that creates a file when it is loaded."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (open, (self.mark, "w"))


def test_a_pickled_catalogue_is_never_loaded(conversion_error, tmp_path):
    raw = files()
    del raw["gt_catalog.json"]
    raw["gt_catalog.pkl"] = pickle.dumps(Bomb(str(tmp_path / "mark")))
    message = conversion_error("crs", raw)
    assert "can run any code, so it is not read" in message and "gt_catalog.json" in message
    assert not (tmp_path / "mark").exists()
    pickle.loads(raw["gt_catalog.pkl"]).close()
    assert (tmp_path / "mark").exists()  # control: loading creates the file


def test_errors_of_whole_inputs(conversion_error):
    raw = files()
    message = conversion_error("crs", {**raw, "gt_catalog.json": '[["Heat", 1995], "Alien"]'})
    assert "gt_catalog.json, entry 2: expected a list of [title, year]" in message
    assert "already split by time" in conversion_error("crs", raw, "--resplit", 1, 0, 0)


def test_a_missing_part(conversion_error):
    raw = files()
    del raw["validation.jsonl"]
    assert "no valid part" in conversion_error("crs", raw)


def test_arrow_folders(convert, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="datasets folders need pyarrow")
    parts = {
        "train": [row(f"q{n}", [["Heat", "1995"]]) for n in range(5)],
        "validation": [row("v", [["Alien", "1979"]], ["Heat (1995)"])],
        "test": [row("t", [["Alien", "1979"]])],
    }
    for name, rows in parts.items():
        folder = tmp_path / "raw" / name
        folder.mkdir(parents=True)
        table = pyarrow.Table.from_pylist(rows)
        for shard in range(2):  # as `datasets` shards large sets
            half = table.slice(shard * 3, 3)
            path = folder / f"data-0000{shard}-of-00002.arrow"
            with pyarrow.ipc.new_stream(str(path), table.schema) as stream:
                stream.write_table(half, max_chunksize=2)
    made = convert("crs", {"gt_catalog.json": json.dumps(FILMS)})
    assert [r[0] for r in made.rows("train.inter")] == [f"train-{n}" for n in range(1, 6)]
    assert made.rows("valid.inter") == [["validation-1", "1", "1"]]
    assert made.rows("user")[5][3] == "4"


def test_a_damaged_arrow_file(conversion_error):
    pytest.importorskip("pyarrow", reason="datasets folders need pyarrow")
    raw = {
        f"{part}/data-00000-of-00001.arrow": b"x" * 100 for part in ("train", "validation", "test")
    }
    message = conversion_error("crs", {**raw, "gt_catalog.json": json.dumps(FILMS)})
    assert "data-00000-of-00001.arrow cannot be read" in message


def test_arrow_without_pyarrow(conversion_error, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    raw = {f"{part}/data.arrow": b"" for part in ("train", "validation", "test")}
    message = conversion_error("crs", {**raw, "gt_catalog.json": json.dumps(FILMS)})
    assert "pip install pyarrow" in message and "to_json('train.jsonl')" in message
