"""Converter of conversational recommendation data, in either of the published formats."""

from __future__ import annotations

import argparse
from typing import Any

from recbole_multdpo.data.convert import cikm, rank_grpo
from recbole_multdpo.data.convert.dataset_folder import DatasetFolder
from recbole_multdpo.data.convert.splits import add_split_arguments

HELP = "conversations: He et al.'s JSONL (Reddit-Movie, ReDial, INSPIRED) or Rank-GRPO's folders"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options for splitting and merging."""
    add_split_arguments(parser, unit="dialog")
    parser.add_argument(
        "--time-field", metavar="KEY", help="key of a row's time (Unix or ISO), kept as timestamp"
    )
    parser.add_argument(
        "--split-dates",
        nargs=2,
        metavar=("VALID", "TEST"),
        help="put all files together and split by time: validation begins at the first date, test "
        "at the second, e.g. 2022-11-01 2022-12-01",
    )
    parser.add_argument(
        "--no-merge",
        action="store_true",
        help="keep several answers to the same conversation separate instead of merging them",
    )


def convert(options: argparse.Namespace, folder: DatasetFolder) -> dict[str, Any]:
    """Write the data set's files and return the report."""
    module = rank_grpo if rank_grpo.is_rank_grpo(options.input) else cikm
    return module.convert(options, folder)
