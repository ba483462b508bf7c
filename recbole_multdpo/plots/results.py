"""Figures of test metrics: by system, by cut-off, and against training time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pandas as pd

from recbole_multdpo.errors import DataError
from recbole_multdpo.plots.runs import Run, data_sets
from recbole_multdpo.plots.style import line_style, new_figure, set_title
from recbole_multdpo.runtime.shown_text import mathtext
from recbole_multdpo.settings.information import KEY, SEEN
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS
from recbole_multdpo.settings.messages import nearest
from recbole_multdpo.settings.protocol import lists_key

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BARS_PER_INCH = 3.2
# kind of system: its bars as matplotlib's arguments, told apart without colour too
KINDS: dict[str, dict[str, Any]] = {
    "language model": {"color": "#0072B2"},
    "language model with an assistant": {
        "facecolor": "white",
        "edgecolor": "#0072B2",
        "hatch": "////",
    },
    "model of RecBole": {"color": "0.75"},
}


def read_tests(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per run: `run`, `system`, `seed`, `test_set`, `known`, `seen`, `lists`, and metrics.

    `known` is the run's `test_information`, `seen` its `seen_items`, `lists` its candidate lists.

    Raises:
        DataError: a run has no result, two runs of one system have the same seed, or runs of one
            seed differ in their test items, or runs differ in `test_information`, `seen_items` or
            candidate lists.
    """
    rows = []
    for run in runs:
        result = run.result()
        ids = {"run": run, "system": run.name, "seed": result["seed"]}
        tested = {"test_set": result.get("test_set"), "known": result.get(KEY)}
        tested["seen"] = result.get(SEEN, "positives")
        tested["lists"] = lists_key(result) or "none"
        rows.append({**ids, **tested, **result["test_result"]})
    table = pd.DataFrame(rows)
    twice = table[table.duplicated(["system", "seed"])]
    if len(twice):
        row = twice.iloc[0]
        raise DataError(
            f"two runs of {row['system']} have seed {row['seed']} and the same settings: "
            "name each run once."
        )
    if (table.groupby("seed")["test_set"].nunique() > 1).any():
        raise DataError(
            "runs of one seed were tested on different items (test_set in their result.json): "
            "draw runs of one data set, split and evaluation."
        )
    for column, key, difference in (
        ("known", KEY, "know the same at test"),
        ("seen", SEEN, "rank the same items"),
        ("lists", "candidate_lists", "rank the same candidates"),
    ):
        if table[column].nunique() > 1:
            raise DataError(
                f"the runs did not {difference} ({key} in their result.json): "
                f"{', '.join(sorted(set(table[column].dropna())))}. Draw runs of one value."
            )
    return table


def _column(tests: pd.DataFrame, metric: str) -> str:
    """Name of the metric's column.

    Raises:
        DataError: the metric was not measured.
    """
    name = metric.lower()
    if name not in tests:
        own = ("run", "system", "seed", "test_set", "known", "seen", "lists")
        known = ", ".join(str(column) for column in tests if column not in own)
        raise DataError(f"--metric={metric} was not measured. There are: {known}.")
    return name


def choose_systems(tests: pd.DataFrame, names: Sequence[str]) -> pd.DataFrame:
    """The rows of some systems.

    Args:
        tests: from `read_tests`.
        names: of the systems.

    Raises:
        DataError: there is no system of a name; the message names the nearest, and all.
    """
    known = list(dict.fromkeys(tests["system"]))
    for name in names:
        if name not in known:
            raise DataError(
                f"--systems: no run is of {name!r}{nearest(name, known)}. "
                f"There are: {', '.join(known)}."
            )
    return tests[tests["system"].isin(names)]


def _by_system(tests: pd.DataFrame, columns: list[str]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Mean and standard deviation over seeds (0 for one), [systems, columns]."""
    groups = tests.groupby("system", sort=False)[columns]
    return groups.mean(), groups.std(ddof=1).fillna(0.0)


def metric_label(metric: str) -> str:
    """A metric's name for an axis, such as NDCG@10 for `ndcg@10`."""
    return mathtext(metric.replace("ndcg", "NDCG").replace("mrr", "MRR"))


def _over_seeds(tests: pd.DataFrame) -> str:
    n_seeds = tests.groupby("system")["seed"].nunique().max()
    return f", mean and standard deviation over {n_seeds} seeds" if n_seeds > 1 else ""


def kind(run: Run) -> str:
    """The run's key of `KINDS`; by its settings, as a comparison may give it any name."""
    if run.settings["model"] not in LANGUAGE_MODELS:
        return "model of RecBole"
    assisted = run.settings.get("assistant") is not None
    return "language model with an assistant" if assisted else "language model"


def bars_figure(tests: pd.DataFrame, metric: str) -> Figure:
    """One bar per system, the best on top, with a legend of the kinds of systems.

    Args:
        tests: from `read_tests`.
        metric: such as `ndcg@10`.
    """
    name = _column(tests, metric)
    mean, deviation = (table[name] for table in _by_system(tests, [name]))
    order = mean.sort_values().index
    kinds = dict(zip(tests["system"], map(kind, tests["run"]), strict=True))
    figure = new_figure(7, len(order) / BARS_PER_INCH + 1.2)
    axes = figure.subplots()
    for place, system in enumerate(order):
        axes.barh(place, mean[system], height=0.7, **KINDS[kinds[system]])
        end = mean[system] + deviation[system]
        if deviation[system]:
            axes.errorbar(mean[system], place, xerr=deviation[system], color="black", capsize=3)
        axes.text(end, place, f"  {mean[system]:.3f}", va="center")
    axes.set_yticks(range(len(order)), list(map(mathtext, order)))
    axes.set_ylim(-0.6, len(order) - 0.4)
    axes.margins(x=0.12)  # for the figures behind the bars
    axes.grid(visible=False)
    axes.set(xlabel=f"{metric_label(name)}{_over_seeds(tests)}")
    present = [label for label in KINDS if label in kinds.values()]
    if len(present) > 1:
        from matplotlib.patches import Patch

        patches = [Patch(label=label, **KINDS[label]) for label in present]
        figure.legend(handles=patches, loc="outside lower center", ncols=len(present))
    set_title(figure, data_sets(tests["run"]), f"{metric_label(name)} on the test part")
    return figure


def cutoffs_figure(tests: pd.DataFrame, metric: str) -> Figure:
    """A metric against the length of the list, one line per system.

    Args:
        tests: from `read_tests`.
        metric: with or without a cut-off, which is ignored.
    """
    family = metric.lower().partition("@")[0]
    columns = [name for name in map(str, tests) if name.startswith(f"{family}@")]
    if not columns:
        _column(tests, metric)
    cutoffs = sorted(int(name.partition("@")[2]) for name in columns)
    columns = [f"{family}@{k}" for k in cutoffs]
    mean, deviation = _by_system(tests, columns)
    order = mean[columns[-1]].sort_values(ascending=False).index  # legend in the order of the lines
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for number, system in enumerate(order):
        axes.errorbar(
            cutoffs,
            mean.loc[system],
            yerr=_spread(deviation.loc[system]),
            label=mathtext(system),
            capsize=1.5,
            elinewidth=0.6,
            **line_style(number),
        )
    axes.set_xticks(cutoffs)
    axes.set(xlabel="k, items in the list", ylabel=f"{metric_label(family)}@k{_over_seeds(tests)}")
    figure.legend(loc="outside right upper")
    set_title(figure, data_sets(tests["run"]), f"{metric_label(family)}@k on the test part")
    return figure


def _spread(deviation: pd.Series) -> pd.Series | None:
    """Lengths of error bars; None, which draws none, where there is no spread."""
    return deviation if deviation.any() else None


def cost_figure(tests: pd.DataFrame, metric: str) -> Figure:
    """A metric against seconds of training, one point per trained system.

    Args:
        tests: from `read_tests`.
        metric: such as `ndcg@10`.

    Raises:
        DataError: the metric is unknown, or a run has no training time.
    """
    name = _column(tests, metric)
    tests = tests.assign(seconds=[run.training_seconds() for run in tests["run"]])
    tests = tests[tests["seconds"] > 0]
    mean, deviation = _by_system(tests, [name, "seconds"])
    figure = new_figure(7, 4)
    axes = figure.subplots()
    for number, system in enumerate(mean[name].sort_values(ascending=False).index):
        axes.errorbar(
            mean.loc[system, "seconds"],
            mean.loc[system, name],
            yerr=_spread(deviation.loc[system, [name]]),
            label=mathtext(system),
            capsize=2,
            markersize=7,
            **{**line_style(number), "linestyle": "none"},
        )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set(
        xlabel="training, wall seconds (mean over seeds)",
        ylabel=f"{metric_label(name)}{_over_seeds(tests)}",
    )
    figure.legend(loc="outside right upper")
    set_title(
        figure,
        data_sets(tests["run"]),
        f"{metric_label(name)} on the test part and time of training",
    )
    return figure
