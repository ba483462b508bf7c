"""Write the documents that are made from code, settings and tables: `python -m docs.generate`.

`python -m docs.generate --check` writes nothing and fails if one of them is out of date.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from docs.generate.data_flow import data_flow_svg
from docs.generate.results import results_svg
from docs.generate.settings import settings_markdown

DOCS = Path(__file__).resolve().parents[1]
DOCUMENTS: dict[Path, Callable[[], str]] = {
    DOCS / "settings.md": settings_markdown,
    DOCS / "images" / "data_flow.svg": data_flow_svg,
    DOCS / "images" / "results.svg": results_svg,
}


def outdated() -> list[Path]:
    """Generated documents that are out of date."""
    return [
        path
        for path, make in DOCUMENTS.items()
        if not path.is_file() or path.read_text(encoding="utf-8") != make()
    ]


def main(arguments: list[str]) -> int:
    """Write, or check; returns the exit status."""
    if arguments == ["--check"]:
        for path in outdated():
            print(f"{path} is not current: run python -m docs.generate", file=sys.stderr)
        return 1 if outdated() else 0
    if arguments:
        print("usage: python -m docs.generate [--check]", file=sys.stderr)
        return 2
    for path, make in DOCUMENTS.items():
        path.write_text(make(), encoding="utf-8")
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
