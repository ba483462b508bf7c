"""Starts runs and comparisons: `recbole_multdpo.run` in Python, and the command line.

    import recbole_multdpo

    result = recbole_multdpo.run(model="LLMRec", dataset="ml-100k", loss="mult_dpo")
    print(result.test["ndcg@10"], result.run_dir)

Both take the same settings and go the same way. Names are checked before torch is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recbole_multdpo.comparison.command import is_comparison, read_request
from recbole_multdpo.comparison.early import check_names
from recbole_multdpo.comparison.request import value_text
from recbole_multdpo.errors import ConfigError, MultDPOError
from recbole_multdpo.runtime.reading import plain
from recbole_multdpo.settings.early import check_early

if TYPE_CHECKING:
    from recbole_multdpo.trained.result import ComparisonResult, RunResult

_JOINED = ("model", "loss")  # lists of names, which the command line separates by commas


def run(
    model: str | Sequence[str] | None = None,
    dataset: str | None = None,
    *,
    config_files: Sequence[str | Path] | str | Path | None = None,
    config_dict: Mapping[str, Any] | None = None,
    config_file_list: Sequence[str | Path] | None = None,
    **settings: Any,
) -> RunResult | ComparisonResult:
    """Train and test a model, or compare several.

    Settings are those of the command line, as Python values: `topk=[5, 10]`,
    `eval_args={"order": "TO"}`, `run_dir=Path("runs/one")`; text is read as on the command line.
    The strongest first: keyword arguments, `config_dict`, the files (a later one wins), and the
    defaults. `show_progress=False` hides the bars and `state="WARNING"` the log, whose file
    `run.log` has everything all the same.

    Args:
        model: `LLMRec`, or any model of RecBole; several make a comparison: `["LLMRec", "EASE"]`.
        dataset: name of the data set.
        config_files: YAML files with settings.
        config_dict: settings by name; the way to write `{"EASE.reg_weight": 250}`.
        config_file_list: RecBole's name of `config_files`.
        settings: any other setting. `loss=[...]`, `seeds=3`, `tune={...}`, `vary={...}`, and
            `experiment="file.yaml"` make a comparison.

    Returns:
        The result, read from the folder that the run wrote. A comparison's `failures` has the runs
        that failed; the others are compared.

    Raises:
        MultDPOError: a problem with settings, files or training, of its subclasses `ConfigError`,
            `DataError`, `CheckpointError`, `ProcessError` and `TrainingError`; the message names
            the remedy.
        KeyboardInterrupt: Ctrl-C; the message says how to continue.
    """
    if config_files is not None and config_file_list is not None:
        raise ConfigError("config_file_list is RecBole's name of config_files. Give one of them.")
    files = config_files if config_files is not None else config_file_list
    given = dict(settings, model=model, dataset=dataset, config_files=files)
    named = {key: value for key, value in given.items() if key in settings or value is not None}
    argv = arguments({**(config_dict or {}), **named})
    folder, _ = start(argv)
    from recbole_multdpo.trained.result import ComparisonResult, RunResult

    return (ComparisonResult if is_comparison(argv) else RunResult).load(folder)


def arguments(settings: Mapping[str, Any]) -> list[str]:
    """Settings as the arguments of a command line.

    Raises:
        ConfigError: a name or value has no such form.
    """
    return [f"--{key}={_text(key, value)}" for key, value in settings.items()]


def _text(key: Any, value: Any) -> str:
    try:
        found = plain(_python_value(value))
    except TypeError as error:
        raise ConfigError(f"{key}: {error}.") from None
    if key in _JOINED and isinstance(found, list):
        return ",".join(map(str, found))
    if key == "config_files" and isinstance(found, str):
        return value_text([found])  # one path, which may contain spaces
    return value_text(found)


def _python_value(value: Any) -> Any:
    """The value with numpy's numbers and arrays, paths, sets and ranges as Python's plain ones."""
    if isinstance(value, Mapping):
        return {_python_value(key): _python_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_python_value(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):  # of numpy and torch
        return value.tolist()
    return value


def start(argv: Sequence[str]) -> tuple[Path, int]:
    """Run what a command line describes.

    Args:
        argv: arguments of the form `--key=value`, without the program's name.

    Returns:
        The folder of the run or comparison, and the exit status: 0, or 1 if a run of a comparison
        failed.

    Raises:
        MultDPOError: as for `run`.
    """
    if not is_comparison(argv):
        check_early(argv)
        from recbole_multdpo.quick_start import run_in_folder  # imports torch

        return run_in_folder(argv)[0], 0
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise MultDPOError(
            "a comparison starts its runs itself, one after the other, not under torchrun or "
            "deepspeed. Start each of its runs with them."
        )
    check_names(read_request(argv))
    from recbole_multdpo.comparison.runs import compare  # imports torch

    return compare(argv)
