"""Declarations of a setting's effects, written on the setting's own field.

    beta: Annotated[Positive, Acts("preference", when=PREFERENCE)]

Every list of settings is derived from these declarations (`effects.py`): settings that may change
on resume, that belong to the key of a cache, that distinguish systems, or that have no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from recbole_multdpo.settings.recbole_code import model_type

# The parts of a run, in order. For settings of `data`, `backbone` and `prompt`, fingerprints and
# cache keys use the resulting content (rows, texts, files, tokens) instead of the setting.
Part = Literal[
    "run",
    "data",
    "filter",
    "backbone",
    "prompt",
    "model",
    "sft",
    "preference",
    "validation",
    "ranking",
    "test",
]
Change = Literal["results", "speed", "machine", "log"]


@dataclass(frozen=True, eq=False)
class When:
    """A condition under which a setting acts.

    Attributes:
        holds: function of a `Given` that returns True if the condition holds.
        found: the situation in which it does not, for messages: `with negatives=static`.
        remedy: settings that fulfil it; {} if the setting can only be left out.
        words: the condition, for the settings reference: `negatives=dynamic`.
        verb: verb before the remedy, for messages.
    """

    holds: Callable[[Any], bool]
    found: Callable[[Any], str]
    remedy: Callable[[Any], Mapping[str, Any]]
    words: str
    verb: Literal["Add", "Use", "Use it with"] = "Add"

    def fails(self, given: Given) -> bool:
        """True if the condition is known not to hold."""
        try:
            return not self.holds(given)
        except Unknown:
            return False


@dataclass(frozen=True)
class Acts:
    """Effects of a setting.

    Attributes:
        parts: the parts of a run in which it acts, in order.
        when: conditions that must all hold for it to act.
        changes: effect of another value: `results`; `speed` and memory, with equal results up to
            rounding; `machine`, the machine or place of the run; `log`, output and stored files.
        instead: a setting with the same effect where this one has none.
        limit: True if it limits a cost. A run without that cost keeps the limit, so the command
            line may always set it.
        protocol: True if the results of two systems are comparable only with equal values.
        data_folder: False if a data set's own file may not set it, because it chooses which code
            runs, which files are read as models, or where files are written.
        asked: reason why only the command line may set it; None if files may.
        saved: False if it belongs to one start of a run rather than to the run.
        saved_as_set: True if runs store it as set, not as RecBole's constructor changes it.
        on_card: True if the model card of an exported model shows it.
        fixed_before: True if runs of version 0.1 could not be resumed with another value.
    """

    parts: tuple[Part, ...] | Part
    when: tuple[When, ...] = ()
    changes: Change = "results"
    instead: str | None = None
    limit: bool = False
    protocol: bool = False
    data_folder: bool = True
    asked: str | None = None
    saved: bool = True
    saved_as_set: bool = False
    on_card: bool = False
    fixed_before: bool = False

    def acts_in(self, *parts: Part) -> bool:
        """True if it acts in one of these parts."""
        own = (self.parts,) if isinstance(self.parts, str) else self.parts
        return not set(parts).isdisjoint(own)

    def failing(self, given: Given) -> tuple[When, ...]:
        """The conditions that do not hold in a run; () if the setting acts."""
        return tuple(condition for condition in self.when if condition.fails(given))

    @property
    def may_change(self) -> bool:
        """True if the value does not change results, up to rounding."""
        return self.changes != "results"

    @property
    def measures(self) -> bool:
        """True if it changes only the measurement at test."""
        return self.parts == "test"


class Unknown(Exception):
    """A condition needs a setting that a run does not have, or that is not known yet."""


class Given:
    """The settings of a run by attribute, as far as they are known."""

    def __init__(self, shared: Mapping[str, Any], typed: Any = None) -> None:
        """Take the settings.

        Args:
            shared: values by key.
            typed: a language model's settings, whose properties can be read too; fields may lack
                values. None for every other model.
        """
        self._shared, self._typed = shared, typed

    def with_changes(self, changes: Mapping[str, Any]) -> Given:
        """Copy with some settings replaced."""
        typed = self._typed
        if typed is not None:
            typed = typed.model_copy(update=changes)
        return Given({**self._shared, **changes}, typed)

    @property
    def is_language_model(self) -> bool:
        """True if the model is one of this package."""
        return self._typed is not None

    @property
    def model_type(self) -> str:
        """Name of RecBole's model type, such as `GENERAL`; `LLM` for models of this package."""
        if self.is_language_model:
            return "LLM"
        if "MODEL_TYPE" in self._shared:
            return str(self._shared["MODEL_TYPE"].name)
        try:
            return model_type(self.model)
        except (KeyError, TypeError) as error:
            raise Unknown(self.model) from error

    @property
    def modes(self) -> set[str]:
        """The candidates of validation and test: `full`, `uni100`, ..."""
        mode = self.eval_args["mode"]
        return {mode} if isinstance(mode, str) else set(mode.values())

    def __getattr__(self, name: str) -> Any:
        """A setting's value, or a property of a language model's settings.

        Raises:
            Unknown: there is no such setting.
        """
        try:
            return getattr(self._typed, name)
        except (AttributeError, LookupError, TypeError):  # a saved value may be anything
            pass
        if name in self._shared:
            return self._shared[name]
        raise Unknown(name)
