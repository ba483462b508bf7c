"""Any table by the names of its columns: forms of files, filters, and the trouble of real ones."""

import json

import pytest

from tests.data.convert.conftest import write_raw

NAMES = ["--interactions=likes.csv", "--user=who", "--item=what", "--text", "name"]
ITEMS = [*NAMES, "--items=goods.csv", "--item-id=id"]
LIKES = (
    "who,what,stars,when\nann,1,5,2024-05-31\nann,2,3.5,2024-06-01T10:00:00\nbob,1,4,2024-05-30\n"
)
GOODS = 'id,name,maker\n1,"Say ""hi"", twice",Acme\n2,Romy &amp; Michele,\n3,Never liked,X\n'


def test_two_tables(convert):
    options = ["--text", "name", "maker", "--rating=stars", "--positive=4", "--time=when"]
    made = convert("table", {"likes.csv": LIKES, "goods.csv": GOODS}, *ITEMS, *options)
    assert made.header("inter") == [
        "user_id:token",
        "item_id:token",
        "rating:float",
        "timestamp:float",
    ]
    assert made.rows("inter") == [
        ["ann", "1", "5", "1717113600"],
        ["ann", "2", "3.5", "1717236000"],
        ["bob", "1", "4", "1717027200"],
    ]
    assert made.items("name", "maker") == {
        "1": ('Say "hi", twice', "Acme"),
        "2": ("Romy & Michele", ""),
        "3": ("Never liked", "X"),
    }
    assert 'val_interval: {rating: "[4,inf)"}' in made.yaml
    assert "item_text_fields: [name]" in made.yaml


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("likes.csv", lambda text: "\ufeff" + text.replace("\n", "\r\n")),
        ("likes.csv.gz", lambda text: text),
        ("likes.tsv", lambda text: text.replace(",", "\t")),
        ("likes.csv", lambda text: text.replace(",", ";")),
        ("likes.txt", lambda text: text.replace(",", "|")),
        ("likes.dat", lambda text: text.replace(",", "::")),
        ("likes.csv", lambda text: text.replace("\n", "\n\n")),
        ("likes.inter", lambda text: "who:token\twhat:token\tstars:float\twhen:float\n"
            + text.split("\n", 1)[1].replace(",", "\t")),
        ("likes.jsonl", lambda text: "\n".join(
            json.dumps(dict(zip(("who", "what", "stars", "when"), row.split(","), strict=True)))
            for row in text.split("\n")[1:-1])),
        ("likes.json", lambda text: json.dumps([
            dict(zip(("who", "what", "stars", "when"), row.split(","), strict=True))
            for row in text.split("\n")[1:-1]])),
    ],
)  # fmt: skip
def test_forms_of_one_table(convert, name, change):
    files = {name: change(LIKES), "goods.csv": GOODS}
    plain = name.removesuffix(".gz")
    options = [f"--interactions={plain}", *ITEMS[1:], "--time=when"]
    made = convert("table", files, *options)
    assert [row[:2] for row in made.rows("inter")] == [["ann", "1"], ["ann", "2"], ["bob", "1"]]
    assert [row[2] for row in made.rows("inter")] == ["1717113600", "1717236000", "1717027200"]


def test_parquet(convert, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"who": ["ann", "bob"], "what": [1, 2], "when": [3.0, None]})
    (tmp_path / "raw").mkdir()
    parquet.write_table(table, tmp_path / "raw" / "likes.parquet")
    goods = arrow.table({"id": [1, 2], "name": ["A", None], "tags": [["x", "y"], []]})
    parquet.write_table(goods, tmp_path / "raw" / "goods.parquet")
    options = ["--interactions=likes.parquet", "--items=goods.parquet", "--item-id=id"]
    made = convert("table", {}, *options, *NAMES[1:], "tags")
    assert made.rows("inter") == [["ann", "1"], ["bob", "2"]]
    assert made.items("name", "tags") == {"1": ("A", "x, y"), "2": ("", "")}


def test_titles_beside_the_interactions(convert):
    likes = "who,what,name\nann,1,\nann,2,B\nbob,1,A\ncyd,1,A again\n"
    made = convert("table", {"likes.csv": likes}, *NAMES)
    assert made.items("name") == {"1": ("A",), "2": ("B",)}
    assert not made.rejected


def test_the_trouble_of_real_files(convert):
    likes = (
        "who,what,stars,when\n"
        "Jane Doe,a b,5,1586445693499\n"  # spaces in ids, milliseconds
        "NA,x:1,4,1586445693500\n"  # pandas takes NA for missing; colons are fine
        '"a ""b""",x:1,4,1586445693501\n'
        ",x:1,5,1\n"
        "u,,5,1\n"
        "u,x:1,,1\n"
        "u,x:1,five,1\n"
        "u,x:1,5,\n"
        "u,x:1,5,03/04/2020\n"
        "u,x:1\n"
    )
    goods = "id,name\na b,Tab\there\nx:1,Same\nx:1,Other\nx:1,Same\nunused,Same\n,No id\n"
    options = ["--rating=stars", "--positive=0", "--time=when"]
    made = convert("table", {"likes.csv": likes, "goods.csv": goods}, *ITEMS, *options)
    assert made.rows("inter") == [
        ["Jane%20Doe", "a%20b", "5", "1586445693499"],
        ["%4EA", "x:1", "4", "1586445693500"],
        ["a%20%22b%22", "x:1", "4", "1586445693501"],
    ]
    assert made.items("name") == {"a%20b": ("Tab here",), "x:1": ("Same",), "unused": ("Same",)}
    reasons = [reason for _, _, reason in made.reasons()]
    assert reasons == [
        "empty id",
        "empty id",
        "rating that is not a number",
        "rating that is not a number",
        "time that is neither a number nor an unambiguous date",
        "time that is neither a number nor an unambiguous date",
        "2 columns instead of 4",
        "item listed twice with other texts",
        "empty id",
    ]
    assert [line for _, line, _ in made.reasons()][:3] == [5, 6, 7]
    assert made.report["item_texts"]["n_shared"] == 2


@pytest.mark.parametrize(
    ("repeats", "times"), [("first", ["1", "2"]), ("last", ["3", "2"]), ("all", ["3", "1", "2"])]
)
def test_repeated_rows(convert, repeats, times):
    likes = "who,what,when,name\na,1,3,A\na,1,1,A\na,2,2,B\n"
    made = convert("table", {"likes.csv": likes}, *NAMES, "--time=when", f"--repeats={repeats}")
    assert [row[2] for row in made.rows("inter")] == times


def test_the_k_core_counts_positives_without_repetitions(convert):
    likes = ["who,what,stars,name"]
    likes += [f"u{user},{item},5,N{item}" for user in range(3) for item in range(3)]
    likes += ["u0,low,1,Low", "u3,0,5,N0", "u3,0,5,N0", "u3,0,5,N0", "u4,0,1,N0", "u0,1,1,N1"]
    options = ["--k-core=3", "--rating=stars", "--positive=4"]
    made = convert("table", {"likes.csv": "\n".join(likes) + "\n"}, *NAMES, *options)
    rows = made.rows("inter")
    assert {row[0] for row in rows} == {"u0", "u1", "u2"} and len(rows) == 9
    assert list(made.items("name")) == ["0", "1", "2"]


def test_a_column_that_some_rows_lack_is_refused(conversion_error):
    likes = "who,what,name\na,1,A\n"
    said = conversion_error("table", {"likes.csv": likes}, *NAMES, "--time=when")
    assert "likes.csv, line 1: no column when; it has who, what, name" in said


@pytest.mark.parametrize("end", ["jsonl", "json"])
def test_a_key_that_json_never_has(conversion_error, end):
    rows = [{"who": "a", "what": "1", "name": "A"}] * 2
    text = json.dumps(rows) if end == "json" else "\n".join(map(json.dumps, rows))
    options = [f"--interactions=likes.{end}", *NAMES[1:], "--time=when"]
    assert "no column when; it has name, what, who" in conversion_error(
        "table", {f"likes.{end}": text}, *options
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--rating=stars"], "--rating needs --positive"),
        (["--positive=4"], "--rating needs --positive"),
        (["--k-core=0"], "--k-core=0 must be at least 1"),
        (["--items=none.csv"], "has no none.csv (.gz is fine): --items"),
        (["--k-core=9"], "nothing to convert: 0 interactions"),
    ],
)
def test_options_that_do_not_fit(conversion_error, options, said):
    files = {"likes.csv": "who,what,stars,name\na,1,5,A\n"}
    assert said in conversion_error("table", files, *NAMES, *options)


def test_another_encoding_and_escapes(convert):
    ratings = (
        '"User-ID";"ISBN";"Book-Rating"\n"276725";"034545104X";"0"\n"276726";"0155061224";"7"\n'
    )
    books = (
        '"ISBN";"Book-Title";"Book-Author"\n'
        '"034545104X";"Flesh Tones: \\"A\\"; Novel";"M. J. Ros\u00e9"\n'
        '"0155061224";"Rites of Passage";"Judith Rae"\n'
    )
    files = {"r.csv": ratings.encode("latin-1"), "b.csv": books.encode("latin-1")}
    options = ["--interactions=r.csv", "--user=User-ID", "--item=ISBN", "--rating=Book-Rating"]
    options += ["--positive=6", "--items=b.csv", "--text", "Book-Title", "Book-Author"]
    options += ["--separator=;", "--escape=\\", "--encoding=latin-1"]
    made = convert("table", files, *options)
    assert made.rows("inter") == [["276725", "034545104X", "0"], ["276726", "0155061224", "7"]]
    assert made.items("Book-Title", "Book-Author") == {
        "034545104X": ('Flesh Tones: "A"; Novel', "M. J. Ros\u00e9"),
        "0155061224": ("Rites of Passage", "Judith Rae"),
    }


def test_a_file_that_is_not_utf8_names_the_line(conversion_error):
    files = {"likes.csv": "who,what,name\na,1,A\nb,2,Ros\u00e9\n".encode("latin-1")}
    said = conversion_error("table", files, *NAMES)
    assert "likes.csv, line 3: not utf-8. Set --encoding" in said


def test_a_file_without_a_header(convert):
    files = {"likes.csv": "ann,1,A\nbob,2,B\n"}
    made = convert("table", files, *NAMES, "--header", "who", "what", "name")
    assert made.rows("inter") == [["ann", "1"], ["bob", "2"]]


def test_the_same_files_give_the_same_bytes(convert):
    files = {"likes.csv": LIKES, "goods.csv": GOODS}
    one, two = (convert("table", files, *ITEMS, name=name) for name in ("a", "b"))
    for end in ("inter", "item"):
        assert (one.folder / f"a.{end}").read_bytes() == (two.folder / f"b.{end}").read_bytes()


def test_a_name_that_a_property_file_of_ours_has(convert, tmp_path):
    """The folder's file undoes what ours says of RecBole's file of that name."""
    from recbole_multdpo.settings.config import load_config

    files = {"likes.csv": LIKES, "goods.csv": GOODS}
    made = convert("table", files, *ITEMS, name="steam-merged")
    run = ["--model=EASE", "--dataset=steam-merged", f"--data_path={made.folder.parent}"]
    config = load_config(run)
    assert config["ITEM_ID_FIELD"] == "item_id" and config["alias_of_item_id"] is None
    assert config["user_inter_num_interval"] == "[0,inf)"
    assert config["load_col"]["inter"] == ["user_id", "item_id"]


def test_input_that_is_no_folder(tmp_path, capsys):
    from recbole_multdpo.data.convert.__main__ import main

    write_raw(tmp_path, {"likes.csv": LIKES})
    arguments = ["--input", str(tmp_path / "none"), "--output", str(tmp_path / "out")]
    assert main(["table", *arguments, *NAMES]) == 2
    assert "there is no such folder" in capsys.readouterr().err
