"""Effects of settings, from the declarations on their fields: of every model, and in one run.

Tables of names are derived from the declarations, each where it is used; `idle` and
`idle_problems` find settings without effect.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin, get_type_hints

from recbole_multdpo.losses import LOSSES
from recbole_multdpo.settings.acts import Acts, Given
from recbole_multdpo.settings.conditions import EPOCHS, of_losses
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS
from recbole_multdpo.settings.llmrec import LLMRecSettings
from recbole_multdpo.settings.recbole import RecBoleModelSettings, RecBoleSettings

_OTHER = Acts("model")  # a setting of one of RecBole's models


@cache
def declared(model: str | None = None) -> Mapping[str, Acts]:
    """Declarations by setting.

    Args:
        model: the model; None for the settings of all models, with LLMRec's declarations first.

    Raises:
        TypeError: a field has no declaration.
    """
    found = {**_of_class(RecBoleModelSettings), **_of_class(RecBoleSettings)}
    kinds = [kind for name, kind in LANGUAGE_MODELS.items() if model in (None, name)]
    for kind in reversed(kinds):
        found |= _of_class(kind)
    return found


def acts(key: str, model: str | None = None) -> Acts:
    """Declaration of a setting; undeclared ones, of RecBole's models, change results."""
    return declared(model).get(key, _OTHER)


@cache
def _of_class(kind: type) -> Mapping[str, Acts]:
    return {name: _declaration(name, hint) for name, hint in _hints(kind).items()}


def _hints(kind: Any) -> dict[str, Any]:
    names = getattr(kind, "model_fields", None)
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint for name, hint in hints.items() if names is None or name in names}


def _declaration(name: str, hint: Any) -> Acts:
    written = [each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Acts)]
    if written:
        return written[-1]
    if any(name in loss.options for loss in LOSSES.values()):
        return Acts("preference", (of_losses(name), *EPOCHS))
    raise TypeError(f"the field {name} does not declare what it acts on: Annotated[..., Acts(...)]")


@cache
def text_settings() -> frozenset[str]:
    """Settings whose value is always text, even if it looks like a number: type `str`, or None."""
    kinds = [RecBoleSettings, *LANGUAGE_MODELS.values()]
    return frozenset(
        name for kind in kinds for name, hint in _hints(kind).items() if _is_text(hint)
    )


def _is_text(hint: Any) -> bool:
    if get_origin(hint) is Annotated:
        return _is_text(get_args(hint)[0])
    if get_origin(hint) in (Union, UnionType):
        return all(each is type(None) or _is_text(each) for each in get_args(hint))
    return hint is str


def in_run(settings: Mapping[str, Any], typed: LLMRecSettings | None = None) -> Given:
    """Wrap the settings of a run for conditions.

    Args:
        settings: all settings, at least those that a run stores.
        typed: a language model's settings; None to make them from `settings`.
    """
    kind = LANGUAGE_MODELS.get(str(settings.get("model")))
    if typed is None and kind is not None:
        own = {key: settings[key] for key in kind.model_fields if key in settings}
        lists = {key: tuple(value) for key, value in own.items() if isinstance(value, list)}
        typed = kind.model_construct(**{**own, **lists})
    return Given(settings, typed)


def idle(settings: Given, keys: Iterable[str], model: str | None = None) -> set[str]:
    """Select the settings without effect in a run."""
    return {key for key in keys if acts(key, model).failing(settings)}


def idle_problems(settings: Given, keys: Iterable[str], model: str | None = None) -> list[str]:
    """Describe settings without effect: one sentence per cause, with a remedy.

    Args:
        settings: settings of a run.
        keys: settings of the command line. A file may describe several runs, so its settings may
            have no effect on some.
        model: the run's model.
    """
    groups: dict[tuple[str, str], list[str]] = {}
    for key in sorted(keys):
        failing = acts(key, model).failing(settings)
        if failing and not acts(key, model).limit:
            cause = failing[0].found(settings), _remedy(key, settings, model)
            groups.setdefault(cause, []).append(key)
    return [
        f"{', '.join(keys)}: no effect {found}. {remedy}"
        for (found, remedy), keys in groups.items()
    ]


def _remedy(key: str, settings: Given, model: str | None) -> str:
    """Remedy for a setting without effect: another setting, or changes of other settings."""
    acting, changed = acts(key, model), settings
    changes: dict[str, Any] = {}
    verbs: set[str] = set()
    for condition in acting.when:
        if condition.fails(changed):
            changes |= condition.remedy(changed)
            changed = settings.with_changes(changes)
            verbs.add(condition.verb)
    arguments = [
        f'--{name}="{value}"' if isinstance(value, dict) else f"--{name}={value}"
        for name, value in changes.items()
    ]
    ways = [" ".join(arguments)] if arguments else []
    instead = declared(model).get(acting.instead or "")
    if instead is not None and not instead.failing(settings):
        ways, verbs = [f"--{acting.instead}", *ways], {"Use"}
    if not ways:
        return "Leave it out."
    verb = next(verb for verb in ("Use it with", "Use", "Add") if verb in verbs)
    return f"{verb} {', or '.join(ways)}, or leave it out."
