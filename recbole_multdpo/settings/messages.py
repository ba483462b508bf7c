"""Errors in settings as sentences with the setting, its origin, the allowed and given values."""

import re
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from pydantic import TypeAdapter, ValidationError

# pydantic's words, and those for settings files
_WORDS = {
    "should": "must",
    "a valid boolean": "True or False",
    "a valid integer": "an integer",
    "a valid dictionary": "a mapping",
    "a valid tuple": "a list",
    "a valid string": "text",
    "valid ": "",
    " after validation": "",
}


def type_problems(
    adapter: TypeAdapter[Any], values: Mapping[str, Any], origins: Mapping[str, str]
) -> list[str]:
    """Check values against their declared types; one sentence per error, in pydantic's words.

    Args:
        adapter: adapter of a pydantic model or TypedDict, with one field per setting.
        values: the settings, with the type's keys.
        origins: origin of each setting, for the message; may lack keys.
    """
    try:
        adapter.validate_python(dict(values))
    except ValidationError as error:
        found: dict[tuple[str, ...], dict[str, Any]] = {}  # an error per alternative of a union
        for detail in error.errors():
            found.setdefault(_place(detail["loc"], values), {})[_message(detail, adapter)] = detail
        return [
            f"{key}{f' ({origins[key]})' if key in origins else ''}: "
            f"{'.'.join(inner)}{' ' if inner else ''}{' or '.join(messages)}"
            f"{_given(list(messages.values()))}"
            for (key, *inner), messages in found.items()
        ]
    return []


def _place(location: Sequence[str | int], value: Any) -> tuple[str, ...]:
    """Path of keys and indices in the values; pydantic puts the names of types between them."""
    path = []
    for name in location[:-1]:
        is_index = isinstance(name, int) and isinstance(value, list | tuple)
        if is_index or (isinstance(value, Mapping) and name in value):
            path.append(str(name))
            value = value[name]
    last = location[-1]
    is_index = isinstance(last, int) and isinstance(value, list | tuple)
    if is_index or (isinstance(value, Mapping) and (last in value or not path)):
        path.append(str(last))
    return tuple(path)


def _message(detail: Any, adapter: TypeAdapter[Any]) -> str:
    name = str(detail["loc"][-1])
    if detail["type"] == "missing":
        return f"needs the key {name!r}"
    if detail["type"] == "extra_forbidden":
        schema = adapter.json_schema()
        mappings = [schema] if len(detail["loc"]) == 1 else schema["$defs"].values()
        known = {key for mapping in mappings for key in mapping.get("properties", {})}
        return f"is no key that exists{nearest(name, known)}"
    message = re.sub(r"^(Input|String|Tuple|List|Dictionary) ", "", detail["msg"])
    for word, ours in _WORDS.items():
        message = message.replace(word, ours)
    return message


def _given(details: Sequence[Any]) -> str:
    """The given value, with a suggestion if it looks misspelt."""
    given = details[0]["input"]
    if details[0]["type"] in ("missing", "extra_forbidden"):
        return ""
    allowed = " ".join(detail.get("ctx", {}).get("expected", "") for detail in details)
    hint = nearest(given, re.findall(r"'([^']*)'", allowed)) if isinstance(given, str) else ""
    return f", got {given!r}{hint}"


def listed(problems: Iterable[str]) -> str:
    """Join problems: a single one as it is, several as a list under a heading."""
    problems = list(problems)
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} settings are wrong:\n" + "\n".join(f"- {text}" for text in problems)


def nearest(name: str, valid: Iterable[str]) -> str:
    """`; did you mean a or b?` for a mistyped name, empty if nothing is similar."""
    by_lower = {candidate.lower(): candidate for candidate in valid}
    close = get_close_matches(name.lower().replace("-", "_"), by_lower, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(by_lower[match] for match in close)}?" if close else ""
