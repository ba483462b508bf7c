"""The model where the preference stage of a run began: its reference, rebuilt from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_multdpo.config import Config
from recbole_multdpo.data.dataset import LLMRecDataset
from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.trained.unchanged import check_backbone, check_checkpoint
from recbole_multdpo.training.checkpoint import load_checkpoint, load_trainable_tensors
from recbole_multdpo.training.sft_cache import cache_folder, sft_folder, sft_key


def load_sft_start(
    folder: Path, result: Mapping[str, Any], config: Config, train: LLMRecDataset
) -> LLMRec:
    """The backbone with the weights of the run's supervised stage, in eval mode.

    Args:
        folder: the run's folder.
        result: its `result.json`.
        config: the run's settings as they were, with the backbone that it started from.
        train: the training part.

    Raises:
        CheckpointError: the weights of the supervised stage are kept neither in the run's folder
            nor in the cache; or they, or the backbone, are not those of the run.
        ConfigError: the backbone cannot be loaded.
    """
    model = LLMRec(config, train)
    check_backbone(folder, result, model)
    assert config.settings is not None
    if config.settings.sft_epochs > 0:
        checkpoint = _sft_checkpoint(folder, config, model)
        tensors, state, _ = load_checkpoint(checkpoint)
        if checkpoint.is_relative_to(folder):  # one of the cache was made by another run
            check_checkpoint(folder, result, config, state)
        load_trainable_tensors(model.lm, tensors, checkpoint)
    return model.to(config["device"]).eval()


def _sft_checkpoint(folder: Path, config: Config, model: LLMRec) -> Path:
    own = folder / "checkpoints" / "sft" / "best"
    if own.is_dir():
        return own
    cached = sft_folder(cache_folder(model.settings, folder), sft_key(config, model))
    if not cached.is_dir():
        raise CheckpointError(
            f"the weights of the supervised stage, the reference, are not kept: neither {own} nor "
            f"{cached} exists. Run the command again with --sft_cache=False, "
            "which keeps them in the run's folder."
        )
    return cached
