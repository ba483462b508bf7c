"""The results of a comparison's runs as data frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from recbole_multdpo.comparison.request import Member
from recbole_multdpo.comparison.tables import KEPT
from recbole_multdpo.runs.folder import RESULT_FILE, read_result
from recbole_multdpo.runs.per_user import (
    FILE_NAME,
    ID_COLUMNS,
    RECALL_HEAD,
    RECALL_TAIL,
    read_per_user,
)
from recbole_multdpo.runtime.console import counted
from recbole_multdpo.settings.information import KEY, KNOWN, LEFT_OUT, SEEN
from recbole_multdpo.settings.protocol import lists_key

HISTORY_GROUPS = 4
# RecBole's metrics beyond accuracy, which every run of a comparison measures
BEYOND_ACCURACY = ("ItemCoverage", "AveragePopularity", "TailPercentage", "GiniIndex")


@dataclass(frozen=True)
class Results:
    """Finished runs.

    Attributes:
        metrics: one row per run; columns `system`, `seed`, and RecBole's test metrics.
        users: one row per run and user; columns `system`, `seed`, `user`, `n_train`, `n_test`, and
            the metrics that are means over users.
        runs: one row per run; columns `system`, `seed`, `seconds` (wall time), `test_set` (hash of
            the test items, and of candidate lists), `test_information` (the parts of the data known
            at test), `seen_items` (the items left out of rankings), `lists` (candidate lists that
            the test ranked, in words; empty for none), `trial` (limits of a trial's training in
            words; empty for whole training), `tested` (how many of the users were tested, in words;
            empty for all), `margin` (half-width of the 95 % interval of the deciding metric over
            these users; NaN likewise), and `sft_kept` (True if no epoch of preference training was
            better on validation than the supervised model; None without preference training).
    """

    metrics: pd.DataFrame
    users: pd.DataFrame
    runs: pd.DataFrame

    @property
    def systems(self) -> list[str]:
        """Names, in the order of the command line."""
        return list(dict.fromkeys(self.metrics["system"]))

    @property
    def metric_names(self) -> list[str]:
        """All metrics, such as `ndcg@10`."""
        return [name for name in self.metrics.columns if name not in ("system", "seed")]

    def mean(self) -> pd.DataFrame:
        """Mean over seeds, [systems, metrics]."""
        return self._by_system().mean().loc[self.systems]

    def std(self) -> pd.DataFrame:
        """Sample standard deviation over seeds, [systems, metrics]; NaN for a single seed."""
        return self._by_system().std(ddof=1).loc[self.systems]

    def n_seeds(self) -> pd.Series:
        """Number of finished seeds per system."""
        return self.metrics.groupby("system", sort=False)["seed"].nunique().loc[self.systems]

    def _by_system(self):  # type: ignore[no-untyped-def]
        return self.metrics.drop(columns="seed").groupby("system", sort=False)


def read_results(members: Sequence[Member], folder: Path) -> Results:
    """Read the finished runs of a comparison's folder.

    Raises:
        MultDPOError: a run has no per-user metrics, or its result is damaged.
    """
    metrics, users, runs = [], [], []
    for member in members:
        run = folder / member.folder_name
        result = read_result(run / RESULT_FILE, needed=("test_result", "seconds", "test_set"))
        ids = {"system": member.system.name, "seed": member.seed}
        metrics.append({**ids, **result["test_result"]})
        seconds = sum(result["seconds"].values())
        lists = result.get("candidate_lists", {}).get("fingerprint", "")
        test = {"test_set": result["test_set"] + lists, KEY: result.get(KEY)}
        test[SEEN] = result.get(SEEN, "positives")  # as before the setting
        test["lists"] = lists_key(result)
        test["teacher"] = result.get("sft_teacher", "")
        limits = result.get("trial") or {}
        trial = {"trial": _training_in_words(limits), **_tested(limits)}
        kept = start_is_kept(result) if "preference" in result.get("best_epochs", {}) else None
        runs.append({**ids, "seconds": seconds, **test, **trial, "sft_kept": kept})
        users.append(
            read_per_user(run / FILE_NAME).assign(system=member.system.name, seed=member.seed)
        )
    return Results(pd.DataFrame(metrics), pd.concat(users, ignore_index=True), pd.DataFrame(runs))


def start_is_kept(result: Mapping[str, Any]) -> bool:
    """True if no epoch of preference training was better on validation than the SFT model."""
    chosen = result.get("best_epochs", {}).get("preference")
    return chosen is not None and chosen["epoch"] == 0


def systems_with_sft_kept(runs: pd.DataFrame) -> dict[str, tuple[int, int]]:
    """System to the number of its runs that kept the supervised model, above 0, and of all."""
    if "sft_kept" not in runs:
        return {}
    of_system = runs["sft_kept"].eq(True).groupby(runs["system"], sort=False)
    return {str(name): (int(kept.sum()), len(kept)) for name, kept in of_system if bool(kept.any())}


def kept_note(runs: pd.DataFrame) -> list[str]:
    """A sentence about the systems that are marked in the tables."""
    systems = [
        name if n_kept == n_runs == 1 else f"{name} ({n_kept} of {n_runs} seeds)"
        for name, (n_kept, n_runs) in systems_with_sft_kept(runs).items()
    ]
    if not systems:
        return []
    return [
        f"{KEPT} SFT kept: on validation no epoch of preference training was better than the "
        f"supervised model, whose weights are the result: {', '.join(systems)}."
    ]


def information_note(runs: pd.DataFrame) -> list[str]:
    """Sentences about `test_information` and `seen_items`, as far as runs of the comparison say it.

    A resumed comparison may hold runs of an earlier version, which did not store it.
    """
    return [
        *_note_on(runs, KEY, KNOWN, "did not know the same at test"),
        *_note_on(runs, SEEN, LEFT_OUT, "did not rank the same items"),
        *_lists_note(runs),
    ]


def _lists_note(runs: pd.DataFrame) -> list[str]:
    """A sentence about candidate lists, unless no system had any."""
    if "lists" not in runs or not (runs["lists"] != "").any():
        return []
    notes = {
        lists: f"Every system ranked {lists}, not the catalogue; a valid answer is certain, as "
        "only items of the list are scored."
        for lists in runs["lists"]
    }
    named = runs.assign(lists=runs["lists"].replace("", "eval_args mode"))
    return _note_on(named, "lists", notes, "did not rank the same candidates")


def _note_on(runs: pd.DataFrame, key: str, notes: Mapping[str, str], difference: str) -> list[str]:
    values = runs[key].fillna("not said") if key in runs else pd.Series(dtype=str)
    distinct = list(dict.fromkeys(values))
    if len(distinct) < 2:
        return [notes[value] for value in distinct if value in notes]
    known = [
        f"{value} for {', '.join(dict.fromkeys(runs['system'][values == value]))}"
        for value in distinct
    ]
    return [
        f"The systems {difference} ({key}: {'; '.join(known)}): their figures are not comparable."
    ]


def teacher_note(runs: pd.DataFrame) -> list[str]:
    """Sentences that name the systems which were distilled from another model."""
    if "teacher" not in runs:
        return []
    taught = runs[runs["teacher"] != ""]
    return [
        f"{', '.join(dict.fromkeys(of_one['system']))}: the first stage also learns from the "
        f"scores of {teacher} (sft_teacher)."
        for teacher, of_one in taught.groupby("teacher", sort=False)
    ]


def _training_in_words(limits: Mapping[str, Any]) -> str:
    """Limits of a trial's training, such as `500 of 943 users, 20 preference steps`."""
    if "users" not in limits:  # another run, or a trial of the test alone
        return ""
    parts = []
    if limits["users"] < limits["of_users"]:
        parts.append(f"{limits['users']:,} of {limits['of_users']:,} users")
    for stage in ("sft", "preference"):
        if limits[f"{stage}_steps"]:
            parts.append(counted(limits[f"{stage}_steps"], f"{stage} step"))
    return ", ".join(parts)


def _tested(limits: Mapping[str, Any]) -> dict[str, Any]:
    """The number of tested users in words, and the margin of a metric over them."""
    if "test_users" not in limits:
        return {"tested": "", "margin": float("nan")}
    margins = limits.get("test_margin", {}).values()
    return {
        "tested": f"{limits['test_users']:,} of {limits['of_test_users']:,}",
        "margin": next(iter(margins), float("nan")),
    }


def users_note(runs: pd.DataFrame, metric: str) -> list[str]:
    """A sentence about runs in which some users were tested, with the uncertainty of the metric."""
    of_some = runs[runs["tested"] != ""] if "tested" in runs else runs[:0]
    if of_some.empty:
        return []
    note = f"A trial, tested on {' or '.join(of_some['tested'].unique())} users (test_users)"
    margins = of_some.groupby("system", sort=False)["margin"].max().dropna()
    if len(margins):
        found = ", ".join(f"± {margin:.4f} for {name}" for name, margin in margins.items())
        note += f": by chance of the users, {metric} of one seed is uncertain by {found} (95 %)"
    return [f"{note}."]


def trial_note(runs: pd.DataFrame) -> list[str]:
    """A sentence about systems that a trial limits, and about those that it does not."""
    limits = dict(zip(runs["system"], runs.get("trial", [""] * len(runs)), strict=True))
    limited = [f"{name} ({words})" for name, words in limits.items() if words]
    if not limited:
        return []
    note = f"A trial, in which training was cut short: {'; '.join(limited)}."
    whole = [name for name, words in limits.items() if not words]
    if whole:
        note += (
            f" {', '.join(whole)} learned from all users, to the end: the figures are not a "
            "comparison of the systems."
        )
    return [note]


def differing_tests(runs: pd.DataFrame) -> list[str]:
    """A sentence for every run tested on other items than the first run of its seed.

    RecBole's sequential models drop a user's first row before a split by shares, so their test part
    may differ from that of other models.
    """
    notes = []
    for seed, of_seed in runs.groupby("seed", sort=False):
        first = of_seed.iloc[0]
        notes += [
            f"{row['system']} (seed {seed}) was tested on other items than {first['system']}: "
            "its figures are not comparable, and it is left out of the tests against it."
            for _, row in of_seed.iterrows()
            if row["test_set"] != first["test_set"]
        ]
    return notes


def shared_seeds(runs: pd.DataFrame, one: str, other: str) -> list[int]:
    """Seeds with which two systems were tested on the same items."""
    tests = [runs[runs["system"] == name].set_index("seed")["test_set"] for name in (one, other)]
    both = pd.concat(tests, axis=1, join="inner", keys=["one", "other"])
    return [int(seed) for seed in both.index[both["one"] == both["other"]]]


def user_means(users: pd.DataFrame, metric: str, seeds: Sequence[int] | None = None) -> pd.Series:
    """A user's metric averaged over seeds, indexed by system and user.

    Seeds with which the user has no test items are left out of that user's mean.

    Args:
        users: rows of `Results.users`.
        metric: a column.
        seeds: only these; None for all.
    """
    chosen = users if seeds is None else users[users["seed"].isin(seeds)]
    # first over the events of a rolling test, so that every seed weighs the same
    of_seed = chosen.groupby(["system", "seed", "user"], sort=False)[metric].mean()
    return of_seed.groupby(["system", "user"], sort=False).mean()


def by_history(users: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Mean of a metric by length of the users' history, in groups of about equal size.

    Args:
        users: rows of `Results.users`.
        metric: a column.

    Returns:
        [systems, groups]: the mean over seeds of each seed's mean over the group's users; columns
        such as `5-12`, the training items of the group's users.
    """
    # RecBole's sequential models have fewer rows of a user; the group is the same for all systems
    n_train = users.groupby(["seed", "user"])["n_train"].transform("max")
    rows = users.assign(group=history_groups(n_train))
    of_seed = rows.groupby(["system", "seed", "group"], sort=False, observed=True)[metric].mean()
    table = of_seed.groupby(["system", "group"], sort=False, observed=True).mean().unstack("group")
    systems = list(dict.fromkeys(users["system"]))
    return table.loc[systems, sorted(table.columns, key=lambda name: int(name.split("-")[0]))]


def by_popularity(users: pd.DataFrame, cutoff: str) -> pd.DataFrame:
    """Recall of head (popular) and tail test items.

    Args:
        users: rows of `Results.users`.
        cutoff: length of the lists, such as `10`.

    Returns:
        [systems, groups]: the mean over seeds of each seed's mean over the users with such test
        items; no columns if the runs did not measure it.
    """
    names = {f"{RECALL_HEAD}@{cutoff}": "head", f"{RECALL_TAIL}@{cutoff}": "tail"}
    columns = [name for name in names if name in users]
    of_seed = users.groupby(["system", "seed"], sort=False)[columns].mean()
    systems = list(dict.fromkeys(users["system"]))
    table = of_seed.groupby("system", sort=False).mean().loc[systems]
    return table.rename(columns={name: f"recall@{cutoff}, {names[name]}" for name in columns})


def history_groups(n_train: pd.Series) -> pd.Series:
    """Each row's group of history length, cut at the quartiles: `1-4`, `5-9`, ...

    Lengths that many users share are never cut apart, so there may be fewer groups.
    """
    edges = np.unique(np.quantile(n_train, np.linspace(0, 1, HISTORY_GROUPS + 1)[1:-1]))
    number = pd.Series(np.searchsorted(edges, n_train, side="left"), index=n_train.index)
    bounds = n_train.groupby(number).agg(["min", "max"])
    names = {row.Index: f"{row.min}-{row.max}" for row in bounds.itertuples()}
    return number.map(names)


def accuracy_metrics(results: Results) -> list[str]:
    """Per-user metrics over all test items for which larger is better."""
    beyond = ("averagepopularity", "tailpercentage", RECALL_HEAD, RECALL_TAIL)
    return [
        name
        for name in results.users.columns
        if name not in (*ID_COLUMNS, "system", "seed") and not name.startswith(beyond)
    ]
