"""Findings of a comparison: tables, tests and notes, before they are written anywhere."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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
    users_note,
)
from recbole_multdpo.comparison.significance import PairedTest, compare_with
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
    )


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
