"""Memory stays flat during a long run."""

import numpy as np
import pytest

from tests.reliability.soak import soak, summary


def test_a_leak_would_be_seen() -> None:
    """Control: one MiB a minute on noise of a few MiB."""
    times = np.arange(0, 1200, 2.0)
    noise = np.random.default_rng(0).normal(0, 3, len(times))
    flat = summary(list(zip(times, 900 + noise, strict=True)))
    leaking = summary(list(zip(times, 900 + noise + times / 60, strict=True)))
    assert abs(flat["growth_per_hour"]) < 10 and 50 < leaking["growth_per_hour"] < 70


@pytest.mark.slow
def test_memory_is_flat(tmp_path) -> None:
    found = soak(5 * 60, tmp_path)
    assert found["steps"] > 100 and found["last"] < 1.05 * found["first"], found
