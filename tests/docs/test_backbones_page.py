"""The page on backbones says of every row of the sweep what the sweep says."""

import re
from pathlib import Path

from tests.scoring.architectures import ARCHITECTURES, IS_LOWEST

PAGE = Path(__file__).parents[2] / "docs" / "backbones.md"


def test_every_architecture_stands_where_it_belongs():
    if IS_LOWEST:  # rows differ there; the page is of the newest
        return
    exact, refused = PAGE.read_text(encoding="utf-8").split("Refused unless told otherwise")
    exact = exact.split("Exact in every scorer and ranker")[1]
    assert re.findall(r"`([^`]+)`", exact) == [r.name for r in ARCHITECTURES if not r.why_refused]
    rows = re.findall(r"^\| `([^`]+)` \| (.*) \| (.*) \|$", refused, re.MULTILINE)
    assert rows == [
        (row.name, row.why_refused, "refused too" if row.padded_too else "exact")
        for row in ARCHITECTURES
        if row.why_refused
    ]
