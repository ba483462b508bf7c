"""The report of a finished comparison: tables, significance tests, JSON, and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from recbole_multdpo.comparison.results import (
    BEYOND_ACCURACY,
    Results,
    accuracy_metrics,
    by_history,
    by_popularity,
    differing_tests,
    information_note,
    trial_note,
    users_note,
)
from recbole_multdpo.comparison.significance import PairedTest, compare_with
from recbole_multdpo.comparison.tables import Table, as_latex, as_markdown, as_text, make_table
from recbole_multdpo.runs.folder import plain_json
from recbole_multdpo.runtime.durable_files import write_atomically
from recbole_multdpo.runtime.shown_text import csv_cell, html, markdown

LEGEND = (
    "Mean ± standard deviation over seeds. * differs from {reference} with p < 0.05 in both the "
    "paired t-test and Wilcoxon's signed-rank test over users, after Holm's correction."
)
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon")


@dataclass(frozen=True)
class Findings:
    """The content of a report.

    Attributes:
        metric: the metric that decides which system is best, such as `ndcg@10`.
        reference: the system that the others are tested against.
        accuracy: the main table: `metric` at all cut-offs, other metrics at its cut-off.
        beyond: coverage, popularity, share of the tail and Gini index of the recommendations.
        history: `metric` by length of the users' history.
        popularity: recall of head and tail test items; no columns if the runs did not measure it.
        tests: every other system against the reference, in every column of `accuracy`.
        failures: name of a failed run to its reason.
        choices: the values chosen by tuning, one sentence per system.
        notes: warnings for the reader, one sentence each.
    """

    metric: str
    reference: str
    accuracy: Table
    beyond: Table
    history: Table
    popularity: Table
    tests: Sequence[PairedTest]
    failures: Mapping[str, str]
    choices: Sequence[str]
    notes: Sequence[str]


def write_report(
    results: Results,
    metric: str,
    folder: Path,
    baseline: str | None,
    failures: Mapping[str, str],
    choices: Sequence[str] = (),
) -> str:
    """Write the comparison's files into its folder.

    Args:
        results: the finished runs.
        metric: the metric that decides which system is best, such as `ndcg@10`.
        folder: the comparison's folder.
        baseline: the system to test against; the best one if it is None or has no result.
        failures: name of a failed run to its reason.
        choices: the values chosen by tuning, one sentence per system.

    Returns:
        The tables as text.

    Raises:
        OSError: the folder cannot be written to.
    """
    found = find(results, metric, baseline, failures, choices)
    named = _groups(found)
    tables = {
        "accuracy": found.accuracy,
        "beyond_accuracy": found.beyond,
        "history": found.history,
        **({"popularity": found.popularity} if found.popularity.columns else {}),
    }
    legend = LEGEND.format(reference=found.reference)
    sections = [as_markdown(found.accuracy), markdown(legend), as_markdown(found.beyond)]
    sections += _with_headings(named, as_markdown)
    sections += map(markdown, [*found.choices, *_lines(found)])
    write_atomically(folder / "tables.md", "\n\n".join(sections) + "\n")
    write_atomically(
        folder / "tables.tex",
        "\n\n".join(f"% {name}\n{as_latex(table)}" for name, table in tables.items()) + "\n",
    )
    write_atomically(folder / "runs.csv", _csv(results.metrics))
    tests = pd.DataFrame([asdict(test) for test in found.tests])
    write_atomically(folder / "significance.csv", _csv(tests))
    write_atomically(folder / "results.json", json.dumps(_as_json(results, found), indent=2))
    write_atomically(folder / "report.html", as_html(results, found))
    texts = [as_text(found.accuracy), legend, as_text(found.beyond)]
    return "\n\n".join(
        [
            *texts,
            *_with_headings(named, as_text),
            *found.choices,
            *_lines(found),
            f"report: {folder / 'report.html'}",
        ]
    )


def _csv(table: pd.DataFrame) -> str:
    return str(table.map(csv_cell).to_csv(index=False))


def _groups(found: Findings) -> dict[str, Table]:
    """Heading to table, for groups of users and of items."""
    groups = {f"{found.metric} by number of training items of the user": found.history}
    if found.popularity.columns:
        groups["Recall of popular test items (head) and of the others (tail)"] = found.popularity
    return groups


def _with_headings(named: Mapping[str, Table], as_lines: Callable[[Table], str]) -> list[str]:
    return [part for heading, table in named.items() for part in (heading, as_lines(table))]


def find(
    results: Results,
    metric: str,
    baseline: str | None,
    failures: Mapping[str, str],
    choices: Sequence[str] = (),
) -> Findings:
    """Tables and tests of finished runs; arguments as for `write_report`."""
    mean, std = results.mean(), results.std()
    notes = [
        *information_note(results.runs),
        *trial_note(results.runs),
        *users_note(results.runs, metric),
        *differing_tests(results.runs),
        *_unequal_seeds(results),
    ]
    if baseline is not None and baseline not in results.systems:
        notes.append(f"{baseline} has no result: the best system takes its place as reference.")
        baseline = None
    reference = baseline or str(mean[metric].idxmax())
    columns = _columns(accuracy_metrics(results), metric)
    tests = [test for name in columns for test in compare_with(results, name, reference)]
    different = {(test.system, test.metric) for test in tests if test.significant}
    cutoff = _cutoff(metric)
    names = [f"{name.lower()}@{cutoff}" for name in BEYOND_ACCURACY]
    beyond = [name for name in names if name in mean]
    return Findings(
        metric=metric,
        reference=reference,
        accuracy=make_table(mean[columns], std[columns], different=different),
        beyond=make_table(mean[beyond], std[beyond], ranked=False),
        history=make_table(by_history(results.users, metric)),
        popularity=make_table(by_popularity(results.users, cutoff)),
        tests=tests,
        failures=failures,
        choices=choices,
        notes=notes,
    )


def _cutoff(metric: str) -> str:
    """`10` of `ndcg@10`."""
    return metric.partition("@")[2]


def _columns(metrics: Sequence[str], metric: str) -> list[str]:
    """The deciding metric at every cut-off, then other metrics at its cut-off."""
    family, _, cutoff = metric.partition("@")
    own = [name for name in metrics if name.startswith(f"{family}@")]
    return own + [name for name in metrics if name.endswith(f"@{cutoff}") and name not in own]


def _unequal_seeds(results: Results) -> list[str]:
    n_seeds = results.n_seeds()
    return [
        f"{system} is the mean of {count} of {n_seeds.max()} seeds, as its other runs failed."
        for system, count in n_seeds.items()
        if count < n_seeds.max()
    ]


def _lines(found: Findings) -> list[str]:
    """Notes and failures, one per line."""
    return [*found.notes, *(f"failed: {name}: {why}" for name, why in found.failures.items())]


def _as_json(results: Results, found: Findings) -> Any:
    mean, std = results.mean().to_dict("index"), results.std().to_dict("index")
    return plain_json(
        {
            "metric": found.metric,
            "reference": found.reference,
            "systems": {
                name: {
                    "seeds": int(results.n_seeds()[name]),
                    "mean": mean[name],
                    "std": std[name],
                }
                for name in results.systems
            },
            "runs": results.metrics.merge(results.runs).to_dict("records"),
            "by_history": by_history(results.users, found.metric).to_dict("index"),
            "by_popularity": by_popularity(results.users, _cutoff(found.metric)).to_dict("index"),
            "significance": [asdict(test) for test in found.tests],
            "choices": list(found.choices),
            "notes": list(found.notes),
            "failures": dict(found.failures),
        }
    )


def as_html(results: Results, found: Findings) -> str:
    """A self-contained page with tables and interactive figures; it loads nothing."""
    legend = LEGEND.format(reference=found.reference)
    figures = [_curves(results, found), _bars(found.history, f"{found.metric}, mean over users")]
    # plotly's script is four megabytes: embed it once
    drawn = [
        figure.to_html(
            full_html=False,
            include_plotlyjs=number == 0,
            div_id=f"figure{number}",
            config={"responsive": True, "displaylogo": False},
        )
        for number, figure in enumerate(figures)
    ]
    family = found.metric.partition("@")[0]
    history, *popularity = _groups(found).items()
    body = [
        "<h1>Comparison</h1>",
        f"<p>{html(_summary(results, found))}</p>",
        *(f"<p class='note'>{html(line)}</p>" for line in _lines(found)),
        _html_table(found.accuracy),
        f"<p>{html(legend)} Bold: best; underlined: second.</p>",
        _html_choices(found.choices),
        f"<h2>{html(family)} against k</h2>{drawn[0]}",
        "<p>A click on a name hides its line, a double click shows it alone; drag to zoom.</p>",
        f"<h2>{html(history[0])}</h2>",
        _html_table(history[1]),
        drawn[1],
        *(f"<h2>{html(heading)}</h2>{_html_table(table)}{_TAIL}" for heading, table in popularity),
        "<h2>Beyond accuracy</h2>",
        _html_table(found.beyond),
        "<p>As RecBole defines them: share of the catalogue that is recommended to any user; mean "
        "number of training rows of a recommended item (fewer is more novel); share of "
        "recommendations from the tail of the catalogue; Gini index of how often items are "
        "recommended.</p>",
        f"<h2>Against {html(found.reference)}</h2>",
        _html_tests(found),
    ]
    return _PAGE.format(body="\n".join(body))


_TAIL = (
    "<p>Share of a user's test items that are recommended, mean over the users who have such "
    "items. The tail is what RecBole's TailPercentage calls so (tail_ratio), and items without "
    "training rows.</p>"
)


def _summary(results: Results, found: Findings) -> str:
    seeds, n_users = sorted(set(results.metrics["seed"])), results.users["user"].nunique()
    listed = ", ".join(map(str, seeds))
    return (
        f"{len(results.systems)} systems, seed{'s' if len(seeds) > 1 else ''} {listed}, "
        f"{n_users:,} test users. Systems are ordered as given; {found.metric} decides."
    )


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Comparison</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>
body {{ font-family: sans-serif; max-width: 80em; margin: 1.5em auto; padding: 0 1em; }}
h2 {{ margin-top: 1.6em; }}
.scroll {{ overflow-x: auto; margin: 1em 0; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93em; }}
th, td {{ padding: .25em .5em; text-align: right; border-bottom: 1px solid #ccc; }}
th, td {{ white-space: nowrap; }}
th:first-child, td:first-child {{ text-align: left; position: sticky; left: 0; }}
th:first-child, td:first-child {{ background: #fff; }}
.best {{ font-weight: bold; }} .second {{ text-decoration: underline; }}
.note {{ border-left: .3em solid #c60; padding-left: .7em; }}
summary {{ cursor: pointer; }}
</style></head><body>
{body}
</body></html>
"""


def _html_table(table: Table) -> str:
    classes = {1: " class='best'", 2: " class='second'"}
    rows = []
    for name, cells in zip(table.rows, table.cells, strict=True):
        figures = [f"<td{classes.get(cell.rank, '')}>{html(cell.text)}</td>" for cell in cells]
        rows.append([f"<td>{html(name)}</td>", *figures])
    return _html_rows(table.columns, rows, first="")


def _html_choices(choices: Sequence[str]) -> str:
    """The choices of tuning, collapsed, as they may be long."""
    if not choices:
        return ""
    lines = "".join(f"<li>{html(choice)}</li>" for choice in choices)
    title = f"Tuned on the validation part: {len(choices)} of the systems"
    return _folded(title, f"<ul>{lines}</ul>")


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{title}</summary>{content}</details>"


def _html_tests(found: Findings) -> str:
    """The tests in the deciding metric, then those in other metrics, collapsed."""
    deciding = [test for test in found.tests if test.metric == found.metric]
    others = [test for test in found.tests if test.metric != found.metric]
    note = "<p>p-values after Holm's correction; the uncorrected ones are in significance.csv.</p>"
    folded = _folded("In the other metrics", _test_rows(others)) if others else ""
    return _test_rows(deciding) + note + folded


def _test_rows(tests: Sequence[PairedTest]) -> str:
    columns = ["metric", "users", "difference", "95 % interval", "t-test p", "Wilcoxon p"]
    rows = []
    for test in tests:
        interval = f"{test.ci_low:+.4f} to {test.ci_high:+.4f}"
        figures = [test.metric, str(test.n_users), f"{test.difference:+.4f}", interval]
        p_values = [f"{test.t_holm:.2g}", f"{test.wilcoxon_holm:.2g}"]
        rows.append([f"<td>{html(text)}</td>" for text in [test.system, *figures, *p_values]])
    return _html_rows(columns, rows, first="system")


def _html_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], first: str) -> str:
    head = "".join(f"<th>{html(name)}</th>" for name in [first, *columns])
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return f"<div class='scroll'><table><tr>{head}</tr>\n{body}</table></div>"


# the legend goes below the plot, which needs the width of a narrow screen
_LAYOUT = {
    "template": "simple_white",
    "margin": {"t": 20, "r": 10},
    "legend": {"orientation": "h", "yanchor": "top", "y": -0.3},
}


def _curves(results: Results, found: Findings) -> go.Figure:
    """The deciding metric at every cut-off, deviation over seeds as bars."""
    family = found.metric.partition("@")[0]
    names = [name for name in results.metric_names if name.startswith(f"{family}@")]
    mean = results.mean()[names].to_numpy(dtype=float)
    std = results.std()[names].fillna(0).to_numpy(dtype=float)
    cutoffs = [int(name.partition("@")[2]) for name in names]
    figure = go.Figure()
    for number, system in enumerate(results.systems):
        figure.add_scatter(
            x=cutoffs,
            y=mean[number].tolist(),
            error_y={"type": "data", "array": std[number].tolist(), "width": 3},
            mode="lines+markers",
            marker={"symbol": _SYMBOLS[number % len(_SYMBOLS)], "size": 9},
            name=html(system),
        )
    figure.update_layout(**_LAYOUT, xaxis_title="k", yaxis_title=f"{family}@k, mean over seeds")
    figure.update_xaxes(tickvals=cutoffs)
    return figure


def _bars(table: Table, y_title: str) -> go.Figure:
    """A group of bars per column."""
    figure = go.Figure()
    for name, cells in zip(table.rows, table.cells, strict=True):
        figure.add_bar(x=list(table.columns), y=[cell.mean for cell in cells], name=html(name))
    figure.update_layout(**_LAYOUT, xaxis_title="training items of the user", yaxis_title=y_title)
    figure.update_xaxes(type="category")
    return figure
