"""Tables of means and deviations as text, Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from tabulate import tabulate

from recbole_multdpo.runtime.shown_text import latex, markdown, terminal

DIGITS = 4
BEST, SECOND = 1, 2
KEPT = "†"  # after the name of a system whose preference training was of no use


@dataclass(frozen=True)
class Cell:
    """One figure of a table.

    Attributes:
        mean: the value; NaN prints as a dash.
        std: standard deviation over seeds; NaN if there is none.
        rank: 1 for the best of its column, 2 for the second, 0 otherwise.
        differs: True if it differs significantly from the reference.
    """

    mean: float
    std: float
    rank: int = 0
    differs: bool = False

    @property
    def figure(self) -> str:
        """Mean and deviation as text; a dash if there is no value."""
        if math.isnan(self.mean):
            return "-"
        deviation = "" if math.isnan(self.std) else f" ± {self.std:.{DIGITS}f}"
        return f"{self.mean:.{DIGITS}f}{deviation}"

    @property
    def text(self) -> str:
        """The figure, with `*` if it differs significantly."""
        return f"{self.figure}*" if self.differs else self.figure


@dataclass(frozen=True)
class Table:
    """Named rows and columns of cells.

    Attributes:
        columns: names of the columns.
        rows: names of the rows.
        cells: [rows][columns].
        kept: names of the rows that are marked with `KEPT`.
    """

    columns: Sequence[str]
    rows: Sequence[str]
    cells: Sequence[Sequence[Cell]]
    kept: Collection[str] = ()

    def name(self, row: str, escape: Callable[[str], str]) -> str:
        """A row's name, escaped, with its mark."""
        return f"{escape(row)} {KEPT}" if row in self.kept else escape(row)


def make_table(
    mean: pd.DataFrame,
    std: pd.DataFrame | None = None,
    *,
    ranked: bool = True,
    different: Collection[tuple[str, str]] = (),
    kept: Collection[str] = (),
) -> Table:
    """A table of systems by metrics.

    Args:
        mean: [systems, metrics].
        std: [systems, metrics]; None for a table without deviations.
        ranked: larger is better, and best and second are marked. Values equal in print share a
            rank.
        different: pairs of system and metric that differ significantly from the reference.
        kept: systems to be marked with `KEPT`.
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
    return Table(list(map(str, mean.columns)), list(map(str, mean.index)), cells, kept)


def _mark(rank: float) -> int:
    return int(rank) if rank in (BEST, SECOND) else 0


def as_text(table: Table) -> str:
    """Aligned columns for a terminal; `^` marks the best, `'` the second, `*` significance."""
    marks = {0: "", BEST: " ^", SECOND: " '"}
    return _tabulated(table, "plain", terminal, lambda cell: cell.text + marks[cell.rank])


def as_markdown(table: Table) -> str:
    """A table of Markdown; the best is bold, the second underlined, `*` significance."""
    wraps = {0: "{}", BEST: "**{}**", SECOND: "<u>{}</u>"}
    return _tabulated(table, "github", markdown, lambda cell: wraps[cell.rank].format(cell.text))


def as_latex(table: Table) -> str:
    r"""A `tabular` for the package booktabs; the best is bold, the second underlined."""
    wraps = {0: "{}", BEST: r"\textbf{{{}}}", SECOND: r"\underline{{{}}}"}

    def shown(cell: Cell) -> str:
        figure = wraps[cell.rank].format(cell.text)
        return figure.replace("±", r"$\pm$").replace("*", "$^{*}$")

    text = _tabulated(table, "latex_raw", latex, shown, align="center")
    text = text.replace(KEPT, r"$^{\dagger}$")
    # tabulate's own booktabs format escapes the commands inside cells as well
    for rule in (r"\toprule", r"\midrule", r"\bottomrule"):
        text = text.replace(r"\hline", rule, 1)
    return text


def _tabulated(
    table: Table,
    form: str,
    escape: Callable[[str], str],
    shown: Callable[[Cell], str],
    align: str = "left",
) -> str:
    """The table in one of tabulate's formats, its names escaped for it."""
    rows = [
        [table.name(name, escape), *map(shown, cells)]
        for name, cells in zip(table.rows, table.cells, strict=True)
    ]
    head = ["", *map(escape, table.columns)]
    aligns = ["left", *[align] * len(table.columns)]
    return tabulate(rows, head, tablefmt=form, colalign=aligns, disable_numparse=True)
