"""The house plan: what may import what, and how many parts there are to know.

The layers are in `pyproject.toml`; `lint-imports` shows a broken one with the lines that break it.
"""

from pathlib import Path

import grimp
import pytest
from importlinter.cli import lint_imports

PACKAGE = "recbole_multdpo"
PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def check(project: Path) -> int:
    return lint_imports(str(project), no_cache=True, no_logo=True)


def test_nothing_is_imported_upwards_or_in_a_circle() -> None:
    assert check(PROJECT) == 0


@pytest.mark.parametrize(
    ("layer", "wrong"),
    [
        ('  "settings",\n  "losses : runtime",\n', '  "losses : runtime",\n  "settings",\n'),
        ('  "ranking",\n', ""),  # a part that no layer has
    ],
)
def test_other_layers_are_broken(tmp_path: Path, layer: str, wrong: str) -> None:
    text = PROJECT.read_text(encoding="utf-8")
    assert layer in text
    changed = tmp_path / "pyproject.toml"
    changed.write_text(text.replace(layer, wrong), encoding="utf-8")
    assert check(changed) != 0


def test_few_parts_with_few_edges() -> None:
    """Whoever reads the tree should find the code; a new part or edge is a decision."""
    graph = grimp.build_graph(PACKAGE)
    parts = {name for name in graph.modules if name.count(".") == 1}
    edges = {
        (importer.split(".")[1], imported.split(".")[1])
        for importer in graph.modules - {PACKAGE}
        for imported in graph.find_modules_directly_imported_by(importer) - {PACKAGE}
    }
    edges = {(above, below) for above, below in edges if above != below}
    assert len(parts) <= 24, sorted(parts)
    assert len(edges) <= 100, sorted(edges)
