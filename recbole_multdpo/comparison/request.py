"""The description of a comparison, and the file that stores it.

Nothing heavy is imported here: the command line needs this module before it knows what to import.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, with_config

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.runtime.reading import parsed, read_json, readable

REQUEST_FILE = "comparison.json"


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class System:
    """A model with its own settings: one row of a comparison.

    Attributes:
        model: name of the model.
        loss: LLMRec's loss; None for the loss of the settings.
        title: name in tables; None for the default, such as `EASE` or `LLMRec mult_dpo`.
        own: settings of this system only, as pairs of key and the value's text.
    """

    model: str
    loss: str | None = None
    title: str | None = None
    own: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """The name in tables."""
        if self.title is not None:
            return self.title
        return self.model if self.loss is None else f"{self.model} {self.loss}"

    @property
    def folder_name(self) -> str:
        """The name as part of a path."""
        return re.sub(r"[^\w=.,+]+", "-", self.name)


@dataclass(frozen=True)
class Member:
    """One run of a comparison: a system with a seed."""

    system: System
    seed: int

    @property
    def folder_name(self) -> str:
        """Name of the run's folder inside the comparison's folder."""
        return f"{self.system.folder_name}-seed{self.seed}"


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True)
class Request:
    """A comparison as asked for.

    Attributes:
        systems: in the order given, before `vary` multiplies them.
        seeds: the seeds, or how many from the first one on.
        first_seed: the first seed where `seeds` is a number; None for the settings' own.
        baseline: name of the system that the others are tested against; None for the best one.
        run_dir: the comparison's folder; None for a new one.
        settings: `key` or `name.key`, the name being a model's or a loss's, to the value's text.
        vary: key to values; a system that has the key becomes one system for every value.
        tune: `key` or `name.key` to the values, or to the range {low, high, log}, among which
            validation chooses for every system that has the key.
        trials: how many settings are tried for each system; None for all combinations of values.
        jobs: how many runs are made at the same time.
        auto_dtype: what `dtype: auto` is in all runs; None in a new request, and if none has it.
        command: the shell command that started the comparison; None in folders of old versions.
    """

    systems: tuple[System, ...]
    seeds: int | tuple[int, ...]
    first_seed: int | None
    baseline: str | None
    run_dir: str | None
    settings: Mapping[str, str]
    vary: Mapping[str, list[Any]]
    tune: Mapping[str, Any]
    trials: int | None
    jobs: int
    auto_dtype: str | None = None
    command: str | None = None

    def settings_of(
        self, system: System, known: Mapping[System, AbstractSet[str]]
    ) -> dict[str, str]:
        """The settings that apply to a system, key to the value's text.

        Args:
            system: one of the systems.
            known: the names of every system's settings. A key applies to those of its systems (all,
                or those with the prefix of `name.key`) that know it. A key that none of them knows
                applies to all of them; checking the settings then names the nearest valid key.
        """
        plain = {
            key: text
            for key, text in self.settings.items()
            if "." not in key and _applies_to(key, system, known)
        }
        return {**plain, **_by_prefix(self.settings, system, known), **dict(system.own)}

    def assistant_settings(self, assistant: str) -> dict[str, str]:
        """The settings of a language model's assistant, `name.key` to the value's text."""
        prefix = f"{assistant}."
        return {key: text for key, text in self.settings.items() if key.startswith(prefix)}

    def search_space(
        self, system: System, known: Mapping[System, AbstractSet[str]]
    ) -> dict[str, Any]:
        """The tuned settings of a system, key to values or range; the most specific prefix wins.

        Args:
            system: one of the systems.
            known: the names of every system's settings. A plain key is tuned for the systems that
                know it, `name.key` as in `settings_of`.
        """
        fixed = {key for key, _ in system.own}
        space = {
            key: values
            for key, values in self.tune.items()
            if key in known[system] and key not in fixed
        }
        return {**space, **_by_prefix(self.tune, system, known)}


def _by_prefix(
    values: Mapping[str, Any], system: System, known: Mapping[System, AbstractSet[str]]
) -> dict[str, Any]:
    """Values of `name.key` that apply to a system, by key; the most specific prefix wins."""
    found = {}
    for prefix in prefixes(system):
        same = {each: keys for each, keys in known.items() if prefix in prefixes(each)}
        for key, value in values.items():
            own = key.removeprefix(f"{prefix}.")
            if own != key and _applies_to(own, system, same):
                found[own] = value
    return found


def _applies_to(key: str, system: System, known: Mapping[System, AbstractSet[str]]) -> bool:
    """True if the system knows the key, or none of the systems does."""
    return key in known[system] or not any(key in keys for keys in known.values())


def prefixes(system: System) -> list[str]:
    """Names that select a system before the dot of `name.key`, the most specific last."""
    return [name for name in (system.model, system.loss, system.title) if name]


def value_text(value: Any) -> str:
    """A setting's value as text that the command line reads back."""
    return value if isinstance(value, str) else repr(value)


def varied(
    system: System, vary: Mapping[str, Sequence[Any]], known: AbstractSet[str]
) -> Iterator[System]:
    """A system once per combination of the varied settings, of those that it knows."""
    keys = [key for key in vary if key in known]
    for values in itertools.product(*(vary[key] for key in keys)):
        pairs = [(key, value_text(value)) for key, value in zip(keys, values, strict=True)]
        title = " ".join([system.name, *(f"{key}={text}" for key, text in pairs)])
        yield replace(system, title=title, own=(*system.own, *pairs)) if pairs else system


def is_range(values: Any) -> bool:
    """True for {low, high} or {low, high, log} with low below high, and above 0 for log."""
    if not isinstance(values, Mapping) or not {"low", "high"} <= values.keys() <= {
        "low",
        "high",
        "log",
    }:
        return False
    low, high, log = values["low"], values["high"], values.get("log", False)
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    return numbers and isinstance(log, bool) and low < high and (low > 0 or not log)


def edge_settings(space: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Settings that together cover every value, and both ends of every range, once."""
    for key, values in space.items():
        tried = [values["low"], values["high"]] if is_range(values) else values
        yield from ({key: value_text(value)} for value in tried)


def request_text(request: Request) -> str:
    """The request as the JSON text of `comparison.json`."""
    data = {**asdict(request), "run_dir": None}  # the folder is where the file lies
    return json.dumps(data, indent=2) + "\n"


_REQUEST = TypeAdapter(Request)


def saved_request(folder: Path) -> Request:
    """The request stored in a comparison's folder, with that folder as `run_dir`.

    Raises:
        ConfigError: `comparison.json` is missing or damaged.
    """
    file = folder / REQUEST_FILE
    with readable(file, "Start the comparison again.", ConfigError):
        saved: Request = parsed(_REQUEST, read_json(file))
    return replace(saved, run_dir=str(folder))
