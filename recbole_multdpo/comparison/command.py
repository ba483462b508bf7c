"""Parses a comparison from the command line and from an experiment's file.

A comma list in `--model` or `--loss`, or one of `COMPARISON_KEYS`, makes a command a comparison.
Nothing heavy is imported here: the command line needs this module before it knows what to import.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from recbole_multdpo.comparison.request import (
    REQUEST_FILE,
    Request,
    System,
    is_range,
    prefixes,
    saved_request,
    value_text,
)
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.asked_for import ASKED_FOR, check_asked
from recbole_multdpo.settings.layers import experiment_file
from recbole_multdpo.settings.text import parse_command_line, parse_literal, read_settings_file

LLMREC = "LLMRec"
MOST_SEEDS = 100  # a larger number was probably meant as a seed
MOST_JOBS = 64
MAX_SEED = 2**32 - 1  # numpy's limit
COMPARISON_KEYS = frozenset({"seeds", "experiment", "vary", "tune"})
_OWN_KEYS = COMPARISON_KEYS | {
    "model",
    "loss",
    "systems",
    "seed",
    "baseline",
    "run_dir",
    "resume",
    "trials",
    "jobs",
    "final_test",
}
_NOT_VARIED = _OWN_KEYS - {"loss"}


def is_comparison(argv: Sequence[str]) -> bool:
    """True if a command line starts or resumes a comparison."""
    given = dict(argument.lstrip("-").partition("=")[::2] for argument in argv)
    if COMPARISON_KEYS & given.keys():
        return True
    if any("," in given.get(key, "") for key in ("model", "loss")):
        return True
    return "resume" in given and (Path(given["resume"]) / REQUEST_FILE).is_file()


def read_request(argv: Sequence[str]) -> Request:
    """The comparison that a command line describes.

    Raises:
        ConfigError: an argument cannot be parsed, names nothing, or contradicts another one.
    """
    values = parse_command_line(argv)
    if "resume" in values:
        return _resumed(Path(values["resume"]), values)
    texts = dict(argument[2:].partition("=")[::2] for argument in argv)
    if "experiment" in values:
        written = read_settings_file(experiment_file(str(values["experiment"])))
        check_asked(written, values["experiment"], values)
        values = {**written, **values}
        texts = {**{key: value_text(value) for key, value in written.items()}, **texts}
    if values.get("final_test") is False:
        raise ConfigError("final_test=False: a comparison compares test results. Leave it out.")
    systems = _systems(values)
    names = {name for system in systems for name in prefixes(system)}
    settings = {key: text for key, text in texts.items() if key in values and key not in _OWN_KEYS}
    for key in settings:
        if not _may_be_of_assistant(key, systems):  # `make_plan` checks these
            check_prefix(key, names)
    return Request(
        systems=systems,
        seeds=_seeds(values),
        first_seed=_first_seed(values.get("seed")),
        baseline=_baseline(values.get("baseline"), systems, bool(values.get("vary"))),
        run_dir=values.get("run_dir"),
        settings=settings,
        vary=_vary(values.get("vary")),
        tune=_tune(values.get("tune"), names),
        trials=_count("trials", values.get("trials"), None, 10_000),
        jobs=_count("jobs", values.get("jobs"), 1, MOST_JOBS) or 1,
    )


def _resumed(folder: Path, values: Mapping[str, Any]) -> Request:
    """The request of `--resume=FOLDER`, which takes only `--jobs` and `ASKED_FOR` in addition."""
    others = sorted(values.keys() - {"resume", "jobs", *ASKED_FOR})
    if str(folder) == "auto":
        raise ConfigError(
            "--resume=auto looks for a single run. Name the comparison's folder: --resume=PATH."
        )
    if others:
        raise ConfigError(
            f"--resume={folder} continues a comparison as it was: leave out {', '.join(others)}."
        )
    saved = saved_request(folder)
    check_asked(asdict(saved), folder / REQUEST_FILE, values)
    asked = {key: value_text(values[key]) for key in ASKED_FOR if key in values}
    return replace(
        saved,
        settings={**saved.settings, **asked},
        jobs=_count("jobs", values.get("jobs"), saved.jobs, MOST_JOBS) or 1,
    )


def _may_be_of_assistant(key: str, systems: Sequence[System]) -> bool:
    from recbole_multdpo.settings.language_models import LANGUAGE_MODELS

    prefix, dot, rest = key.rpartition(".")
    assisted = any(system.model in LANGUAGE_MODELS for system in systems)
    return bool(dot) and assisted and rest not in _OWN_KEYS and "." not in prefix


def check_prefix(key: str, names: set[str]) -> None:
    """Refuse `name.key` if the name is not in `names`, or the key belongs to the comparison itself.

    Raises:
        ConfigError: with the names that are valid.
    """
    prefix, dot, rest = key.rpartition(".")
    if dot and (prefix not in names or rest in _OWN_KEYS):
        raise ConfigError(
            f"{key}: the part before the dot must be a model, loss or assistant that is compared "
            f"({', '.join(sorted(names))}), the part after it one of its settings."
        )


def _count(key: str, value: Any, default: int | None, most: int) -> int | None:
    if value is None:
        return default
    if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most:
        return value
    raise ConfigError(f"{key}={value}: must be a whole number from 1 to {most}.")


def _vary(given: Any) -> dict[str, list[Any]]:
    """Key to values, from `{beta: [0.1, 1]}`."""
    if given is None:
        return {}
    if isinstance(given, Mapping) and all(
        key not in _NOT_VARIED and "." not in key and _is_list(values)
        for key, values in given.items()
    ):
        return dict(given)
    raise ConfigError(
        f"vary={given}: must map settings to lists of different values, such as "
        "--vary=\"{'beta': [0.1, 1]}\"."
    )


def _tune(given: Any, names: set[str]) -> dict[str, Any]:
    """`key` or `name.key` to a list of values or a range, from `{beta: [0.1, 1]}`."""
    if given is None:
        return {}
    if not isinstance(given, Mapping) or not all(
        _is_list(values) or is_range(values) for values in given.values()
    ):
        raise ConfigError(
            f"tune={given}: must map settings to lists of different values or to ranges, such as "
            "--tune=\"{'beta': [0.1, 1], 'EASE.reg_weight': {'low': 10, 'high': 1000, 'log': True}"
            '}".'
        )
    for key in given:
        if key in _OWN_KEYS:
            raise ConfigError(f"tune: {key} cannot be tuned.")
        check_prefix(key, names)
    return dict(given)


def _is_list(values: Any) -> bool:
    return (
        isinstance(values, list)
        and len(values) > 0
        and len({value_text(value) for value in values}) == len(values)
    )


def _names(key: str, value: Any) -> list[str]:
    """Distinct names from a list or a comma-separated text."""
    parts = value if isinstance(value, list) else str(value or "").strip("[]").split(",")
    names = [str(name).strip() for name in parts]
    given = [name for name in dict.fromkeys(names) if name]
    if len(given) < len(names) and value:
        raise ConfigError(f"{key}={value}: a name is empty or given twice.")
    return given


def _systems(values: Mapping[str, Any]) -> tuple[System, ...]:
    """The systems named by model and loss, and those defined under `systems`."""
    models = _names("model", values.get("model"))
    losses = _names("loss", values.get("loss"))
    written = _written_systems(values.get("systems"))
    if not models and not written:
        raise ConfigError("no model is given. Add --model=NAMES, such as --model=LLMRec,EASE,Pop.")
    if losses and LLMREC not in models:
        raise ConfigError(f"loss: losses are LLMRec's, and --model={','.join(models)} is without.")
    named = [
        system
        for model in models
        for system in (
            [System(LLMREC, loss) for loss in losses]
            if model == LLMREC and losses
            else [System(model)]
        )
    ]
    systems = (*named, *written)
    if len({system.folder_name for system in systems}) < len(systems):
        raise ConfigError("two systems have the same name. Give each its own name.")
    return systems


def _written_systems(given: Any) -> list[System]:
    """Systems from `{name: {model: ..., loss: ..., key: value}}`."""
    if given is None:
        return []
    if not isinstance(given, Mapping):
        raise ConfigError("systems: must map names to settings, such as `mine: {model: EASE}`.")
    systems = []
    for title, settings in given.items():
        if not isinstance(settings, Mapping) or not isinstance(settings.get("model"), str):
            raise ConfigError(f"systems: {title} needs settings with a model, got {settings!r}.")
        if forbidden := sorted((settings.keys() & _OWN_KEYS) - {"model", "loss"}):
            raise ConfigError(f"systems: {', '.join(forbidden)} cannot be {title}'s own.")
        own = {key: value_text(value) for key, value in settings.items()}
        model, loss = own.pop("model"), own.pop("loss", None)
        systems.append(System(model, loss, str(title), tuple(own.items())))
    return systems


def _seeds(values: Mapping[str, Any]) -> int | tuple[int, ...]:
    """A number of seeds, or the seeds themselves: `3`, `2020,2021`, `[2020, 2021]`, `2020,`."""
    given = values.get("seeds", 1)
    if isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= MOST_SEEDS:
        return given
    parts = given if isinstance(given, list) else str(given).strip(",").split(",")
    seeds = [part if isinstance(part, int) else parse_literal(str(part)) for part in parts]
    if (
        isinstance(given, int)
        or not all(map(_is_seed, seeds))
        or len(set(seeds)) < len(seeds)
        or not seeds
    ):
        raise ConfigError(
            f"seeds={given}: must be how many seeds, from 1 to {MOST_SEEDS}, or different seeds "
            "separated by commas, such as --seeds=2020,2021 (one alone: --seeds=2020,)."
        )
    if "seed" in values:
        raise ConfigError("seed and a list of seeds contradict each other. Leave --seed out.")
    return tuple(seeds)


def _first_seed(given: Any) -> int | None:
    if given is None or _is_seed(given):
        return given
    raise ConfigError(f"seed={given}: must be a whole number from 0 to {MAX_SEED}.")


def _is_seed(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MAX_SEED


def _baseline(name: Any, systems: Sequence[System], varied: bool) -> str | None:
    names = [system.name for system in systems]
    by_loss = {system.loss: system.name for system in systems if system.loss and not system.title}
    if name is None or name in names or varied:  # varied names are known later
        return by_loss.get(name, name)
    if name in by_loss:
        return by_loss[name]
    raise ConfigError(f"baseline={name} is not compared. It must be one of: {', '.join(names)}.")
