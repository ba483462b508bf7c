"""Declarations of what a setting acts on, written on the setting's own field.

    beta: Annotated[Positive, Acts("preference", when=PREFERENCE)]

Every list of settings is derived from these declarations (`declared.py`): what may change when a
run is resumed, what belongs to the key of a cache, which runs are one system, what has no effect.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

# The parts of a run, in their order. What acts in `data`, `backbone` and `prompt` is known by the
# content that it makes (rows, texts, files, tokens), which fingerprints and keys of caches hold.
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
        holds: whether it does, of a `Given`.
        found: what there is instead, for messages: `with negatives=static`.
        remedy: settings that fulfil it; {} where nothing but leaving it out does.
        words: the condition, for the reference of settings: `negatives=dynamic`.
        verb: what to do with the remedy, for messages.
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
    """The parts of a run that a setting acts on, under which conditions, and what it changes.

    Attributes:
        parts: the parts of a run in which it acts, in their order.
        when: conditions, all of which must hold for it to act.
        changes: what another value changes. `results`; `speed` and memory, results being the same
            up to rounding; `machine`, on which and where on it the run takes place; `log`, what is
            shown and kept.
        instead: a setting that does the same where this one does nothing.
        protocol: True if it must be equal for the figures of two systems to be compared.
        data_folder: False if the file that comes with a data set may not set it, because it
            chooses which code runs, which files are read as models, or where files are written.
        asked: why it counts on the command line only; None if files may set it.
        saved: False if it is of one start of one run rather than of the run.
        saved_as_set: True if runs keep it as it was set, not as RecBole's constructor changes it.
        on_card: True if the card of an exported model names it.
        fixed_before: True if runs of version 0.1 could not be resumed with another value.
    """

    parts: tuple[Part, ...] | Part
    when: tuple[When, ...] = ()
    changes: Change = "results"
    instead: str | None = None
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
        """True if the results stay the same, up to rounding, whatever the value is."""
        return self.changes != "results"

    @property
    def measures(self) -> bool:
        """True if it changes what is measured and nothing else."""
        return self.parts == "test"


class Unknown(Exception):
    """A condition asks for a setting that a run does not have, or that is not known yet."""


@cache
def _model_type(model: str) -> str:
    """RecBole's kind of one of its models, which runs do not keep."""
    from recbole.utils import get_model  # takes seconds

    try:
        return str(get_model(model).type.name)
    except (ValueError, ImportError, AttributeError) as error:
        raise Unknown(model) from error


class Given:
    """The settings of a run by attribute, as far as they are known."""

    def __init__(self, shared: Mapping[str, Any], typed: Any = None) -> None:
        """Take the settings.

        Args:
            shared: values by key.
            typed: a language model's settings, whose properties are asked for too; its values may
                be fewer than its fields. None for every other model.
        """
        self._shared, self._typed = shared, typed

    def with_changes(self, changes: Mapping[str, Any]) -> Given:
        """The same settings but for some."""
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
        """Name of RecBole's kind of model, such as `GENERAL`; `LLM` for those of this package."""
        if self.is_language_model:
            return "LLM"
        if "MODEL_TYPE" in self._shared:
            return str(self._shared["MODEL_TYPE"].name)
        return _model_type(self.model)

    @property
    def modes(self) -> set[str]:
        """The candidates of validation and test: `full`, `uni100`, ..."""
        mode = self.eval_args["mode"]
        return {mode} if isinstance(mode, str) else set(mode.values())

    def __getattr__(self, name: str) -> Any:
        """A setting's value, or a property of a language model's settings.

        Raises:
            Unknown: there is none.
        """
        try:
            return getattr(self._typed, name)
        except (AttributeError, LookupError, TypeError):  # a saved value may be anything
            pass
        if name in self._shared:
            return self._shared[name]
        raise Unknown(name)
