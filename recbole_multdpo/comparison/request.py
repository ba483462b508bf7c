"""What a comparison consists of, read from the command line.

A comma list in `--model` or `--loss`, or `--seeds`, makes a command a comparison. Nothing heavy is
imported here, as the command line asks before it knows what to import.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings_text import parse_command_line, parse_literal

REQUEST_FILE = "comparison.json"
LLMREC = "LLMRec"
MOST_SEEDS = 100  # more are rather a seed written as a number of seeds
_OWN_KEYS = frozenset({"model", "loss", "seed", "seeds", "baseline", "run_dir", "resume"})


@dataclass(frozen=True)
class System:
    """What is compared: a model, for LLMRec with its loss (None: that of the settings)."""

    model: str
    loss: str | None = None

    @property
    def name(self) -> str:
        """`EASE`, or `LLMRec mult_dpo`."""
        return self.model if self.loss is None else f"{self.model} {self.loss}"


@dataclass(frozen=True)
class Member:
    """One run of a comparison."""

    system: System
    seed: int

    @property
    def folder_name(self) -> str:
        """Name of the run's folder inside the comparison's."""
        return f"{self.system.name.replace(' ', '-')}-seed{self.seed}"


@dataclass(frozen=True)
class Request:
    """A comparison as asked for.

    Attributes:
        systems: in the order given.
        seeds: the seeds, or how many from the first one on.
        first_seed: the first seed where `seeds` is a number; None for the settings' own.
        baseline: name of the system that the others are tested against; None for the best one.
        run_dir: the comparison's folder; None for a new one.
        settings: `key` or `name.key`, the name being a model's or a loss's, to the value's text.
    """

    systems: tuple[System, ...]
    seeds: int | tuple[int, ...]
    first_seed: int | None
    baseline: str | None
    run_dir: str | None
    settings: Mapping[str, str]

    def arguments_of(self, system: System, knows: Mapping[System, set[str]]) -> list[str]:
        """The settings that concern a system, as command-line arguments.

        Args:
            system: one of `systems`.
            knows: every system's settings. A key that some have goes to those only; one that none
                has goes to all, whose check then names the nearest one.
        """
        plain = {
            key: text
            for key, text in self.settings.items()
            if "." not in key
            and (key in knows[system] or not any(key in keys for keys in knows.values()))
        }
        for owner in (system.model, system.loss):  # the loss's is the more special
            prefix = f"{owner}."
            for key, text in self.settings.items():
                if key.startswith(prefix):
                    plain[key[len(prefix) :]] = text
        return [f"--{key}={text}" for key, text in plain.items()]


def is_comparison(argv: Sequence[str]) -> bool:
    """Whether a command line asks for a comparison, or for resuming one."""
    given = dict(argument.lstrip("-").partition("=")[::2] for argument in argv)
    if "seeds" in given or any("," in given.get(key, "") for key in ("model", "loss")):
        return True
    return "resume" in given and (Path(given["resume"]) / REQUEST_FILE).is_file()


def read_request(argv: Sequence[str]) -> Request:
    """The comparison that a command line describes.

    Raises:
        ConfigError: an argument cannot be read, names nothing, or contradicts another one.
    """
    values = parse_command_line(argv)
    if "resume" in values:
        return _saved_request(Path(values["resume"]), values)
    texts = dict(argument[2:].partition("=")[::2] for argument in argv)
    systems = _systems(_names("model", values.get("model")), _names("loss", values.get("loss")))
    names = {name for system in systems for name in (system.model, system.loss) if name}
    settings = {key: text for key, text in texts.items() if key in values and key not in _OWN_KEYS}
    for key in settings:
        owner, dot, rest = key.partition(".")
        if dot and (owner not in names or rest in _OWN_KEYS):
            raise ConfigError(
                f"--{key}: the part before the dot must be a model or loss that is compared "
                f"({', '.join(sorted(names))}), the part after it one of its settings."
            )
    return Request(
        systems=systems,
        seeds=_seeds(values),
        first_seed=values.get("seed"),
        baseline=_baseline(values.get("baseline"), systems),
        run_dir=values.get("run_dir"),
        settings=settings,
    )


def _names(key: str, value: Any) -> list[str]:
    """Names separated by commas, each once."""
    names = [name.strip() for name in str(value or "").strip("[]").split(",")]
    given = [name for name in dict.fromkeys(names) if name]
    if len(given) < len(names) and value:
        raise ConfigError(f"{key}={value}: a name is empty or given twice.")
    return given


def _systems(models: Sequence[str], losses: Sequence[str | None]) -> tuple[System, ...]:
    if not models:
        raise ConfigError("no model is given. Add --model=NAMES, such as --model=LLMRec,EASE,Pop.")
    if losses and LLMREC not in models:
        raise ConfigError(f"loss: losses are LLMRec's, and --model={','.join(models)} is without.")
    return tuple(
        system
        for model in models
        for system in (
            [System(LLMREC, loss) for loss in losses or [None]]
            if model == LLMREC
            else [System(model)]
        )
    )


def _seeds(values: Mapping[str, Any]) -> int | tuple[int, ...]:
    """A number of seeds, or the seeds themselves: `3`, `2020,2021`, `[2020, 2021]`, `2020,`."""
    given = values.get("seeds", 1)
    if isinstance(given, int) and not isinstance(given, bool) and 1 <= given <= MOST_SEEDS:
        return given
    parts = given if isinstance(given, list) else str(given).strip(",").split(",")
    seeds = [part if isinstance(part, int) else parse_literal(str(part)) for part in parts]
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) for seed in seeds)
    if isinstance(given, int) or not whole or len(set(seeds)) < len(seeds) or not seeds:
        raise ConfigError(
            f"seeds={given}: must be how many seeds, from 1 to {MOST_SEEDS}, or different seeds "
            "separated by commas, such as --seeds=2020,2021 (one alone: --seeds=2020,)."
        )
    if "seed" in values:
        raise ConfigError("seed and a list of seeds contradict each other. Leave --seed out.")
    return tuple(seeds)


def _baseline(name: Any, systems: Sequence[System]) -> str | None:
    names = [system.name for system in systems]
    if name is None or name in names:
        return name
    by_loss = {system.loss: system.name for system in systems if system.loss}
    if name in by_loss:
        return by_loss[name]
    raise ConfigError(f"baseline={name} is not compared. It must be one of: {', '.join(names)}.")


def request_text(request: Request) -> str:
    """The request as the JSON text of `comparison.json`."""
    data = {
        "systems": [[system.model, system.loss] for system in request.systems],
        "seeds": request.seeds,
        "first_seed": request.first_seed,
        "baseline": request.baseline,
        "settings": dict(request.settings),
    }
    return json.dumps(data, indent=2) + "\n"


def _saved_request(folder: Path, values: Mapping[str, Any]) -> Request:
    others = sorted(values.keys() - {"resume"})
    if others:
        raise ConfigError(
            f"--resume={folder} continues a comparison as it was: leave out {', '.join(others)}."
        )
    try:
        data = json.loads((folder / REQUEST_FILE).read_text(encoding="utf-8"))
        seeds = data["seeds"]
        return Request(
            systems=tuple(System(*pair) for pair in data["systems"]),
            seeds=seeds if isinstance(seeds, int) else tuple(seeds),
            first_seed=data["first_seed"],
            baseline=data["baseline"],
            run_dir=str(folder),
            settings=data["settings"],
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{folder / REQUEST_FILE} cannot be read ({error}). Start the comparison anew."
        ) from error
