"""Figure of tuning: the validation metric against one setting, with the optimum marked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from recbole_multdpo.errors import DataError
from recbole_multdpo.plots.results import metric_label
from recbole_multdpo.plots.style import line_style, new_figure, set_title
from recbole_multdpo.runtime.csv_table import read_table
from recbole_multdpo.runtime.reading import is_file, readable
from recbole_multdpo.runtime.shown_text import csv_text, mathtext

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOG_FROM = 20  # the axis is logarithmic if its ends differ by this factor
MOST_TICKS = 10  # up to this number, every value has a tick
_RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 11,
    "markerfacecolor": "none",
    "linestyle": "none",
}


def read_tuning(folder: Path, setting: str, metric: str) -> pd.DataFrame:
    """The best trial of every system and value; columns `system`, `value`, `score`.

    Args:
        folder: a comparison's folder with `tuning.csv`.
        setting: the tuned key.
        metric: of the validation part, such as `ndcg@10`.

    Raises:
        DataError: the file is missing or damaged, it has no such setting or metric, or the setting
            has values that are not numbers.
    """
    file = folder / "tuning.csv"
    if not is_file(file):
        raise DataError(f"there is no {file}. Run a comparison with --tune.")
    with readable(file, f"Write it again: --resume={folder}."):
        rows = read_table(file, {"system": str})
    for name, value in (("setting", setting), ("metric", metric.lower())):
        if value not in rows:
            raise DataError(
                f"--{name}={value} is not in {file}. It has {', '.join(map(str, rows))}."
            )
    rows = rows.rename(columns={setting: "value", metric.lower(): "score"})
    rows = rows[["system", "value", "score"]].dropna()  # systems without the setting, failed runs
    try:
        rows["value"] = rows["value"].astype(float)
        rows["score"] = rows["score"].astype(float)
    except (ValueError, TypeError) as error:
        raise DataError(f"--setting={setting}: its values are no numbers to draw.") from error
    rows["system"] = rows["system"].map(csv_text)
    best = rows.groupby(["system", "value"], sort=False)["score"].max().reset_index()
    return best.sort_values("value", kind="stable")


def tuning_figure(
    rows: pd.DataFrame, setting: str, metric: str, data_sets: Sequence[str] = ()
) -> Figure:
    """One line per system, its best value ringed.

    Args:
        rows: from `read_tuning`.
        setting: name of the setting, for the axis.
        metric: name of the metric, for the axis.
        data_sets: their names, for the title.
    """
    figure = new_figure(7, 4)
    axes = figure.subplots()
    best = rows.groupby("system")["score"].max().sort_values(ascending=False)
    for number, system in enumerate(best.index):
        of_system = rows[rows["system"] == system]
        top = of_system.loc[of_system["score"].idxmax()]
        label = f"{mathtext(system)}, best at {top['value']:g}"
        axes.plot(of_system["value"], of_system["score"], label=label, **line_style(number))
        axes.plot(top["value"], top["score"], **_RING, color=line_style(number)["color"])
    values = rows["value"]
    if values.min() > 0 and values.max() >= LOG_FROM * values.min():
        axes.set_xscale("log")
    tried = sorted(values.unique())
    if len(tried) <= MOST_TICKS:
        axes.set_xticks(tried)
        axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(xlabel=mathtext(setting), ylabel=f"validation {metric_label(metric.lower())}")
    figure.legend(loc="outside right upper")
    name = metric_label(metric.lower())
    set_title(figure, data_sets, f"{name} on the validation part by {setting}")
    return figure
