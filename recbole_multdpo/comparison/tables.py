"""Tables of means and deviations as text, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from recbole_multdpo.shown_text import latex, markdown, terminal

DIGITS = 4
BEST, SECOND = 1, 2


@dataclass(frozen=True)
class Cell:
    """One figure of a table.

    Attributes:
        mean: the value; NaN prints as a dash.
        std: deviation over seeds; NaN where there is none.
        rank: 1 for the best of its column, 2 for the second, 0 otherwise.
        differs: whether it differs significantly from the reference.
    """

    mean: float
    std: float
    rank: int = 0
    differs: bool = False

    @property
    def figure(self) -> str:
        """Mean and deviation in print; a dash where there is no value."""
        if math.isnan(self.mean):
            return "-"
        deviation = "" if math.isnan(self.std) else f" ± {self.std:.{DIGITS}f}"
        return f"{self.mean:.{DIGITS}f}{deviation}"

    @property
    def text(self) -> str:
        """The figure, with `*` where it differs significantly."""
        return f"{self.figure}*" if self.differs else self.figure


@dataclass(frozen=True)
class Table:
    """Rows of cells with names.

    Attributes:
        columns: names of the columns.
        rows: names of the rows.
        cells: [rows][columns].
    """

    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[Cell]]


def make_table(
    mean: pd.DataFrame,
    std: pd.DataFrame | None = None,
    *,
    ranked: bool = True,
    different: Collection[tuple[str, str]] = (),
) -> Table:
    """A table of systems by metrics.

    Args:
        mean: [systems, metrics].
        std: [systems, metrics]; None for a table without deviations.
        ranked: whether larger is better and best and second are marked. Values that print alike
            share their rank.
        different: pairs of system and metric that differ significantly from the reference.
    """
    ranks = mean.round(DIGITS).rank(ascending=False, method="dense").to_numpy(dtype=float)
    values = mean.to_numpy(dtype=float)
    deviations = np.full_like(values, np.nan) if std is None else std.to_numpy(dtype=float)
    marked = ranked and len(mean) > 1
    cells = [
        [
            Cell(
                values[row, column],
                deviations[row, column],
                _mark(ranks[row, column]) if marked else 0,
                (system, metric) in different,
            )
            for column, metric in enumerate(mean.columns)
        ]
        for row, system in enumerate(mean.index)
    ]
    return Table(list(map(str, mean.columns)), list(map(str, mean.index)), cells)


def _mark(rank: float) -> int:
    return int(rank) if rank in (BEST, SECOND) else 0


def as_text(table: Table) -> str:
    """Aligned columns for a terminal; `^` marks the best, `'` the second, `*` significance."""
    marks = {0: " ", BEST: "^", SECOND: "'"}
    lines = [["", *(f"{terminal(name)}  " for name in table.columns)]]
    for name, cells in zip(table.rows, table.cells, strict=True):
        figures = [
            f"{cell.figure}{'*' if cell.differs else ' '}{marks[cell.rank]}" for cell in cells
        ]
        lines.append([terminal(name), *figures])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in lines
    )


def as_markdown(table: Table) -> str:
    """A table of Markdown; the best is bold, the second underlined, `*` significance."""
    wraps = {0: "{}", BEST: "**{}**", SECOND: "<u>{}</u>"}
    lines = [["", *map(markdown, table.columns)], ["---"] * (len(table.columns) + 1)]
    for name, cells in zip(table.rows, table.cells, strict=True):
        lines.append([markdown(name), *(wraps[cell.rank].format(cell.text) for cell in cells)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def as_latex(table: Table) -> str:
    r"""A `tabular` for the package booktabs; the best is bold, the second underlined."""
    wraps = {0: "{}", BEST: r"\textbf{{{}}}", SECOND: r"\underline{{{}}}"}
    lines = [
        rf"\begin{{tabular}}{{l{'c' * len(table.columns)}}}",
        r"\toprule",
        f" & {' & '.join(map(latex, table.columns))} \\\\",
        r"\midrule",
    ]
    for name, cells in zip(table.rows, table.cells, strict=True):
        figures = [wraps[cell.rank].format(_latex_figure(cell)) for cell in cells]
        lines.append(f"{latex(name)} & {' & '.join(figures)} \\\\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])


def _latex_figure(cell: Cell) -> str:
    figure = cell.figure.replace("±", r"$\pm$")
    return figure + ("$^{*}$" if cell.differs else "")
