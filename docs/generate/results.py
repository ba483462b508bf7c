"""The README's picture of results, drawn from the README's table of results."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

README = Path(__file__).resolve().parents[2] / "README.md"
METRIC = "NDCG@10"
MOST_BARS = 7  # more cannot be taken in at a glance
KINDS = ("language model with EASE", "language model", "model of RecBole")
WIDTH, LEFT, RIGHT, BAR, STEP, TOP, BOTTOM = 760, 220, 70, 20, 32, 58, 16
# colours of both schemes have a contrast of 3 and more to the page, text of 4.5 and more
STYLE = """
  text { font: 14px system-ui, sans-serif; fill: #1f2328 }
  .title { font-weight: 600 } .small { font-size: 13px }
  .page { fill: #ffffff } .spread { stroke: #1f2328 }
  .k0 { fill: #0a4f8f } .k1 { fill: #3a8fd0 } .k2 { fill: #8b929b }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3 } .page { fill: #0d1117 } .spread { stroke: #e6edf3 }
    .k0 { fill: #8fc7ff } .k1 { fill: #3a8fd0 } .k2 { fill: #79818b }
  }
"""


@dataclass
class Row:
    """One system of the table: mean and standard deviation of `METRIC`, and its kind."""

    system: str
    kind: str
    mean: float
    deviation: float


def read_results(markdown: str) -> list[Row]:
    """The rows of the table between the README's marks for results.

    Raises:
        ValueError: there is no such table, a kind is not in `KINDS`, or there are too many rows.
    """
    found = re.search(r"<!-- results: begin.*?-->(.*?)<!-- results: end -->", markdown, re.DOTALL)
    if not found:
        raise ValueError("README.md has no table between the marks of results")
    header, _, *lines = [
        [re.sub(r"[*`]", "", cell).strip() for cell in line.strip("| ").split("|")]
        for line in found[1].strip().splitlines()
    ]
    rows = []
    for cells in lines:
        values = dict(zip(header, cells, strict=True))
        mean, deviation = map(float, values[METRIC].split("±"))
        if values["kind"] not in KINDS:
            raise ValueError(f"{values['kind']!r} is none of {', '.join(KINDS)}")
        rows.append(Row(values["system"], values["kind"], mean, deviation))
    if not 1 <= len(rows) <= MOST_BARS:
        raise ValueError(f"the table has {len(rows)} rows; the picture shows 1 to {MOST_BARS}")
    return rows


def results_svg() -> str:
    """The picture: one bar per row in the order of the table, the kinds in a legend."""
    rows = read_results(README.read_text(encoding="utf-8"))
    height = TOP + STEP * len(rows) + BOTTOM
    largest = max(row.mean + row.deviation for row in rows)
    scale = (WIDTH - LEFT - RIGHT) / largest
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'width="{WIDTH}" height="{height}" role="img">',
        f"<title>Test {METRIC} on MovieLens-100K, mean and standard deviation</title>",
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{height}"/>',
        f'<text class="title" x="12" y="22">Test {METRIC} on MovieLens-100K, full catalogue, '
        "mean and standard deviation over seeds</text>",
    ]
    x = 12
    for number, kind in enumerate(KINDS):
        lines.append(f'<rect class="k{number}" x="{x}" y="34" width="12" height="12"/>')
        lines.append(f'<text class="small" x="{x + 18}" y="45">{escape(kind)}</text>')
        x += 48 + 7 * len(kind)
    for number, row in enumerate(rows):
        y = TOP + STEP * number + 4
        end = LEFT + row.mean * scale
        low, high = end - row.deviation * scale, end + row.deviation * scale
        middle = y + BAR / 2
        lines += [
            f'<text x="{LEFT - 10}" y="{y + 15}" text-anchor="end">{escape(row.system)}</text>',
            f'<rect class="k{KINDS.index(row.kind)}" x="{LEFT}" y="{y}" '
            f'width="{end - LEFT:.1f}" height="{BAR}"/>',
            f'<path class="spread" fill="none" d="M{low:.1f} {middle}H{high:.1f}'
            f'M{low:.1f} {middle - 4}v8M{high:.1f} {middle - 4}v8"/>',
            f'<text x="{high + 8:.1f}" y="{y + 15}">{row.mean:.3f}</text>',
        ]
    return "\n".join([*lines, "</svg>"]) + "\n"
