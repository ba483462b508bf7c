"""The protocol of an evaluation: by its name, deviations from it, and in words.

What a named protocol sets is in `properties/protocol`, one file each; `layers.py` reads it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_multdpo.settings.layers import protocol_names, protocol_settings

PROTOCOL = "protocol"
# RecBole's metrics of lists alone: adding one is no other protocol
_OF_LISTS = frozenset(
    "itemcoverage averagepopularity shannonentropy giniindex tailpercentage".split()
)
_LEAVE_ONE_OUT = {
    "valid_and_test": "the last row of a user is for test, the one before for validation",
    "valid_only": "the last row of a user is for validation",
    "test_only": "the last row of a user is for test",
}
_CANDIDATES = {"uni": "drawn uniformly", "pop": "drawn by popularity", "total": "in total"}


def protocol_in_words(settings: Mapping[str, Any], lists: Mapping[str, Any] | None = None) -> str:
    """Name, positives, split and candidates of a run; what is not known is left out.

    Args:
        settings: the run's settings.
        lists: `candidate_lists` of its `result.json`, if it has them.
    """
    arguments = settings.get("eval_args") or {}
    candidates = _candidates(arguments) if lists is None else lists_in_words(lists)
    parts = [_positives(settings), _split(settings, arguments), candidates]
    return "; ".join(part for part in [named_protocol(settings), *parts] if part)


def named_protocol(settings: Mapping[str, Any]) -> str:
    """Name and deviations, such as `leave_one_out, but topk [10]`; empty without a name.

    Args:
        settings: final or saved settings of a run.
    """
    name = settings.get(PROTOCOL)
    if not name:
        return ""
    differing = [f"{key} {_shown(value)}" for key, value in deviations(settings).items()]
    return f"{name}{', but ' if differing else ''}{', '.join(differing)}"


def deviations(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a run that are not those of its protocol, by key; a part as `eval_args.split`.

    A key that the run's model does not have is no deviation. Metrics and cut-offs are compared as
    sets, and further metrics of lists alone, such as ItemCoverage, change no protocol.

    Args:
        settings: final or saved settings of a run. A protocol that this version does not know, in
            a folder from elsewhere, has none.
    """
    name = settings.get(PROTOCOL)
    if name not in protocol_names():
        return {}
    wanted, own = _flat(protocol_settings(name)), _flat(settings)
    wanted.setdefault("candidate_lists", None)  # lists take the place of the protocol's candidates
    return {
        key: own[key]
        for key, value in wanted.items()
        if key in own and _comparable(key, own[key]) != _comparable(key, value)
    }


def _flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Copy with the parts of `eval_args` as keys of their own."""
    found: dict[str, Any] = {}
    for key, value in settings.items():
        parts = value if key == "eval_args" and isinstance(value, Mapping) else None
        found |= {key: value} if parts is None else {f"{key}.{part}": parts[part] for part in parts}
    return found


def _comparable(key: str, value: Any) -> Any:
    if key in ("metrics", "topk"):
        values = value if isinstance(value, list | tuple) else [value]
        return {str(each).lower() for each in values} - _OF_LISTS
    if key == "valid_metric":
        return str(value).lower()
    return value


def _shown(value: Any) -> str:
    """A value without the quotes of Python: `[NDCG, MRR]`."""
    return str(value).replace("'", "")


def protocol_problems(settings: Mapping[str, Any]) -> list[str]:
    """Reasons why the data set of a run cannot serve its protocol, one sentence each.

    Args:
        settings: final settings of the right types.
    """
    name = settings.get(PROTOCOL)
    if not name:
        return []
    own = f"{PROTOCOL}={name}"
    files = settings.get("benchmark_filename")
    if files:
        return [
            f"{own} splits the data itself, and {settings['dataset']} comes in ready parts "
            f"(benchmark_filename={files}), whose split is its protocol. Leave {PROTOCOL} out."
        ]
    wanted = protocol_settings(name)
    if settings["context"] == "conversation":
        return [
            f"{own} is about histories of users, and {settings['dataset']} has conversations "
            f"(context=conversation). Leave {PROTOCOL} out."
        ]
    needed = {
        field: f"limits {field} (val_interval {limits})"
        for field, limits in (wanted.get("val_interval") or {}).items()
        if field in (settings.get("val_interval") or {})
    }
    if settings["eval_args"]["order"] == "TO" and wanted["eval_args"]["order"] == "TO":
        needed[settings["TIME_FIELD"]] = "is in order of time (eval_args order TO)"
    columns = settings.get("load_col") or {}
    loaded = columns.get("inter", "*")
    missing = [] if loaded == "*" else [field for field in needed if field not in loaded]
    return [
        f"{own} {needed[field]}, and load_col of {settings['dataset']} has no {field}. If its "
        f".inter file has that column, add --load_col="
        f'"{ {**columns, "inter": [*loaded, field]} }"; otherwise use another protocol, or none.'
        for field in missing
    ]


def lists_in_words(lists: Mapping[str, Any]) -> str:
    """Size and origin of candidate lists, `candidate_lists` of a `result.json`."""
    shortest, longest = lists["shortest"], lists["longest"]
    size = f"{longest:,}" if shortest == longest else f"{shortest:,} to {longest:,}"
    words = f"{size} candidates of each user, from {lists['file']}"
    found, users = lists["users_with_target"], lists["users"]
    if found < users:
        words += f", which have a test item of {found:,} of {users:,} users"
    return words


def _positives(settings: Mapping[str, Any]) -> str:
    interval = settings.get("val_interval") or {}
    if not isinstance(interval, Mapping):
        return f"positives: {interval}"
    named = " and ".join(f"{field} in {values}" for field, values in interval.items())
    return f"positives: {named or 'all interactions'}"


def _split(settings: Mapping[str, Any], arguments: Mapping[str, Any]) -> str:
    files = settings.get("benchmark_filename")
    if files:
        return f"split of the files {', '.join(map(str, files))}"
    split = arguments.get("split")
    if not isinstance(split, Mapping) or not split:
        return ""
    kind, value = next(iter(split.items()))
    by_user = " of each user's rows" if arguments.get("group_by") == "user" else ""
    if kind == "LS":
        return _LEAVE_ONE_OUT.get(value, f"leave-one-out {value}")
    if kind == "TS":
        return f"split{by_user} at points of time, {value}"
    order = " in order of time" if arguments.get("order") == "TO" else " at random"
    total = sum(value)
    shares = " / ".join(f"{100 * share / total:.4g}" for share in value)
    return f"split{by_user}{order}, {shares} %"


def _candidates(arguments: Mapping[str, Any]) -> str:
    mode = arguments.get("mode")
    of_test = mode.get("test") if isinstance(mode, Mapping) else mode
    if of_test is None:
        return ""
    if of_test == "full":
        return "all items are ranked"
    number = str(of_test).lstrip("abcdefghijklmnopqrstuvwxyz")
    kind = _CANDIDATES.get(str(of_test).removesuffix(number))
    return f"{number} candidates {kind}" if kind and number else f"candidates: {of_test}"


def lists_key(result: Mapping[str, Any]) -> str:
    """Candidate lists of a `result.json` in words, with their fingerprint; "" without lists."""
    lists = result.get("candidate_lists")
    return f"{lists_in_words(lists)} ({lists['fingerprint']})" if lists else ""
