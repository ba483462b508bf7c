"""Vectorised spans against a loop."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from recbole_multdpo.data.spans import unfold_spans


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 5)), max_size=8))
def test_as_a_loop(spans: list[tuple[int, int]]):
    starts, counts = np.array(spans, dtype=np.int64).reshape(-1, 2).T
    rows, entries = unfold_spans(starts, counts)
    looped = [(row, start + n) for row, (start, count) in enumerate(spans) for n in range(count)]
    assert list(zip(rows.tolist(), entries.tolist(), strict=True)) == looped
