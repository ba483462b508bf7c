"""Reading raw files: encodings, damage, line numbers, years."""

import gzip

import pytest

from recbole_multdpo.data.convert.raw_files import (
    byte_lines,
    csv_rows,
    find_file,
    json_lines,
    json_rows,
    read_json,
    text_encoding,
    title_and_year,
)
from recbole_multdpo.errors import DataError


@pytest.fixture
def rejects():
    """A reject function that records its calls."""

    class Rejects(list):
        def __call__(self, *row):
            self.append(row)

    return Rejects()


@pytest.mark.parametrize(
    ("text", "title", "year"),
    [
        ("Heat (1995)", "Heat", "1995"),
        ("  96 Minutes (2011) ", "96 Minutes", "2011"),  # a space at the end, as in MovieLens
        ("Death Note: Desu n\u00f4to (2006\u20132007)", "Death Note: Desu n\u00f4to", "2006"),
        ("Fawlty Towers (1975-1979)", "Fawlty Towers", "1975"),
        ("Big Bang Theory, The (2007-)", "Big Bang Theory, The", "2007"),
        ("Assembly (Ji jie hao) (2007) ", "Assembly (Ji jie hao)", "2007"),
        ("Water (1985 film)", "Water", "1985"),
        ("Aladdin (1992 Disney film)", "Aladdin", "1992"),
        ("Conjuring (film)", "Conjuring", ""),
        ("Saw (franchise)", "Saw (franchise)", ""),
        ("2001: A Space Odyssey", "2001: A Space Odyssey", ""),
        ("1984", "1984", ""),
        ("(1984)", "(1984)", ""),
        ("Room (237)", "Room (237)", ""),
        ("Agent (3007)", "Agent (3007)", ""),
        ("", "", ""),
    ],
)  # fmt: skip
def test_title_and_year(text, title, year):
    assert title_and_year(text) == (title, year)


def test_lines_have_numbers_and_no_byte_order_mark(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\nthree\r\nfour")
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress((tmp_path / "a.txt").read_bytes()))
    expected = [(1, b"one\n"), (2, b"\n"), (3, b"three\r\n"), (4, b"four")]
    assert list(byte_lines(tmp_path / "a.txt")) == expected
    assert list(byte_lines(tmp_path / "a.txt.gz")) == expected


@pytest.mark.parametrize("damage", [lambda d: d[:-20], lambda d: d[:60] + b"xx" + d[62:]])
def test_a_damaged_gzip_file_is_named(tmp_path, damage):
    path = tmp_path / "a.json.gz"
    data = gzip.compress(b"".join(b"%d\n" % (n * n) for n in range(5000)))
    path.write_bytes(damage(data))
    with pytest.raises(DataError, match=r"a\.json\.gz is damaged after line \d+.*download"):
        list(byte_lines(path))


def test_a_file_that_is_not_gzip(tmp_path):
    (tmp_path / "a.gz").write_text("plain")
    with pytest.raises(DataError, match=r"a\.gz is damaged after line 0"):
        list(byte_lines(tmp_path / "a.gz"))
    with pytest.raises(DataError, match=r"none cannot be read \(No such file"):
        list(byte_lines(tmp_path / "none"))


def test_encoding_is_utf8_only_if_the_whole_file_is(tmp_path):
    path = tmp_path / "movies.dat"
    path.write_bytes("1::Am\u00e9lie\n".encode() * 3)
    assert text_encoding(path) == "utf-8"
    path.write_bytes("1::Am\u00e9lie\n".encode() * 3 + "2::Caf\u00e9\n".encode("latin-1"))
    assert text_encoding(path) == "latin-1"


def test_csv_with_quoted_separators_and_line_ends(tmp_path, rejects):
    path = tmp_path / "a.csv"
    path.write_text(
        '\ufeffid,title,x\n1,"a, ""b""\nc",0\n2,d\n\n3,e,0,0\n4,f,0\n', encoding="utf-8"
    )
    rows = list(csv_rows(path, ["title", "id"], rejects))
    assert rows == [(3, ['a, "b"\nc', "1"]), (7, ["f", "4"])]
    assert [(line, reason) for _, line, reason, _ in rejects] == [
        (4, "2 columns instead of 3"),
        (6, "4 columns instead of 3"),
    ]


def test_a_quotation_mark_that_never_closes_loses_no_line_silently(tmp_path, rejects):
    path = tmp_path / "a.csv"
    path.write_text("id,title\n1,a\n" + '2,"b\n' + "3,c\n" * 40_000)
    rows = csv_rows(path, ["id", "title"], rejects)
    assert next(rows) == (2, ["1", "a"])
    with pytest.raises(
        DataError, match=r"begins in line 3 .* a quotation mark in it is not closed"
    ):
        next(rows)
    # the remedy
    path.write_text("id,title\n1,a\n" + '2,"""b"\n' + "3,c\n" * 40_000)
    assert [row for _, row in csv_rows(path, ["id", "title"], rejects)][1] == ["2", '"b']
    assert not rejects


def test_csv_without_a_column_or_anything(tmp_path, rejects):
    (tmp_path / "a.csv").write_text("id,name\n1,a\n")
    with pytest.raises(DataError, match=r"line 1: no column title; it has id, name"):
        list(csv_rows(tmp_path / "a.csv", ["id", "title"], rejects))
    (tmp_path / "a.csv").write_text("")
    with pytest.raises(DataError, match=r"no header"):
        list(csv_rows(tmp_path / "a.csv", ["id"], rejects))


def test_json_lines_reject_malformed_lines(tmp_path, rejects):
    path = tmp_path / "a.jsonl"
    deep = b"[" * 100_000
    path.write_bytes(b'{"a": 1}\n\n{"a": \n[1]\n{"b": "\xff"}\n' + deep + b'\n{"a": 2}')
    assert list(json_lines(path, rejects)) == [(1, {"a": 1}), (7, {"a": 2})]
    assert [(row[1], row[2]) for row in rejects] == [
        (3, "not JSON"),
        (4, "not a JSON object"),
        (5, "not utf-8: --encoding reads others"),
        (6, "not JSON"),
    ]


def test_a_json_list_has_entries_instead_of_lines(tmp_path, rejects):
    (tmp_path / "a.json").write_text('\n [{"a": 1},\n 3, {"a": 2}]')
    assert list(json_rows(tmp_path / "a.json", rejects)) == [(1, {"a": 1}), (3, {"a": 2})]
    assert rejects == [("a.json", 2, "not a JSON object", 3)]
    (tmp_path / "a.json").write_text("")
    assert list(json_rows(tmp_path / "a.json", rejects)) == []


def test_small_json_of_another_kind(tmp_path):
    path = tmp_path / "a.json"
    for content, message in [
        (b"[1]", "is not a JSON object"),
        (b"{", "is not JSON"),
        (b'{"a": "\xff"}', "is not UTF-8 .* set --encoding"),
    ]:
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"a\.json {message}"):
            read_json(path, dict)


def test_find_file_wants_exactly_one(tmp_path):
    with pytest.raises(DataError, match=r"--input=.*none: there is no such folder"):
        find_file(tmp_path / "none", ["a"], need="x")
    with pytest.raises(DataError, match=r"has no a\.dat or a\.csv \(\.gz is fine\): the ratings"):
        find_file(tmp_path, ["a.dat", "a.csv"], need="the ratings")
    (tmp_path / "a.csv.gz").touch()
    assert find_file(tmp_path, ["a.dat", "a.csv"], need="x").name == "a.csv.gz"
    (tmp_path / "a.dat").touch()
    with pytest.raises(DataError, match=r"several files .*\(a\.csv\.gz, a\.dat\)"):
        find_file(tmp_path, ["a.dat", "a.csv"], need="x")


def test_a_line_end_inside_of_a_header(tmp_path):
    (tmp_path / "movies.csv").write_bytes(b"movieId,ti\rtle,genres\n1,Heat,Crime\n")
    with pytest.raises(DataError, match=r"movies\.csv: the header is not valid CSV"):
        list(csv_rows(tmp_path / "movies.csv", ["movieId"], lambda *_: None))
