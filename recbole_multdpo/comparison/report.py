"""The report of a finished comparison: tables, significance tests, JSON, and one HTML page."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from recbole_multdpo.comparison.findings import Findings, cutoff_of, find
from recbole_multdpo.comparison.origin import Origin
from recbole_multdpo.comparison.page import as_html
from recbole_multdpo.comparison.published import Published
from recbole_multdpo.comparison.results import Results, by_history, by_popularity
from recbole_multdpo.comparison.tables import Table, as_latex, as_markdown, as_text
from recbole_multdpo.runs.folder import plain_json
from recbole_multdpo.runtime.durable_files import write_atomically
from recbole_multdpo.runtime.shown_text import csv_cell, markdown

# of the tables in a terminal; the page has bold and underlined figures
MARKS = "^ best, ' second."


def write_report(
    results: Results,
    metric: str,
    folder: Path,
    baseline: str | None,
    failures: Mapping[str, str],
    choices: Sequence[str] = (),
    origin: Origin | None = None,
    published: Published | None = None,
) -> str:
    """Write the comparison's files into its folder.

    Args:
        results: the finished runs.
        metric: the metric that decides which system is best, such as `ndcg@10`.
        folder: the comparison's folder.
        baseline: the system to test against; the best one if it is None or has no result.
        failures: name of a failed run to its reason.
        choices: the values chosen by tuning, one sentence per system.
        origin: data set, protocol, date, commands and versions.
        published: what is known about the test items, and published figures of them.

    Returns:
        The headline and the tables as text.

    Raises:
        OSError: the folder cannot be written to.
    """
    found = find(results, metric, baseline, failures, choices, published)
    named = found.groups()
    tables = {
        "accuracy": found.accuracy,
        "beyond_accuracy": found.beyond,
        "history": found.history,
        **({"popularity": found.popularity} if found.popularity.columns else {}),
    }
    sections = [as_markdown(found.accuracy), markdown(found.legend), as_markdown(found.beyond)]
    sections += _with_headings(named, as_markdown)
    sections += _with_headings(found.beside, as_markdown)
    sections += map(markdown, [*found.beside_notes, *found.about_the_test, *found.choices])
    sections += map(markdown, found.lines)
    if origin is not None:
        sections.append(markdown(f"{origin.dataset}; {origin.protocol}. Last run: {origin.date}."))
    write_atomically(folder / "tables.md", "\n\n".join(filter(None, sections)) + "\n")
    write_atomically(
        folder / "tables.tex",
        "\n\n".join(f"% {name}\n{as_latex(table)}" for name, table in tables.items()) + "\n",
    )
    kept = {key: results.runs[key].to_numpy() for key in ("sft_kept",) if key in results.runs}
    write_atomically(folder / "runs.csv", _csv(results.metrics.assign(**kept)))
    tests = pd.DataFrame([asdict(test) for test in found.tests])
    write_atomically(folder / "significance.csv", _csv(tests))
    content = {
        **_as_json(results, found),
        **({} if origin is None else {"origin": plain_json(asdict(origin))}),
    }
    if found.beside:
        write_atomically(folder / "published.csv", _csv(_published_rows(found)))
    write_atomically(folder / "results.json", json.dumps(content, indent=2))
    write_atomically(folder / "report.html", as_html(results, found, origin))
    marks = [MARKS] if len(results.systems) > 1 else []
    return "\n\n".join(
        [
            as_text(found.accuracy),
            " ".join(filter(None, [*marks, found.legend])),
            found.headline,
            as_text(found.beyond),
            *_with_headings(named, as_text),
            *_with_headings(found.beside, as_text),
            *found.beside_notes,
            *found.about_the_test,
            *([] if origin is None else [f"{origin.dataset}; {origin.protocol}."]),
            *found.choices,
            *found.lines,
            f"report: {folder / 'report.html'}",
        ]
    )


def _csv(table: pd.DataFrame) -> str:
    return str(table.map(csv_cell).to_csv(index=False))


def _published_rows(found: Findings) -> pd.DataFrame:
    """Published figures with their set, source and doubt."""
    rows = [
        {"system": r.system, **r.figures, "source": r.source, "doubt": r.doubt}
        for r in found.published.rows
    ]
    return pd.DataFrame(rows).assign(test_set=found.published.title)


def _with_headings(named: Mapping[str, Table], as_lines: Callable[[Table], str]) -> list[str]:
    return [part for heading, table in named.items() for part in (heading, as_lines(table))]


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
            "by_popularity": by_popularity(results.users, cutoff_of(found.metric)).to_dict("index"),
            "significance": [asdict(test) for test in found.tests],
            "choices": list(found.choices),
            "notes": list(found.notes),
            "resolution": found.resolution,
            "test_items": list(found.published.sentences),
            **(
                {"published": [asdict(row) for row in found.published.rows]} if found.beside else {}
            ),
            "failures": dict(found.failures),
        }
    )
