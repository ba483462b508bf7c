"""Times in float64 for every model, dates, and rejected values."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
import recbole
from recbole.data.dataset import Dataset

from recbole_multdpo.data.times import DATE, NUMBER, ZONED_DATE, TimeColumn, seconds_of
from recbole_multdpo.errors import ConfigError, DataError
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.settings.config import load_config
from tests.integration.toy import toy_arguments

MAY_31 = 1717113600.0  # 2024-05-31 in UTC
LEAVE_ONE_OUT = "--eval_args={'split': {'LS': 'valid_and_test'}, 'order': 'TO'}"
Rows = list[tuple[str, str, str]]


@pytest.mark.parametrize(
    ("text", "seconds", "kind"),
    [
        ("1717113600", MAY_31, NUMBER),
        ("-3.5", -3.5, NUMBER),
        ("2024.0", 2024.0, NUMBER),
        ("1717113600.10", MAY_31 + 0.1, NUMBER),
        ("2024-05-31", MAY_31, DATE),
        ("2024/5/31", MAY_31, DATE),
        ("2024.05.31", MAY_31, DATE),
        ("31.05.2024", MAY_31, DATE),
        ("31.5.2024 13:45", MAY_31 + 49500, DATE),
        ("2024-05-31 13:45:01", MAY_31 + 49501, DATE),
        ("2024-05-31T13:45:01.250", MAY_31 + 49501.25, DATE),
        ("2024-05-31T13:45:01,5Z", MAY_31 + 49501.5, ZONED_DATE),
        ("2024-05-31 13:45:01 UTC", MAY_31 + 49501, ZONED_DATE),
        ("2024-05-31T13:45:01+02:00", MAY_31 + 42301, ZONED_DATE),
        ("2024-05-31T13:45:01-0530", MAY_31 + 69301, ZONED_DATE),
        ("1969-12-31 23:59:59", -1.0, DATE),
    ],
)
def test_a_time_is_a_number_or_a_date_of_one_meaning(text: str, seconds: float, kind: str) -> None:
    assert seconds_of(text) == (seconds, kind)


@pytest.mark.parametrize(
    "text",
    [
        "03/04/2020",
        "3-4-2020",
        "2024-02-30",
        "2024-05-31 25:00",
        "soon",
        "",
        "nan",
        "inf",
        "2024-5",
        "2024.10",
        "2024.02",
    ],
)
def test_ambiguous_and_malformed_texts_are_not_times(text: str) -> None:
    assert seconds_of(text) is None


def test_a_column_is_of_one_kind() -> None:
    for first, second in (("2024-05-31", "5"), ("2024-05-31", "2024-06-01T00:00Z")):
        column = TimeColumn("timestamp")
        column.number("line 2", first)
        column.number("line 3", first)
        with pytest.raises(DataError, match=r"line 4: .* in line 2\. Write all times in one form"):
            column.number("line 4", second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (
            "1700000000000000100",
            "1700000000000000099",
        ),  # nanoseconds: 256 of them are equal in float64
        ("9007199254740993", "9007199254740992"),
        ("2024-05-31T13:45:00.000000100Z", "2024-05-31T13:45:00.000000099Z"),
    ],
)
def test_times_that_are_one_number_in_float64_are_refused(first: str, second: str) -> None:
    assert seconds_of(first) == seconds_of(second)
    column = TimeColumn("timestamp")
    column.number("line 2", first)
    column.number("line 3", first)
    with pytest.raises(DataError, match=r"line 4: .* time is equal in float64"):
        column.number("line 4", second)


def test_long_times_that_differ_in_float64_are_read(tmp_path: Path) -> None:
    micro = [f"2024-05-31T13:45:00.{time:06}" for time in range(20)]
    nano = [str(1700000000000000000 + 1000 * time) for time in range(20)]
    for texts in (micro, nano):
        column = TimeColumn("timestamp")
        numbers = [column.number("line 2", text) for text in texts]
        assert numbers == sorted(set(numbers))
    rows = shuffled_rows(lambda time: str(1700000000000000000 + 100 * time))
    with pytest.raises(DataError, match="time is equal in float64"):
        pairs_of_parts(write(tmp_path, rows), "EASE", LEAVE_ONE_OUT)
    rows = shuffled_rows(lambda time: str(1700000000000000 + 100 * time))  # the remedy
    truth = pairs_of_parts(write(tmp_path / "plain", shuffled_rows()), "EASE", LEAVE_ONE_OUT)
    assert pairs_of_parts(write(tmp_path, rows), "EASE", LEAVE_ONE_OUT) == truth


# -------------------------------------------------------------------------------------------------
# splits


def write(folder: Path, rows: Rows, kind: str = "float") -> Path:
    """(user, item, time) as the data set `toy` below `folder`."""
    data = folder / "toy"
    data.mkdir(parents=True, exist_ok=True)
    lines = [f"user_id:token\titem_id:token\ttimestamp:{kind}", *("\t".join(row) for row in rows)]
    (data / "toy.inter").write_text("\n".join(lines) + "\n")
    items = sorted({item for _, item, _ in rows})
    titles = [f"{item}\tRed {item}" for item in items]
    (data / "toy.item").write_text("\n".join(["item_id:token\tmovie_title:token_seq", *titles, ""]))
    return folder


def shuffled_rows(time_of: object = str) -> Rows:
    """20 users with 11 of 30 items each; times 0, 1, 2, ... in no order of the file."""
    rng = np.random.default_rng(0)
    pairs = [(f"u{u}", f"i{i}") for u in range(20) for i in rng.permutation(30)[:11]]
    times = rng.permutation(len(pairs))
    return [(u, i, time_of(int(t))) for (u, i), t in zip(pairs, times, strict=True)]  # type: ignore[operator]


def unix(time: int) -> str:
    """Times five seconds apart, 25 of which are equal in float32."""
    return str(1700000000 + 5 * time)


def arguments(folder: Path, model: str, *extra: str) -> list[str]:
    columns = "--load_col={'inter': ['user_id', 'item_id', 'timestamp'], 'item': ['item_id']}"
    if model == "LLMRec":
        no_year = "--item_year_field=~"
        return toy_arguments(folder, folder / "run", columns, no_year, "--loss=sft", *extra)
    small = ["--device=cpu", "--show_progress=False", "--topk=[2]", "--valid_metric=NDCG@2"]
    where = ["--dataset=toy", f"--data_path={folder}", f"--run_dir={folder / 'run'}"]
    return [f"--model={model}", *where, *small, columns, *extra]


def pairs_of_parts(folder: Path, model: str, *extra: str) -> list[set[tuple[str, str]]]:
    """Pairs of user and item in training, validation and test."""
    _, parts = load_parts(load_config(arguments(folder, model, *extra)))
    return [pairs(part) for part in parts]


def pairs(part: Dataset) -> set[tuple[str, str]]:
    users, items = (
        part.id2token(field, part.inter_feat[field].numpy()) for field in ("user_id", "item_id")
    )
    return set(zip(users.tolist(), items.tolist(), strict=True))


SPLITS = {
    "LS": "{'split': {'LS': 'valid_and_test'}, 'order': 'TO'}",
    "RS by user": "{'split': {'RS': [0.6, 0.2, 0.2]}, 'order': 'TO'}",
    "RS of all": "{'split': {'RS': [0.6, 0.2, 0.2]}, 'order': 'TO', 'group_by': 'none'}",
    "TS": "{'split': {'TS': [0.6, 0.2, 0.2]}, 'order': 'TO'}",
}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("model", ["LLMRec", "EASE", "SASRec"])
def test_unix_times_split_as_small_numbers_do(tmp_path: Path, model: str, split: str) -> None:
    """They split like the same order in numbers that are exact in float32."""
    how = f"--eval_args={SPLITS[split]}"
    exact = pairs_of_parts(write(tmp_path / "small", shuffled_rows()), model, how)
    assert pairs_of_parts(write(tmp_path / "unix", shuffled_rows(unix)), model, how) == exact


def test_without_the_patch_unix_times_split_differently(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Control of the test above."""
    folder = write(tmp_path, shuffled_rows(unix))
    right = pairs_of_parts(folder, "EASE", LEAVE_ONE_OUT)
    rounding = Dataset._dataframe_to_interaction.__wrapped__
    monkeypatch.setattr(Dataset, "_dataframe_to_interaction", rounding)
    assert pairs_of_parts(folder, "EASE", LEAVE_ONE_OUT) != right


def test_a_sequential_model_sees_items_in_their_order(tmp_path: Path) -> None:
    rows = shuffled_rows(unix)
    _, parts = load_parts(
        load_config(arguments(write(tmp_path, rows), "SASRec", f"--eval_args={SPLITS['LS']}"))
    )
    expected = defaultdict(list)
    for user, item, _ in sorted(rows, key=lambda row: float(row[2])):
        expected[user].append(item)
    test = parts[2]
    for row in range(len(test)):
        shown = test.inter_feat["item_id_list"][row]
        user = test.id2token("user_id", int(test.inter_feat["user_id"][row]))
        assert test.id2token("item_id", shown[shown > 0].numpy()).tolist() == expected[user][:-1]


@pytest.mark.parametrize("model", ["LLMRec", "EASE"])
def test_all_users_of_ml_100k_are_tested_on_their_latest_row(tmp_path: Path, model: str) -> None:
    """Among rows of the same second the last one counts; for 149 users an earlier one was used."""
    latest: dict[str, tuple[float, str]] = {}
    file = Path(recbole.__file__).parent / "dataset_example/ml-100k/ml-100k.inter"
    for line in file.read_text().splitlines()[1:]:
        user, item, rating, time = line.split("\t")
        if float(rating) >= 4 and (user not in latest or float(time) >= latest[user][0]):
            latest[user] = float(time), item
    argv = [
        f"--model={model}",
        "--dataset=ml-100k",
        f"--run_dir={tmp_path / 'run'}",
        "--device=cpu",
    ]
    _, parts = load_parts(load_config([*argv, LEAVE_ONE_OUT]))
    expected = {(user, item) for user, (_, item) in latest.items()}
    assert len(pairs(parts[2])) == 942  # one of the 943 has no liked film
    assert pairs(parts[2]) == expected


def test_the_random_split_of_ml_100k_is_as_published(tmp_path: Path) -> None:
    """The dtype of times does not affect a random split: the README's test set."""
    argv = ["--model=EASE", "--dataset=ml-100k", f"--run_dir={tmp_path / 'run'}", "--device=cpu"]
    _, parts = load_parts(load_config(argv))
    lines = sorted(f"{user}\t{item}" for user, item in pairs(parts[2]))
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest.startswith("d218be7e91f01093")


def test_ties_follow_the_file(tmp_path: Path) -> None:
    rows = [(f"u{u}", f"i{(u + k) % 30}", "7") for u in range(5) for k in range(20)]
    _, valid, test = pairs_of_parts(write(tmp_path, rows), "EASE", LEAVE_ONE_OUT)
    assert test == {(f"u{u}", f"i{(u + 19) % 30}") for u in range(5)}
    assert valid == {(f"u{u}", f"i{(u + 18) % 30}") for u in range(5)}


@pytest.mark.parametrize(("keep", "latest"), [("first", "i20"), ("last", "i0")])
def test_of_a_repeated_pair_the_first_or_last_is_kept(
    tmp_path: Path, keep: str, latest: str
) -> None:
    """An unstable sort could keep any of the rows with equal times."""
    rows = [("u0", f"i{k}", unix(9)) for k in range(20)]
    rows += [("u2", f"i{k}", unix(9)) for k in range(10, 32)]
    doubled = [("u1", "i0", unix(9)), *rows, *(("u1", f"i{k}", unix(9)) for k in range(1, 21))]
    doubled.append(("u1", "i0", unix(9)))
    argv = arguments(write(tmp_path, doubled), "EASE", f"--rm_dup_inter={keep}", LEAVE_ONE_OUT)
    _, parts = load_parts(load_config(argv))
    last = {item for user, item in pairs(parts[2]) if user == "u1"}
    assert last == {latest}


def test_a_limit_on_times_is_exact(tmp_path: Path) -> None:
    rows = shuffled_rows(unix)
    limit = f"--val_interval={{'timestamp': '[{unix(120)},inf)'}}"
    parts = pairs_of_parts(write(tmp_path, rows), "EASE", limit, LEAVE_ONE_OUT)
    expected = {(u, i) for u, i, time in rows if float(time) >= float(unix(120))}
    assert parts[0] | parts[1] | parts[2] == expected and len(expected) == 100


# -------------------------------------------------------------------------------------------------
# dates, and rejected values


def day(time: int) -> str:
    return f"{1 + time % 28:02}.{1 + time // 28 % 12:02}.{2000 + time // 336}"


@pytest.mark.parametrize("model", ["LLMRec", "EASE", "SASRec"])
def test_dates_split_as_numbers_do(tmp_path: Path, model: str) -> None:
    exact = pairs_of_parts(write(tmp_path / "small", shuffled_rows()), model, LEAVE_ONE_OUT)
    dates = write(tmp_path / "dates", shuffled_rows(day))
    assert pairs_of_parts(dates, model, LEAVE_ONE_OUT) == exact


def first_time(text: str) -> Rows:
    rows = shuffled_rows(day)
    return [(*rows[0][:2], text), *rows[1:]]


@pytest.mark.parametrize("text", ["03/04/2020", "soon", ""])
def test_an_unreadable_time_is_refused_and_the_remedies_work(tmp_path: Path, text: str) -> None:
    data = write(tmp_path, first_time(text))
    with pytest.raises(
        DataError, match=r"toy\.inter, line 2: timestamp is .*31\.05\.2024"
    ) as found:
        pairs_of_parts(data, "EASE", LEAVE_ONE_OUT)
    assert "token" not in str(found.value)
    write(tmp_path, first_time("31.05.2024"))
    assert pairs_of_parts(data, "EASE", LEAVE_ONE_OUT)
    write(tmp_path, first_time(text)[1:])
    assert pairs_of_parts(data, "EASE", LEAVE_ONE_OUT)
    write(tmp_path, first_time(text))
    without = "--load_col={'inter': ['user_id', 'item_id']}"
    argv = [a for a in arguments(data, "EASE") if not a.startswith("--load_col")]
    assert load_parts(load_config([*argv, without]))


def test_an_empty_time_is_allowed_if_no_setting_needs_times(tmp_path: Path) -> None:
    data = write(tmp_path, first_time(""))
    assert pairs_of_parts(data, "EASE")
    without_it = "--val_interval={'timestamp': '[0,inf)'}"  # drops the row
    parts = pairs_of_parts(data, "EASE", LEAVE_ONE_OUT, without_it)
    assert sum(map(len, parts)) == 219


@pytest.mark.parametrize(
    ("model", "setting"),
    [
        ("EASE", LEAVE_ONE_OUT),
        ("LLMRec", LEAVE_ONE_OUT),
        ("LLMRec", "--history_split=temporal"),
        ("EASE", "--rm_dup_inter=last"),
    ],
)
def test_times_as_tokens_are_refused_if_a_setting_needs_times(
    tmp_path: Path, model: str, setting: str
) -> None:
    data = write(tmp_path, shuffled_rows(unix), kind="token")
    with pytest.raises(DataError, match=r"line 1: .* needs times, .*Write timestamp:float"):
        pairs_of_parts(data, model, setting)
    assert pairs_of_parts(data, model)  # if no setting needs times
    write(tmp_path, shuffled_rows(unix))  # the remedy in the message
    assert pairs_of_parts(data, model, setting)


def test_a_missing_time_column_is_named(tmp_path: Path) -> None:
    data = write(tmp_path, shuffled_rows())
    with pytest.raises(DataError, match=r"no column 't_dat'.*--TIME_FIELD"):
        load_parts(
            load_config(
                [
                    *[a for a in arguments(data, "EASE") if not a.startswith("--load_col")],
                    "--load_col={'inter': '*'}",
                    "--TIME_FIELD=t_dat",
                    LEAVE_ONE_OUT,
                ]
            )
        )


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("--eval_args={'split': {'TS': [0.8, 0.1, 0.1]}}", "needs order TO"),
        (f"{LEAVE_ONE_OUT}|--numerical_features=[timestamp]", "copy of the column"),
    ],
)
def test_settings_that_would_lose_the_order_are_refused(
    tmp_path: Path, setting: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        load_config(arguments(tmp_path, "EASE", *setting.split("|")))


def test_the_whole_command_on_dates(tmp_path: Path) -> None:
    data = write(tmp_path, shuffled_rows(day))
    result = run(arguments(data, "LLMRec", LEAVE_ONE_OUT, "--history_split=temporal"))
    assert result["num_users_evaluated"] == 20
