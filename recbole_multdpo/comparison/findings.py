"""Findings of a comparison: tables, tests and notes, before they are written anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from recbole_multdpo.comparison.published import Published
from recbole_multdpo.comparison.results import (
    BEYOND_ACCURACY,
    Results,
    accuracy_metrics,
    by_history,
    by_popularity,
    differing_tests,
    information_note,
    kept_note,
    systems_with_sft_kept,
    teacher_note,
    trial_note,
    user_means,
    users_note,
)
from recbole_multdpo.comparison.significance import (
    PairedTest,
    compare_with,
    detectable_difference,
)
from recbole_multdpo.comparison.tables import Table, make_table


@dataclass(frozen=True)
class Findings:
    """The content of a report.

    Attributes:
        metric: the metric that decides which system is best, such as `ndcg@10`.
        by_rank: the systems, the best by `metric` first; of equal ones, in the given order.
        n_seeds: the number of seeds, of the system with most.
        reference: the system that the others are tested against.
        accuracy: the main table: `metric` at all cut-offs, other metrics at its cut-off.
        beyond: coverage, popularity, share of the tail and Gini index of the recommendations.
        history: `metric` by length of the users' history.
        popularity: recall of head and tail test items; no columns if the runs did not measure it.
        tests: every other system against the reference, in every column of `accuracy`.
        failures: name of a failed run to its reason.
        choices: the values chosen by tuning, one sentence per system.
        notes: warnings for the reader, one sentence each.
        resolution: the smallest difference that the test can show, in one sentence.
        published: what is known about the test items, and published figures.
        beside: heading to table, our figures and the published ones in the metrics of both; {}
            without any.
        beside_notes: sources, doubts, and how far a published figure can be told from ours.
    """

    metric: str
    by_rank: Sequence[str]
    n_seeds: int
    reference: str
    accuracy: Table
    beyond: Table
    history: Table
    popularity: Table
    tests: Sequence[PairedTest]
    failures: Mapping[str, str]
    choices: Sequence[str]
    notes: Sequence[str]
    resolution: str = ""
    published: Published = Published()
    beside: Mapping[str, Table] = field(default_factory=dict)
    beside_notes: Sequence[str] = ()

    @property
    def legend(self) -> str:
        """The meaning of the figures, and of `*`."""
        parts = []
        if self.n_seeds > 1:
            parts.append(f"Mean ± standard deviation over {self.n_seeds} seeds.")
        if self.tests:
            parts.append(
                f"* differs from {self.reference} with p < 0.05 in both the paired t-test and "
                "Wilcoxon's signed-rank test over users, after Holm's correction."
            )
        return " ".join(parts)

    @property
    def lines(self) -> list[str]:
        """Notes and failures, one per line."""
        return [*self.notes, *(f"failed: {name}: {why}" for name, why in self.failures.items())]

    @property
    def about_the_test(self) -> list[str]:
        """Sentences: the published test set it is, and the smallest difference it can show."""
        return [*self.published.sentences, *filter(None, [self.resolution])]

    def groups(self) -> dict[str, Table]:
        """Heading to table, for groups of users and of items."""
        groups = {f"{self.metric} by number of training items of the user": self.history}
        if self.popularity.columns:
            heading = "Recall of popular test items (head) and of the others (tail)"
            groups[heading] = self.popularity
        return groups

    @property
    def headline(self) -> str:
        """The best system, and its difference to the reference or, if it is that, to the next."""
        column = list(self.accuracy.columns).index(self.metric)
        figures = {
            name: cells[column].figure
            for name, cells in zip(self.accuracy.rows, self.accuracy.cells, strict=True)
        }
        best, *others = self.by_rank
        said = f"{best} has the highest {self.metric}: {figures[best]}."
        if not others:
            return f"{best}: {self.metric} {figures[best]}."
        is_reference = best == self.reference
        other = others[0] if is_reference else self.reference
        compared = others[0] if is_reference else best
        where = "Next is" if is_reference else "The reference is"
        said += f" {where} {other}: {figures[other]}"
        test = next(
            (t for t in self.tests if t.system == compared and t.metric == self.metric), None
        )
        if test is None:
            return f"{said}."
        sign = -1 if is_reference else 1
        low, high = sorted((sign * test.ci_low, sign * test.ci_high))
        verdict = "significant" if test.significant else "not significant"
        return (
            f"{said}, a difference of {sign * test.difference:+.4f} (95 % interval over users "
            f"{low:+.4f} to {high:+.4f}; {verdict})."
        )


def find(
    results: Results,
    metric: str,
    baseline: str | None,
    failures: Mapping[str, str],
    choices: Sequence[str] = (),
    published: Published | None = None,
) -> Findings:
    """Tables and tests of finished runs; arguments as for `write_report`."""
    mean, std = results.mean(), results.std()
    notes = [
        *kept_note(results.runs),
        *information_note(results.runs),
        *teacher_note(results.runs),
        *trial_note(results.runs),
        *users_note(results.runs, metric),
        *differing_tests(results.runs),
        *_unequal_seeds(results),
    ]
    if baseline is not None and baseline not in results.systems:
        notes.append(f"{baseline} has no result: the best system takes its place as reference.")
        baseline = None
    reference = baseline or str(mean[metric].idxmax())
    columns = _columns(accuracy_metrics(results), metric)
    tests = [test for name in columns for test in compare_with(results, name, reference)]
    different = {(test.system, test.metric) for test in tests if test.significant}
    cutoff = cutoff_of(metric)
    names = [f"{name.lower()}@{cutoff}" for name in BEYOND_ACCURACY]
    beyond = [name for name in names if name in mean]
    return Findings(
        metric=metric,
        by_rank=list(map(str, mean[metric].sort_values(ascending=False, kind="stable").index)),
        n_seeds=int(results.n_seeds().max()),
        reference=reference,
        accuracy=make_table(
            mean[columns],
            std[columns],
            different=different,
            kept=systems_with_sft_kept(results.runs),
        ),
        beyond=make_table(mean[beyond], std[beyond], ranked=False),
        history=make_table(by_history(results.users, metric)),
        popularity=make_table(by_popularity(results.users, cutoff)),
        tests=tests,
        failures=failures,
        choices=choices,
        notes=notes,
        resolution=_resolution(results, tests, metric, reference),
        published=published or Published(),
        **_beside(results, metric, published or Published()),
    )


def _resolution(results: Results, tests: Sequence[PairedTest], metric: str, reference: str) -> str:
    """The smallest difference of the deciding metric that the test can show, in one sentence."""
    deciding = [test for test in tests if test.metric == metric and test.detectable > 0]
    spread = "by the spread of the users' differences"
    if deciding:
        n_users = max(test.n_users for test in deciding)
        low = min(deciding, key=lambda test: test.detectable)
        high = max(deciding, key=lambda test: test.detectable)
        size = f"{high.detectable:.4f} to {reference}"
        if low is not high:
            size = f"{low.detectable:.4f} ({low.system}) to {high.detectable:.4f} ({high.system})"
            size += f" against {reference}"
    else:  # no pair: as if two systems differed by as much as one system's users do
        users = results.users[results.users["system"] == reference]
        values = user_means(users, metric).to_numpy()
        n_users, least = len(values), detectable_difference(values)
        if not least > 0:
            return ""
        size, spread = f"{least:.4f}", "if differences spread over users as the metric does"
    cases = f"{n_users:,} test cases" if n_users > 1 else "One test case"
    return (
        f"{cases} show no difference in {metric} below {size} (80 % power, two-sided 5 %, "
        f"uncorrected, {spread})."
    )


def _beside(results: Results, metric: str, published: Published) -> dict[str, Any]:
    """Our figures and published ones, in the metrics of both, neither ranked; with notes."""
    printed = {name for row in published.rows for name in row.figures}
    columns = [name for name in accuracy_metrics(results) if name in printed]
    if not columns:
        return {}
    theirs = [[row.figures.get(name, float("nan")) for name in columns] for row in published.rows]
    names = [published.numbered(row) for row in published.rows]
    mean = results.mean()
    best = results.users[results.users["system"] == str(mean[metric].idxmax())]
    margin = 2**0.5 * detectable_difference(user_means(best, metric).to_numpy())
    chance = (
        f"Of published systems there are no values per user, so that nothing is tested: a "
        f"difference in {metric} below about {margin:.4f} to one of ours may be chance of the "
        "users (80 % power, two-sided 5 %, as if both were drawn apart)."
    )
    return {
        "beside": {
            f"Ours, in the metrics published of {published.title}": make_table(
                mean[columns], ranked=False
            ),
            f"Published of {published.title}, neither ranked nor tested": make_table(
                pd.DataFrame(theirs, names, columns), ranked=False
            ),
        },
        "beside_notes": [*published.notes(), *([chance] if margin > 0 else [])],
    }


def cutoff_of(metric: str) -> str:
    """`10` of `ndcg@10`."""
    return metric.partition("@")[2]


def _columns(metrics: Sequence[str], metric: str) -> list[str]:
    """The deciding metric at every cut-off, then other metrics at its cut-off."""
    family, _, cutoff = metric.partition("@")
    own = [name for name in metrics if name.startswith(f"{family}@")]
    return own + [name for name in metrics if name.endswith(f"@{cutoff}") and name not in own]


def _unequal_seeds(results: Results) -> list[str]:
    n_seeds = results.n_seeds()
    return [
        f"{system} is the mean of {count} of {n_seeds.max()} seeds, as its other runs failed."
        for system, count in n_seeds.items()
        if count < n_seeds.max()
    ]
