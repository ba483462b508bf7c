"""Log files of a run: their sizes at a checkpoint, and truncation to these sizes on resume.

A resumed run repeats the steps after its checkpoint. Its log files are truncated to their sizes at
the checkpoint, so that they hold every step once.

TensorBoard's `purge_step` cannot do this: it hides the later steps of all tags, and the two stages
count their steps from 1.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path

from recbole_multdpo.runs.step_log import STEPS_FILE, VALIDATIONS_FILE

LOGS = ("tensorboard", "bounds.csv", STEPS_FILE, VALIDATIONS_FILE)


def log_sizes(run_folder: Path) -> dict[str, int]:
    """Bytes of every log file, by path relative to the run's folder; flushes the files to disk."""
    sizes = {}
    for file in _log_files(run_folder):
        with file.open("r+b") as handle:
            os.fsync(handle.fileno())
            sizes[file.relative_to(run_folder).as_posix()] = handle.seek(0, os.SEEK_END)
    return sizes


def rewind_logs(run_folder: Path, sizes: Mapping[str, int]) -> None:
    """Truncate the log files to their sizes at a checkpoint; remove files that are newer.

    Call it before anything writes to them. A missing or shorter file is a warning, not an error.

    Args:
        run_folder: the run's folder.
        sizes: `log_sizes` at the checkpoint; {} removes all log files.
    """
    present = {file.relative_to(run_folder).as_posix(): file for file in _log_files(run_folder)}
    for name, size in sizes.items():
        if name not in present or present[name].stat().st_size < size:
            getLogger().warning(
                f"{run_folder / name} is missing or shorter than when the checkpoint was written: "
                "its earlier steps are not logged again"
            )
    for name, file in present.items():
        if name in sizes:
            os.truncate(file, min(sizes[name], file.stat().st_size))
        else:
            file.unlink()
    for folder in (run_folder / LOGS[0]).glob("*/"):  # with RecBole's hyperparameters
        if not any(folder.iterdir()):
            folder.rmdir()


def _log_files(run_folder: Path) -> list[Path]:
    found = []
    for name in LOGS:
        path = run_folder / name
        inside = [path] if path.is_file() else path.rglob("*")
        found += [p for p in inside if p.is_file() and not p.is_symlink()]
    return sorted(found)
