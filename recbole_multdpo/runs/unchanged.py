"""Whether a finished run's folder and data are still those of its `result.json`."""

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
    described,
    pairs_fingerprint,
)
from recbole_multdpo.runs.folder import CONFIG_FILE, RESULT_FILE
from recbole_multdpo.runs.model_files import check_model
from recbole_multdpo.runs.resume import BACKBONE_SETTING, changed_settings, settings_hash
from recbole_multdpo.settings.config import Config
from recbole_multdpo.settings.text import read_settings_file

_IDENTITY = ("model", "dataset", "loss", "seed")  # what both files name


def check_folder(folder: Path, result: Mapping[str, Any]) -> None:
    """Refuse a folder whose files are of different runs, or whose model is damaged.

    Raises:
        ConfigError: `config.yaml` cannot be read.
        CheckpointError: `config.yaml` and `result.json` disagree, or a file of `model/` is not what
            the run wrote.
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
    if result.get("settings_hash", settings_hash(settings)) != settings_hash(settings):
        raise CheckpointError(
            f"{folder / CONFIG_FILE} is not what the run was made with: a setting was changed "
            f"since {RESULT_FILE} was written. Put it back as it was, or run its command again."
        )
    if not check_model(folder, result):
        getLogger().warning(
            f"the run in {folder} is of a version that kept no checksums and no fingerprints: "
            "whether its model and its data are still the same is not known."
        )


def changed_data(
    folder: Path, result: Mapping[str, Any], dataset: Dataset, parts: Sequence[Dataset]
) -> tuple[str, ...]:
    """What of the data has changed since the run; see `fingerprints.NAMES`. A warning says it."""
    if "fingerprints" in result:
        different = changed(result["fingerprints"], data_fingerprints(dataset, parts))
    else:  # of older versions the hash of the test part is all there is
        same = result.get("test_set") in (None, pairs_fingerprint(parts[2]))
        different = () if same else (SPLIT,)
    if different:
        getLogger().warning(
            f"since the run in {folder} was made, its data have changed: {described(different)}. "
            "What follows is not what was tested. --data_path may name a copy as it was."
        )
    return different


def check_numbering(folder: Path, different: Sequence[str]) -> None:
    """Refuse a model that knows users and items by number, or is made of the training part anew.

    Raises:
        DataError: the numbers or the training part have changed.
    """
    if {SPLIT, ORDER} & {*different}:
        raise DataError(
            f"the model in {folder} knows users and items by their number in the data, and these "
            f"have changed: {described(different)}. Give the data as they were: --data_path."
        )


def check_split(folder: Path, different: Sequence[str]) -> None:
    """Refuse to show users of the data set where training rows may have become test rows.

    Raises:
        DataError: the split has changed.
    """
    if SPLIT in different:
        raise DataError(
            f"the split of the data is not that of the run in {folder}: what it was trained on may "
            "now be marked as test. Give the data as they were (--data_path), or ask by titles "
            "(--liked) or a conversation."
        )


def check_prompt(folder: Path, result: Mapping[str, Any], fingerprint: str) -> None:
    """Refuse a prompt whose fingerprint is not the run's.

    Raises:
        CheckpointError: the fixed text of the prompt, or how it is tokenised, has changed.
    """
    if changed(result.get("fingerprints", {}), {PROMPT: fingerprint}):
        raise CheckpointError(
            f"{NAMES[PROMPT]} is not that of {folder / RESULT_FILE}: {PROMPT_FILE} is of another "
            "run, or was removed. Put the file of this run back."
        )


def check_backbone(
    folder: Path, result: Mapping[str, Any], backbone: str, fingerprint: str
) -> None:
    """Refuse another backbone than the one that the run began with.

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
            f"{backbone} is not the one that the run in {folder} began with. Put it "
            "back as it was."
        )


def check_checkpoint(
    folder: Path, result: Mapping[str, Any], config: Config, state: Mapping[str, Any]
) -> None:
    """Refuse a checkpoint in the folder that is of another run.

    Args:
        folder: the run.
        result: its `result.json`.
        config: its settings.
        state: of the checkpoint.

    Raises:
        CheckpointError: settings or fingerprints disagree.
    """
    settings = changed_settings(state.get("settings") or {}, config.to_dict())
    names = [key for key in settings if key != BACKBONE_SETTING]
    names += changed(result.get("fingerprints", {}), state.get("fingerprints") or {})
    if names:
        raise CheckpointError(
            f"the checkpoints in {folder} and its {RESULT_FILE} are of different runs: they "
            f"disagree about {', '.join(names)}. Put those of this run back."
        )
