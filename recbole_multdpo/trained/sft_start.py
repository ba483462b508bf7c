"""Reference model of a run's preference stage, rebuilt from checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_multdpo.data.counted_dataset import fitted_part
from recbole_multdpo.data.dataset import LLMRecDataset
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.runs.checkpoint import load_checkpoint, load_trainable_tensors
from recbole_multdpo.runs.unchanged import check_backbone, check_checkpoint
from recbole_multdpo.settings.config import Config
from recbole_multdpo.settings.information import KEY
from recbole_multdpo.trained.run import prompt_of
from recbole_multdpo.training.sft_cache import sft_checkpoint


def load_sft_start(
    folder: Path, result: Mapping[str, Any], config: Config, parts: list[LLMRecDataset]
) -> LLMRec:
    """The backbone with the weights of the run's supervised stage, in eval mode.

    Args:
        folder: the run's folder.
        result: its `result.json`.
        config: the run's own settings, with its original backbone.
        parts: training, validation and test part.

    Raises:
        CheckpointError: the weights of the supervised stage are neither in the run's folder nor in
            the cache; or they, or the backbone, are not those of the run.
        ConfigError: the backbone cannot be loaded.
    """
    model = LLMRec(config, parts[0], prompt_of(folder))
    check_backbone(folder, result, model.settings.backbone, model.backbone.fingerprint)
    model.fit_to(fitted_part(config[KEY], parts))
    assert config.settings is not None
    if config.settings.sft_epochs != 0:
        refit_epochs = result.get("refit_epochs", {}).get("sft")
        checkpoint = sft_checkpoint(folder, config, model, refit_epochs)
        tensors, state, _ = load_checkpoint(checkpoint)
        if checkpoint.is_relative_to(folder):  # a cached one may be of another run
            check_checkpoint(folder, result, config, state)
        load_trainable_tensors(model.lm, tensors, checkpoint)
    return model.to(config["device"]).eval()
