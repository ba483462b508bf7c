"""What a run appends to while it trains, and its sizes at a checkpoint.

A resumed run trains the steps after its checkpoint again. The files are cut back to the sizes that
they had there, so that every step is in them once.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path

from recbole_multdpo.runs.step_log import STEPS_FILE, VALIDATIONS_FILE

LOGS = ("tensorboard", "bounds.csv", STEPS_FILE, VALIDATIONS_FILE)


def log_sizes(run_folder: Path) -> dict[str, int]:
    """Bytes of every log file, by its path in the run's folder; what they hold is on the disk."""
    sizes = {}
    for file in _log_files(run_folder):
        with file.open("r+b") as handle:
            os.fsync(handle.fileno())
            sizes[file.relative_to(run_folder).as_posix()] = handle.seek(0, os.SEEK_END)
    return sizes


def rewind_logs(run_folder: Path, sizes: Mapping[str, int]) -> None:
    """Cut the log files back to the sizes of a checkpoint; a file that it does not have is removed.

    Call before anything writes to them. A file that somebody removed or shortened is named in a
    warning and no reason to stop.
    """
    present = {file.relative_to(run_folder).as_posix(): file for file in _log_files(run_folder)}
    for name, size in sizes.items():
        if name not in present or present[name].stat().st_size < size:
            getLogger().warning(
                f"{run_folder / name} is missing or shorter than when the checkpoint was written: "
                "what it held of the steps before is not logged again"
            )
    for name, file in present.items():
        if name in sizes:
            os.truncate(file, min(sizes[name], file.stat().st_size))
        else:
            file.unlink()
    for folder in (run_folder / LOGS[0]).glob("*/"):  # of RecBole's table of settings
        if not any(folder.iterdir()):
            folder.rmdir()


def _log_files(run_folder: Path) -> list[Path]:
    found = []
    for name in LOGS:
        path = run_folder / name
        inside = [path] if path.is_file() else path.rglob("*")
        found += [p for p in inside if p.is_file() and not p.is_symlink()]
    return sorted(found)
