"""Which run `--resume` continues, whether it may, and from which of its checkpoints."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole_multdpo.errors import CheckpointError, ConfigError
from recbole_multdpo.runs.checkpoint import check_checkpoint, step_folders
from recbole_multdpo.runs.folder import CONFIG_FILE, LOG_FILE, RESULT_FILE, is_in_use
from recbole_multdpo.runtime.durable_files import restore_all_interrupted
from recbole_multdpo.settings.config import AUTO, Config, settings_of_run

REFIT = "refit-"  # before the names of the stages of `test_information=refit`
STAGES = ("sft", "preference", REFIT + "sft", REFIT + "preference")

# Settings that change neither the data nor, up to rounding, the weights: what is logged and kept,
# the machine, where files lie, caches, how much is computed at once, and what is never taken from a
# folder. That moved data are the same data is what their fingerprints say.
CHANGEABLE = frozenset(
    "show_progress state device use_gpu num_threads save_steps save_total_limit auto_batch"
    " gradient_accumulation_steps max_tokens_per_batch gradient_checkpointing score_batch_tokens"
    " rank_batch_users expand_per_step deepspeed trust_remote_code log_wandb wandb_project"
    " save_dataset save_dataloaders dataset_save_path dataloaders_save_path data_path worker"
    " sft_cache sft_cache_dir reference_cache linked_users".split()
)
BACKBONE_SETTING = "backbone"


_RESUMED = ("settings", "logs")  # what every checkpoint of a step has


@dataclass(frozen=True)
class ResumePoint:
    """Where a run goes on.

    Attributes:
        stage: one of `STAGES`; stages before it are finished.
        folder: the checkpoint.
        state: what its `state.json` holds.
    """

    stage: str
    folder: Path
    state: Mapping[str, Any]


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Hash of the settings that a resumed run may not change, 16 hexadecimal digits."""
    fixed = {key: value for key, value in settings.items() if key not in CHANGEABLE}
    text = json.dumps(fixed, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def check_unchanged(
    folder: Path,
    saved: Mapping[str, Any],
    present: Mapping[str, Any],
    *,
    backbone_moved: bool = False,
) -> None:
    """Refuse to continue a run under settings that would make it another run.

    Args:
        folder: the run, for the message.
        saved: its settings.
        present: those that it is to go on with.
        backbone_moved: whether the backbone's name may differ, as its fingerprint is compared.

    Raises:
        ConfigError: a setting differs; both values are shown.
    """
    differing = [
        f"{key}: {saved.get(key)!r} there, {present.get(key)!r} now"
        for key in changed_settings(saved, present)
        if not (backbone_moved and key == BACKBONE_SETTING)
    ]
    if differing:
        raise ConfigError(
            f"--resume={folder} continues a run as it was, but settings differ: "
            f"{'; '.join(differing)}. Leave them out, or start a new run without --resume."
        )


def changed_settings(saved: Mapping[str, Any], present: Mapping[str, Any]) -> list[str]:
    """Settings that make two runs different ones, by name.

    Settings that the saved ones lack are those of a later version, at their default.

    Args:
        saved: of a run that was begun.
        present: what they are compared with.
    """
    return [
        key
        for key in sorted(saved)
        if key not in CHANGEABLE and _plain(saved[key]) != _plain(present.get(key))
    ]


def _plain(value: Any) -> str:
    return json.dumps(value, sort_keys=True, default=str)


def settle_resume(config: Config) -> str | None:
    """Replace `--resume=auto` by a folder or None, which is returned; refuse changed settings.

    Raises:
        ConfigError: a setting differs from the folder's; both values are shown.
    """
    if config["resume"] == AUTO:
        found = _newest_unfinished(config)
        config["resume"] = None if found is None else str(found)
        what = "there is no unfinished run of these settings, a new one begins"
        config.warnings.append(f"--resume=auto: {what if found is None else found}")
    if config["resume"]:
        folder = Path(config["resume"])
        saved = settings_of_run(folder)
        # a checkpoint will say whether it is the same backbone
        is_kept = not (folder / RESULT_FILE).exists() and _has_checkpoints(folder)
        check_unchanged(folder, saved, config.to_dict(), backbone_moved=is_kept)
    resume: str | None = config["resume"]
    return resume


def _has_checkpoints(folder: Path) -> bool:
    return any(step_folders(folder / "checkpoints" / stage) for stage in STAGES)


def _newest_unfinished(config: Config) -> Path | None:
    """The run of these settings that was active last: in `run_dir`, else below `checkpoint_dir`.

    Finished runs and those that another process is busy with are no candidates, except that
    `run_dir` names the one to continue.
    """
    if config["run_dir"] is not None:
        folder = Path(config["run_dir"])
        return folder if (folder / CONFIG_FILE).is_file() else None
    parent = Path(config["checkpoint_dir"])
    wanted, data_path = settings_hash(config.to_dict()), config.to_dict()["data_path"]
    found = []
    for folder in parent.iterdir() if parent.is_dir() else ():
        if not (folder / CONFIG_FILE).is_file() or (folder / RESULT_FILE).exists():
            continue
        try:
            saved = settings_of_run(folder)
        except ConfigError as error:
            config.warnings.append(f"--resume=auto passes over {folder}: {error}")
            continue
        # other data of the same name may lie elsewhere: moved data want the folder's name
        same = settings_hash(saved) == wanted and saved.get("data_path") == data_path
        if same and not is_in_use(folder):
            log = folder / LOG_FILE
            last_active = log if log.exists() else folder / CONFIG_FILE
            found.append((last_active.stat().st_mtime_ns, folder))
    return max(found)[1] if found else None


def find_resume_point(checkpoints: Path) -> ResumePoint | None:
    """The newest whole checkpoint of a run; damaged ones are passed over with a warning.

    Args:
        checkpoints: the folder with one folder per stage. No other process may write there.

    Returns:
        None where no checkpoint was written yet.

    Raises:
        CheckpointError: there are checkpoints, and none is whole.
    """
    failures = []
    for stage in reversed(STAGES):
        restore_all_interrupted(checkpoints / stage)
        for folder in step_folders(checkpoints / stage):
            try:
                state = check_checkpoint(folder)
                lacking = [name for name in _RESUMED if name not in state]
                if lacking:
                    raise CheckpointError(f"{folder} is no step of a run: it has no {lacking[0]}")
                return ResumePoint(stage, folder, state)
            except CheckpointError as error:
                getLogger().warning(f"{error}; trying the one before")
                failures.append(str(error))
    if failures:
        raise CheckpointError(
            f"no checkpoint in {checkpoints} can be used: {'; '.join(failures)}. Remove the folder "
            "to begin the run anew."
        )
    return None
