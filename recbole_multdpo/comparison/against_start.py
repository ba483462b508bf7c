"""The aligned model against the supervised one that it started from: what a run says at its end."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_multdpo.comparison.results import start_is_kept
from recbole_multdpo.comparison.significance import bootstrap_interval
from recbole_multdpo.runs.per_user import FILE_NAME, START_FILE, read_per_user
from recbole_multdpo.runtime.console import counted


def against_start(
    folder: Path, metric: str, start: Mapping[str, float], result: Mapping[str, float]
) -> dict[str, Any]:
    """Compare two test results of one run; the entry `against_sft` of `result.json`.

    Args:
        folder: the run's folder, with the values per user of both tests where the metric has them.
        metric: such as `ndcg@10`.
        start: metrics of the supervised model.
        result: metrics of the aligned model.

    Returns:
        `metric`, `sft`, `aligned`, `difference`; with values per user also `users`, their number,
        and `ci_low` and `ci_high`, the bootstrap interval of the difference (95 %).
    """
    found: dict[str, Any] = {
        "metric": metric,
        "sft": float(start[metric]),
        "aligned": float(result[metric]),
        "difference": float(result[metric]) - float(start[metric]),
    }
    files = [folder / name for name in (FILE_NAME, START_FILE)]
    if not all(file.is_file() for file in files):
        return found
    tables = [read_per_user(file) for file in files]
    if not all(metric in table for table in tables):
        return found
    # a rolling test has several rows of a user, which are not independent
    aligned, supervised = (table.groupby("user")[metric].mean() for table in tables)
    differences = (aligned - supervised).dropna().to_numpy()
    low, high = bootstrap_interval(differences)
    return {**found, "users": len(differences), "ci_low": low, "ci_high": high}


def headline(result: Mapping[str, Any]) -> list[str]:
    """Sentences on whether preference training helped; [] for a run without it.

    Args:
        result: content of `result.json`.
    """
    loss, against = result.get("loss"), result.get("against_sft", {})
    chosen = result.get("best_epochs", {}).get("preference")
    lines = []
    if "difference" in against:
        text = (
            f"test {against['metric']}: SFT {against['sft']:.4f}, {loss} {against['aligned']:.4f}, "
            f"difference {against['difference']:+.4f}"
        )
        if "users" in against:
            text += (
                f" (95 % interval {against['ci_low']:+.4f} to {against['ci_high']:+.4f}, "
                f"{counted(against['users'], 'user')})"
            )
        lines.append(text)
    elif "left_out" in against:
        lines.append(str(against["left_out"]))
    if start_is_kept(result):
        epochs = f"{counted(chosen['of'], 'epoch')} of preference training"
        lines.append(f"best on validation: SFT kept, not improved by {epochs}")
    elif chosen is not None:
        lines.append(f"best: preference epoch {chosen['epoch']} of {chosen['of']}")
    return lines
