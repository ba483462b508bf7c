"""Data that nobody would wish for: a run ends with a result or with an error that tells the remedy.

Every case goes through the real run, tiny model and all.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from recbole_multdpo.data.atomic_file import check_header, open_atomic_file, read_table
from recbole_multdpo.data.item_text import read_item_file
from recbole_multdpo.errors import DataError, MultDPOError
from recbole_multdpo.quick_start import run
from tests.integration.toy import toy_arguments
from tests.reliability import FUZZ_TIMES

INTER = "user_id:token\titem_id:token\trating:float\ttimestamp:float"
ITEM = "item_id:token\tmovie_title:token_seq\trelease_year:token"
Rows = list[list[Any]]


def some_rows(n_users: int = 6, n_items: int = 12, per_user: int = 10) -> Rows:
    """(user, item, rating, time); every user has per_user of the items."""
    return [
        [f"u{user}", f"i{(user + step) % n_items}", 5 - step % 2, step]
        for user in range(n_users)
        for step in range(per_user)
    ]


def titles(n_items: int = 12) -> Rows:
    return [[f"i{item}", f"Title {item}", 1990 + item] for item in range(n_items)]


def write(folder: Path, inter: Sequence[Sequence[Any]], item: Sequence[Sequence[Any]]) -> Path:
    """The data set `toy` below `folder`."""
    (folder / "toy").mkdir(parents=True, exist_ok=True)
    for suffix, header, rows in (("inter", INTER, inter), ("item", ITEM, item)):
        text = "\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n"
        (folder / "toy" / f"toy.{suffix}").write_bytes(text.encode())
    return folder


def train_and_test(folder: Path, *extra: str) -> dict[str, Any]:
    """A short run on the data set below `folder`; its result."""
    return run(
        toy_arguments(
            folder,
            folder / "run",
            "--sft_cache=False",
            "--epochs=1",
            "--item_year_field=~",
            "--topk=[1]",
            "--valid_metric=NDCG@1",
            *extra,
        )
    )


def assert_finite(result: dict[str, Any]) -> None:
    assert all(math.isfinite(value) for value in result["test_result"].values())


# -------------------------------------------------------------------------------------------------
# files that cannot be used


def edited(suffix: str, edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        file = folder / "toy" / f"toy.{suffix}"
        file.write_bytes(edit(file.read_bytes()))

    return change


def with_row(suffix: str, row: str) -> Callable[[Path], None]:
    """The row as line 2."""
    return edited(suffix, lambda old: old.replace(b"\n", b"\n" + row.encode() + b"\n", 1))


UNUSABLE: dict[str, tuple[Callable[[Path], None], str]] = {
    "empty inter": (edited("inter", lambda old: b""), r"toy\.inter is empty.*first line"),
    "empty item": (edited("item", lambda old: b""), r"toy\.item is empty"),
    "header only": (edited("inter", lambda old: old[: old.index(b"\n") + 1]), r"empty"),
    "no types": (
        edited("inter", lambda old: old.replace(b":token", b"")),
        r"inter, line 1: 'user_id' is not a column. Write <name>:<type>",
    ),
    "unknown type": (
        edited("inter", lambda old: old.replace(b":float", b":int")),
        r"'rating:int' is not a column.*token_seq",
    ),
    "missing column": (
        edited("inter", lambda old: old.replace(b"item_id", b"movie")),
        r"line 1: no column 'item_id'; the file has user_id, movie.*--ITEM_ID_FIELD",
    ),
    "missing title column": (
        edited("item", lambda old: old.replace(b"movie_title", b"name")),
        r"toy\.item has no column 'movie_title'.*--item_text_fields",
    ),
    "column twice": (
        edited("inter", lambda old: old.replace(b"timestamp", b"rating")),
        r"two columns are called 'rating'",
    ),
    "byte-order mark": (
        edited("inter", lambda old: b"\xef\xbb\xbf" + old),
        r"byte-order mark.*--encoding=utf-8-sig",
    ),
    "other encoding": (
        edited("item", lambda old: old.replace(b"Title 1", "Amélie".encode("latin-1"))),
        r"toy\.item is not utf-8.*iconv",
    ),
    "text as rating": (
        with_row("inter", "u1\ti1\tgood\t3"),
        r"inter, line 2: rating is 'good' and not a finite number.*remove the row",
    ),
    "nan rating": (with_row("inter", "u1\ti1\tnan\t3"), r"line 2: rating is 'nan'"),
    "no rating": (
        with_row("inter", "u1\ti1\t\t3"),
        r"line 2: rating is ''.*remove rating from --load_col",
    ),
    "infinite time": (with_row("inter", "u1\ti1\t5\tinf"), r"line 2: timestamp is 'inf'"),
    "no user": (with_row("inter", "\ti1\t5\t3"), r"line 2: user_id is empty"),
    "short row": (with_row("inter", "u1\ti1"), r"line 2: 2 columns instead of 4"),
    "long row": (with_row("inter", "u1\ti1\t5\t3\t9"), r"line 2: 5 columns instead of 4"),
    "spaces for tabs": (
        edited("inter", lambda old: old.replace(b"\t", b" ")),
        r"is not a column.*'\\t' between columns",
    ),
    "item twice": (with_row("item", "i1\tTitle\t1990"), r"duplicate item 'i1'"),
    "no title at all": (
        edited("item", lambda old: re.sub(rb"Title \d+", b"", old)),
        r"no item of the catalogue has a text",
    ),
    "other items": (
        edited("item", lambda old: old.replace(b"\ni", b"\nx")),
        r"no item of the catalogue has a text|cannot be used",
    ),
    "binary": (edited("inter", lambda old: bytes(range(256))), r"toy\.inter"),
}


@pytest.mark.parametrize("name", UNUSABLE)
def test_an_unusable_file_is_named_with_line_and_remedy(tmp_path: Path, name: str) -> None:
    damage, message = UNUSABLE[name]
    write(tmp_path, some_rows(), titles())
    damage(tmp_path)
    with pytest.raises(DataError, match=f"(?s){message}"):
        train_and_test(tmp_path)


# -------------------------------------------------------------------------------------------------
# strange data that must work


def with_titles(*strange: str) -> tuple[Rows, Rows]:
    rows = titles()
    for row, title in zip(rows, strange, strict=False):
        row[1] = title
    return some_rows(), rows


STRANGE: dict[str, Callable[[], tuple[Rows, Rows]]] = {
    "duplicated interactions": lambda: (some_rows() + some_rows()[:30], titles()),
    "the same pair rated twice": lambda: ([*some_rows(), ["u0", "i0", 1, 99]], titles()),
    "unsorted times": lambda: (some_rows()[::-1], titles()),
    "equal times": lambda: ([[*row[:3], 7] for row in some_rows()], titles()),
    "negative and huge times": lambda: (
        [[*row[:3], (-1) ** row[3] * 10.0 ** (3 * row[3])] for row in some_rows()],
        titles(),
    ),
    "items without interactions": lambda: (some_rows(), titles(40)),
    "items without a row": lambda: (some_rows(), titles(6)),
    "users with one item": lambda: ([*some_rows(), ["lonely", "i3", 5, 1]], titles()),
    "10,000-character title": lambda: with_titles("word " * 2000, "x" * 10_000),
    "empty titles": lambda: with_titles("", " ", "   "),
    "control characters": lambda: with_titles("a\x00b", "\x01\x02", "a\x0bb\x0c", "\x7f", "\x85"),
    "right to left and emoji": lambda: with_titles(
        "رحلة إلى القمر", "מסע אל הירח", "👩‍👩‍👧‍👦 🎬", "\u202eevil\u202c", "e\u0301 ﷺ", "\ufffd"
    ),
    "identical titles": lambda: (some_rows(), [[row[0], "The Same", row[2]] for row in titles()]),
    "titles that are prefixes": lambda: with_titles("A", "A B", "A B C", "A B C D", "A B"),
    "special tokens as titles": lambda: with_titles("<|endoftext|>", "<|im_end|>", "</s>", "[PAD]"),
    "quotation marks": lambda: with_titles('The "Great" Escape', 'Say "hi', '"Quoted"', "'", "\\n"),
    "titles that begin with a quotation mark": lambda: with_titles(
        '"Crocodile" Dundee', '"Crocodile', 'Dundee"', "Two\rlines"
    ),
    "ids that pandas takes for missing": lambda: (
        [
            [{"u1": "NA"}.get(row[0], row[0]), {"i1": "null"}.get(row[1], row[1]), *row[2:]]
            for row in some_rows()
        ],
        [[{"i1": "null"}.get(row[0], row[0]), *row[1:]] for row in titles()],
    ),
}


@pytest.mark.parametrize("name", STRANGE)
def test_strange_data_gives_a_result(tmp_path: Path, name: str) -> None:
    extra = {
        "10,000-character title": ["--max_item_tokens=0"],
        # RecBole drops interactions with items that a loaded .item file lacks
        "items without a row": ["--load_col={'inter': ['user_id', 'item_id', 'rating']}"],
    }.get(name, [])
    result = train_and_test(write(tmp_path, *STRANGE[name]()), *extra)
    assert_finite(result)
    n_items = {"items without interactions": 40}.get(name, 12)
    assert result["num_items"] == n_items


@pytest.mark.parametrize("name", ["duplicated interactions", "equal times", "unsorted times"])
def test_strange_times_with_temporal_splits(tmp_path: Path, name: str) -> None:
    extra = ["--history_split=temporal", "--eval_args={'order': 'TO'}"]
    assert_finite(train_and_test(write(tmp_path, *STRANGE[name]()), *extra))


def test_long_titles_are_never_cut_silently(tmp_path: Path) -> None:
    write(tmp_path, *STRANGE["10,000-character title"]())
    with pytest.raises(DataError, match="tokens, more than max_item_tokens=64. Raise"):
        train_and_test(tmp_path, "--tiny_title_tokens=False")


@pytest.mark.parametrize(
    ("rows", "items"),
    [
        pytest.param(some_rows(n_items=1, per_user=1), titles(1), id="one item"),
        pytest.param(some_rows(n_items=2, per_user=2), titles(2), id="two items"),
        pytest.param(some_rows(per_user=2), titles(), id="no validation part"),
        pytest.param(some_rows(n_items=10, per_user=10), titles(10), id="users with all items"),
        pytest.param(some_rows(n_users=1), titles(), id="one user"),
        pytest.param(some_rows(n_users=1, per_user=1), titles(), id="one interaction"),
    ],
)
@pytest.mark.parametrize("loss", ["sft", "mult_dpo"])
def test_too_little_data_ends_with_a_result_or_an_explanation(
    tmp_path: Path, rows: Rows, items: Rows, loss: str
) -> None:
    try:
        assert_finite(train_and_test(write(tmp_path, rows, items), f"--loss={loss}"))
    except MultDPOError as error:
        assert len(str(error)) > 40


# -------------------------------------------------------------------------------------------------
# fuzzing

RELAXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])

# bytes that mean something to a reader of tables, more often than others
TABLE_TEXT = st.lists(
    st.one_of(
        st.sampled_from(["\t", "\n", '"', "\r", ",", ":", "user_id:token", "item_id:token", "nan"]),
        st.text(max_size=3),
    ),
    max_size=40,
).map("".join)
CHANGES = st.lists(
    st.tuples(st.integers(0, 10**6), st.sampled_from(["cut", "insert", "double"]), TABLE_TEXT),
    min_size=1,
    max_size=3,
)


def changed(text: str, changes: list[tuple[int, str, str]]) -> bytes:
    """The text with parts cut, doubled or put in."""
    for at, kind, new in changes:
        at %= len(text) + 1
        if kind == "cut":
            text = text[:at] + text[at + len(new) :]
        elif kind == "double":
            text = text[:at] + text[: len(new)] + text[at:]
        else:
            text = text[:at] + new + text[at:]
    return text.encode("utf-8", "surrogatepass")


def valid_text(suffix: str) -> str:
    header, rows = {"inter": (INTER, some_rows()), "item": (ITEM, titles())}[suffix]
    return "\n".join([header, *("\t".join(map(str, row)) for row in rows)]) + "\n"


def read_everything(path: Path) -> None:
    file = open_atomic_file(path)
    check_header(file, ["item_id"])
    read_table(file, file.columns, ["item_id"])


@settings(
    max_examples=300 * FUZZ_TIMES, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(suffix=st.sampled_from(["inter", "item"]), changes=CHANGES)
def test_readers_of_atomic_files_raise_nothing_else(
    tmp_path: Path, suffix: str, changes: list[tuple[int, str, str]]
) -> None:
    file = tmp_path / f"toy.{suffix}"
    file.write_bytes(changed(valid_text(suffix), changes))
    for read in (
        lambda: read_everything(file),
        lambda: read_item_file(file, ["movie_title"], "item_id"),
    ):
        try:
            read()
        except DataError as error:
            assert str(file) in str(error)


@settings(RELAXED, max_examples=12 * FUZZ_TIMES)
@given(suffix=st.sampled_from(["inter", "item"]), changes=CHANGES)
def test_runs_on_damaged_files_raise_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, changes: list[tuple[int, str, str]]
) -> None:
    folder = write(tmp_path_factory.mktemp("fuzz"), some_rows(), titles())
    (folder / "toy" / f"toy.{suffix}").write_bytes(changed(valid_text(suffix), changes))
    try:
        assert_finite(train_and_test(folder, "--loss=sft"))
    except MultDPOError as error:
        assert len(str(error)) > 40
