"""Settings as text: YAML files, `--key=value` arguments and the literals in them.

Everything read here is data. Nothing is evaluated, no object is constructed from a tag: a value is
None, a bool, an int, a float, a str, or a list or mapping of these.
"""

import ast
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.runtime.reading import MB, plain, read_bytes

# options added by launchers; the rank is read from the environment instead
_LAUNCHER_KEYS = ("local_rank", "local-rank")

_FILE_LIMIT = MB // 8  # settings files have kilobytes; reading YAML is slow
# raised by the constructors of YAML for a value that does not fit its tag
_YAML_ERRORS = (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, RecursionError)
_MERGED_KEYS = 10_000  # limit for a mapping: repeated merge keys grow exponentially


# Plain scalars, in one table for reading and writing, so that output reads back unchanged: YAML 1.1
# as RecBole reads it, with RecBole's floats (1e-4 is a number) and Python's None, without base-60
# numbers, leading-zero octal numbers and dates.
_Resolvers = dict[str, list[tuple[str, re.Pattern[str]]]]
_SCALARS = (
    (
        "bool",
        r"yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF|true|True|TRUE|false|False|FALSE",
        "yYnNoOtTfF",
    ),
    ("null", r"~|null|Null|NULL|None|", ["~", "n", "N", ""]),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F_]+)", "-+0123456789"),
    (
        "float",
        r"[-+]?[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+"
        r"|[-+]?\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("merge", r"<<", "<"),
)


class SettingsLoader(yaml.SafeLoader):
    """YAML reader for settings: safe types only; a duplicate key is an error."""

    yaml_implicit_resolvers: _Resolvers = {}

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Replace `<<` by the merged mappings, within limits."""
        n_before = len(node.value)
        super().flatten_mapping(node)
        if len(node.value) - n_before > _MERGED_KEYS:
            raise yaml.constructor.ConstructorError(
                None, None, f"more than {_MERGED_KEYS:,} keys are merged", node.start_mark
            )

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse duplicate keys, of which YAML would silently keep the last one."""
        seen: set[str] = set()
        for key_node, _ in node.value:
            key = getattr(key_node, "value", None)
            if not isinstance(key, str) or key_node.tag == "tag:yaml.org,2002:merge":
                continue
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is written twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


class SettingsDumper(yaml.SafeDumper):
    """YAML writer that quotes text which `SettingsLoader` would read as another type."""

    yaml_implicit_resolvers: _Resolvers = {}

    def ignore_aliases(self, data: Any) -> bool:
        """Write every value in full, without anchors."""
        return True


for _tag, _pattern, _first in _SCALARS:
    for _class in (SettingsLoader, SettingsDumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})$"), list(_first)
        )


def parse_literal(text: str) -> Any:
    """Parse one value as RecBole users write it, without evaluating anything.

    A list, mapping, tuple or quoted text may be written in Python's or in YAML's flow syntax; a
    tuple becomes a list. Any other text is one YAML scalar: 5, 1e-4, True, ~, None, or itself.
    Text that is not a literal stays text, as in RecBole: `[4,inf)` is an interval, `f(x)` a name.

    Args:
        text: the value as written.

    Returns:
        None, bool, int, float, str, or a list or mapping of these. Empty text stays empty text.

    Raises:
        ValueError: a YAML mapping has a duplicate key, or lacks the space after a colon, so that
            `{max_norm:1.0}` would mean a key "max_norm:1.0" without a value; or `plain` refuses it.
    """
    try:
        return plain(_literal(text))
    except TypeError as error:
        raise ValueError(str(error)) from None


def _literal(text: str) -> Any:
    """See `parse_literal`."""
    stripped = text.strip()
    if not stripped:
        return ""
    if stripped[0] not in "[{(\"'":
        return _parse_scalar(stripped, text)
    try:
        return plain(ast.literal_eval(stripped))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass  # not Python; perhaps YAML
    if stripped[0] == "(":
        return text
    try:
        value = plain(yaml.load(stripped, Loader=SettingsLoader))
    except yaml.constructor.ConstructorError as error:
        if error.problem and "written twice" in error.problem:
            raise ValueError(error.problem) from None
        return text
    except (yaml.YAMLError, *_YAML_ERRORS):
        return text
    _check_colons(value)
    return value


def _parse_scalar(stripped: str, text: str) -> Any:
    """Parse a single YAML scalar; text that YAML would cut at a comment or a colon stays whole."""
    loader = SettingsLoader("")
    try:
        tag = loader.resolve(yaml.ScalarNode, stripped, (True, False))
        if tag == "tag:yaml.org,2002:str" or tag == "tag:yaml.org,2002:merge":
            return text
        return loader.construct_object(yaml.ScalarNode(tag, stripped))
    finally:
        loader.dispose()


def _check_colons(value: Any) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            if item is None and isinstance(key, str) and ":" in key:
                name, _, rest = key.partition(":")
                raise ValueError(f"a space must follow the colon: write {name}: {rest}")
            _check_colons(item)
    elif isinstance(value, list):
        for item in value:
            _check_colons(item)


def parse_setting(key: str, text: str) -> Any:
    """Call `parse_literal` for a named setting; settings of type text stay text (or None).

    `--dataset=100` names the data set "100", and RecBole wants an interval such as "[0,5]" as text,
    though it reads like a list.
    """
    from recbole_multdpo.settings.effects import text_settings  # takes seconds, with torch

    value = parse_literal(text)
    if value is not None and not isinstance(value, str) and key in text_settings():
        return text
    return value


def parse_command_line(argv: Sequence[str]) -> dict[str, Any]:
    """Read `--key=value` arguments; a value may contain spaces and further equals signs.

    `--local_rank=N`, which launchers append, is dropped.

    Args:
        argv: the arguments after the program's name.

    Returns:
        The settings in the order given.

    Raises:
        ConfigError: an argument is not of that form, or a key is given twice with different values.
    """
    texts: dict[str, str] = {}
    for position, argument in enumerate(argv):
        key, value = _split_argument(argument, argv[position + 1 : position + 2])
        if key in _LAUNCHER_KEYS:
            continue
        if key in texts and texts[key] != value:
            raise ConfigError(
                f"--{key} is given twice with different values ({texts[key]!r} and {value!r}). "
                "Keep one of them."
            )
        texts[key] = value
    settings = {}
    for key, value in texts.items():
        try:
            settings[key] = parse_setting(key, value)
        except ValueError as error:
            raise ConfigError(f"--{key}={value}: {error}") from None
    return settings


def _split_argument(argument: str, following: Sequence[str]) -> tuple[str, str]:
    """Split one argument into key and value text; the error shows the right form."""
    key, equals, value = argument.lstrip("-").partition("=")
    dashes = len(argument) - len(argument.lstrip("-"))
    if dashes == 2 and equals and key:
        return key, value
    if not dashes:
        form = "--key=value" if not equals or not key else f"--{argument}"
        raise ConfigError(
            f"cannot read the argument {argument!r}: write {form}. "
            'A value with spaces is quoted as a whole: --key="a b".'
        )
    if equals and key:
        raise ConfigError(f"cannot read the argument {argument!r}: write --{key}={value}.")
    example = following[0] if following and not following[0].startswith("-") else "value"
    raise ConfigError(
        f"cannot read the argument {argument!r}: write --{key or 'key'}={example}, "
        "with an equals sign and no space."
    )


def read_settings_file(path: Path) -> dict[str, Any]:
    """Read a YAML file of settings.

    Args:
        path: a UTF-8 file that holds one mapping from setting to value.

    Returns:
        The mapping, its values plain data.

    Raises:
        ConfigError: the file is missing, unreadable, empty, not UTF-8, not YAML, or not a mapping
            from names; the message has the file and, where there is one, the line.
    """
    try:
        data = read_bytes(path, _FILE_LIMIT)
    except FileNotFoundError:
        raise ConfigError(f"the settings file {path} does not exist.") from None
    except OSError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error.strerror}.") from None
    except ValueError as error:
        raise ConfigError(f"cannot read the settings file {path}: {error}.") from None
    try:
        settings = plain(yaml.load(data.decode("utf-8-sig"), Loader=SettingsLoader))
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError(f"{path}, line {line}: not UTF-8 text. Save the file as UTF-8.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = error.problem or error.context
        raise ConfigError(f"{path}, line {line}: not valid YAML: {problem}.") from None
    except yaml.reader.ReaderError as error:
        line = data.decode("utf-8-sig").count("\n", 0, error.position) + 1
        raise ConfigError(f"{path}, line {line}: a character that YAML does not allow.") from None
    except _YAML_ERRORS as error:
        raise ConfigError(f"{path}: holds a value that is no setting: {error}.") from None
    if settings is None:
        raise ConfigError(
            f"the settings file {path} is empty. Write lines of the form `key: value`."
        )
    if not isinstance(settings, dict):
        raise ConfigError(
            f"{path}, line 1: must be a mapping, lines of the form `key: value`, "
            f"got {type(settings).__name__}."
        )
    for key in settings:
        if not isinstance(key, str):
            raise ConfigError(f"{path}: a setting's name must be text, got {key!r}.")
    return settings


def dump_settings(settings: Mapping[str, Any]) -> str:
    """Settings as YAML text that `read_settings_file` reads back unchanged, in the given order."""
    return yaml.dump(
        dict(settings), Dumper=SettingsDumper, sort_keys=False, allow_unicode=True, width=100
    )
