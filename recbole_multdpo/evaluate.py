"""Evaluation of a finished run: `python -m recbole_multdpo.evaluate RUN_FOLDER --key=value ...`.

    python -m recbole_multdpo.evaluate saved/my-run
    python -m recbole_multdpo.evaluate saved/my-run "--eval_args={'mode': 'uni100'}" --topk=[1,10]
    python -m recbole_multdpo.evaluate saved/my-run --metrics=[NDCG,ItemCoverage] --output=more.json
    python -m recbole_multdpo.evaluate saved/my-run --calibration
    python -m recbole_multdpo.evaluate saved/my-run --candidate_lists=a.trec --write_run=b.trec

Without settings it repeats the run's own test, and gives the same figures to the digit or an error.
The result is a new file; the run's files do not change.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from recbole_multdpo.errors import ConfigError, MultDPOError
from recbole_multdpo.runtime.durable_files import write_atomically
from recbole_multdpo.runtime.shown_text import show
from recbole_multdpo.trained.commands import (
    EVALUATION_SETTINGS,
    evaluation_changes,
    run_command,
    run_options,
    run_parser,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status, see `run_command`."""
    command = run_parser(
        "evaluate",
        "Test a finished run again, with other candidates, metrics or cut-offs.",
        allow_abbrev=False,
    )
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="a new file instead of RUN/evaluation-<n>.json"
    )
    command.add_argument(
        "--calibration",
        action="store_true",
        help="test the probabilities too: log-loss in bits, and whether items of probability p are "
        "found as often as p says (LLMRec; every title is scored)",
    )
    command.add_argument(
        "--write_run",
        type=Path,
        metavar="FILE",
        help="write the rankings to a new file, as a run of TREC: candidate_lists whole and in new "
        "order, else the best topk",
    )
    settings = command.add_argument_group(
        "settings", "as for a run, each in place of the run's; a part of eval_args keeps the others"
    )
    for key in EVALUATION_SETTINGS:
        settings.add_argument(f"--{key}", metavar="VALUE")
    options, others = command.parse_known_args(argv)
    options.others = others
    return run_command(_evaluate, options)


def _evaluate(options: argparse.Namespace) -> None:
    changes = evaluation_changes(options)
    folder = options.run_folder
    for name in ("output", "write_run"):
        file = getattr(options, name)
        if file is not None and file.exists():
            raise ConfigError(f"--{name}={file} exists already. Name a new file.")

    from recbole_multdpo.trained.evaluation import evaluate_run  # after what needs no model

    found = evaluate_run(
        folder,
        changes,
        calibrates=options.calibration,
        run_file=options.write_run,
        **run_options(options),
    )
    file = write_evaluation(found, folder, options.output)
    show(as_text(found))
    show(f"evaluation in {file}")
    if options.write_run is not None:
        show(f"rankings in {options.write_run}")


def write_evaluation(found: Mapping[str, Any], folder: Path, output: Path | None) -> Path:
    """Write an evaluation to a new file; returns its path.

    Args:
        found: from `evaluate_run`.
        folder: the run's folder, for `evaluation-<n>.json` with the first free number.
        output: another file.

    Raises:
        ConfigError: `output` exists.
        MultDPOError: the file cannot be written.
    """
    text = json.dumps(found, indent=2, allow_nan=False) + "\n"
    number = 1
    while True:
        file = output or folder / f"evaluation-{number}.json"
        try:
            file.touch(exist_ok=False)  # reserves the name
            try:
                write_atomically(file, text)
            except BaseException:
                file.unlink()
                raise
            return file
        except FileExistsError:
            if output is not None:
                raise ConfigError(f"--output={output} exists already. Name a new file.") from None
            number += 1
        except OSError as error:
            raise MultDPOError(
                f"cannot write {file}: {error.strerror}. Name a file that can be written: "
                "--output=FILE."
            ) from error


def as_text(found: Mapping[str, Any]) -> str:
    """The metrics of the evaluation and of the run's own test, as lines for a terminal."""
    run = found["run_test_result"]
    above = [f"evaluation: {found['ranked']}; run: its own test"] if "ranked" in found else []
    heading = f"{'metric':<24}{'evaluation':>12}{'run':>12}"
    rows = [
        f"{name:<24}{value:>12.4f}" + (f"{run[name]:>12.4f}" if run.get(name) is not None else "")
        for name, value in found["test_result"].items()
        if value is not None
    ]
    return "\n".join([*above, heading, *rows, *_probabilities_as_text(found.get("calibration"))])


def _probabilities_as_text(found: Mapping[str, Any] | None) -> list[str]:
    """Lines about the probabilities; none if they were not tested."""
    if found is None:
        return []
    others = ", ".join(
        f"{found[f'bits_per_item_{name}']:.3f} {words}"
        for name, words in (("popularity", "by popularity"), ("uniform", "if all were equal"))
    )
    lines = [
        "",
        f"log-loss of {found['held_out_items']:,} held-out items of {found['users']:,} users: "
        f"{found['bits_per_item']:.3f} bits each ({others});",
        f"as sets, before all other items in any order: {found['bits_per_item_as_sets']:.3f} bits",
        "",
        f"{'probability to be held out':<28}{'expected':>12}{'found':>12}",
    ]
    for each in found["reliability"]:
        span = f"{each['above']:g} to {each['to']:g}"
        lines.append(f"{span:<28}{each['expected']:>12,.1f}{each['found']:>12,}")
    return [*lines, f"{found['misplaced']:.1%} of them would have to move for the columns to agree"]


if __name__ == "__main__":
    sys.exit(main())
