"""Results of a run and of a comparison, as `recbole_multdpo.run` returns them.

Everything is read from the run's folder, so that a result can also be made later, in another
process: `RunResult.load("saved/my-run")`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from recbole.evaluator.register import smaller_metrics

from recbole_multdpo.comparison.request import Member, System
from recbole_multdpo.errors import ConfigError, MultDPOError
from recbole_multdpo.runs.per_user import FILE_NAME, read_per_user
from recbole_multdpo.runtime.reading import read_json, readable
from recbole_multdpo.settings.config import settings_of_run
from recbole_multdpo.trained.recommender import Recommender
from recbole_multdpo.trained.run import result_of

RESULTS_FILE, REPORT_FILE = "results.json", "report.html"


@dataclass(frozen=True)
class RunResult(Mapping[str, Any]):
    """A finished run.

    It is also a mapping, with the entries that RecBole's `run_recbole` returns
    (`best_valid_score`, `valid_score_bigger`, `best_valid_result`, `test_result`) and those of
    `result.json`.

    Attributes:
        run_dir: the run's folder.
        result: content of its `result.json`.
    """

    run_dir: Path
    result: Mapping[str, Any]

    @classmethod
    def load(cls, run_dir: str | Path) -> RunResult:
        """The result of a finished run from its folder.

        Raises:
            ConfigError: the folder is not that of a finished run.
        """
        return cls(Path(run_dir), result_of(Path(run_dir), tested=False))

    @property
    def valid(self) -> dict[str, float]:
        """Validation metrics, such as `ndcg@10`; {} without a validation part."""
        return dict(self.result.get("valid_result") or {})

    @property
    def test(self) -> dict[str, float]:
        """Test metrics, such as `ndcg@10`; {} of a run with `final_test=False`."""
        return dict(self.result.get("test_result", {}))

    @property
    def metrics(self) -> pd.DataFrame:
        """Validation and test metrics side by side, [metrics, (valid, test)]."""
        columns = {"valid": self.valid, "test": self.test}
        return pd.DataFrame(columns, index=list(self.test or self.valid), dtype=float)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """All settings of the run."""
        return settings_of_run(self.run_dir)

    @cached_property
    def per_user(self) -> pd.DataFrame:
        """Test metrics of every user: columns `user`, `n_train`, `n_test` and the metrics.

        Raises:
            MultDPOError: the metrics are no averages over users, so that the run wrote none.
        """
        return read_per_user(self.run_dir / FILE_NAME)

    def recommender(self, **options: Any) -> Recommender:
        """Load the trained model to recommend with it; options as for `Recommender.load`."""
        return Recommender.load(self.run_dir, **options)

    @cached_property
    def _entries(self) -> dict[str, Any]:
        metric = str(self.settings["valid_metric"]).lower()
        return {
            **self.result,
            "best_valid_score": self.valid.get(metric),
            "valid_score_bigger": metric.partition("@")[0] not in smaller_metrics,
            "best_valid_result": self.valid,
        }

    def __getitem__(self, key: str) -> Any:
        """An entry by name."""
        return self._entries[key]

    def __iter__(self) -> Iterator[str]:
        """Names of the entries."""
        return iter(self._entries)

    def __len__(self) -> int:
        """Number of the entries."""
        return len(self._entries)

    def __repr__(self) -> str:
        """Model, data set, folder and metrics."""
        name = " ".join(filter(None, (self.result["model"], self.result.get("loss"))))
        head = f"{name} on {self.result['dataset']}, {self.run_dir}"
        return f"{head}\n{self.metrics.to_string(float_format='{:.4f}'.format)}"


@dataclass(frozen=True)
class ComparisonResult:
    """A finished comparison.

    Attributes:
        run_dir: the comparison's folder.
        results: content of its `results.json`.
    """

    run_dir: Path
    results: Mapping[str, Any]

    @classmethod
    def load(cls, run_dir: str | Path) -> ComparisonResult:
        """The result of a comparison from its folder.

        Raises:
            ConfigError: the folder holds no finished comparison.
        """
        file = Path(run_dir) / RESULTS_FILE
        if not file.is_file():
            raise ConfigError(f"{run_dir} holds no finished comparison: there is no {file}.")
        with readable(file, f"Write it again by --resume={run_dir}.", MultDPOError):
            return cls(Path(run_dir), read_json(file))

    @property
    def metric(self) -> str:
        """The metric that decides, such as `ndcg@10`."""
        return str(self.results["metric"])

    @property
    def reference(self) -> str:
        """The system that the others are tested against."""
        return str(self.results["reference"])

    @property
    def best(self) -> str:
        """The system with the best mean of `metric` on the test part."""
        return str(self.table[self.metric].idxmax())

    @property
    def table(self) -> pd.DataFrame:
        """Test metrics, means over seeds, [systems, metrics]."""
        return self._by_system("mean")

    @property
    def std(self) -> pd.DataFrame:
        """Standard deviations over seeds, [systems, metrics]; NaN for a single seed."""
        return self._by_system("std")

    def _by_system(self, name: str) -> pd.DataFrame:
        rows = {system: found[name] for system, found in self.results["systems"].items()}
        return pd.DataFrame.from_dict(rows, orient="index", dtype=float)

    @property
    def significance(self) -> pd.DataFrame:
        """Paired tests of each system against `reference`, one row per system and metric.

        Columns as in `significance.csv`: the difference, its 95 % interval, and the p-values with
        and without Holm's correction.
        """
        return pd.DataFrame(self.results["significance"])

    @property
    def runs(self) -> pd.DataFrame:
        """One row per run: `system`, `seed`, its test metrics, `seconds` and notes."""
        return pd.DataFrame(self.results["runs"])

    @property
    def report(self) -> Path:
        """The HTML page with tables, figures and tests."""
        return self.run_dir / REPORT_FILE

    @property
    def failures(self) -> dict[str, str]:
        """Name of each failed run to its reason."""
        return dict(self.results["failures"])

    def run(self, system: str, seed: int | None = None) -> RunResult:
        """One of the compared runs.

        Args:
            system: name of the system, as in `table`.
            seed: its seed; None for the first.

        Raises:
            KeyError: there is no such run.
        """
        runs = self.runs
        seeds = runs["seed"][runs["system"] == system].tolist()
        if not seeds or seed not in (None, *seeds):
            raise KeyError(
                f"no run of {system!r} with seed {seed}; there are {list(self.table.index)}"
            )
        member = Member(System("", title=system), int(seeds[0] if seed is None else seed))
        return RunResult.load(self.run_dir / member.folder_name)

    def __repr__(self) -> str:
        """Folder and table, with what the systems were tested against."""
        cutoff = self.metric.partition("@")[2]
        names = [name for name in map(str, self.table) if name.endswith(f"@{cutoff}")]
        shown = self.table[names].to_string(float_format="{:.4f}".format)
        return f"{self.run_dir}, {self.metric} decides\n{shown}"
