"""Cache of passed backbone probes: one small file each, in the user's cache folder.

Failed probes are not stored. If a file is damaged or cannot be written, the probe runs again.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from recbole_multdpo.runtime.durable_files import write_atomically
from recbole_multdpo.settings.backbone_folder import cache_root

_LIBRARIES = ("torch", "transformers", "peft")
MIN_SECONDS = 1.0  # faster probes get no file
# files of the probes that passed in this process, written or not
_passed_here: set[Path] = set()


def has_passed(probe: Mapping[str, Any]) -> bool:
    """True if this probe has passed with the same libraries and code."""
    description = _with_versions(probe)
    file = _file(description)
    if file in _passed_here:
        return True
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("passed") == description


def record_pass(probe: Mapping[str, Any], seconds: float) -> None:
    """Store that a probe has passed, and that it took `seconds`."""
    description = _with_versions(probe)
    file = _file(description)
    _passed_here.add(file)
    if seconds < MIN_SECONDS:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({"passed": description, "seconds": round(seconds, 1)}))
    except OSError:
        return  # the next run probes again


def _with_versions(probe: Mapping[str, Any]) -> dict[str, str]:
    versions = {library: version(library) for library in _LIBRARIES}
    described = {**probe, **versions, "machine": platform.machine(), "code": _code()}
    return {key: str(value) for key, value in described.items()}


def _file(description: Mapping[str, str]) -> Path:
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    return cache_root() / "probes" / f"{key[:32]}.json"


@cache
def _code() -> str:
    """SHA-256 of the code that scores and probes, which can change without the version number."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in ("model", "scoring"):
        for file in sorted((package / folder).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
