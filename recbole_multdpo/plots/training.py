"""Figure of training: loss, validation, reward margin and log-probabilities, by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from recbole_multdpo.errors import DataError
from recbole_multdpo.plots.runs import Run, data_sets
from recbole_multdpo.plots.style import line_style, new_figure, set_legend, set_title
from recbole_multdpo.runtime.shown_text import mathtext

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STAGES = {"sft": "supervised fine-tuning", "preference": "preference training"}
WINDOWS = 20  # a running mean covers 1/20 of the steps
N_MARKERS = 8


def training_figure(runs: Sequence[Run], stage: str, metric: str | None = None) -> Figure:
    """One panel per quantity, one line per run.

    Args:
        runs: runs with a `steps.csv`.
        stage: 'sft' or 'preference'.
        metric: of the validations, such as `ndcg@10`; None for the first run's `valid_metric`.

    Raises:
        DataError: no run has steps of the stage, or none validated the metric.
    """
    steps = {run: _of_stage(run.steps(), stage) for run in runs}
    steps = {run: rows for run, rows in steps.items() if len(rows)}
    if not steps:
        raise DataError(
            f"no run has steps of the stage {stage!r} in its steps.csv. "
            f"The other stage: --stage={'sft' if stage == 'preference' else 'preference'}."
        )
    metric = metric or str(next(iter(steps)).settings.get("valid_metric")).lower()
    validations = {run: _metric(run, stage, metric) for run in steps}
    panels = ["loss", "validation", "margin", "logps"]
    if not any(len(rows) for rows in validations.values()):
        panels.remove("validation")
    if all(rows["margin"].isna().all() for rows in steps.values()):
        panels.remove("margin")
    n_rows = (len(panels) + 1) // 2
    figure = new_figure(7.5, 2.7 * n_rows + 0.4)
    axes = dict(zip(panels, figure.subplots(n_rows, 2, squeeze=False).flat, strict=False))
    # different losses differ in scale, so their relative change is shown
    relative = len({str(run.settings.get("loss")) for run in steps}) > 1 and stage == "preference"
    for number, (run, rows) in enumerate(steps.items()):
        style = line_style(number)
        shown = rows.assign(loss=rows["loss"] / _first(rows["loss"])) if relative else rows
        _line(axes["loss"], shown, "loss", style, label=mathtext(run.name), raw=len(steps) == 1)
        _draw_logps(axes["logps"], rows, style, raw=len(steps) == 1)
        if "margin" in axes:
            _line(axes["margin"], rows, "margin", style, raw=len(steps) == 1)
        if "validation" in axes:
            found = validations[run]
            axes["validation"].plot(found["step"], found["value"], **style)
    label = "loss, relative to its first value" if relative else "loss of an example (nats)"
    axes["loss"].set(ylabel=label)
    _describe(axes, figure, stage, metric)
    set_title(figure, data_sets(steps), STAGES[stage])
    return figure


def _first(values: pd.Series) -> float:
    """Mean over the first window of the running mean."""
    return float(values.iloc[: max(len(values) // WINDOWS, 1)].mean())


def _of_stage(rows: pd.DataFrame, stage: str) -> pd.DataFrame:
    return rows[rows["stage"] == stage]


def _metric(run: Run, stage: str, metric: str) -> pd.DataFrame:
    rows = _of_stage(run.validations(), stage)
    return rows[rows["metric"] == metric] if len(rows) else rows


def _line(
    axes: Axes,
    rows: pd.DataFrame,
    column: str,
    style: dict[str, Any],
    *,
    raw: bool,
    label: str | None = None,
    **changes: Any,
) -> None:
    """Draw a column's running mean over steps; with `raw` also every step, in grey."""
    if rows[column].isna().all():
        return
    if raw:
        axes.plot(rows["step"], rows[column], color="0.75", linewidth=0.7)
    window = max(len(rows) // WINDOWS, 1)
    smooth = rows[column].rolling(window, center=True, min_periods=1).mean()
    every = max(len(rows) // N_MARKERS, 1)
    options = {**style, "markevery": every, "label": label, **changes}
    axes.plot(rows["step"], smooth, **options)


def _draw_logps(axes: Axes, rows: pd.DataFrame, style: dict[str, Any], *, raw: bool) -> None:
    _line(axes, rows, "positive_logp", style, raw=raw, linestyle="-")
    _line(axes, rows, "negative_logp", style, raw=raw, linestyle="--", markerfacecolor="white")


def _describe(axes: dict[str, Axes], figure: Figure, stage: str, metric: str) -> None:
    from matplotlib.lines import Line2D

    axes["logps"].set(ylabel="mean log-probability\nof an item (nats)")
    sets = [
        Line2D([], [], color="black", marker="o", label="positives"),
        Line2D(
            [], [], color="black", marker="o", markerfacecolor="white", linestyle="--",
            label="negatives",
        ),
    ]  # fmt: skip
    if "margin" in axes:
        axes["margin"].set(ylabel="reward margin (nats)")
        axes["logps"].legend(handles=sets)
    if "validation" in axes:
        axes["validation"].set(ylabel=f"validation {mathtext(metric.replace('ndcg', 'NDCG'))}")
    for panel in axes.values():
        panel.set(xlabel=f"step of {STAGES[stage]}", xlim=(0, None))
    for unused in figure.axes[len(axes) :]:
        unused.set_axis_off()
    set_legend(figure, *axes["loss"].get_legend_handles_labels())
