"""Settings that run foreign code or send data away: refused in files, allowed on the command line.

Run folders, experiments and settings files may come from anybody. These settings count only if the
person who starts the command gives them on its command line, or a Python caller as an argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.effects import declared
from recbole_multdpo.settings.text import parse_literal

# effect by setting
ASKED_FOR = {key: acting.asked for key, acting in declared().items() if acting.asked}


def check_asked(settings: Mapping[str, Any], origin: object, asked: Mapping[str, Any]) -> None:
    """Refuse a file that turns on one of `ASKED_FOR` without the command line.

    Args:
        settings: content of the file; it is searched at any depth, for `name.key` too.
        origin: the file, for the message.
        asked: settings of the command line, which override a plain key of the file. A key of a
            single system (`name.key`, or deeper) would override them, so it must be set there too.

    Raises:
        ConfigError: the file turns one on.
    """
    for key, value in _mappings(settings):
        name = key.rpartition(".")[2]
        if name not in ASKED_FOR or not _is_on(value) or asked.get(name):
            continue
        if name not in asked or settings.get(name) is not value:
            raise ConfigError(
                f"{key} ({origin}): is not taken from a file, as it {ASKED_FOR[name]}. Where you "
                f"trust who wrote it, add --{name}=True to the command, else remove it there."
            )


def _mappings(settings: Any) -> Iterator[tuple[str, Any]]:
    """Every key with its value, in mappings at any depth and in pairs."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            yield str(key), value
            yield from _mappings(value)
    elif isinstance(settings, list | tuple):
        if len(settings) == 2 and isinstance(settings[0], str):
            yield settings[0], settings[1]
        for value in settings:
            yield from _mappings(value)


def _is_on(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_is_on, value))
    if not isinstance(value, str):
        return bool(value)
    try:
        return bool(parse_literal(value))
    except ValueError:
        return True
