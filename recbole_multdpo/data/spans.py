"""Rows of different lengths that lie one behind the other in a flat array."""

from __future__ import annotations

import numpy as np


def unfold_spans(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every entry of spans of a flat array, span by span, without a loop over them.

    Args:
        starts: integer [S], first entry of each span.
        counts: integer [S], number of its entries, 0 or higher.

    Returns:
        rows: int64 [sum of counts], the span that each entry belongs to, from 0.
        entries: int64 [sum of counts], `starts[i]` to `starts[i] + counts[i] - 1` for each i.
    """
    rows = np.repeat(np.arange(len(counts)), counts)
    # what has come before a span is taken off its start, so that one running number serves all
    return rows, np.repeat(starts - (counts.cumsum() - counts), counts) + np.arange(len(rows))
