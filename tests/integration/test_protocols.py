"""Runs with a protocol by name: splits against an obvious twin, results bit for bit, files."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.runs.resume import settings_hash
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.settings.layers import protocol_settings
from tests.integration.toy import toy_arguments

pytestmark = pytest.mark.integration
CACHES = ("cache", "elsewhere")
Rows = list[tuple[str, str, int]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """Users with 2 to 14 items at times of their own, the rows of the file in random order."""
    rng, found = np.random.default_rng(5), []
    for user in range(40):
        items = rng.choice(25, size=2 + user % 13, replace=False)
        times = rng.permutation(1000)[: len(items)]
        found += [(f"u{user}", f"i{i}", int(t)) for i, t in zip(items, times, strict=True)]
    found += [("u0", "rare", 1001), ("u1", "rare", 1002)]
    folder = tmp_path_factory.mktemp("data") / "made"
    folder.mkdir()
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for at in rng.permutation(len(found)):
        user, item, time = found[at]
        lines.append(f"{user}\t{item}\t{time % 5 + 1}\t{time}")
    (folder / "made.inter").write_text("\n".join(lines) + "\n")
    (folder / "made.item").write_text("item_id:token\n" + "".join(f"i{i}\n" for i in range(25)))
    return folder.parent, found


def parts_of(data: Path, *given: str) -> list[set[tuple[str, str]]]:
    columns = "--load_col={'inter': ['user_id', 'item_id', 'rating', 'timestamp']}"
    argv = ["--model=Pop", "--dataset=made", f"--data_path={data}", columns, "--topk=[2, 5]"]
    _, parts = load_parts(load_config([*argv, "--valid_metric=NDCG@5", *given]))
    return [
        {
            (str(user), str(item))
            for user, item in zip(
                part.id2token("user_id", part.inter_feat["user_id"].numpy()),
                part.id2token("item_id", part.inter_feat["item_id"].numpy()),
                strict=True,
            )
        }
        for part in parts
    ]


def five_core(rows: Rows) -> Rows:
    """Users and items with five rows at least, dropped until nothing changes."""
    while True:
        users, items = defaultdict(int), defaultdict(int)
        for user, item, _ in rows:
            users[user] += 1
            items[item] += 1
        kept = [row for row in rows if users[row[0]] >= 5 and items[row[1]] >= 5]
        if len(kept) == len(rows):
            return rows
        rows = kept


def by_user(rows: Rows) -> list[list[tuple[str, str]]]:
    """Pairs of every user in order of time."""
    found = defaultdict(list)
    for user, item, _ in sorted(rows, key=lambda row: row[2]):
        found[user].append((user, item))
    return list(found.values())


def test_leave_one_out_is_what_its_words_say(rows: tuple[Path, Rows]) -> None:
    data, made = rows
    users = by_user(five_core(made))
    assert 10 < len(users) < 40
    train, valid, test = parts_of(data, "--protocol=leave_one_out")
    assert test == {pairs[-1] for pairs in users}
    assert valid == {pairs[-2] for pairs in users}
    assert train == {pair for pairs in users for pair in pairs[:-2]}
    control = parts_of(data, "--protocol=leave_one_out", "--eval_args={'order': 'RO'}")
    assert control[2] != test and len(control[2]) == len(test)


def test_temporal_811_is_what_its_words_say(rows: tuple[Path, Rows]) -> None:
    """RecBole rounds the shares of validation and test down, and gives one row each at least."""
    data, made = rows
    train, valid, test = parts_of(data, "--protocol=temporal_811")
    assert len(train) + len(valid) + len(test) == len(made)  # no filter of its own
    for pairs in by_user(made):
        kinds = ["train" if p in train else "valid" if p in valid else "test" for p in pairs]
        assert kinds == sorted(kinds, key=["train", "valid", "test"].index)
        for kind in ("valid", "test"):
            assert abs(kinds.count(kind) - len(pairs) / 10) <= 1


def test_paper_takes_high_ratings(rows: tuple[Path, Rows]) -> None:
    data, made = rows
    parts = parts_of(data, "--protocol=paper")
    assert set.union(*parts) == {(user, item) for user, item, time in made if time % 5 + 1 >= 4}


def test_equal_to_its_keys_bit_for_bit(data_path: Path, tmp_path: Path) -> None:
    """The same results, weights, hashes of settings and keys of the cache."""
    shorter = ["--topk=[2, 5]", "--valid_metric=NDCG@5", "--loss=mult_dpo"]
    keys = [f"--{key}={value}" for key, value in protocol_settings("leave_one_out").items()]
    named = toy_arguments(data_path, tmp_path / "named", "--protocol=leave_one_out", *shorter)
    by_hand = toy_arguments(data_path, tmp_path / "hand", *keys, *shorter)
    elsewhere = f"--sft_cache_dir={tmp_path / 'elsewhere'}"
    by_hand = [text for text in by_hand if not text.startswith("--sft_cache_dir")] + [elsewhere]
    one, two = run(named), run(by_hand)
    for key in ("test_result", "valid_result", "model_files", "test_set", "fingerprints"):
        assert one[key] == two[key], key
    deviations = {"topk": [2, 5], "valid_metric": "NDCG@5"}
    assert one["protocol"] == {"name": "leave_one_out", "deviations": deviations}
    assert "protocol" not in two
    assert "but topk [2, 5], valid_metric NDCG@5" in (tmp_path / "named/run.log").read_text()
    configs = [load_config(argv) for argv in (named, by_hand)]
    assert len({settings_hash(config.to_dict()) for config in configs}) == 1
    cached = [sorted(path.name for path in (tmp_path / at).iterdir()) for at in CACHES]
    assert cached[0] == cached[1] != []
    another = run(toy_arguments(data_path, tmp_path / "random", *shorter))
    assert another["test_set"] != one["test_set"]
