"""The report of a comparison as one HTML page, which loads nothing and is readable without script.

With script, tables are sorted by a click on a column and begin with their first rows, and figures
are drawn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd
import plotly.graph_objects as go

from recbole_multdpo.comparison.colours import colour
from recbole_multdpo.comparison.findings import Findings
from recbole_multdpo.comparison.origin import Origin
from recbole_multdpo.comparison.results import Results
from recbole_multdpo.comparison.significance import PairedTest
from recbole_multdpo.comparison.tables import Cell, Table
from recbole_multdpo.runtime.shown_text import html

SHOWN = 8  # rows of a table and lines of a figure at first
# eight symbols and five dashes are forty pairs, for prints in black and white
_SYMBOLS = ("circle", "square", "diamond", "cross", "x", "triangle-up", "star", "hexagon")
_DASHES = ("solid", "dash", "dashdot", "dot", "longdashdot")


def as_html(results: Results, found: Findings, origin: Origin | None = None) -> str:
    """A self-contained page with tables and interactive figures; it loads nothing.

    Args:
        results: the finished runs.
        found: their tables and tests.
        origin: data set, protocol, date, commands and versions; None leaves them out.
    """
    place = {name: at for at, name in enumerate(found.by_rank)}
    first = {*found.by_rank[: SHOWN - 1], found.reference, *found.by_rank[:SHOWN]}
    if len(first) > SHOWN:  # the reference is among the first even if it is not the best
        first.remove(found.by_rank[SHOWN - 1])
    figures = [_curves(results, found, first), _groups(found, first)]
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
    history, *popularity = found.groups().items()
    title = _title(results, found, origin)
    body = [
        f"<h1>{html(title)}</h1>",
        f"<p class='headline'>{html(found.headline)}</p>",
        f"<p>{html(_summary(results, origin))}</p>",
        _details(origin),
        *(f"<p class='note'>{html(line)}</p>" for line in found.lines),
        _html_table(found.accuracy, place),
        f"<p>{html(found.legend)} Bold: best; underlined: second.</p>",
        *(f"<p>{html(sentence)}</p>" for sentence in found.about_the_test),
        _html_choices(found.choices),
        *_html_beside(found, place),
        f"<h2>{html(family)} against k</h2>",
        _WITHOUT_SCRIPT,
        drawn[0],
        f"<p>{_CLICKS}</p>",
        f"<h2>{html(history[0])}</h2>",
        _html_table(history[1], place),
        drawn[1],
        *(
            f"<h2>{html(heading)}</h2>{_html_table(table, place)}{_TAIL}"
            for heading, table in popularity
        ),
        "<h2>Beyond accuracy</h2>",
        _html_table(found.beyond, place),
        "<p>As RecBole defines them: share of the catalogue that is recommended to any user; mean "
        "number of training rows of a recommended item (fewer is more novel); share of "
        "recommendations from the tail of the catalogue; Gini index of how often items are "
        "recommended.</p>",
        f"<h2>Against {html(found.reference)}</h2>",
        _html_tests(found),
    ]
    return _PAGE.format(
        title=html(title), style=STYLE, script=_SCRIPT % SHOWN, body="\n".join(body)
    )


_TAIL = (
    "<p>Share of a user's test items that are recommended, mean over the users who have such "
    "items. The tail is what RecBole's TailPercentage calls so (tail_ratio), and items without "
    "training rows.</p>"
)
_WITHOUT_SCRIPT = (
    "<noscript><p>The figures need JavaScript; their numbers are in the tables.</p></noscript>"
)
_CLICKS = (
    "A click on a name hides or shows its line, a double click shows it alone; drag to zoom. "
    f"At first at most {SHOWN} systems are drawn."
)


def _title(results: Results, found: Findings, origin: Origin | None) -> str:
    systems = f"{len(results.systems)} systems by {found.metric}"
    return systems if origin is None else f"{origin.dataset}: {systems}"


def _summary(results: Results, origin: Origin | None) -> str:
    """Data set, size, protocol and date in a line."""
    seeds, n_users = sorted(set(results.metrics["seed"])), results.users["user"].nunique()
    tested = f"{n_users:,} test users"
    seeded = f"seed{'s' if len(seeds) > 1 else ''} {', '.join(map(str, seeds))}"
    if origin is None:
        return f"{tested}; {seeded}."
    items = f"{origin.n_items:,} items, " if origin.n_items is not None else ""
    parts = [f"{origin.dataset}: {items}{tested}", origin.protocol, seeded]
    return f"{'; '.join(filter(None, parts))}. Last run: {origin.date}."


def _details(origin: Origin | None) -> str:
    """Command, versions, hardware and settings, folded."""
    if origin is None:
        return ""
    parts = []
    if origin.command:
        parts.append(f"<p>Command:</p><pre>{html(origin.command)}</pre>")
    if origin.versions:
        versions = ", ".join(f"{name} {version}" for name, version in origin.versions.items())
        parts.append(f"<p>Versions: {html(versions)}.</p>")
    if origin.hardware:
        parts.append(f"<p>Hardware: {html(origin.hardware)}.</p>")
    parts.append(_listed("Settings that all systems share:", origin.settings))
    parts.append(_listed("Command of each system's first run:", origin.commands))
    return _folded("Command, versions and settings", "".join(parts))


def _listed(heading: str, values: Mapping[str, str]) -> str:
    lines = "".join(f"<dt>{html(k)}</dt><dd>{html(v)}</dd>" for k, v in values.items())
    return f"<p>{heading}</p><dl>{lines}</dl>" if lines else ""


STYLE = """
body { font-family: sans-serif; max-width: 80em; margin: 1.5em auto; padding: 0 1em;
  color: #18181b; background: #ffffff; line-height: 1.45; }
h1 { font-size: 1.6em; line-height: 1.2; } h2 { margin-top: 1.6em; font-size: 1.25em; }
.headline { font-size: 1.15em; }
.scroll { overflow-x: auto; margin: 1em 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .93em; }
th, td { padding: .25em .5em; text-align: right; border-bottom: 1px solid #d4d4d8;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0;
  background: #ffffff; min-width: 6em; max-width: 15em; white-space: normal;
  overflow-wrap: break-word; }
.best { font-weight: bold; } .second { text-decoration: underline; }
.note { border-left: .3em solid #b45309; padding-left: .7em; }
summary { cursor: pointer; }
pre, dd { white-space: pre-wrap; overflow-wrap: anywhere; font-family: monospace; }
dt { font-weight: bold; } dd { margin: 0 0 .5em 1.5em; }
button { font: inherit; color: #1d4ed8; background: #ffffff; border: 0; padding: 0;
  cursor: pointer; }
th button { font-weight: bold; color: #18181b; }
th button::after { content: " \\2195"; color: #52525b; }
th[aria-sort=descending] button::after { content: " \\2193"; color: #18181b; }
th[aria-sort=ascending] button::after { content: " \\2191"; color: #18181b; }
@media screen { .short tr.later { display: none; } }
"""

# text is only ever moved as text, so that names cannot become markup
_SCRIPT = """
const SHOWN = %d;
function value(row, column) {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent;
}
function mark(table) {
  [...table.tBodies[0].rows].forEach((row, at) => row.classList.toggle("later", at >= SHOWN));
}
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0], heads = [...table.tHead.rows[0].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.textContent = head.textContent || "system";
    button.onclick = () => {
      const up = head.ariaSort === "descending" || (column === 0 && head.ariaSort === null);
      heads.forEach((other) => { other.ariaSort = null; });
      head.ariaSort = up ? "ascending" : "descending";
      const rows = [...body.rows].sort((a, b) => {
        const one = value(a, column), other = value(b, column);
        const order = typeof one === "string" ? one.localeCompare(other) : one - other;
        return up ? order : -order;
      });
      body.append(...rows);
      mark(table);
    };
    head.replaceChildren(button);
  });
  mark(table);
  const n = body.rows.length;
  if (n > SHOWN) {
    const more = document.createElement("button");
    const toggle = () => {
      const short = table.classList.toggle("short");
      more.textContent = short ? `Show all ${n} rows` : `Show the first ${SHOWN} rows`;
    };
    more.onclick = toggle;
    toggle();
    table.parentElement.after(more);
  }
}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><style>{style}</style></head>
<body>
{body}
<script>{script}</script>
</body></html>
"""


def _html_table(table: Table, place: Mapping[str, int]) -> str:
    """A table of systems, the best first."""
    rows = sorted(zip(table.rows, table.cells, strict=True), key=lambda row: place[row[0]])
    return _html_rows(
        table.columns,
        [[f"<td>{table.name(name, html)}</td>", *map(_html_cell, cells)] for name, cells in rows],
        first="",
    )


def _html_beside(found: Findings, place: Mapping[str, int]) -> list[str]:
    """Published figures in a table of their own, below ours in the same metrics."""
    parts = [
        f"<h2>{html(heading)}</h2>"
        + _html_table(table, {name: at for at, name in enumerate(table.rows)} | dict(place))
        for heading, table in found.beside.items()
    ]
    return [*parts, *(f"<p>{html(note)}</p>" for note in found.beside_notes)]


def _html_cell(cell: Cell) -> str:
    classes = {1: " class='best'", 2: " class='second'"}
    # a missing value is sorted below all others
    value = cell.mean if cell.mean == cell.mean else "-Infinity"
    return f"<td{classes.get(cell.rank, '')} data-value='{value}'>{html(cell.text)}</td>"


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
    for test in sorted(tests, key=lambda test: -test.difference):
        interval = f"{test.ci_low:+.4f} to {test.ci_high:+.4f}"
        figures = [
            (test.n_users, str(test.n_users)),
            (test.difference, f"{test.difference:+.4f}"),
            (test.ci_low, interval),
            (test.t_holm, f"{test.t_holm:.2g}"),
            (test.wilcoxon_holm, f"{test.wilcoxon_holm:.2g}"),
        ]
        cells = [f"<td data-value='{value}'>{html(text)}</td>" for value, text in figures]
        rows.append([f"<td>{html(test.system)}</td>", f"<td>{html(test.metric)}</td>", *cells])
    return _html_rows(columns, rows, first="system")


def _html_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], first: str) -> str:
    head = "".join(f"<th>{html(name)}</th>" for name in [first, *columns])
    body = "\n".join(f"<tr>{''.join(row)}</tr>" for row in rows)
    return (
        f"<div class='scroll'><table class='sortable'><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


# the legend goes below the plot, which needs the width of a narrow screen
_LAYOUT = {
    "template": "simple_white",
    "margin": {"t": 20, "r": 10},
    "legend": {"orientation": "h", "yanchor": "top", "y": -0.3},
}


def _curves(results: Results, found: Findings, first: set[str]) -> go.Figure:
    """The deciding metric at every cut-off; deviations over seeds as bars, if there are several."""
    family = found.metric.partition("@")[0]
    names = [name for name in results.metric_names if name.startswith(f"{family}@")]
    cutoffs = sorted(int(name.partition("@")[2]) for name in names)
    columns = [f"{family}@{k}" for k in cutoffs]
    figure = _lines(found, first, cutoffs, results.mean()[columns], results.std()[columns])
    over_seeds = ", mean over seeds" if results.n_seeds().max() > 1 else ""
    figure.update_layout(**_LAYOUT, xaxis_title="k", yaxis_title=f"{family}@k{over_seeds}")
    figure.update_xaxes(tickvals=cutoffs)
    return figure


def _groups(found: Findings, first: set[str]) -> go.Figure:
    """The deciding metric in groups of users."""
    table = found.history
    values = [[cell.mean for cell in cells] for cells in table.cells]
    mean = pd.DataFrame(values, index=list(table.rows), columns=list(table.columns))
    figure = _lines(found, first, list(table.columns), mean, None)
    titles = {
        "xaxis_title": "training items of the user",
        "yaxis_title": f"{found.metric}, mean over users",
    }
    figure.update_layout(**_LAYOUT, **titles)
    figure.update_xaxes(type="category")
    return figure


def _lines(
    found: Findings,
    first: set[str],
    places: Sequence[int | str],
    mean: pd.DataFrame,
    std: pd.DataFrame | None,
) -> go.Figure:
    """A line per system, the best first; those not in `first` are in the legend only."""
    figure = go.Figure()
    # no colour is used twice, and those drawn at first have the clearest ones
    order = sorted(found.by_rank, key=lambda name: name not in first)
    for number, system in enumerate(order):
        spread = None if std is None else std.loc[system].to_numpy(dtype=float)
        bars = None
        if spread is not None and (spread > 0).any():
            bars = {"type": "data", "array": spread.tolist(), "width": 3}
        figure.add_scatter(
            x=list(places),
            y=mean.loc[system].to_numpy(dtype=float).tolist(),
            error_y=bars,
            mode="lines+markers",
            line={"color": colour(number), "dash": _DASHES[number % len(_DASHES)]},
            marker={"symbol": _SYMBOLS[number % len(_SYMBOLS)], "size": 9},
            visible=True if system in first else "legendonly",
            name=html(system),
        )
    return figure
