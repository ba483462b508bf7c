"""Figure of `--track_bounds=True`: the surrogate loss, the exact loss, their gap and its bounds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from recbole_multdpo.errors import DataError
from recbole_multdpo.plots.style import new_figure, set_title
from recbole_multdpo.runtime.csv_table import read_table
from recbole_multdpo.runtime.reading import is_file, readable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TREND_BINS = 12


def read_bounds(folder: Path, preference: str, max_positives: int | None) -> pd.DataFrame:
    """The rows of `bounds.csv` for one kind of preference.

    Args:
        folder: the run's folder.
        preference: 'sets' or 'levels'.
        max_positives: drop examples with more positives; None keeps all.

    Raises:
        DataError: the file is missing or damaged, or no row is left.
    """
    file = folder / "bounds.csv"
    if not is_file(file):
        raise DataError(f"there is no {file}. Run with --track_bounds=True.")
    names = "step n_positives multinomial exact gap corollary sorted_upper".split()
    columns = dict.fromkeys([*names, "log_positive_mass", "log_negative_mass"], float)
    with readable(file, "Run the training again."):
        rows = read_table(file, {"preference": str, **columns}, dtype={"user": str})
    rows = rows[rows["preference"] == preference]
    if max_positives is not None:
        rows = rows[rows["n_positives"] <= max_positives]
    if rows.empty:
        raise DataError(
            f"{file} has no row with preference {preference!r}"
            f"{f' and at most {max_positives} positives' if max_positives is not None else ''}. "
            "Rows of levels need --level_thresholds or --low_ratings."
        )
    return rows


def bounds_figure(rows: pd.DataFrame, data_sets: Sequence[str] = ()) -> Figure:
    """Left: mean losses and bounds by step. Right: gap and bounds by the negatives' share.

    Args:
        rows: from `read_bounds`.
        data_sets: their names, for the title.
    """
    figure = new_figure(10, 4)
    left, right = figure.subplots(1, 2)
    _draw_dynamics(left, rows)
    _draw_gaps(right, rows)
    set_title(figure, data_sets, "the loss, the exact loss and their bounds in training")
    return figure


def _draw_dynamics(axes: Axes, rows: pd.DataFrame) -> None:
    columns = ["multinomial", "exact", "corollary"]
    steps = rows.groupby("step")[columns].mean()
    # over a tenth of the steps, against the noise of single batches
    smooth = steps.rolling(max(len(steps) // 10, 1), min_periods=1).mean()
    axes.plot(smooth["multinomial"], color="black", label="multinomial surrogate")
    axes.plot(smooth["exact"], color="black", linestyle="--", label="exact Plackett-Luce")
    upper = smooth["exact"] + smooth["corollary"]
    axes.fill_between(
        smooth.index, smooth["exact"], upper, color="0.88", label="exact plus the corollary's bound"
    )
    axes.set(xlabel="step", ylabel="loss of an example (nats), running mean")
    axes.legend()


def _draw_gaps(axes: Axes, rows: pd.DataFrame) -> None:
    several = rows[rows["n_positives"] > 1]  # with one positive the gap is 0
    log_ratio = several["log_negative_mass"] - several["log_positive_mass"]
    axes.scatter(log_ratio, several["gap"], s=3, color="0.6", label="gap of an example")
    if len(several):
        edges = np.quantile(log_ratio, np.linspace(0, 1, TREND_BINS + 1)[1:-1])
        bins = np.digitize(log_ratio, edges)  # equally full
        for column, style, label in (
            ("gap", "-", "mean gap"),
            ("sorted_upper", "--", "mean sorted bound"),
            ("corollary", ":", "mean bound of the corollary"),
        ):
            means = several[column].groupby(bins).mean()
            centres = log_ratio.groupby(bins).mean()
            axes.plot(centres, means, color="black", linestyle=style, label=label)
    axes.set(xlabel="log (negative mass / positive mass)", ylabel="nats", ylim=(0, None))
    axes.legend()
