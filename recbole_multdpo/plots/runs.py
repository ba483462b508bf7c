"""The runs of a figure: found in folders, read, and given distinct names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import TypeAdapter
from typing_extensions import TypedDict

from recbole_multdpo.comparison.request import Member, System
from recbole_multdpo.errors import DataError
from recbole_multdpo.runs.folder import read_result
from recbole_multdpo.runs.step_log import STEPS_FILE, VALIDATIONS_FILE
from recbole_multdpo.runtime.csv_table import read_table
from recbole_multdpo.runtime.reading import fitted, is_file, read_json, readable
from recbole_multdpo.settings.effects import acts, idle, in_run
from recbole_multdpo.settings.llmrec import ZERO_SHOT
from recbole_multdpo.settings.text import read_settings_file

STEP_NUMBERS = {
    "stage": str,
    **dict.fromkeys(("step", "loss", "margin", "positive_logp", "negative_logp", "seconds"), float),
}
VALIDATION_COLUMNS = {"stage": str, "step": float, "metric": str, "value": float}


@dataclass(frozen=True, eq=False)
class Run:
    """One run's folder.

    Attributes:
        path: the folder.
        name: `EASE` or `LLMRec mult_dpo`, with the settings in which it differs from other runs of
            the figure; in a comparison's folder the name in its tables.
        settings: its `config.yaml`.
    """

    path: Path
    name: str
    settings: Mapping[str, Any]

    def result(self) -> dict[str, Any]:
        """The content of `result.json`.

        Raises:
            DataError: the run did not finish.
            MultDPOError: the file is damaged.
        """
        file = self.path / "result.json"
        if not file.is_file():
            raise DataError(f"there is no {file}: the run did not finish. Finish it by --resume.")
        return read_result(file, needed=("seed", "test_result"))

    def steps(self) -> pd.DataFrame:
        """The rows of `steps.csv`; empty if there is none."""
        return _table(self.path / STEPS_FILE, STEP_NUMBERS)

    def validations(self) -> pd.DataFrame:
        """The rows of `validations.csv`; empty if there is none."""
        return _table(self.path / VALIDATIONS_FILE, VALIDATION_COLUMNS)

    def training_seconds(self) -> float:
        """Wall seconds of training, validations included, over both stages of LLMRec.

        The log continues in a resumed run, and is cached with the first stage. Runs of RecBole's
        models have the total in `result.json`.

        Raises:
            DataError: the first stage came from a cache without a log, of an older version.
        """
        steps, seconds = self.steps(), self.result().get("seconds", {})
        if "train" in seconds:
            return float(seconds["train"])
        is_trained = self.settings.get("sft_epochs") and self.settings.get("loss") != ZERO_SHOT
        if is_trained and "sft" not in set(steps["stage"]):
            raise DataError(
                f"{self.path / STEPS_FILE} does not say how long the first stage took: it came "
                "from a cache without a log. Train it once with --sft_cache=False."
            )
        return float(steps.groupby("stage")["seconds"].max().sum()) if len(steps) else 0.0


def _table(file: Path, columns: Mapping[str, type]) -> pd.DataFrame:
    if not is_file(file):
        return pd.DataFrame({"stage": []})
    with readable(file, "Leave the run out, or train it again."):
        return read_table(file, columns)


def find_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs in folders; each is the folder of one run, or holds runs (a comparison).

    Raises:
        DataError: a folder holds no run.
    """
    paths: dict[Path, None] = {}  # a dict keeps the order and drops repeated ones
    for folder in folders:
        inside = sorted(file.parent for file in folder.glob("*/config.yaml"))
        found = [folder] if (folder / "config.yaml").is_file() else inside
        if not found:
            raise DataError(f"{folder} is no run's folder and holds none: there is no config.yaml.")
        paths.update(dict.fromkeys(found))
    settings = {path: read_settings_file(path / "config.yaml") for path in paths}
    for path, saved in settings.items():
        if not isinstance(saved.get("model"), str):
            raise DataError(f"{path / 'config.yaml'} names no model: it is not that of a run.")
    # a run may be named alone, without the comparison that it is in
    around = dict.fromkeys([*folders, *(path.parent for path in paths)])
    named = {folder / name: title for folder in around for name, title in _titles(folder).items()}
    return [Run(path, named.get(path) or _name(path, settings), settings[path]) for path in paths]


def data_sets(runs: Iterable[Run]) -> list[str]:
    """Names of the runs' data sets."""
    names = (run.settings.get("dataset") for run in runs)
    return list(dict.fromkeys(str(name) for name in names if name is not None))


class _Member(TypedDict):
    system: str
    seed: int


class _Runs(TypedDict):
    """The used part of a comparison's `results.json`."""

    runs: list[_Member]


_RUNS: TypeAdapter[_Runs] = TypeAdapter(_Runs)


def _titles(folder: Path) -> dict[str, str]:
    """Name of each run's folder to its system's name, for a finished comparison."""
    file = folder / "results.json"
    if not is_file(file):
        return {}
    with readable(file, f"Write it again: --resume={folder}."):
        runs = fitted(_RUNS, read_json(file))["runs"]
    members = [Member(System(model="", title=run["system"]), run["seed"]) for run in runs]
    return {member.folder_name: member.system.name for member in members}


def _name(path: Path, settings: Mapping[Path, Mapping[str, Any]]) -> str:
    """The system, with the settings in which runs of this system differ."""
    own = _of_system(settings[path])
    system = _system(settings[path])
    alike = [_of_system(other) for other in settings.values() if _system(other) == system]
    keys = sorted({key for other in alike for key in other})
    differing = [key for key in keys if any(other.get(key) != own.get(key) for other in alike)]
    return " ".join([system, *(f"{key}={settings[path].get(key)}" for key in differing)])


def _of_system(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that make runs different systems: those with an effect on more than the figures."""
    model = settings["model"]
    without = idle(in_run(settings), settings, model) | {"seed"}
    return {
        key: value
        for key, value in settings.items()
        if key not in without and not acts(key, model).may_change and not acts(key, model).measures
    }


def _system(settings: Mapping[str, Any]) -> str:
    """`EASE`, `LLMRec mult_dpo`, or `LLMRec zero-shot` for an untrained model."""
    if settings["model"] != "LLMRec":
        return str(settings["model"])
    loss = settings.get("loss")
    trained = settings.get("sft_epochs") or (loss != "sft" and settings.get("epochs"))
    return f"LLMRec {loss}" if trained and loss != ZERO_SHOT else "LLMRec zero-shot"
