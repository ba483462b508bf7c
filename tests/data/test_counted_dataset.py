"""Counts of the interactions that are lost between the files and the data set."""

import json
import logging
import random

import pytest

from recbole_multdpo.data.counted_dataset import Amount, RowCounts, dataset_class
from recbole_multdpo.errors import DataError
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.runtime.console import DETAIL
from recbole_multdpo.settings.config import load_config
from tests.integration.toy import toy_arguments

COLUMNS = "{'inter': ['user_id', 'item_id', 'rating', 'timestamp'], 'item': ['item_id', 'price']}"


def write(parent, inter, items, users=None):
    """The data set `toy`: rows of (user, item, rating, time), of (item, price), of users."""
    folder = parent / "toy"
    folder.mkdir()
    headers = {
        "inter": "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        "item": "item_id:token\tmovie_title:token_seq\tprice:float",
        "user": "user_id:token\tage:float",
    }
    titled = [(item, f"Title {item}", price) for item, price in items]
    for suffix, rows in (("inter", inter), ("item", titled), ("user", users)):
        if rows is not None:
            lines = [headers[suffix], *("\t".join(map(str, row)) for row in rows)]
            (folder / f"toy.{suffix}").write_text("\n".join(lines) + "\n")
    return parent


@pytest.fixture
def counts(tmp_path):
    """Loads a data set for a model and returns the counts of its rows."""

    def load(inter, items, *settings, users=None, model="EASE", change=lambda folder: None):
        data = write(tmp_path, inter, items, users)
        change(data)
        given = {text.split("=")[0] for text in settings}
        if "--load_col" not in given:
            settings = (*settings, f"--load_col={COLUMNS}")
        own = {"--model", "--load_col", *given}
        kept = [
            text
            for text in toy_arguments(data, tmp_path / "run", "--item_year_field=~")
            if text.split("=")[0] not in own and (model == "LLMRec" or text.split("=")[0] in SHARED)
        ]
        settings = [f"--model={model}", *kept, *settings]
        dataset, _ = load_parts(load_config(settings))
        found = dataset.row_counts
        found.check()
        if model != "SASRec":  # its data set has no row for a user's first item
            assert found.kept.rows == len(dataset.inter_feat)
        return found

    return load


SHARED = {"--dataset", "--device", "--topk", "--valid_metric", "--data_path", "--run_dir"}
USERS, ITEMS = range(12), range(20)
# every user has ten items, in an order of his own, half of them rated 5, half 3
INTER = [
    (f"u{u}", f"i{(u + k) % 20}", 5 - 2 * (k % 2), 100 * place)
    for u in USERS
    for place, k in enumerate(random.Random(u).sample(range(10), 10))
]
PRICES = [(f"i{item}", item) for item in ITEMS]
MODELS = pytest.mark.parametrize("model", ["EASE", "SASRec", "LLMRec"])


def as_tuples(found):
    return {reason: (a.rows, a.users, a.items) for reason, a in found.lost.items()}


@MODELS
def test_nothing_is_lost_from_whole_files(counts, model):
    order = ["--eval_args={'order': 'TO'}"] if model == "SASRec" else []
    found = counts(INTER, PRICES, *order, model=model)
    assert found.read == found.kept == Amount(120, 12, 20) and not found.lost


@MODELS
def test_rows_without_a_row_in_the_item_file_are_counted(counts, model, caplog):
    order = ["--eval_args={'order': 'TO'}"] if model == "SASRec" else []
    with caplog.at_level(logging.INFO):
        found = counts(INTER, PRICES[:15], *order, model=model)
    n = sum(int(item[1:]) >= 15 for _, item, *_ in INTER)
    assert as_tuples(found) == {"no row in .item": (n, 0, 5)}
    warned = [record for record in caplog.records if "no row in .item" in record.getMessage()]
    assert warned and warned[0].levelname == "WARNING"
    assert "--filter_inter_by_user_or_item=False" in warned[0].getMessage()


def test_the_remedy_of_that_warning_keeps_the_rows(counts):
    found = counts(INTER, PRICES[:15], "--filter_inter_by_user_or_item=False")
    assert found.kept == Amount(120, 12, 20)


def test_rows_without_a_row_in_the_user_file_are_counted(counts):
    columns = COLUMNS[:-1] + ", 'user': ['user_id', 'age']}"
    users = [(f"u{u}", 30) for u in USERS if u]
    found = counts(INTER, PRICES, f"--load_col={columns}", users=users)
    assert as_tuples(found) == {"no row in .user": (10, 1, 0)}


def test_every_reason_at_once_adds_up(counts):
    inter = [*INTER, *INTER[:7], ("rare", "i1", 5, 1), ("u1", "i19", "", 5), ("u1", "gone", 5, 2)]
    found = counts(
        inter,
        PRICES[:18],
        "--val_interval={'rating': '[2,inf)', 'price': '[1,inf)'}",
        "--rm_dup_inter=first",
        "--user_inter_num_interval=[5,inf)",
    )
    repeats = len(inter) - len({row[:2] for row in inter})
    kept = {row[:2]: row for row in reversed(inter)}
    without_row = [r for r in kept.values() if r[2] != "" and r[1] in ("i18", "i19", "gone")]
    cheap = [r for r in kept.values() if r[1] == "i0"]
    assert found.read == Amount(len(inter), 13, 21)
    assert as_tuples(found) == {
        "rm_dup_inter=first": (repeats, 0, 0),
        "empty value": (1, 0, 0),
        "no row in .item": (len(without_row), 0, 3),
        "val_interval": (len(cheap), 0, 1),
        "user_inter_num_interval, item_inter_num_interval": (1, 1, 0),
    }


def test_filters_by_rating_are_counted_without_a_warning(counts, caplog):
    with caplog.at_level(DETAIL):
        found = counts(INTER, PRICES, "--val_interval={'rating': '[4,inf)'}")
    assert as_tuples(found) == {"val_interval": (60, 0, 0)}
    said = [record for record in caplog.records if "Left out" in record.getMessage()]
    assert [record.levelname for record in said] == [logging.getLevelName(DETAIL)]


def test_a_large_loss_to_rare_users_and_items_is_a_warning(counts, caplog):
    inter = [*INTER[:20], *((f"once{n}", "i0", 5, n) for n in range(40))]
    with caplog.at_level(logging.INFO):
        found = counts(inter, PRICES, "--user_inter_num_interval=[2,inf)")
    assert found.lost.popitem()[1] == Amount(40, 40, 0)
    assert any(
        "More than half" in r.getMessage() and r.levelname == "WARNING" for r in caplog.records
    )


def test_empty_prices_get_the_mean_and_are_said(counts, caplog):
    prices = [*PRICES[:3], ("i3", ""), *PRICES[4:]]
    with caplog.at_level(logging.WARNING):
        assert not counts(INTER, prices).lost
    assert "1 of 20 values of price are empty: RecBole replaces them by the mean" in caplog.text


@MODELS
def test_files_whose_every_field_is_quoted_are_read_alike(counts, model, tmp_path):
    order = ["--eval_args={'order': 'TO'}"] if model == "SASRec" else []

    def quoted(line):
        return ";".join(f'"{field}"' for field in line.split("\t"))

    def rewrite(folder):
        for suffix in ("inter", "item"):
            file = folder / "toy" / f"toy.{suffix}"
            file.write_text("\n".join(map(quoted, file.read_text().splitlines())) + "\n")

    found = counts(INTER, PRICES, "--field_separator=;", *order, model=model, change=rewrite)
    assert found.kept == Amount(120, 12, 20) and not found.lost


@pytest.mark.parametrize(("suffix", "again"), [("item", ("i1", 99)), ("user", ("u1", 99))])
def test_a_second_row_of_an_item_or_user_is_refused(counts, suffix, again):
    columns = COLUMNS[:-1] + ", 'user': ['user_id', 'age']}"
    items = [*PRICES, *([again] if suffix == "item" else [])]
    users = [*((f"u{u}", 30) for u in USERS), *([again] if suffix == "user" else [])]
    with pytest.raises(DataError, match=f"toy.{suffix}: duplicate {suffix} '{again[0]}'"):
        counts(INTER, items, f"--load_col={columns}", users=users)


@pytest.mark.parametrize("value", ["1 2", "", "1 a", "1 nan", "1,2"])
def test_lists_of_numbers_hold_numbers(counts, value):
    def as_lists(folder):
        file = folder / "toy" / "toy.item"
        file.write_text(file.read_text().replace("price:float", "price:float_seq"))

    items = [("i0", value), *((item, "1 2") for item, _ in PRICES[1:])]
    if value in ("1 2", ""):
        assert not counts(INTER, items, change=as_lists).lost
        return
    with pytest.raises(DataError, match=rf"price is '{value}' and not a list of finite numbers"):
        counts(INTER, items, change=as_lists)


def test_counts_that_do_not_add_up_are_an_error():
    wrong = RowCounts(Amount(10, 3, 3), Amount(7, 3, 3), {"val_interval": Amount(2, 0, 0)})
    with pytest.raises(AssertionError, match="7 interactions of 3 users"):
        wrong.check()


def test_the_result_holds_the_counts(tmp_path):
    data = write(tmp_path, INTER, PRICES[:15])
    arguments = toy_arguments(
        data, tmp_path / "run", "--loss=sft", "--item_year_field=~", f"--load_col={COLUMNS}"
    )
    run(arguments)
    rows = json.loads((tmp_path / "run" / "result.json").read_text())["rows"]
    lost = rows["lost"]["no row in .item"]
    assert rows["read"] == {"rows": 120, "users": 12, "items": 20}
    assert {key: rows["kept"][key] + lost[key] for key in lost} == rows["read"]


@pytest.mark.parametrize(
    ("model", "name"),
    [("EASE", "Dataset"), ("SASRec", "SequentialDataset"), ("CKE", "KnowledgeBasedDataset")],
)
def test_the_class_of_a_model_is_recboles(model, name):
    order = ["--eval_args={'order': 'TO'}"] if model == "SASRec" else []
    config = load_config([f"--model={model}", "--dataset=ml-100k", *order])
    assert name in {base.__name__ for base in dataset_class(config).__mro__}
