"""Hyperparameter search on the validation part: a grid, or Optuna's suggestions.

RecBole's HyperTuning is not used: it needs hyperopt, without a release for years, or ray, without
one for current Pythons, and cannot resume. Here every trial is a run folder, so an interrupted
search continues at its last trial, and trials can be inspected like any other run.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import TypeAdapter

from recbole_multdpo.comparison.plan import Plan, acting
from recbole_multdpo.comparison.request import System, is_range, value_text
from recbole_multdpo.errors import ConfigError, DataError, install_extra
from recbole_multdpo.runs.csv_log import read_rows
from recbole_multdpo.runs.folder import RESULT_FILE, read_result
from recbole_multdpo.runs.step_log import VALIDATION_COLUMNS, VALIDATIONS_FILE
from recbole_multdpo.runtime.durable_files import write_atomically
from recbole_multdpo.runtime.reading import fitted, read_json, readable
from recbole_multdpo.runtime.shown_text import csv_cell
from recbole_multdpo.settings.text import dump_settings, parse_setting

FOLDER = "tuning"
TRIALS_FILE = "trials.json"
STOPPED_FILE = "stopped_early"
FINAL_TEST = "final_test"  # the setting that a trial has False
STARTUP_TRIALS = 8  # random ones, before Optuna models the metric

Runs = Mapping[Path, Mapping[str, str]]
Stop = Callable[[Path], bool]


class RunAll(Protocol):
    """Makes runs, given by folder and settings; returns failed ones to their reasons."""

    def __call__(self, runs: Runs, stop: Stop | None = None) -> dict[Path, str]:
        """See `Runner.run_all`."""


@dataclass(frozen=True)
class Trial:
    """One combination of settings that was tried.

    Attributes:
        values: key to value.
        folder: the run's folder.
        score: the deciding metric on the validation part; NaN if the run failed or was stopped.
        result: all validation metrics; None if there are none.
    """

    values: Mapping[str, Any]
    folder: Path
    score: float = math.nan
    result: Mapping[str, float] | None = None

    @property
    def texts(self) -> dict[str, str]:
        """The values as text for the command line."""
        return {key: value_text(value) for key, value in self.values.items()}


@dataclass(frozen=True)
class Tuned:
    """The result of tuning one system.

    Attributes:
        system: the tuned system.
        settings: its other settings, key to the value's text.
        space: the search space, key to values or range.
        metric: the deciding metric.
        trials: all trials, in order.
        best: the best trial; None if none has a score.
    """

    system: System
    settings: Mapping[str, str]
    space: Mapping[str, Any]
    metric: str
    trials: Sequence[Trial]
    best: Trial | None

    @property
    def sentence(self) -> str:
        """The chosen values in one sentence, with a hint if one lies at the end of its space."""
        if self.best is None:
            return (
                f"{self.system.name}: none of {len(self.trials)} settings tried has a validation "
                "score; their runs failed, or the validation part ranks nobody."
            )
        chosen = ", ".join(f"{key}={_short(value)}" for key, value in self.best.values.items())
        ends = [key for key, values in self.space.items() if _at_end(self.best.values[key], values)]
        hint = f"; {', '.join(ends)} at the end of what was tried" if ends else ""
        return (
            f"{self.system.name}: {chosen} chosen among {len(self.trials)} by {self.metric} on "
            f"validation ({self.best.score:.4f}){hint}."
        )


def _short(value: Any) -> str:
    """The value as text, a float with at most six digits; the files have all of them."""
    return f"{value:.6g}" if isinstance(value, float) else value_text(value)


def tune(system: System, plan: Plan, n_trials: int | None, run_all: RunAll, at_once: int) -> Tuned:
    """Try settings with the first seed and choose the best on the validation part.

    No trial ranks the test part.

    Args:
        system: one of the plan's systems.
        plan: the comparison.
        n_trials: number of trials; None, or at least the size of the grid, tries the whole grid.
        run_all: makes runs, see `RunAll`.
        at_once: number of concurrent runs.

    Raises:
        ConfigError: ranges without a number of trials, or Optuna is not installed.
    """
    space, folder = plan.spaces[system], plan.folder / FOLDER / system.folder_name
    settings = {**plan.settings[system], "seed": str(plan.first_seed)}
    base = {**settings, FINAL_TEST: "False"}
    ranges = [key for key, values in space.items() if is_range(values)]
    grid = None if ranges else _grid(space, base)
    if grid is None and n_trials is None:
        raise ConfigError(f"tune: {ranges[0]} is a range. Say how many settings with --trials=20.")
    if grid is not None and (n_trials is None or n_trials >= len(grid)):
        trials = _run_trials(grid, 0, folder, base, plan.metric, run_all, None)
    else:
        assert n_trials is not None
        suggest = _Suggestions(space, plan.metric, plan.larger_is_better, plan.first_seed, folder)
        trials = []
        while len(trials) < n_trials:
            batch = suggest.ask(min(at_once, n_trials - len(trials)))
            done = _run_trials(
                batch, len(trials), folder, base, plan.metric, run_all, suggest.should_stop
            )
            suggest.tell(done)
            trials += done
    scored = [trial for trial in trials if not math.isnan(trial.score)]
    choose = max if plan.larger_is_better else min
    best = choose(scored, key=lambda trial: trial.score) if scored else None
    return Tuned(system, settings, space, plan.metric, trials, best)


def _grid(space: Mapping[str, Any], base: Mapping[str, str]) -> list[dict[str, Any]]:
    """All combinations of values; of those that differ in nothing that has an effect, the first."""
    found: dict[tuple[tuple[str, str], ...], dict[str, Any]] = {}
    for values in itertools.product(*space.values()):
        tried = dict(zip(space, values, strict=True))
        settings = {**base, **{key: value_text(value) for key, value in tried.items()}}
        found.setdefault(tuple(acting(settings).items()), tried)
    return list(found.values())


def _run_trials(
    batch: Sequence[Mapping[str, Any]],
    first: int,
    folder: Path,
    base: Mapping[str, str],
    metric: str,
    run_all: RunAll,
    stop: Stop | None,
) -> list[Trial]:
    trials = [
        Trial(values, trial_folder(folder, number)) for number, values in enumerate(batch, first)
    ]
    runs = {
        trial.folder: acting({**base, **trial.texts})
        for trial in trials
        if not is_stopped(trial.folder)  # a resumed search leaves it stopped
    }
    run_all(runs, stop)
    return [_with_result(trial, metric) for trial in trials]


def trial_folder(folder: Path, number: int) -> Path:
    """Folder of a trial; numbers start at 0."""
    return folder / f"trial-{number:03d}"


def is_stopped(folder: Path) -> bool:
    """True if a trial was stopped early."""
    return (folder / STOPPED_FILE).is_file()


def _validation_scores(folder: Path, metric: str) -> list[float]:
    """The metric at every validation so far, of the run's last stage."""
    rows = read_rows(folder / VALIDATIONS_FILE, VALIDATION_COLUMNS)
    try:
        return [
            float(row["value"])
            for row in rows
            if row["metric"] == metric and row["stage"] == rows[-1]["stage"]
        ]
    except ValueError as error:
        raise DataError(f"{folder / VALIDATIONS_FILE}: {error}. Remove {folder}.") from error


def _with_result(trial: Trial, metric: str) -> Trial:
    file = trial.folder / RESULT_FILE
    if not file.is_file():
        return trial
    result = read_result(file, needed=("valid_result",))["valid_result"] or {}
    score = result.get(metric)  # None if it is not finite, or there is no validation part
    return Trial(trial.values, trial.folder, math.nan if score is None else score, result)


class _Suggestions:
    """Optuna's tree-structured Parzen estimator, restored from a file of earlier suggestions.

    A trial is stopped if it is worse than the median of the others at the same validation (Optuna's
    MedianPruner).
    """

    def __init__(
        self,
        space: Mapping[str, Any],
        metric: str,
        larger_is_better: bool,
        seed: int,
        folder: Path,
    ):
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                "trials: Optuna chooses the settings and is not installed. Run "
                f"{install_extra('tune')}, or leave trials out to try all values."
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._space = {
            key: optuna.distributions.CategoricalDistribution(range(len(values)))
            if isinstance(values, list)
            else _range_distribution(optuna, values)
            for key, values in space.items()
        }
        self._values = {key: values for key, values in space.items() if isinstance(values, list)}
        sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP_TRIALS, seed=seed)
        self._study = optuna.create_study(
            sampler=sampler,
            direction="maximize" if larger_is_better else "minimize",
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP_TRIALS),
        )
        self._metric, self._folder = metric, folder
        self._asked: dict[Path, Any] = {}
        self._n_reported: dict[Path, int] = {}
        self._file = folder / TRIALS_FILE
        self._remembered: list[dict[str, Any]] = []
        if self._file.is_file():
            self._remembered = _remembered_trials(self._file)
            for suggestion in self._remembered:
                self._study.enqueue_trial(suggestion)

    def ask(self, n: int) -> list[dict[str, Any]]:
        """The next `n` suggestions, stored before they are run."""
        asked = [self._study.ask(self._space) for _ in range(n)]
        self._asked = {trial_folder(self._folder, trial.number): trial for trial in asked}
        suggestions = [dict(trial.params) for trial in asked]
        first = asked[0].number
        self._remembered[first : first + n] = suggestions
        self._file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._file, json.dumps(self._remembered, indent=1))
        return [self._named(suggestion) for suggestion in suggestions]

    def should_stop(self, folder: Path) -> bool:
        """Ask the pruner about the run in a folder; True leaves a mark in the folder."""
        self._report(folder)
        if not self._asked[folder].should_prune():
            return False
        (folder / STOPPED_FILE).touch()
        return True

    def tell(self, trials: Sequence[Trial]) -> None:
        """Report the results of the last `ask` to Optuna."""
        from optuna.trial import TrialState

        for trial in trials:
            self._report(trial.folder)
            asked = self._asked[trial.folder]
            if not math.isnan(trial.score):
                self._study.tell(asked, trial.score)
            elif is_stopped(trial.folder):
                self._study.tell(asked, state=TrialState.PRUNED)
            else:
                self._study.tell(asked, state=TrialState.FAIL)

    def _report(self, folder: Path) -> None:
        """Report new validations to Optuna."""
        scores = _validation_scores(folder, self._metric)
        for number in range(self._n_reported.get(folder, 0), len(scores)):
            self._asked[folder].report(scores[number], number)
        self._n_reported[folder] = len(scores)

    def _named(self, suggestion: Mapping[str, Any]) -> dict[str, Any]:
        """The values at the positions that Optuna chose."""
        return {
            key: self._values[key][choice] if key in self._values else choice
            for key, choice in suggestion.items()
        }


def _remembered_trials(file: Path) -> list[dict[str, Any]]:
    """The suggestions that `ask` stored.

    Raises:
        ConfigError: the file is damaged.
    """
    with readable(file, "Remove its folder to tune the system again.", ConfigError):
        return list(fitted(TypeAdapter(list[dict[str, int | float]]), read_json(file)))


def _range_distribution(optuna: Any, values: Mapping[str, Any]) -> Any:
    low, high, log = values["low"], values["high"], values.get("log", False)
    whole = isinstance(low, int) and isinstance(high, int)
    kind = optuna.distributions.IntDistribution if whole else optuna.distributions.FloatDistribution
    return kind(low, high, log=log)


def _at_end(value: Any, values: Any) -> bool:
    """True if a chosen number is the smallest or largest of three or more, or at a range's end."""
    if is_range(values):
        low, high = values["low"], values["high"]
        margin = 0.02
        if values.get("log"):
            low, high, value = math.log(low), math.log(high), math.log(value)
        return not low + margin * (high - low) < value < high - margin * (high - low)
    numbers = [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]
    return len(numbers) == len(values) > 2 and value in (min(numbers), max(numbers))


def write_tuning(tuned: Sequence[Tuned], folder: Path) -> None:
    """Write `tuning.csv` with a row per trial, and `best/<system>.yaml` for every system.

    The YAML file holds the system's settings and the chosen ones, for `--config_files`.
    """
    columns: dict[str, None] = dict.fromkeys(key for each in tuned for key in each.space)
    metrics = dict.fromkeys(
        name for each in tuned for trial in each.trials for name in trial.result or ()
    )
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["system", "trial", *columns, "chosen", *metrics])
    for each in tuned:
        for number, trial in enumerate(each.trials):
            settings = [trial.texts.get(key, "") for key in columns]
            figures = [(trial.result or {}).get(name, "") for name in metrics]
            chosen = trial is each.best
            row = [each.system.name, number, *settings, chosen, *figures]
            writer.writerow(map(csv_cell, row))
    write_atomically(folder / "tuning.csv", text.getvalue())
    for each in tuned:
        if each.best is not None:
            texts = {**each.settings, **each.best.texts}
            values = {key: parse_setting(key, value) for key, value in texts.items()}
            (folder / "best").mkdir(exist_ok=True)
            file = folder / "best" / f"{each.system.folder_name}.yaml"
            write_atomically(file, dump_settings(values))
