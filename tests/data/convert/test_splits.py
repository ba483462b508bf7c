"""Parts by file and random parts."""

from collections import Counter

import pytest

from recbole_multdpo.data.convert.splits import draw_split, split_files
from recbole_multdpo.errors import DataError


def test_shares_seed_and_order():
    units = [f"d{n}" for n in range(100)]
    drawn = draw_split(units, [0.8, 0.1, 0.1], seed=1)
    assert Counter(drawn.values()) == {"train": 80, "valid": 10, "test": 10}
    assert draw_split([*reversed(units), "d0"], [8, 1, 1], seed=1) == drawn
    assert draw_split(units, [0.8, 0.1, 0.1], seed=2) != drawn
    assert set(draw_split(units, [0, 0, 1], seed=1).values()) == {"test"}


@pytest.mark.parametrize("shares", [[0, 0, 0], [1, -0.1, 0.1]])
def test_impossible_shares(shares):
    with pytest.raises(DataError, match="--resplit"):
        draw_split(["a"], shares, seed=0)


def test_files_of_parts(tmp_path):
    for name in ("train.jsonl", "dev.jsonl.gz", "test.jsonl", "test_p2.jsonl", "test.txt"):
        (tmp_path / name).touch()
    files = split_files(tmp_path, ["jsonl"])
    assert {split: path.name for split, path in files.items()} == {
        "train": "train.jsonl",
        "valid": "dev.jsonl.gz",
        "test": "test.jsonl",
    }
    (tmp_path / "valid.jsonl").touch()
    with pytest.raises(DataError, match=r"several valid files \(dev\.jsonl\.gz, valid\.jsonl\)"):
        split_files(tmp_path, ["jsonl"])
    with pytest.raises(DataError, match="no train, valid or test file ending in json"):
        split_files(tmp_path, ["json"])
