"""What a comparison consists of, and the file that remembers it.

Nothing heavy is imported here, as the command line asks before it knows what to import.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.runtime.reading import fitted, read_json

REQUEST_FILE = "comparison.json"


@dataclass(frozen=True)
class System:
    """What is compared.

    Attributes:
        model: the model.
        loss: for LLMRec, its loss; None for that of the settings.
        title: its name in tables; None for `EASE`, or `LLMRec mult_dpo`.
        own: settings that only this system has, pairs of key and the value's text.
    """

    model: str
    loss: str | None = None
    title: str | None = None
    own: tuple[tuple[str, str], ...] = ()

    @property
    def name(self) -> str:
        """Its name in tables."""
        if self.title is not None:
            return self.title
        return self.model if self.loss is None else f"{self.model} {self.loss}"

    @property
    def folder_name(self) -> str:
        """The name as part of a path."""
        return re.sub(r"[^\w=.,+]+", "-", self.name)


@dataclass(frozen=True)
class Member:
    """One run of a comparison."""

    system: System
    seed: int

    @property
    def folder_name(self) -> str:
        """Name of the run's folder inside the comparison's."""
        return f"{self.system.folder_name}-seed{self.seed}"


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

    def settings_of(
        self, system: System, knows: Mapping[System, AbstractSet[str]]
    ) -> dict[str, str]:
        """The settings that concern a system, key to the value's text.

        Args:
            system: one of the systems.
            knows: every system's settings. Of the systems that a key is meant for, all or those of
                `name.key`, it goes to those that know it. A key that none of them knows goes to
                all, whose check then names the nearest one.
        """
        plain = {
            key: text
            for key, text in self.settings.items()
            if "." not in key and _concerns(key, system, knows)
        }
        return {**plain, **_by_owner(self.settings, system, knows), **dict(system.own)}

    def assistant_settings(self, assistant: str) -> dict[str, str]:
        """The settings of a language model's assistant, `name.key` to the value's text."""
        prefix = f"{assistant}."
        return {key: text for key, text in self.settings.items() if key.startswith(prefix)}

    def space_of(self, system: System, knows: Mapping[System, AbstractSet[str]]) -> dict[str, Any]:
        """What is tuned for a system: key to values or range; the more special owner's wins.

        Args:
            system: one of the systems.
            knows: every system's settings. A key of all is tuned for those that know it, one of
                `name.key` as `settings_of` says.
        """
        fixed = {key for key, _ in system.own}
        space = {
            key: values
            for key, values in self.tune.items()
            if key in knows[system] and key not in fixed
        }
        return {**space, **_by_owner(self.tune, system, knows)}


def _by_owner(
    values: Mapping[str, Any], system: System, knows: Mapping[System, AbstractSet[str]]
) -> dict[str, Any]:
    """Values of `name.key` that concern a system, by key; the more special owner's wins."""
    found = {}
    for owner in owners(system):
        owned = {each: known for each, known in knows.items() if owner in owners(each)}
        for key, value in values.items():
            own = key.removeprefix(f"{owner}.")
            if own != key and _concerns(own, system, owned):
                found[own] = value
    return found


def _concerns(key: str, system: System, knows: Mapping[System, AbstractSet[str]]) -> bool:
    """Whether a key goes to a system: it knows the key, or none of the systems does."""
    return key in knows[system] or not any(key in known for known in knows.values())


def owners(system: System) -> list[str]:
    """Names before the dot of `name.key` that mean a system, the most special last."""
    return [name for name in (system.model, system.loss, system.title) if name]


def value_text(value: Any) -> str:
    """A setting's value as text that the command line reads back."""
    return value if isinstance(value, str) else repr(value)


def varied(system: System, vary: Mapping[str, Sequence[Any]], knows: set[str]) -> Iterator[System]:
    """A system once for every combination of the varied settings that it has."""
    keys = [key for key in vary if key in knows]
    for values in itertools.product(*(vary[key] for key in keys)):
        pairs = [(key, value_text(value)) for key, value in zip(keys, values, strict=True)]
        title = " ".join([system.name, *(f"{key}={text}" for key, text in pairs)])
        yield replace(system, title=title, own=(*system.own, *pairs)) if pairs else system


def is_range(values: Any) -> bool:
    """Whether these are {low, high} or {low, high, log}, low below high."""
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
    """Settings that together try every value, and both ends of every range, once."""
    for key, values in space.items():
        tried = [values["low"], values["high"]] if is_range(values) else values
        yield from ({key: value_text(value)} for value in tried)


def request_text(request: Request) -> str:
    """The request as the JSON text of `comparison.json`."""
    data = {**asdict(request), "run_dir": None}  # the folder is where the file lies
    return json.dumps(data, indent=2) + "\n"


class _SavedSystem(TypedDict):
    model: str
    loss: str | None
    title: str | None
    own: list[Annotated[list[str], Field(min_length=2, max_length=2)]]


class _SavedRequest(TypedDict):
    """What `comparison.json` must be like."""

    systems: list[_SavedSystem]
    seeds: int | list[int]
    first_seed: int | None
    baseline: str | None
    run_dir: None
    settings: dict[str, str]
    vary: dict[str, list[Any]]
    tune: dict[str, Any]
    trials: int | None
    jobs: int


_REQUEST: TypeAdapter[_SavedRequest] = TypeAdapter(_SavedRequest)


def saved_request(folder: Path) -> Request:
    """The request that a comparison's folder was made for, with that folder as `run_dir`.

    Raises:
        ConfigError: `comparison.json` is missing or damaged.
    """
    try:
        data = fitted(_REQUEST, read_json(folder / REQUEST_FILE))
        systems = tuple(
            System(**{**system, "own": tuple(map(tuple, system["own"]))})
            for system in data["systems"]
        )
        seeds = data["seeds"] if isinstance(data["seeds"], int) else tuple(data["seeds"])
        return Request(**{**data, "systems": systems, "seeds": seeds, "run_dir": str(folder)})
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{folder / REQUEST_FILE} cannot be read ({error}). Start the comparison anew."
        ) from error
