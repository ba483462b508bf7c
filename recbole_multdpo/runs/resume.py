"""Find the run that `--resume` continues, check its settings, and pick its checkpoint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_multdpo.errors import CheckpointError, ConfigError, MultDPOError
from recbole_multdpo.runs.checkpoint import check_checkpoint, step_folders
from recbole_multdpo.runs.folder import CONFIG_FILE, LOG_FILE, is_finished, is_in_use
from recbole_multdpo.runtime.durable_files import restore_all_interrupted
from recbole_multdpo.settings.config import Config, settings_of_run
from recbole_multdpo.settings.effects import acts
from recbole_multdpo.settings.hardware import FLOAT32
from recbole_multdpo.settings.layers import AUTO

REFIT = "refit-"  # before the names of the stages of `test_information=refit`
STAGES = ("sft", "preference", REFIT + "sft", REFIT + "preference")

BACKBONE_SETTING = "backbone"
_REQUIRED_STATE = ("settings", "logs")


@dataclass(frozen=True)
class ResumePoint:
    """Checkpoint from which a run continues.

    Attributes:
        stage: one of `STAGES`; stages before it are finished.
        folder: the checkpoint.
        state: contents of its `state.json`.
    """

    stage: str
    folder: Path
    state: Mapping[str, Any]


def may_change(key: str, settings: Mapping[str, Any]) -> bool:
    """True if a resumed run may have another value of a setting.

    That is so of what changes neither the data nor, up to rounding, the weights: what is logged and
    kept, the machine, where files lie, caches, how much is computed at once. That moved data are
    the same data is what their fingerprints say.
    """
    return acts(key, str(settings.get("model"))).may_change


def settings_hash(settings: Mapping[str, Any], *, as_before: bool = False) -> str:
    """Hash of the settings that a resumed run may not change, 16 hexadecimal digits.

    Args:
        settings: of a run.
        as_before: the hash that version 0.1 kept, in whose runs fewer settings might change.
    """
    model = str(settings.get("model"))
    fixed = {
        key: value
        for key, value in settings.items()
        if not may_change(key, settings) or (as_before and acts(key, model).fixed_before)
    }
    text = json.dumps(fixed, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_unchanged(
    folder: Path,
    saved: Mapping[str, Any],
    current: Mapping[str, Any],
    *,
    backbone_moved: bool = False,
) -> None:
    """Refuse to continue a run under settings that would make it another run.

    Args:
        folder: the run, for the message.
        saved: its settings.
        current: the settings to continue with.
        backbone_moved: allow another name of the backbone; its fingerprint is compared elsewhere.

    Raises:
        ConfigError: a setting differs; both values are shown.
    """
    differing = [
        f"{key}: {saved.get(key)!r} there, {current.get(key)!r} now"
        for key in changed_settings(saved, current)
        if not (backbone_moved and key == BACKBONE_SETTING)
    ]
    if differing:
        raise ConfigError(
            f"--resume={folder} continues a run as it was, but settings differ: "
            f"{'; '.join(differing)}. Leave them out, or start a new run without --resume."
        )


def changed_settings(saved: Mapping[str, Any], current: Mapping[str, Any]) -> list[str]:
    """Names of the settings that differ and may not change on resume.

    A setting missing from `saved` was added by a later version; it does not count.

    Args:
        saved: settings of a run that was started.
        current: settings to compare them with.
    """
    return [
        key
        for key in sorted(saved)
        if not may_change(key, saved) and _as_json(saved[key]) != _as_json(current.get(key))
    ]


def _as_json(value: Any) -> str:
    """Text in which equal values are equal: versions before 0.2 kept `1` where `1.0` is meant."""
    return json.dumps(_with_floats(value), sort_keys=True, default=str)


def _with_floats(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _with_floats(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_with_floats(each) for each in value]
    return float(value) if type(value) is int else value


def resolve_resume(config: Config) -> str | None:
    """Replace `--resume=auto` by a run folder or None, and refuse changed settings.

    Returns:
        The folder to continue; None for a new run.

    Raises:
        ConfigError: a setting differs from the folder's; both values are shown.
    """
    if config["resume"] == AUTO:
        found = _newest_unfinished(config)
        config["resume"] = None if found is None else str(found)
        what = "no unfinished run of these settings, a new one begins"
        config.notes.append(f"--resume=auto: {what if found is None else found}")
    if config["resume"]:
        folder = Path(config["resume"])
        saved = settings_of_run(folder)
        # the checkpoint has a fingerprint of the backbone, which is compared instead of its name
        finished = is_finished(folder, tested=config["final_test"])
        has_fingerprint = not finished and _has_checkpoints(folder)
        current = _continuing(config, saved)
        check_unchanged(folder, saved, current, backbone_moved=has_fingerprint)
        added = _added(saved, current, config.set_by_user)
        if added:
            raise ConfigError(
                f"--resume={folder} continues a run that was started before {', '.join(added)} "
                "could be set. Leave it out, or start a new run without --resume."
            )
    resume: str | None = config["resume"]
    return resume


def run_dtype(config: Config, folder: str | None) -> str | None:
    """The `dtype` to run with: the configuration's, or the run's if it was `auto`.

    Args:
        config: the configuration; None is returned for a model of RecBole.
        folder: the run to continue; None for a new one.
    """
    if folder is None:
        current = config.to_dict()
    else:
        current = _continuing(config, settings_of_run(Path(folder)))
    return current.get("dtype")


def _continuing(config: Config, saved: Mapping[str, Any]) -> dict[str, Any]:
    """The settings to continue a run with: `dtype: auto` is the run's type, on any machine."""
    current = config.to_dict()
    if config.dtype_choice is not None:
        current["dtype"] = saved.get("dtype", FLOAT32)
    return current


def _added(
    saved: Mapping[str, Any], current: Mapping[str, Any], set_by_user: set[str]
) -> list[str]:
    """Settings of a later version than the run, set by the user, that may not change on resume."""
    added = (current.keys() - saved.keys()) & set_by_user
    return sorted(key for key in added if not may_change(key, current))


def _has_checkpoints(folder: Path) -> bool:
    return any(step_folders(folder / "checkpoints" / stage) for stage in STAGES)


def _newest_unfinished(config: Config) -> Path | None:
    """Most recently active unfinished run of these settings: `run_dir`, else in `checkpoint_dir`.

    Runs that are finished or in use by another process are skipped, unless `run_dir` names them.
    """
    if config["run_dir"] is not None:
        folder = Path(config["run_dir"])
        return folder if (folder / CONFIG_FILE).is_file() else None
    parent, tested = Path(config["checkpoint_dir"]), config["final_test"]
    found = []
    for folder in parent.iterdir() if parent.is_dir() else ():
        try:
            if not (folder / CONFIG_FILE).is_file() or is_finished(folder, tested=tested):
                continue
            saved = settings_of_run(folder)
        except MultDPOError as error:
            config.warnings.append(f"--resume=auto skips {folder}: {error}")
            continue
        # data of the same name in another place may differ: to use moved data, name the run folder
        wanted = _continuing(config, saved)
        same = saved.get("data_path") == wanted["data_path"] and not (
            changed_settings(saved, wanted) or _added(saved, wanted, config.set_by_user)
        )
        if same and not is_in_use(folder):
            log = folder / LOG_FILE
            last_active = log if log.exists() else folder / CONFIG_FILE
            found.append((last_active.stat().st_mtime_ns, folder))
    return max(found)[1] if found else None


def find_resume_point(checkpoints: Path) -> ResumePoint | None:
    """Newest intact checkpoint of a run; damaged ones are skipped with a warning.

    Args:
        checkpoints: the folder with one folder per stage. No other process may write there.

    Returns:
        None if no checkpoint was written yet.

    Raises:
        CheckpointError: there are checkpoints, but none is intact.
    """
    failures = []
    for stage in reversed(STAGES):
        restore_all_interrupted(checkpoints / stage)
        for folder in step_folders(checkpoints / stage):
            try:
                state = check_checkpoint(folder)
                missing = [name for name in _REQUIRED_STATE if name not in state]
                if missing:
                    raise CheckpointError(
                        f"{folder} is not a step of a run: its state has no {missing[0]}"
                    )
                return ResumePoint(stage, folder, state)
            except CheckpointError as error:
                getLogger().warning(f"{error}; trying the previous one")
                failures.append(str(error))
    if failures:
        raise CheckpointError(
            f"no checkpoint in {checkpoints} can be used: {'; '.join(failures)}. Remove the folder "
            "to start the run from scratch."
        )
    return None
