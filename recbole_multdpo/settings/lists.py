"""A single value where a setting takes a list: `--item_text_fields=title` is `[title]`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError

from recbole_multdpo.settings.language_models import LANGUAGE_MODELS
from recbole_multdpo.settings.recbole import RecBoleSettings


def with_lists(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Copy of settings in which a text or number that can only be a list's value is a list.

    The settings' types decide; a value that fits as it is, or not even as a list, is kept.
    """
    return {key: _as_list(key, value) for key, value in settings.items()}


def _as_list(key: str, value: Any) -> Any:
    scalars = (str, int, float)
    if isinstance(value, Mapping):  # such as the columns of each file in load_col
        tried: Any = {k: [v] if isinstance(v, str) and v != "*" else v for k, v in value.items()}
    elif isinstance(value, scalars) and not isinstance(value, bool):
        tried = [value]
    else:
        return value
    for kind in _kinds().get(key, ()):
        if _fits(kind, tried) and (key in _READ_AS_LISTS or not _fits(kind, value)):
            return tried
    return value


# fields whose type takes a text too, while what reads the raw settings takes a list
_READ_AS_LISTS = frozenset({"item_text_fields"})


def _fits(kind: TypeAdapter[Any], value: Any) -> bool:
    try:
        kind.validate_python(value)
    except ValidationError:
        return False
    return True


@cache
def _kinds() -> dict[str, list[TypeAdapter[Any]]]:
    """The types of every setting."""
    found: dict[str, list[TypeAdapter[Any]]] = {}
    for owner in (RecBoleSettings, *LANGUAGE_MODELS.values()):
        for key, hint in get_type_hints(owner, include_extras=True).items():
            if "list[" in str(hint) or "tuple[" in str(hint):
                config = ConfigDict(strict=True, allow_inf_nan=False)
                found.setdefault(key, []).append(TypeAdapter(hint, config=config))
    return found
