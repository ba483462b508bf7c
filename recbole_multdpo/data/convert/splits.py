"""Training, validation and test parts: their raw files, or a random split."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from recbole_multdpo.data.convert.raw_files import find_files
from recbole_multdpo.errors import DataError

SPLITS = ("train", "valid", "test")
_FILE_NAMES = {
    "train": ("train",),
    "valid": ("valid", "validation", "val", "dev"),
    "test": ("test",),
}


def add_split_arguments(parser: argparse.ArgumentParser, *, unit: str) -> None:
    """Add `--resplit` and `--seed`.

    Args:
        parser: a converter's parser.
        unit: name of the unit that is never divided between parts, for the help text.
    """
    parser.add_argument(
        "--resplit",
        nargs=3,
        type=float,
        metavar=("TRAIN", "VALID", "TEST"),
        help=f"put all files together and split them again, by {unit}, in these shares",
    )
    parser.add_argument(
        "--seed", type=int, default=2020, help="seed of --resplit (default: %(default)s)"
    )


def split_files(folder: Path, extensions: Sequence[str]) -> dict[str, Path]:
    """The raw files that exist, by part, e.g. `{"test": test.jsonl.gz}`.

    Raises:
        DataError: there is none, or a part has two files.
    """
    files = {}
    for split, stems in _FILE_NAMES.items():
        ends = [f"{stem}.{end}" for stem in stems for end in extensions]
        # train.json, or lastfm-train.json as in S-DPO's folders
        found = find_files(folder, ends) or find_files(folder, [f"*[-_]{end}" for end in ends])
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise DataError(f"{folder} has several {split} files ({names}); keep one of them")
        if found:
            files[split] = found[0]
    if not files:
        raise DataError(
            f"{folder} has no train, valid or test file ending in {' or '.join(extensions)}"
        )
    return files


def draw_split(units: Iterable[str], shares: Sequence[float], seed: int) -> dict[str, str]:
    """Assign every unit to a part at random, as a function of units, shares and seed.

    Args:
        units: e.g. dialog ids; order and repetitions are ignored.
        shares: proportions of training, validation and test; they need not sum to 1.
        seed: of the draw.

    Raises:
        DataError: a share is negative, or all are 0.
    """
    total = sum(shares)
    if min(shares) < 0 or not total:
        raise DataError(f"--resplit={list(shares)} must be shares of 0 or more, e.g. 0.8 0.1 0.1")
    names = sorted(set(units))
    order = np.random.default_rng(seed).permutation(len(names))
    first = round(shares[0] / total * len(names))
    second = first + round(shares[1] / total * len(names))
    return {
        names[index]: SPLITS[int(place >= first) + int(place >= second)]
        for place, index in enumerate(order.tolist())
    }
