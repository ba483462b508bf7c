"""Mistakes in settings as sentences: the setting, what is allowed, what was given."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from pydantic import TypeAdapter, ValidationError


def type_problems(
    adapter: TypeAdapter[Any], values: Mapping[str, Any], origins: Mapping[str, str]
) -> list[str]:
    """What is wrong with the values when compared with a type.

    Args:
        adapter: of a pydantic model or TypedDict, one field per setting.
        values: the settings; keys are those of the type.
        origins: where a setting was set, for the message; may lack keys.

    Returns:
        One sentence per problem: the setting, where it was set, what is allowed, what was given.
    """
    try:
        adapter.validate_python(dict(values))
    except ValidationError as error:
        schema = adapter.json_schema()
        problems: dict[str, None] = {}  # a dict keeps the order and drops repeated messages
        for detail in error.errors():
            key = str(detail["loc"][0])
            origin = f" ({origins[key]})" if key in origins else ""
            problems[f"{key}{origin}: {_problem(detail, values, schema)}"] = None
        return list(problems)
    return []


def listed(problems: Iterable[str]) -> str:
    """One problem as it is; several as a list under a heading."""
    problems = list(problems)
    if len(problems) == 1:
        return problems[0]
    return f"{len(problems)} settings are wrong:\n" + "\n".join(f"- {text}" for text in problems)


def nearest(name: str, valid: Iterable[str]) -> str:
    """`; did you mean a or b?` for a mistyped name, empty text where nothing is similar."""
    by_lower = {candidate.lower(): candidate for candidate in valid}
    close = get_close_matches(name.lower().replace("-", "_"), by_lower, n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(by_lower[match] for match in close)}?" if close else ""


def _problem(detail: Any, value: Any, schema: dict[str, Any]) -> str:
    """What is wrong at the innermost named place that the error's path leads to."""
    root, path = schema, []
    for name in detail["loc"]:
        branch = _object_branch(schema, root)
        if not isinstance(value, Mapping) or name not in branch.get("properties", {}):
            break
        path.append(str(name))
        if name not in value:  # a required key is missing
            return f"needs the key {name!r}, {describe(branch['properties'][name], root)}"
        schema, value = branch["properties"][name], value[name]
    if detail["type"] == "extra_forbidden":
        unknown = str(detail["loc"][-1])
        keys = _object_branch(schema, root).get("properties", {})
        return (
            f"has no key {unknown!r}{nearest(unknown, keys) or '; its keys are ' + ', '.join(keys)}"
        )
    where = f"{'.'.join(path[1:])} " if len(path) > 1 else ""
    hint = nearest(value, schema.get("enum", [])) if isinstance(value, str) else ""
    return f"{where}must be {describe(schema, root)}, got {value!r}{hint}"


def _object_branch(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """The mapping among a schema's alternatives, references followed; else the schema itself."""
    if "$ref" in schema:
        return _object_branch(root["$defs"][schema["$ref"].rsplit("/", 1)[1]], root)
    for branch in schema.get("anyOf", []):
        found = _object_branch(branch, root)
        if "properties" in found:
            return found
    return schema


def describe(schema: dict[str, Any], root: dict[str, Any]) -> str:
    """A JSON schema in words: `an integer of at least 0`, `one of sft, dpo`, `a list of text`."""
    if "$ref" in schema:
        schema = _object_branch(schema, root)
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(describe(branch, root) for branch in schema["anyOf"]))
    if "enum" in schema:
        return "one of " + ", ".join(map(str, schema["enum"]))
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type")
    if kind in ("integer", "number"):
        return f"{'an integer' if kind == 'integer' else 'a number'}{_range(schema)}"
    if kind == "array":
        least, most = schema.get("minItems", 0), schema.get("maxItems")
        size = f" of {least} entries" if least == most else " that is not empty" if least else ""
        return f"a list{size}, each {describe(schema['items'], root)}"
    if kind == "object" and "properties" in schema:
        return f"a mapping with the keys {', '.join(schema['properties'])}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"a mapping from a name to {describe(schema['additionalProperties'], root)}"
    if kind == "string" and "examples" in schema:
        return "text such as " + " or ".join(map(str, schema["examples"]))
    names = {"boolean": "True or False", "string": "text", "object": "a mapping", "null": "~"}
    return names.get(str(kind), "a value")


def _range(schema: dict[str, Any]) -> str:
    words = {
        "minimum": "of at least",
        "exclusiveMinimum": "greater than",
        "maximum": "of at most",
        "exclusiveMaximum": "less than",
    }
    bounds = [f"{word} {schema[name]:g}" for name, word in words.items() if name in schema]
    return f" {' and '.join(bounds)}" if bounds else ""
