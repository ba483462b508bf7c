"""The origin of a comparison's figures: data set, protocol, date, commands, versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from recbole_multdpo.comparison.plan import SAME_PROTOCOL
from recbole_multdpo.comparison.request import Member
from recbole_multdpo.runs.folder import CONFIG_FILE, RESULT_FILE, read_result
from recbole_multdpo.runtime.reading import is_file
from recbole_multdpo.settings.protocol import protocol_in_words
from recbole_multdpo.settings.text import read_settings_file


@dataclass(frozen=True)
class Origin:
    """The origin of a comparison's figures.

    Attributes:
        dataset: name of the data set.
        n_items: size of the catalogue; None in runs of old versions.
        protocol: positives, split and candidates in words.
        settings: the settings that are the same for all systems, key to the value's text.
        date: day of the last run, by the date of its file.
        command: the comparison's command; None if it was started by an old version.
        commands: system to the command of its first run.
        versions: package to its version, of the first run.
        hardware: CPU, cores, threads and GPUs of the first run.
    """

    dataset: str
    n_items: int | None = None
    protocol: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    command: str | None = None
    commands: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    hardware: str = ""


def read_origin(members: Sequence[Member], folder: Path, command: str | None) -> Origin:
    """The origin of finished runs in a comparison's folder.

    Args:
        members: the finished runs, one at least.
        folder: the comparison's folder.
        command: the comparison's command, if it is known.

    Raises:
        MultDPOError: a file of a run is damaged.
    """
    files = {member: folder / member.folder_name / RESULT_FILE for member in members}
    results = {member: read_result(file) for member, file in files.items()}
    first = results[members[0]]
    written = folder / members[0].folder_name / CONFIG_FILE
    settings = read_settings_file(written) if is_file(written) else {}
    last = max(file.stat().st_mtime for file in files.values())
    commands: dict[str, str] = {}
    for member, result in results.items():
        if "command" in result:
            commands.setdefault(member.system.name, str(result["command"]))
    return Origin(
        dataset=str(first.get("dataset", "unknown data set")),
        n_items=first.get("num_items"),
        protocol=protocol_in_words(settings, first.get("candidate_lists")) if settings else "",
        settings={key: str(settings[key]) for key in SAME_PROTOCOL if key in settings},
        date=datetime.fromtimestamp(last).strftime("%Y-%m-%d"),
        command=command,
        commands=commands,
        versions={name: str(version) for name, version in first.get("versions", {}).items()},
        hardware=_hardware(first.get("hardware")),
    )


def _hardware(found: Any) -> str:
    if not isinstance(found, Mapping):
        return ""
    named = [("cpu", "{}"), ("cores", "{} cores"), ("threads", "{} threads per process")]
    parts = [text.format(found[key]) for key, text in named if key in found]
    gpus = found.get("gpus")
    return ", ".join([*parts, *(map(str, gpus) if isinstance(gpus, list) else [])])
