"""Check that a finished run's folder and data still match its `result.json`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from logging import getLogger
from pathlib import Path
from typing import Any

from recbole.data.dataset import Dataset

from recbole_multdpo.data.prompt_file import PROMPT_FILE
from recbole_multdpo.errors import CheckpointError, DataError
from recbole_multdpo.runs.fingerprints import (
    BACKBONE,
    NAMES,
    ORDER,
    PROMPT,
    SPLIT,
    changed,
    data_fingerprints,
    describe,
    pairs_fingerprint,
)
from recbole_multdpo.runs.folder import CONFIG_FILE, RESULT_FILE
from recbole_multdpo.runs.model_files import check_model
from recbole_multdpo.runs.resume import BACKBONE_SETTING, changed_settings, settings_hash
from recbole_multdpo.settings.config import Config
from recbole_multdpo.settings.text import read_settings_file

_IDENTITY = ("model", "dataset", "loss", "seed")  # in both files


def check_folder(folder: Path, result: Mapping[str, Any]) -> None:
    """Refuse a folder whose files are of different runs, or whose model is damaged.

    Raises:
        ConfigError: `config.yaml` cannot be read.
        CheckpointError: `config.yaml` and `result.json` disagree, or a file of `model/` has
            changed.
    """
    settings = read_settings_file(folder / CONFIG_FILE)
    differing = [
        f"{key}={settings.get(key)!r} there, {result.get(key)!r} here"
        for key in _IDENTITY
        if result.get(key) is not None and settings.get(key) != result.get(key)
    ]
    if differing:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} and {folder / RESULT_FILE} are of different runs: "
            f"{'; '.join(differing)}. Put the file of this run back."
        )
    hashes = [settings_hash(settings), settings_hash(settings, as_before=True)]
    if result.get("settings_hash", hashes[0]) not in hashes:
        raise CheckpointError(
            f"{folder / CONFIG_FILE} differs from the run's settings: a setting was changed after "
            f"{RESULT_FILE} was written. Restore it, or run its command again."
        )
    if not check_model(folder, result):
        getLogger().warning(
            f"the run in {folder} is from a version without checksums and fingerprints: it cannot "
            "be checked that its model and its data are still the same."
        )


def changed_data(
    folder: Path, result: Mapping[str, Any], dataset: Dataset, parts: Sequence[Dataset]
) -> tuple[str, ...]:
    """Names of the data fingerprints that changed since the run; a warning describes them."""
    if "fingerprints" in result:
        different = changed(result["fingerprints"], data_fingerprints(dataset, parts))
    else:  # older versions stored only a hash of the test part
        same = result.get("test_set") in (None, pairs_fingerprint(parts[2]))
        different = () if same else (SPLIT,)
    if different:
        getLogger().warning(
            f"since the run in {folder} was made, its data have changed: {describe(different)}. "
            "The output below is not for the tested data. --data_path may name an unchanged copy."
        )
    return different


def check_numbering(folder: Path, different: Sequence[str]) -> None:
    """Refuse a model with rows for user and item ids if the ids or the training part changed.

    Raises:
        DataError: ids or training part have changed.
    """
    if {SPLIT, ORDER} & {*different}:
        raise DataError(
            f"the model in {folder} depends on the numbering of users and items in the data, "
            f"which has changed: {describe(different)}. Name the unchanged data: --data_path."
        )


def check_split(folder: Path, different: Sequence[str]) -> None:
    """Refuse to show users of the data set if training rows may have become test rows.

    Raises:
        DataError: the split has changed.
    """
    if SPLIT in different:
        raise DataError(
            f"the split of the data is not that of the run in {folder}: what it was trained on may "
            "now be marked as test. Name the unchanged data (--data_path), or ask by titles "
            "(--liked) or a conversation."
        )


def check_prompt(folder: Path, result: Mapping[str, Any], fingerprint: str) -> None:
    """Refuse a prompt whose fingerprint is not the run's.

    Raises:
        CheckpointError: the fixed text of the prompt, or its tokens, have changed.
    """
    if changed(result.get("fingerprints", {}), {PROMPT: fingerprint}):
        raise CheckpointError(
            f"{NAMES[PROMPT]} is not that of {folder / RESULT_FILE}: {PROMPT_FILE} is of another "
            "run, or was removed. Put the file of this run back."
        )


def check_backbone(
    folder: Path, result: Mapping[str, Any], backbone: str, fingerprint: str
) -> None:
    """Refuse another backbone than the one that the run started from.

    Args:
        folder: the run.
        result: its `result.json`.
        backbone: its name, for the message.
        fingerprint: of the backbone as it is loaded now.

    Raises:
        CheckpointError: its weights, configuration or tokenizer have changed.
    """
    if changed(result.get("fingerprints", {}), {BACKBONE: fingerprint}):
        raise CheckpointError(
            f"the model before preference training cannot be made again: {NAMES[BACKBONE]} "
            f"{backbone} is not the one that the run in {folder} started from. Restore it."
        )


def check_checkpoint(
    folder: Path, result: Mapping[str, Any], config: Config, state: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint in the folder that belongs to another run.

    Args:
        folder: the run.
        result: its `result.json`.
        config: its settings.
        state: state of the checkpoint.

    Raises:
        CheckpointError: settings or fingerprints disagree.
    """
    settings = changed_settings(state.get("settings") or {}, config.to_dict())
    names = [key for key in settings if key != BACKBONE_SETTING]
    names += changed(result.get("fingerprints", {}), state.get("fingerprints") or {})
    if names:
        raise CheckpointError(
            f"the checkpoints in {folder} and its {RESULT_FILE} are of different runs: they "
            f"disagree about {', '.join(names)}. Restore those of this run."
        )
