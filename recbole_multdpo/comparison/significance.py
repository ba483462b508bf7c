"""Paired significance tests over users, with Holm's correction for multiple systems.

The unit is the user. With several seeds a user's metric is first averaged over the seeds that both
systems have, as the values of one user are not independent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

from recbole_multdpo.comparison.results import Results, shared_seeds, user_means

RESAMPLES = 2000
BATCH_VALUES = 2**18  # values per batch of resamples, to bound memory with many users
CONFIDENCE = 0.95
LEVEL = 0.05
POWER = 0.8


@dataclass(frozen=True)
class PairedTest:
    """A system against the reference in one metric.

    Attributes:
        metric: such as `ndcg@10`.
        system: name of the system.
        reference: name of the reference.
        n_users: number of users tested with both.
        difference: mean over users of the system's metric minus the reference's.
        ci_low, ci_high: bootstrap interval of the difference over users (percentiles, 95 %).
        t_p: p-value of the paired t-test, two-sided; NaN with fewer than two users.
        wilcoxon_p: p-value of Wilcoxon's signed-rank test, likewise.
        detectable: smallest mean difference that the t-test shows with a probability of 80 %.
        t_holm, wilcoxon_holm: the p-values after Holm's correction for all systems tested against
            the reference in this metric.
    """

    metric: str
    system: str
    reference: str
    n_users: int
    difference: float
    ci_low: float
    ci_high: float
    t_p: float
    wilcoxon_p: float
    t_holm: float = float("nan")
    wilcoxon_holm: float = float("nan")
    detectable: float = float("nan")

    @property
    def significant(self) -> bool:
        """True if both tests reject at the level of 5 % after correction."""
        return max(self.t_holm, self.wilcoxon_holm) < LEVEL


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction: adjusted p-values, in the given order.

    The i-th smallest of m becomes max over j <= i of min(1, (m - j + 1) p_j) (Holm 1979). NaN stays
    NaN and is not counted in m.
    """
    order = sorted((i for i, p in enumerate(p_values) if not np.isnan(p)), key=p_values.__getitem__)
    adjusted, largest = [float("nan")] * len(p_values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def paired_p_values(differences: np.ndarray) -> tuple[float, float]:
    """p-values of the paired t-test and of Wilcoxon's signed-rank test, two-sided.

    Args:
        differences: [users], the one system's values minus the other's. Wilcoxon's ranks leave out
            zeros; if all are zero, both p-values are 1.
    """
    if len(differences) < 2:
        return float("nan"), float("nan")
    if not differences.any():
        return 1.0, 1.0
    t_p = 0.0 if np.ptp(differences) == 0 else stats.ttest_1samp(differences, 0.0).pvalue
    return float(t_p), float(stats.wilcoxon(differences).pvalue)


def detectable_difference(values: np.ndarray) -> float:
    """The smallest mean that a t-test of these values shows with the probability `POWER`.

    It is (t(1 - LEVEL / 2) + t(POWER)) s / sqrt(n), of the quantiles of Student's distribution
    with n - 1 degrees of freedom and the standard deviation s: two-sided, without correction.

    Args:
        values: [users], differences of two systems, or the values of one.

    Returns:
        NaN with fewer than two values.
    """
    n = len(values)
    if n < 2:
        return float("nan")
    quantiles = stats.t.ppf([1 - LEVEL / 2, POWER], n - 1)
    return float(quantiles.sum() * values.std(ddof=1) / n**0.5)


def bootstrap_interval(differences: np.ndarray) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over users, by `scipy.stats.bootstrap`.

    Args:
        differences: [users].
    """
    if len(differences) < 2:  # scipy refuses it
        return float(differences.mean()), float(differences.mean())
    found = stats.bootstrap(
        (differences,),
        np.mean,
        n_resamples=RESAMPLES,
        batch=max(BATCH_VALUES // len(differences), 1),
        confidence_level=CONFIDENCE,
        method="percentile",
        random_state=np.random.default_rng(0),  # reports are reproducible
    )
    low, high = found.confidence_interval
    return float(low), float(high)


def compare_with(results: Results, metric: str, reference: str) -> list[PairedTest]:
    """Test every other system against the reference in one metric.

    Args:
        results: the finished runs.
        metric: a metric of single users.
        reference: a system. Systems that share no seed and test set with it are left out.
    """
    users, tests = results.users, []
    for system in results.systems:
        common = shared_seeds(results.runs, system, reference)
        if system == reference or not common:
            continue
        values = user_means(users[users["system"].isin([system, reference])], metric, common)
        differences = (values[system] - values[reference]).to_numpy()
        low, high = bootstrap_interval(differences)
        t_p, wilcoxon_p = paired_p_values(differences)
        mean = float(differences.mean())
        n_users = len(differences)
        tests.append(
            PairedTest(
                metric,
                system,
                reference,
                n_users,
                mean,
                low,
                high,
                t_p,
                wilcoxon_p,
                detectable=detectable_difference(differences),
            )
        )
    t_holm, wilcoxon_holm = holm([t.t_p for t in tests]), holm([t.wilcoxon_p for t in tests])
    return [
        replace(test, t_holm=t, wilcoxon_holm=w)
        for test, t, w in zip(tests, t_holm, wilcoxon_holm, strict=True)
    ]
