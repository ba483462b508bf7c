"""Cache of the supervised stage, keyed by everything that determines its result."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.runs.checkpoint import (
    check_checkpoint,
    load_checkpoint,
    load_trainable_tensors,
)
from recbole_multdpo.runs.csv_log import copy_log
from recbole_multdpo.runs.folder import RESULT_FILE, read_result
from recbole_multdpo.runs.resume import REFIT
from recbole_multdpo.runs.step_log import (
    STEP_COLUMNS,
    STEPS_FILE,
    VALIDATION_COLUMNS,
    VALIDATIONS_FILE,
)
from recbole_multdpo.runtime.durable_files import atomic_folder, restore_interrupted
from recbole_multdpo.runtime.reading import plain
from recbole_multdpo.settings.acts import Part
from recbole_multdpo.settings.by_size import epochs_for
from recbole_multdpo.settings.config import Config
from recbole_multdpo.settings.effects import declared, in_run
from recbole_multdpo.settings.llmrec import LLMRecSettings


def sft_key(config: Config, model: LLMRec, refit_epochs: int | None = None) -> str:
    """Hash of everything that determines the supervised stage's result, 16 hexadecimal digits.

    Args:
        config: the run's configuration.
        model: before or after the stage.
        refit_epochs: number of epochs of a refit stage (`test_information=refit`), else None.
    """
    everything = {**config.to_dict(), **model.settings.model_dump(mode="json")}
    own = acting(everything, config.settings, "model", "sft")
    if "sft_epochs" in own:
        own["sft_epochs"] = epochs_for(own["sft_epochs"], "sft", model.n_examples)
    del own["max_steps"]  # acts through the number of the stage's own steps
    described: dict[str, Any] = {
        "settings": {**own, "sft_max_steps": model.settings.max_sft_steps},
        "backbone": model.backbone.fingerprint,
        "prompt": [model.prompts.frame_ids(), model.prompts.frame.item_prefix],
        "texts": model.item_texts,
    }
    if refit_epochs is not None:
        described["refit"] = refit_epochs
    if model.conversations is not None:
        described["conversations"] = model.conversations.digest()
    if model.settings.dtype != "float32":
        described["master_weights"] = "float32"  # older stages were trained without
    if model.is_scored_specially:
        described["scoring"] = "by layer and own head"
    # validation chooses the checkpoint of the stage only if the stage validates
    if model.settings.sft_eval_step:
        described["valid"] = acting(everything, config.settings, "validation")
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    shown = [model.histories, *([] if model.disliked is None else [model.disliked])]
    for array in (each for items in shown for each in (items.start, items.items)):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]


def acting(
    settings: Mapping[str, Any], typed: LLMRecSettings | None, *parts: Part
) -> dict[str, Any]:
    """The settings that act in some parts of the run, and change results."""
    run = in_run(settings, typed)
    return {
        key: settings[key]
        for key, effects in sorted(declared(run.model).items())
        if key in settings
        and effects.acts_in(*parts)
        and not effects.may_change
        and not effects.failing(run)
    }


def cache_folder(settings: LLMRecSettings, run_folder: Path) -> Path:
    """Folder for supervised stages, reference log-probabilities and assistants' scores."""
    return Path(settings.sft_cache_dir or run_folder.parent / "sft_cache")


def sft_folder(cache_dir: Path, key: str) -> Path:
    """Folder of the cached stage with this key; it may not exist."""
    return cache_dir / f"sft-{key}"


def sft_is_cached(config: Config, model: LLMRec, run_folder: Path) -> bool:
    """True if the supervised stage of a run is in the cache."""
    return sft_folder(cache_folder(model.settings, run_folder), sft_key(config, model)).exists()


def sft_checkpoint(
    run_folder: Path, config: Config, model: LLMRec, refit_epochs: int | None = None
) -> Path:
    """Best checkpoint of a run's supervised stage: in the run's folder, else in the cache.

    Raises:
        CheckpointError: it is in neither.
    """
    name = "sft" if refit_epochs is None else f"{REFIT}sft"
    own = run_folder / "checkpoints" / name / "best"
    if own.is_dir():
        return own
    key = sft_key(config, model, refit_epochs)
    cached = sft_folder(cache_folder(model.settings, run_folder), key)
    if not cached.is_dir():
        former = _stage_of_before(cached.parent, run_folder, config, name, refit_epochs)
        if former is not None:
            return former
        raise CheckpointError(
            f"the weights of the supervised stage, the reference, are missing: neither {own} nor "
            f"{cached} exists. Run the command again with --sft_cache=False and a new --run_dir, "
            "which then has them."
        )
    return cached


def _stage_of_before(
    cache_dir: Path, run_folder: Path, config: Config, name: str, refit_epochs: int | None
) -> Path | None:
    """The stage of a finished run that an earlier version cached under another key.

    It is known by what its checkpoint says: the settings, and the fingerprints of data and model.
    """
    if not (run_folder / RESULT_FILE).is_file():
        return None
    fingerprints = read_result(run_folder / RESULT_FILE).get("fingerprints")
    settings = config.to_dict()
    parts: tuple[Part, ...] = ("validation",) if settings["sft_eval_step"] else ()
    wanted = plain(acting(settings, config.settings, "model", "sft", *parts))
    for folder in sorted(cache_dir.glob("sft-*")):
        try:
            state = check_checkpoint(folder)
        except CheckpointError:
            continue
        saved = state.get("settings") or {}
        if (
            fingerprints
            and state["fingerprints"] == fingerprints
            and state["stage"] == name
            and refit_epochs in (None, state["position"]["epoch"] + 1)
            and all(saved[key] == value for key, value in wanted.items() if key in saved)
        ):
            return folder
    return None


def load_cached_sft(
    cache_dir: Path, key: str, model: LLMRec, run_folder: Path, title: str = "supervised stage"
) -> bool:
    """Load cached weights into the model and copy the stage's logs into the run folder.

    Returns:
        False if there are none, or they are damaged.
    """
    folder = sft_folder(cache_dir, key)
    if not folder.exists():
        return False
    try:
        tensors, _, _ = load_checkpoint(folder)
        load_trainable_tensors(model.lm, tensors, folder)
    except CheckpointError as error:
        getLogger().warning(f"{error}; the supervised stage is trained again")
        return False
    _copy_logs(folder, run_folder)
    getLogger().info(f"{title}: taken from {folder} (--sft_cache=False trains it again)")
    return True


def store_sft(cache_dir: Path, key: str, checkpoint: Path, run_folder: Path) -> None:
    """Copy a checkpoint and the stage's logs into the cache.

    An entry that another run has stored meanwhile is equal and stays.

    Raises:
        CheckpointError: the cache cannot be written to.
    """
    folder = sft_folder(cache_dir, key)
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with FileLock(cache_dir / ".lock"):
            restore_interrupted(folder)
            if _is_whole(folder):
                return
            with atomic_folder(folder) as temporary:
                shutil.copytree(checkpoint, temporary, dirs_exist_ok=True)
                _copy_logs(run_folder, temporary)
    except OSError as error:
        raise CheckpointError(
            f"the supervised stage could not be stored in {cache_dir} ({error}). Free disk space, "
            "set --sft_cache_dir to a folder that can be written, or --sft_cache=False."
        ) from error


def _copy_logs(source: Path, target: Path) -> None:
    """Copy the logs of steps and validations, so that a run shows both of its stages.

    Existing logs, as in a resumed run, stay.
    """
    for name, columns in ((STEPS_FILE, STEP_COLUMNS), (VALIDATIONS_FILE, VALIDATION_COLUMNS)):
        if (source / name).is_file() and not (target / name).exists():
            copy_log(source / name, target / name, columns)


def _is_whole(folder: Path) -> bool:
    try:
        check_checkpoint(folder)
    except CheckpointError:
        return False
    return True
