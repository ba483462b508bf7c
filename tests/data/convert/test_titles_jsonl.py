"""Lists of titles: quoted in prompts as in SPRec's files, or plain."""

import json
import random
from collections import defaultdict

import pytest

from recbole_multdpo.data.convert.__main__ import main
from recbole_multdpo.data.convert.title_rows import FORMS, split_titles


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
        ('x "Say "hi", "bye"!", "One" y', ['Say "hi', 'bye"!', "One"]),  # ambiguous
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


def test_splitting_users_again(convert):
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
    assert "'t1' has the form reserved for titles" in conversion_error("titles-jsonl", raw)


def windows_of_readers(n_readers, length=12, size=6, seed=0, first=0):
    """(history, target) windows of random lists, and the lists."""
    rng = random.Random(seed)
    lists = [
        [f"Title {n}" for n in rng.sample(range(400), length)] for _ in range(first, n_readers)
    ]
    rows = [
        {"history": one[a : a + size - 1], "targets": [one[a + size - 1]]}
        for one in lists
        for a in range(length - size + 1)
    ]
    return rows, lists


def lists_of(made, *suffixes):
    """Titles of every user in order of position, over these files."""
    titles = {item: text for item, (text,) in made.items("title").items()}
    lists = defaultdict(list)
    for suffix in suffixes:
        for user, item, place in made.rows(suffix):
            lists[user].append((int(place), titles[item]))
    return {user: [title for _, title in sorted(one)] for user, one in lists.items()}


def test_windows_of_one_reader_become_one_user(convert, capsys):
    rows, lists = windows_of_readers(30)
    random.Random(1).shuffle(rows)
    made = convert("titles-jsonl", {"train.json": json.dumps(rows)})
    assert sorted(lists_of(made, "inter").values()) == sorted(lists)
    said = capsys.readouterr().out
    assert "210 of 210 rows overlap with others of the same reader" in said
    assert "30 readers. 180 test answers were in the training list" not in said
    counts = made.report["counts"]["rows_of_one_reader"]
    assert (counts["rows"], counts["rows_joined"], counts["readers"]) == (210, 210, 30)
    # all windows but the last two: the last but one is only a validation title of the last
    assert counts["test_answers_that_stood_in_training"] == 30 * 5
    apart = convert("titles-jsonl", {"train.json": json.dumps(rows)}, "--link", "none", name="b")
    assert apart.report["counts"]["users"] == 210
    assert "--link=none" in capsys.readouterr().out
    assert apart.report["counts"]["rows_of_one_reader"]["rows_joined"] == 0


@pytest.mark.parametrize("cut", ["readers", "time", "random"])
def test_no_test_answer_is_in_the_training_list_of_its_reader(convert, cut):
    rows, _ = windows_of_readers(60)
    per_reader = len(rows) // 60
    rng = random.Random(2)
    parts = {"train": [], "valid": [], "test": []}
    for number, row in enumerate(rows):
        reader, place = divmod(number, per_reader)
        part = {
            "readers": "train" if reader < 40 else "valid" if reader < 50 else "test",
            "time": {per_reader - 1: "test", per_reader - 2: "valid"}.get(place, "train"),
            "random": rng.choice(["train"] * 4 + ["valid", "test"]),
        }[cut]
        parts[part].append(row)
    made = convert("titles-jsonl", {f"{part}.jsonl": rows for part, rows in parts.items()})
    training = lists_of(made, "train.inter")
    held_out = {part: lists_of(made, f"{part}.inter") for part in ("valid", "test")}
    assert sum(map(len, held_out["test"].values())) == len(parts["test"])  # each answer is tested
    for part in held_out.values():
        for user, titles in part.items():
            assert not {*titles} & {*training[user]}
    # every title of a training list was read before the first one held out
    for file in ("train.inter", "valid.inter", "test.inter"):
        for user, _, place in made.rows(file):
            places = [int(p) for u, _, p in made.rows("train.inter") if u == user]
            if file != "train.inter":
                assert int(place) > max(places, default=0)
        if cut == "random":
            break  # more users would be slow and check the same
    left_out = made.report["counts"]["titles_left_out_beside_held_out_ones"]
    assert (left_out > 0) == (cut == "random")


def test_a_user_key_makes_one_list_and_names_the_user(convert):
    rows = [
        {"user_id": 7, "history": ["A", "B"], "targets": ["C"]},
        {"user_id": "u8", "history": ["A", "X"], "targets": ["Y"]},
        {"user_id": 7, "history": ["B", "C"], "targets": ["D"]},
        {"user_id": 7, "history": ["Q"], "targets": ["R"]},
    ]
    made = convert("titles-jsonl", {"train.jsonl": rows})
    assert lists_of(made, "inter") == {"7": ["A", "B", "C", "D", "Q", "R"], "u8": ["A", "X", "Y"]}
    said = [{"user": "I have read a lot", **rows[1]}, {"user": "I have", **rows[1]}]
    for row in said:
        del row["user_id"]
    assert list(lists_of(convert("titles-jsonl", {"train.jsonl": said}, name="b"), "inter")) == [
        "train-1",
        "train-2",
    ]


@pytest.mark.parametrize(
    "reader",
    [
        lambda user: {"userID": user},
        lambda user: {"customer_id": f"Jane {user}"},
        lambda user: {"raw_user_idx": float(user)},
        lambda user: {"User-Name": f"u{user}"},
        lambda user: {"extra_info": {"UserId": user}},
        lambda user: {"user": "the same words", "session_id": user},
    ],
    ids=["case", "spaces", "float", "name", "nested", "beside"],
)
def test_keys_of_readers_have_many_names(convert, reader):
    rows = [
        {**reader(user), "history": [f"A{user}{row}"], "targets": [f"B{user}{row}"]}
        for row in range(3)
        for user in range(4)
    ]
    made = convert("titles-jsonl", {"train.jsonl": rows})
    assert len(lists_of(made, "inter")) == 4
    assert made.report["counts"]["rows_of_one_reader"]["rows_that_name_their_reader"] == 12


def test_a_key_of_another_name_is_named(convert, capsys):
    rows = [{"whose": f"w{n % 2}", "history": [f"A{n}"], "targets": [f"B{n}"]} for n in range(6)]
    assert len(lists_of(convert("titles-jsonl", {"train.jsonl": rows}, name="a"), "inter")) == 6
    assert "set --reader-key to the field" in capsys.readouterr().out
    files = {"train.jsonl": rows}
    made = convert("titles-jsonl", files, "--reader-key", "whose", name="b")
    assert {*lists_of(made, "inter")} == {"w0", "w1"}


def test_titles_in_an_instruction_are_read_if_the_input_has_none(convert):
    rows = [
        {"instruction": 'She read "A", "B". Next?', "input": text, "output": '"C"'}
        for text in ("", "Answer shortly.")
    ]
    made = convert("titles-jsonl", {"train.json": rows}, name="a")
    assert lists_of(made, "inter") == {"train-1": ["A", "B", "C"], "train-2": ["A", "B", "C"]}
    inputs = [{**row, "instruction": 'Answer as "this"', "input": 'Read "A"'} for row in rows]
    made = convert("titles-jsonl", {"train.json": inputs}, name="b")
    assert lists_of(made, "inter") == {"train-1": ["A", "C"], "train-2": ["A", "C"]}


def test_prompts_that_name_their_titles_in_another_way_are_refused(convert, conversion_error):
    rows = [{"input": "She read: A; B.", "output": f'"C{n}"'} for n in range(3)]
    error = conversion_error("titles-jsonl", {"train.jsonl": rows})
    assert (
        "no row has a title before its targets. Put the titles of a prompt into quotation" in error
    )
    quoted = [{**row, "input": 'She read: "A", "B".'} for row in rows]
    assert convert("titles-jsonl", {"train.jsonl": quoted}).rows("inter")


def test_rows_of_one_history_are_one_reader_with_several_answers(convert):
    history = ["A", "B", "C", "D", "E"]
    rows = [{"history": history, "targets": [target]} for target in ("F", "G")]
    rows += [{"history": ["A", "B"], "targets": [target]} for target in ("F", "G")]
    made = convert("titles-jsonl", {"train.jsonl": rows})
    assert lists_of(made, "inter") == {
        "train-1": [*history, "F", "G"],
        "train-3": ["A", "B", "F"],
        "train-4": ["A", "B", "G"],
    }


def test_splitting_again_keeps_a_reader_in_one_part(convert):
    rows, _ = windows_of_readers(40)
    made = convert("titles-jsonl", {"train.jsonl": rows}, "--resplit", 0.5, 0.25, 0.25)
    assert made.report["counts"]["users_per_part"] == {"train": 20, "valid": 10, "test": 10}
    training = lists_of(made, "train.inter")
    for part in ("valid", "test"):
        for user, titles in lists_of(made, f"{part}.inter").items():
            assert len(titles) == 1  # the last of its list
            assert len(training[user]) == 11
            assert titles[0] not in training[user]


@pytest.mark.parametrize("link", ["0", "-1", "three", "3.5"])
def test_link_must_be_a_number_of_titles(conversion_error, link):
    raw = {"train.jsonl": [{"history": ["A"], "targets": ["B"]}]}
    assert "must be auto, none or a number" in conversion_error(
        "titles-jsonl", raw, f"--link={link}"
    )


@pytest.mark.parametrize(
    "row",
    [
        {"historyList": "A::B, or not", "itemList": ["C", "D"], "trueSelection": "C"},
        {"historyList": ["A", "B, or not"], "trueSelection": "C"},
        {"prompt": 'Liked "A", "B, or not". Next?', "chosen": '"C"', "rejected": '"D"'},
        {"prompt": 'Liked "A", "B, or not".', "completion": '"C"'},
        {
            "prompt": [
                {"role": "system", "content": 'Say "please".'},
                {"role": "user", "content": '"A", "B, or not"'},
            ],
            "chosen": [{"role": "assistant", "content": '"C"'}],
            "rejected": [{"role": "assistant", "content": '"D"'}],
        },
        {
            "messages": [
                {"role": "user", "content": '"A", "B, or not"'},
                {"role": "assistant", "content": '"C"'},
            ]
        },
    ],
)
def test_rows_of_other_projects_are_read(convert, row):
    made = convert("titles-jsonl", {"train.jsonl": [row]})
    assert lists_of(made, "inter") == {"train-1": ["A", "B, or not", "C"]}


def test_rows_of_no_known_form_are_refused_with_rows_that_would_do(conversion_error, capsys):
    raw = {"train.jsonl": [{"instruction": "x", "input": "y", "label": 1}, {"messages": "hello"}]}
    said = conversion_error("titles-jsonl", raw)
    assert "2 rows were rejected" in said
    for part in ('{"history": ["A", "B"], "targets": ["C"]}', '"historyList"', '"chosen"'):
        assert part in said
    with pytest.raises(SystemExit):
        main(["titles-jsonl", "--help"])
    assert '{"history": ["A", "B"], "targets": ["C"]}' in capsys.readouterr().out


def test_the_rows_that_are_shown_are_read(convert):
    lines = FORMS.split("\n")
    texts = [*lines[:3], lines[3] + lines[4], lines[5]]
    rows = [json.JSONDecoder().raw_decode(text)[0] for text in texts]
    made = convert("titles-jsonl", {"train.jsonl": rows})
    assert list(lists_of(made, "inter").values()) == [["A", "B", "C"]] * 5


def test_html_entities_are_decoded_and_counted(convert, capsys):
    rows = [
        {"history": ["Pen &amp; Ink, 8.5&rdquo;", "AT&T"], "targets": ["Collector&#39;s Box"]},
        {"input": '"Pen & Ink, 8.5\u201d", "Say &quot;a&quot;"', "output": '"Collector\'s Box"'},
        {"history": ["&nbsp;"], "targets": ["x"]},
    ]
    names = json.dumps({"0": "Twice &amp;amp; once"})
    made = convert("titles-jsonl", {"train.jsonl": rows, "id2name.json": names})
    assert [text for (text,) in made.items("title").values()] == [
        "Twice & once",
        "Pen & Ink, 8.5\u201d",
        "AT&T",
        "Collector's Box",
        'Say "a"',
    ]
    assert made.report["counts"]["titles_with_html_entities"] == 4
    assert "4 titles had HTML entities, which were decoded" in capsys.readouterr().out
    assert made.reasons() == [("train.jsonl", 3, "empty title or no target")]
    assert made.report["item_texts"]["n_entities"] == 0


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8-sig", "utf-8"])
@pytest.mark.parametrize("end", ["", ".gz"])
def test_the_encoding_reaches_every_file(convert, encoding, end):
    rows = [{"history": ["Am\u00e9lie", "Up"], "targets": ['"Crocodile" Dundee']}]
    names = {"7": "Am\u00e9lie"}
    raw = {
        f"train.json{end}": json.dumps(rows, ensure_ascii=False).encode(encoding),
        f"id2name.json{end}": json.dumps(names, ensure_ascii=False).encode(encoding),
    }
    made = convert("titles-jsonl", raw, f"--encoding={encoding}")
    titles = [text for (text,) in made.items("title").values()]
    assert titles == ["Am\u00e9lie", "Up", '"Crocodile" Dundee']
    assert made.rows("inter")[0][1] == "7"


def test_the_remedy_for_another_encoding_helps(convert, conversion_error):
    rows = [{"history": ["Am\u00e9lie", "Up"], "targets": ["Heat"]}]
    raw = {"train.json": json.dumps(rows, ensure_ascii=False).encode("latin-1")}
    assert "set --encoding" in conversion_error("titles-jsonl", raw)
    assert "is not utf-16" in conversion_error("titles-jsonl", raw, "--encoding=utf-16")
    assert "is not a known encoding" in conversion_error("titles-jsonl", raw, "--encoding=klingon")
    made = convert("titles-jsonl", raw, "--encoding=latin-1")
    assert made.items("title")["t1"] == ("Am\u00e9lie",)


def test_single_lines_of_another_encoding_are_rejected_with_the_remedy(convert):
    lines = [b'{"history": ["A"], "targets": ["B"]}', b'{"history": ["\xe9"], "targets": ["B"]}']
    made = convert("titles-jsonl", {"train.jsonl": b"\n".join(lines)})
    assert made.reasons() == [("train.jsonl", 2, "not utf-8: --encoding reads others")]
    made = convert(
        "titles-jsonl", {"train.jsonl": b"\n".join(lines)}, "--encoding=cp1252", name="b"
    )
    assert not made.rejected and made.items("title")["t3"] == ("\u00e9",)


def test_rejected_titles_and_candidates_are_items_of_the_catalogue(convert):
    """TRL's rows, as chats, and S-DPO's and LLaRA's, whose files are called lastfm-train.json."""
    chat = [{"role": "user", "content": 'Read: "A", "B".'}]
    rows = [
        {
            "prompt": chat,
            "chosen": [{"role": "assistant", "content": '"C"'}],
            "rejected": [{"role": "assistant", "content": '"D"'}],
        },
        {"historyList": "A::Ke$ha", "itemList": ["Glee Cast", "C"], "trueSelection": "C"},
    ]
    made = convert("titles-jsonl", {"lastfm-train.json": json.dumps(rows)})
    assert [row[1] for row in made.rows("inter")] == ["t1", "t2", "t3", "t1", "t4", "t3"]
    assert [title for (title,) in made.items("title").values()] == [
        "A",
        "B",
        "C",
        "Ke$ha",
        "D",
        "Glee Cast",
    ]


def test_parquet(convert, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    said = [[{"role": "user", "content": 'Read: "A", "B".'}]] * 2
    answers = [[{"role": "assistant", "content": f'"{title}"'}] for title in "CD"]
    table = arrow.table({"prompt": said, "chosen": answers, "rejected": answers[::-1]})
    (tmp_path / "raw").mkdir()
    parquet.write_table(table, tmp_path / "raw" / "train.parquet")
    made = convert("titles-jsonl", {}, "--link=none")
    assert [row[1] for row in made.rows("inter")] == ["t1", "t2", "t3", "t1", "t2", "t4"]
