"""The writer: both readers read its files back, and a failure leaves no files."""

import json
import os
import signal
import subprocess
import sys

import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pandas._libs.parsers import STR_NA_VALUES

from recbole_multdpo.data.convert.dataset_folder import (
    PANDAS_MISSING,
    DatasetFolder,
    id_problem,
    text_field,
)
from recbole_multdpo.data.item_text import clean_text, read_item_file
from recbole_multdpo.errors import DataError

COLUMNS = ["item_id:token", "title:token_seq"]


def written_titles(folder, titles):
    """Write titles as items 1, 2, ... and return the file."""
    table = folder.table("item", COLUMNS)
    for number, title in enumerate(titles, start=1):
        table.write(str(number), text_field(title))
    table.close()
    return folder.path / f"{folder.name}.item"


def finish(folder, **changes):
    arguments = {"properties": "seed: 1\n", "text_field": "title", "year_field": None, "report": {}}
    return folder.finish(**{**arguments, **changes})


def fill(folder):
    folder.table("inter", ["user_id:token", "item_id:token"]).write("u", "1")
    folder.table("item", COLUMNS).write("1", "Heat")


# -------------------------------------------------------------------------------------------------
# round trips

NASTY_TITLES = st.lists(
    st.text(
        st.one_of(st.characters(), st.sampled_from('\t\n\r"\\,:|;\u2028\x85\x00 ')), max_size=20
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=200, deadline=None)
@given(titles=NASTY_TITLES)
@example(titles=['"Crocodile', "next", '"', '""', '"a" b', '\t"x\n"', "\\t", "a::b", "x\r\ny"])
@example(titles=["\ud800"])
def test_titles_come_back_as_the_loader_cleans_them(titles, tmp_path_factory):
    with DatasetFolder(tmp_path_factory.mktemp("out") / "toy") as folder:
        path = written_titles(folder, titles)
        rows = read_item_file(path, ["title"], "item_id")
        wanted = [clean_text(title.encode("utf-8", "replace").decode()) for title in titles]
        assert [rows[str(n)][0] for n in range(1, len(titles) + 1)] == wanted
        # RecBole reads the ids of the same file, with pandas and its quoting rules
        frame = pd.read_csv(path, delimiter="\t", usecols=[0], dtype=str, engine="python")
        assert frame["item_id:token"].tolist() == list(rows)


@pytest.mark.parametrize("title", ['"Great Performances" Cats', '"Crocodile'])
def test_why_there_is_a_space_before_a_quotation_mark(tmp_path, title):
    """Control of the test above: without the space RecBole cannot read the ids."""
    for text, readable in [(title, False), (text_field(title), True)]:
        path = tmp_path / "toy.item"
        path.write_text(f"item_id:token\ttitle:token_seq\n1\t{text}\n2\tHeat\n")
        assert read_item_file(path, ["title"], "item_id")["1"] == (title,)
        try:
            frame = pd.read_csv(path, delimiter="\t", usecols=[0], dtype=str, engine="python")
            read = frame["item_id:token"].tolist() == ["1", "2"]
        except pd.errors.ParserError:
            read = False
        assert read is readable


def test_ids_that_pandas_would_lose_are_refused():
    assert PANDAS_MISSING | {""} == set(STR_NA_VALUES)
    for token in [*PANDAS_MISSING, "", "a b", "a\tb", "a\n", '"a', "\ud800", "\u200b", "\xa0"]:
        assert id_problem(token), repr(token)
    for token in ["1", "01", "tt0113277", "nana", "A-b_c.d:e/f", "é", "日本", 'a"b']:
        assert id_problem(token) is None, repr(token)


def test_a_table_refuses_fields_that_would_break_it(tmp_path):
    with DatasetFolder(tmp_path / "toy") as folder:
        table = folder.table("item", COLUMNS)
        for fields in [("1",), ("1", "a\tb"), ("1", "a\nb"), ("1", "a\rb"), ("1", '"a')]:
            with pytest.raises(ValueError, match=r"toy\.item"):
                table.write(*fields)
        assert table.n_rows == 0


# -------------------------------------------------------------------------------------------------
# the folder


def test_the_folder_appears_when_all_is_written(tmp_path):
    output = tmp_path / "new" / "toy"
    with DatasetFolder(output) as folder:
        fill(folder)
        folder.reject("raw.json", 7, "no title", {"id": 1})
        folder.counts["users"] = 1
        assert not output.exists()
        report = finish(folder, report={"sources": ["raw.json"]})
        assert output.is_dir()
    assert sorted(path.name for path in output.iterdir()) == [
        "conversion.json",
        "rejected.jsonl",
        "toy.inter",
        "toy.item",
        "toy.yaml",
    ]
    assert [path.name for path in output.parent.iterdir()] == ["toy"]
    assert report == json.loads((output / "conversion.json").read_text())
    assert report["rows"] == {"inter": 1, "item": 1}
    assert report["rejected"] == {"no title": 1}
    assert report["item_texts"]["n_items"] == 1
    assert json.loads((output / "rejected.jsonl").read_text()) == {
        "file": "raw.json",
        "line": 7,
        "reason": "no title",
        "row": '{"id": 1}',
    }
    umask = os.umask(0)
    os.umask(umask)
    assert output.stat().st_mode & 0o777 == 0o777 & ~umask


def test_nothing_is_left_after_an_error(tmp_path):
    with pytest.raises(DataError, match="disk full"), DatasetFolder(tmp_path / "toy") as folder:
        fill(folder)
        raise OSError("disk full")
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_when_the_disk_is_full(tmp_path):
    """Writing beyond a limit fails, and so does flushing the buffer at the end."""
    code = (
        "import resource, sys; from recbole_multdpo.data.convert.__main__ import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); sys.exit(main())"
    )
    raw = tmp_path / "raw"
    raw.mkdir()
    rows = [{"history": [f"A {n}", f"B {n}"], "targets": [f"C {n}"]} for n in range(3000)]
    (raw / "train.json").write_text(json.dumps(rows))
    output = tmp_path / "out" / "toy"
    options = ["titles-jsonl", "--input", str(raw), "--output", str(output)]
    command = [sys.executable, "-c", code, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "cannot be written" in done.stderr and "Free disk space" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(output.parent.iterdir())


def test_sigterm_leaves_nothing(tmp_path):
    code = (
        "import sys, time;"
        "from recbole_multdpo.data.convert import __main__ as command, titles_jsonl;"
        "titles_jsonl.merge_rows = lambda *_: (print('ready', flush=True), time.sleep(60));"
        "sys.exit(command.main())"
    )
    (tmp_path / "train.jsonl").write_text('{"history": ["A"], "targets": ["B"]}\n')
    output = tmp_path / "out" / "toy"
    options = ["titles-jsonl", "--input", str(tmp_path), "--output", str(output)]
    with subprocess.Popen(
        [sys.executable, "-c", code, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() and len(list(output.parent.iterdir())) == 1
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 143
        assert b"nothing was written" in process.stderr.read()
    assert not list(output.parent.iterdir())


def test_a_killed_process_leaves_no_data_set(tmp_path):
    """SIGKILL cannot be caught: a hidden folder is left, not named like the data set."""
    code = (
        "import sys, time; from pathlib import Path;"
        "from recbole_multdpo.data.convert.dataset_folder import DatasetFolder;"
        "folder = DatasetFolder(Path(sys.argv[1])); folder.table('inter', ['a:token']).write('1');"
        "print('ready', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "toy")]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "toy").exists()
    assert [path.name[:5] for path in tmp_path.iterdir()] == [".toy."]
    with DatasetFolder(tmp_path / "toy") as folder:  # removes the hidden folder
        fill(folder)
        finish(folder)
    assert os.listdir(tmp_path) == ["toy"]


def test_an_output_that_exists_is_left_alone(tmp_path):
    (tmp_path / "toy").mkdir()
    with DatasetFolder(tmp_path / "toy") as folder:  # empty: fine
        fill(folder)
        finish(folder)
    before = sorted((tmp_path / "toy").iterdir())
    with pytest.raises(DataError, match="toy exists already; remove it"):
        DatasetFolder(tmp_path / "toy")
    (tmp_path / "file").write_text("x")
    with pytest.raises(DataError, match="file exists already"):
        DatasetFolder(tmp_path / "file")
    with pytest.raises(DataError, match="cannot be written"):
        DatasetFolder(tmp_path / "file" / "toy")
    assert sorted((tmp_path / "toy").iterdir()) == before


def test_an_output_folder_created_meanwhile_is_kept(tmp_path):
    with pytest.raises(DataError, match="cannot be renamed"):
        with DatasetFolder(tmp_path / "toy") as folder:
            fill(folder)
            (tmp_path / "toy").mkdir()
            (tmp_path / "toy" / "theirs").write_text("x")
            finish(folder)
    assert [path.name for path in tmp_path.rglob("*")] == ["toy", "theirs"]


def test_no_rows_or_no_texts_is_an_error_that_shows_the_first_rejects(tmp_path):
    with pytest.raises(DataError) as caught, DatasetFolder(tmp_path / "toy") as folder:
        folder.table("inter", ["user_id:token"])
        folder.table("item", COLUMNS)
        for line in range(1, 9):
            folder.reject("raw.csv", line, "not CSV", "x")
        finish(folder)
    assert "0 interactions and 0 items" in str(caught.value)
    assert "8 rows were rejected" in str(caught.value) and "raw.csv, line 1" in str(caught.value)
    with pytest.raises(DataError, match="no item of the catalogue has a text"):
        with DatasetFolder(tmp_path / "toy") as folder:
            folder.table("inter", ["user_id:token"]).write("u")
            folder.table("item", COLUMNS).write("1", "")
            finish(folder)
    assert not list(tmp_path.iterdir())


def test_a_long_rejected_row_is_cut(tmp_path):
    with DatasetFolder(tmp_path / "toy") as folder:
        folder.reject("raw.txt", 1, "too long", "x" * 10**6)
        folder._close()
        assert (folder.path / "rejected.jsonl").stat().st_size < 2000
