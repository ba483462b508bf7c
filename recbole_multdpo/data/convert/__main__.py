"""The command line: `python -m recbole_multdpo.data.convert FORMAT --input ... --output ...`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from recbole_multdpo.data.convert import (
    amazon,
    atomic,
    crs,
    goodreads,
    lastfm,
    mind,
    minionerec,
    movielens,
    sequences,
    steam,
    table,
    titles_jsonl,
)
from recbole_multdpo.data.convert.dataset_folder import REJECTED_FILE, REPORT_FILE, DatasetFolder
from recbole_multdpo.data.convert.raw_files import raw_encoding
from recbole_multdpo.errors import MultDPOError, doc_page
from recbole_multdpo.runtime.interruption import Interrupted, SignalHandler
from recbole_multdpo.runtime.shown_text import show

FORMATS: dict[str, Any] = {
    "table": table,
    "atomic": atomic,
    "movielens": movielens,
    "amazon": amazon,
    "sequences": sequences,
    "minionerec": minionerec,
    "goodreads": goodreads,
    "lastfm": lastfm,
    "steam": steam,
    "mind": mind,
    "crs": crs,
    "titles-jsonl": titles_jsonl,
}


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    top = argparse.ArgumentParser(
        prog="python -m recbole_multdpo.data.convert",
        description="Turn raw files into a folder of RecBole atomic files that "
        f"--dataset=<its name> --data_path=<its parent> takes. Details: {doc_page('datasets')}.",
    )
    formats = top.add_subparsers(dest="format", required=True, metavar="FORMAT")
    for name, module in FORMATS.items():
        sub = formats.add_parser(name, help=module.HELP, description=module.HELP)
        sub.add_argument("--input", type=Path, required=True, help="folder with the raw files")
        sub.add_argument(
            "--output",
            type=Path,
            required=True,
            help="folder to make, e.g. dataset/goodreads; its name becomes the data set's",
        )
        sub.add_argument(
            "--encoding",
            help="encoding of the raw files, e.g. latin-1 or utf-16 (default: UTF-8; MovieLens' "
            "movies: UTF-8 or latin-1, detected)",
        )
        module.add_arguments(sub)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Convert one data set.

    Returns:
        Exit status: 0 done, 2 a user error (printed without a traceback), 130 or 143 interrupted.
        After an error or an interruption no output is left.
    """
    options = parser().parse_args(argv)
    try:
        with (
            SignalHandler(),
            raw_encoding(options.encoding),
            DatasetFolder(options.output) as folder,
        ):
            report = FORMATS[options.format].convert(options, folder)
    except MultDPOError as error:
        show(f"error: {error}", sys.stderr)
        return 2
    except Interrupted as interruption:
        print(f"{interruption}; nothing was written.", file=sys.stderr)
        return interruption.exit_status
    show(summary(report, folder))
    return 0


def summary(report: dict[str, Any], folder: DatasetFolder) -> str:
    """Summary for the terminal: rows written and rejected, and the command that uses them."""
    rows = ", ".join(f"{n:,} in .{suffix}" for suffix, n in report["rows"].items())
    rejected = folder.rejects_text() + (f"\n  all: {REJECTED_FILE}" if folder.rejected else "")
    notes = "".join(f"{note}.\n" for note in folder.notes)
    return (
        f"{folder.output}: rows {rows}; counts and checks in {REPORT_FILE}\n{notes}{rejected}\n"
        f"python -m recbole_multdpo --model=LLMRec --dataset={folder.name} "
        f"--data_path={folder.output.parent}"
    )


if __name__ == "__main__":
    sys.exit(main())
