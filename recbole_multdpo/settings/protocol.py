"""The protocol of an evaluation in words, for reports and model cards."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_LEAVE_ONE_OUT = {
    "valid_and_test": "the last row of a user is for test, the one before for validation",
    "valid_only": "the last row of a user is for validation",
    "test_only": "the last row of a user is for test",
}
_CANDIDATES = {"uni": "drawn uniformly", "pop": "drawn by popularity", "total": "in total"}


def protocol_in_words(settings: Mapping[str, Any]) -> str:
    """Positives, split and candidates of a run's settings; unknown ones are left out."""
    arguments = settings.get("eval_args") or {}
    parts = [_positives(settings), _split(settings, arguments), _candidates(arguments)]
    return "; ".join(part for part in parts if part)


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
