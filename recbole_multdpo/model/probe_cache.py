"""Which probes of a backbone have passed already: one small file each, in the user's cache folder.

Only what passed is kept. A file that is damaged, or cannot be written, costs the probe once more.
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

from recbole_multdpo.model.backbone import cache_root
from recbole_multdpo.runtime.durable_files import write_atomically

_LIBRARIES = ("torch", "transformers", "peft")
# a probe that took less is not worth a file
WORTH_KEEPING = 1.0
# files of what has passed in this process, written or not
_passed_here: set[Path] = set()


def has_passed(of: Mapping[str, Any]) -> bool:
    """Whether a probe of this description has passed with these versions of everything."""
    description = _described(of)
    file = _file(description)
    if file in _passed_here:
        return True
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("passed") == description


def note_passed(of: Mapping[str, Any], seconds: float) -> None:
    """Remember a probe that has passed and took `seconds`."""
    description = _described(of)
    file = _file(description)
    _passed_here.add(file)
    if seconds < WORTH_KEEPING:
        return
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps({"passed": description, "seconds": round(seconds, 1)}))
    except OSError:
        return  # the next start probes again


def _described(of: Mapping[str, Any]) -> dict[str, str]:
    versions = {library: version(library) for library in _LIBRARIES}
    described = {**of, **versions, "machine": platform.machine(), "code": _code()}
    return {key: str(value) for key, value in described.items()}


def _file(description: Mapping[str, str]) -> Path:
    key = hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()
    return cache_root() / "probes" / f"{key[:32]}.json"


@cache
def _code() -> str:
    """SHA-256 of the code that scores and probes, which a version number need not change with."""
    package = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for folder in ("model", "scoring"):
        for file in sorted((package / folder).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()
