"""Rows of different lengths stored consecutively in a flat array."""

from __future__ import annotations

import numpy as np


def unfold_spans(starts: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of all entries of several spans, concatenated without a Python loop.

    Args:
        starts: integer [S], index of each span's first entry.
        counts: integer [S], number of entries of each span, 0 or higher.

    Returns:
        rows: int64 [sum of counts], the span of each entry, from 0.
        entries: int64 [sum of counts], `starts[i]` to `starts[i] + counts[i] - 1` for each i.
    """
    rows = np.repeat(np.arange(len(counts)), counts)
    # subtract the preceding entries from each start, so that one arange serves all spans
    return rows, np.repeat(starts - (counts.cumsum() - counts), counts) + np.arange(len(rows))
