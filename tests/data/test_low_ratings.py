"""Low ratings: split as the other rows are, by a draw of their own; left out of every ranking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from recbole.data.dataset import Dataset

from recbole_multdpo.classical.run import prepare_classical
from recbole_multdpo.data.counted_dataset import train_and_valid
from recbole_multdpo.data.loader import evaluation_loaders
from recbole_multdpo.errors import ConfigError, DataError
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.settings.config import load_config
from tests.integration.toy import classical_arguments, toy_arguments

# a user's rows at times 0 to 19: ratings 5 at even times, 3 at odd ones
N_USERS, N_EVENTS, N_ITEMS = 6, 20, 40
FIVES = "--val_interval={'rating': '[4,inf)'}"
RATED = "--seen_items=rated"
TO = "--eval_args={'order': 'TO'}"
LS = "--eval_args={'split': {'LS': 'valid_and_test'}}"
LS_TO = "--eval_args={'split': {'LS': 'valid_and_test'}, 'order': 'TO'}"


@pytest.fixture
def data_path(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    folder = tmp_path / "data" / "toy"
    folder.mkdir(parents=True)
    titles = [f"i{item}\tFilm {item}\t{1950 + item}" for item in range(N_ITEMS)]
    head = "item_id:token\tmovie_title:token_seq\trelease_year:token"
    (folder / "toy.item").write_text("\n".join([head, *titles]) + "\n")
    rows = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(N_USERS):
        for time, item in enumerate(rng.permutation(N_ITEMS)[:N_EVENTS]):
            rows.append(f"u{user}\ti{item}\t{3 if time % 2 else 5}\t{time + 100 * user}")
    (folder / "toy.inter").write_text("\n".join(rows) + "\n")
    return tmp_path / "data"


def arguments(data_path: Path, model: str, *extra: str) -> list[str]:
    folder = data_path.parent / "run"
    if model == "LLMRec":
        return toy_arguments(data_path, folder, FIVES, *extra)
    return classical_arguments(model, data_path, folder, FIVES, *extra)


def load(data_path: Path, model: str, *extra: str):  # type: ignore[no-untyped-def]
    config = load_config(arguments(data_path, model, *extra))
    return config, *load_parts(config)


def names(part: Dataset, rows) -> set[tuple[str, str]]:  # type: ignore[no-untyped-def]
    """Pairs of user and item as in the file, of `UserItems` or of a part's own rows."""
    if isinstance(rows, Dataset):
        users, items = (rows.inter_feat[f].numpy() for f in ("user_id", "item_id"))
    else:
        users, items = np.repeat(np.arange(len(rows.counts)), rows.counts), rows.items
    pair = part.id2token("user_id", users), part.id2token("item_id", items)
    return set(zip(*pair, strict=True))


def times(data_path: Path) -> dict[tuple[str, str], int]:
    rows = (row.split("\t") for row in (data_path / "toy" / "toy.inter").read_text().split("\n"))
    return {(row[0], row[1]): int(row[3]) for row in list(rows)[1:-1]}


def shares(part: Dataset) -> list[set[tuple[str, str]]]:
    return [names(part, part.low_rated_items([number])) for number in range(3)]


@pytest.mark.parametrize("split", ["--seed=2020", LS, "--eval_args={'group_by': 'none'}", TO])
@pytest.mark.parametrize("model", ["LLMRec", "EASE"])
def test_the_split_of_the_positives_stays(data_path: Path, model: str, split: str) -> None:
    _, _, plain = load(data_path, model, split)
    _, dataset, parts = load(data_path, model, split, RATED)
    dataset.low_rated_items([0])
    for one, other in zip(plain, parts, strict=True):
        for field in one.inter_feat.interaction:
            assert one.inter_feat[field].tolist() == other.inter_feat[field].tolist()


@pytest.mark.parametrize(
    ("split", "sizes"),
    [
        ("--eval_args={'split': {'RS': [0.6, 0.2, 0.2]}}", (6, 2, 2)),
        (LS, (8, 1, 1)),
        ("--eval_args={'split': {'LS': 'test_only'}}", (9, 0, 1)),
    ],
)
def test_a_random_split_by_user_gives_the_shares_of_the_others(
    data_path: Path, split: str, sizes: tuple[int, ...]
) -> None:
    _, dataset, parts = load(data_path, "EASE", split, RATED)
    assert tuple(len(part) for part in parts) == tuple(N_USERS * size for size in sizes)
    for number, size in enumerate(sizes):
        low = dataset.low_rated_items([number])
        assert low.counts[1:].tolist() == [size] * N_USERS
        assert np.array_equal(parts[number].low_rated_items().items, low.items)
    found = shares(dataset)
    assert len(set.union(*found)) == sum(map(len, found)) == N_USERS * N_EVENTS // 2
    assert all(times(data_path)[pair] % 2 == 1 for pair in found[0])
    other = shares(load(data_path, "EASE", split, RATED, "--seed=3")[1])
    assert other[2] != found[2]


def test_a_random_split_of_all_rows_at_once(data_path: Path) -> None:
    _, dataset, parts = load(data_path, "EASE", "--eval_args={'group_by': 'none'}", RATED)
    assert [len(found) for found in shares(dataset)] == [len(part) for part in parts]


def test_another_order_of_rows_and_another_model_give_the_same_split(data_path: Path) -> None:
    expected = shares(load(data_path, "LLMRec", RATED)[1])
    assert shares(load(data_path, "EASE", RATED)[1]) == expected
    file = data_path / "toy" / "toy.inter"
    head, *rows = file.read_text().rstrip("\n").split("\n")
    file.write_text("\n".join([head, *rows[::-1]]) + "\n")
    assert shares(load(data_path, "EASE", RATED)[1]) == expected


@pytest.mark.parametrize("split", [TO, LS_TO, "--eval_args={'split': {'TS': [0.6, 0.2, 0.2]}, "
                                   "'order': 'TO'}"])  # fmt: skip
@pytest.mark.parametrize("model", ["LLMRec", "SASRec"])
def test_in_order_of_time_nothing_later_is_known(data_path: Path, model: str, split: str) -> None:
    _, dataset, parts = load(data_path, model, split, RATED)
    at, known = times(data_path), shares(dataset)
    assert known[0] and len(set.union(*known)) == N_USERS * N_EVENTS // 2
    for user in {pair[0] for pair in set.union(*known)}:
        ends, last = [], -1
        for part in parts[:2]:
            own = [at[pair] for pair in names(part, part) if pair[0] == user]
            last = max([last, *own])
            ends.append(last)
        for number, found in enumerate(known):
            for pair in (pair for pair in found if pair[0] == user):
                assert number == sum(at[pair] > end for end in ends)


def test_a_cut_for_all_users_is_at_one_time(data_path: Path) -> None:
    split = "--eval_args={'order': 'TO', 'group_by': 'none'}"
    _, dataset, parts = load(data_path, "EASE", split, RATED)
    at = times(data_path)
    end = max(at[pair] for pair in names(parts[0], parts[0]))
    low = {pair for pair, time in at.items() if time % 2}
    assert shares(dataset)[0] == {pair for pair in low if at[pair] <= end}


def test_times_that_are_dropped_are_missed(data_path: Path) -> None:
    unused = "--unused_col={'inter': ['timestamp']}"
    _, dataset, _ = load(data_path, "EASE", TO, RATED, unused)
    with pytest.raises(DataError, match="unused_col"):
        dataset.low_rated_items([0])


def left_out(loader) -> set[tuple[str, str]]:  # type: ignore[no-untyped-def]
    """Pairs that a loader of full rankings leaves out."""
    part, found = loader._dataset, set()
    for user in loader.uid_list.tolist():
        for item in loader.uid2history_item[user].tolist():
            found.add((part.id2token("user_id", user), part.id2token("item_id", item)))
    return found


@pytest.mark.parametrize("model", ["LLMRec", "EASE", "SASRec"])
@pytest.mark.parametrize("information", ["train", "train_valid", "refit"])
def test_full_rankings_leave_out_what_is_known(
    data_path: Path, model: str, information: str
) -> None:
    extra = [TO, f"--test_information={information}"]
    loaders = []
    for setting in ("positives", "rated"):
        config, dataset, parts = load(data_path, model, *extra, f"--seen_items={setting}")
        if model == "LLMRec":
            _, valid, test = evaluation_loaders(config, dataset, parts)
        else:
            run = prepare_classical(config, dataset, parts)
            valid, test = run.valid_data, run.test_data
        loaders.append((left_out(valid), left_out(test)))
    (plain_valid, plain_test), (valid, test) = loaders
    low = shares(dataset)
    assert low[1], "without low ratings at the time of validation this shows nothing"
    assert valid == plain_valid | low[0] and low[0]
    known = low[0] if information == "train" else low[0] | low[1]
    assert test == plain_test | known


@pytest.mark.parametrize("mode", ["uni5", "pop5", "total12"])
@pytest.mark.parametrize("model", ["LLMRec", "EASE"])
def test_sampled_candidates_are_not_known(data_path: Path, model: str, mode: str) -> None:
    def candidates(setting: str) -> set[tuple[int, int]]:
        sampled = f"--eval_args={{'mode': '{mode}'}}"
        config, dataset, parts = load(data_path, model, sampled, f"--seen_items={setting}")
        if model == "LLMRec":
            test = evaluation_loaders(config, dataset, parts)[2]
        else:
            test = prepare_classical(config, dataset, parts).test_data
        found = set()
        for batch, *_ in test:
            found |= set(zip(batch["user_id"].tolist(), batch["item_id"].tolist(), strict=True))
        low = dataset.low_rated_items([0])
        users = np.repeat(np.arange(len(low.counts)), low.counts)
        return found & set(zip(users.tolist(), low.items.tolist(), strict=True))

    assert candidates("positives") and not candidates("rated")


def test_a_refitted_part_knows_both_shares(data_path: Path) -> None:
    _, dataset, parts = load(data_path, "LLMRec", RATED)
    both = train_and_valid(parts).low_rated_items()
    assert names(dataset, both) == shares(dataset)[0] | shares(dataset)[1]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--val_interval=~", RATED], "seen_items: no effect where val_interval does not limit"),
        (["--val_interval={'timestamp': '[0,inf)', 'rating': '[4,inf)'}", RATED], "nothing else"),
        (["--load_col={'inter': ['user_id', 'item_id']}", RATED], "needs ratings"),
        ([TO, "--load_col={'inter': ['user_id', 'item_id', 'rating']}", RATED], "needs times"),
        (
            ["--eval_args={'mode': 'labeled'}", "--metrics=[AUC]", "--valid_metric=AUC", RATED],
            "mode labeled",
        ),
    ],
)
def test_refusals(data_path: Path, extra: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(arguments(data_path, "BPR", *extra))


def test_rolling_tests_leave_nothing_out(data_path: Path) -> None:
    with pytest.raises(ConfigError, match="rolling test ranks items again"):
        load_config(arguments(data_path, "SASRec", TO, "--test_information=rolling", RATED))
