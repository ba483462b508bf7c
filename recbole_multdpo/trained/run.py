"""A finished run, loaded from its folder: settings, data, model and item texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import torch

from recbole_multdpo.classical.assistant import Assistant, restore_assistant
from recbole_multdpo.classical.run import build_model
from recbole_multdpo.classical.user_rows import extend_user_rows, record_calls
from recbole_multdpo.classical.weights import load_weights
from recbole_multdpo.data.counted_dataset import fitted_part, train_and_valid
from recbole_multdpo.data.dataset import ContextDataset, read_item_texts
from recbole_multdpo.data.prompt_file import PROMPT_FILE, StoredPrompt, read_prompt
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.errors import CheckpointError, ConfigError, DataError
from recbole_multdpo.model.backbone_check import InexactBackbone
from recbole_multdpo.ranking import make_ranker
from recbole_multdpo.runs.folder import CONFIG_FILE, RESULT_FILE, TEST, read_result
from recbole_multdpo.runs.load import known_at_test, load_parts
from recbole_multdpo.runs.unchanged import changed_data, check_folder, check_numbering, check_prompt
from recbole_multdpo.settings.config import Config, load_config
from recbole_multdpo.settings.hardware import apply_tf32
from recbole_multdpo.settings.information import KEY
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS, LLMREC
from recbole_multdpo.settings.text import read_settings_file
from recbole_multdpo.training.sft_cache import cache_folder


@dataclass(frozen=True)
class TrainedRun:
    """A finished run with its data and model.

    Attributes:
        folder: the run's folder.
        config: the run's settings.
        result: the run's `result.json`.
        dataset: the data set, as the run filtered it.
        parts: training, validation and test part.
        model: in eval mode with the final weights; a language model such as `LLMRec`, or one of
            RecBole's.
        titles: one text per inner item id, entry 0 is [PAD].
        ranker: ranks as the run's test did; None for a model of RecBole.
        changed: the parts of the data that have changed since the run; see `fingerprints.NAMES`.
    """

    folder: Path
    config: Config
    result: dict[str, Any]
    dataset: Any
    parts: list[Any]
    model: Any
    titles: list[str]
    ranker: Any
    changed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`EASE`, `LLMRec sft` and the like."""
        loss = self.result.get("loss")
        return f"{self.result['model']} {loss}" if loss else self.result["model"]

    @property
    def on_conversations(self) -> bool:
        """True if the users of the data set are conversations."""
        return self.config["context"] == "conversation"

    def items_of(self, *numbers: int) -> UserItems:
        """Every user's items in some parts of the split (0 training, 1 validation, 2 test).

        They are in order of time, where the data set has times, as in prompts.
        """
        feats = [self.parts[number].inter_feat for number in numbers]
        field = self.dataset.time_field
        times = None
        if field is not None and all(field in feat for feat in feats):
            times = np.concatenate([feat[field].numpy() for feat in feats])
        users, items = (
            np.concatenate([feat[field].numpy() for feat in feats])
            for field in (self.dataset.uid_field, self.dataset.iid_field)
        )
        levels = np.ones(len(users), dtype=np.int64)
        return UserItems.build(users, items, levels, times, self.dataset.user_num)

    def item_name(self, item: int) -> str:
        """An item's id in the data files."""
        return str(self.dataset.field2id_token[self.dataset.iid_field][item])


def load_run(
    folder: str | Path,
    *,
    device: str | None = None,
    data_path: str | None = None,
    trust_remote_code: bool | None = None,
    log_wandb: bool | None = None,
    scratch: Path | None = None,
) -> TrainedRun:
    """Load a finished run; loading executes no code from the folder.

    Args:
        folder: the run's folder.
        device: `auto`, `cpu`, `cuda` or `cuda:N`; None for the run's own setting.
        data_path: current location of the data set; None for the run's own setting.
        trust_remote_code: allow the folder's own model code to run. None refuses a run that needs
            it.
        log_wandb: as the setting, which is not taken from the folder either.
        scratch: folder in which the run's assistant is trained again if its scores are gone; None
            loads no assistant.

    Raises:
        ConfigError: the folder is not that of a finished run, or needs code that is not allowed.
        DataError: the data set is missing, or the assistant differs from the run's.
        CheckpointError: the weights are missing, damaged or do not fit; or files of the folder are
            of different runs.
    """
    folder = Path(folder)
    result = result_of(folder)
    check_folder(folder, result)
    settings: dict[str, Any] = {}
    if result["model"] in LANGUAGE_MODELS:
        # this folder has all final weights: no hub, adapter or first stage is needed
        if not (folder / "model").is_dir():  # `run/model` could be a name of the hub
            raise CheckpointError(f"there is no {folder / 'model'}. Run the run's command again.")
        settings = {"backbone": str((folder / "model").absolute()), "finetune": "full"}
    config = run_config(
        folder,
        settings,
        device=device,
        data_path=data_path,
        trust_remote_code=trust_remote_code,
        log_wandb=log_wandb,
    )
    apply_tf32(config.settings)
    dataset, parts = load_parts(config)
    different = changed_data(folder, result, dataset, parts)
    ranker: Any = None
    if config.settings is not None:
        try:
            model: Any = config.model_class(config, parts[0], prompt_of(folder))
        except InexactBackbone as error:
            raise ConfigError(
                f"{folder} cannot be used: {error} Such settings belong to a run: train it again."
            ) from error
        check_prompt(folder, result, model.prompt.fingerprint)
        model.fit_to(fitted_part(config[KEY], parts))
        ranker = make_ranker(model, model.histories).restore(result)
        if config.assistant is not None and scratch is not None:
            assistant = _assistant(config, dataset, parts, folder, result, scratch)
            ranker = replace(ranker, assistant=assistant)
        elif config.assistant is not None:
            getLogger().warning(
                f"the run ranked together with {config.assistant['model']}, which is not loaded: "
                "what follows is ranked by the language model alone."
            )
        ranker = ranker.for_test(known_at_test(config, parts)).prepared()
        titles = dataset.item_texts
    else:
        check_numbering(folder, different)
        fitted = fitted_part(config[KEY], parts)
        with record_calls(fitted) as calls:
            model = build_model(config, fitted)
        titles = _titles(config, dataset)
    model = model.to(config["device"]).eval()
    if config.settings is None:
        load_weights(model, folder / "model")
        if config[KEY] == "train_valid":
            extend_user_rows(model, config, calls, fitted, train_and_valid(parts))
    return TrainedRun(folder, config, result, dataset, parts, model, titles, ranker, different)


def _assistant(
    config: Config,
    dataset: ContextDataset,
    parts: list[Any],
    folder: Path,
    result: Mapping[str, Any],
    scratch: Path,
) -> Assistant:
    """The run's assistant.

    Raises:
        DataError: it is not the one that the run had.
    """
    settings = config.settings
    assert settings is not None and config.assistant is not None
    cache_dir = cache_folder(settings, folder) if settings.sft_cache else None
    own = folder / "checkpoints" / "assistant"
    found = restore_assistant(config.assistant, dataset, parts, cache_dir, own, scratch)
    tested = result.get("assistant", {}).get("valid_result")
    if found.valid_result != tested:
        raise DataError(
            f"the assistant {found.name} is not the one that the run in {folder} ranked with: its "
            f"validation figures are {found.valid_result}, and were "
            f"{tested}. Run the run's command again."
        )
    return found


def result_of(folder: Path, needed: Sequence[str] = (), *, tested: bool = True) -> dict[str, Any]:
    """The `result.json` of a run; it has model, data set and the keys of `needed`.

    Args:
        folder: the run.
        needed: further entries.
        tested: refuse a run without a test, which has no model either.

    Raises:
        ConfigError: the folder does not exist, is a comparison's, or has no result.
        MultDPOError: the file is damaged, or the run has no test and no model.
    """
    file = folder / RESULT_FILE
    if file.is_file():
        return read_result(file, ("model", "dataset", *([TEST] if tested else []), *needed))
    inside = sorted(path.parent.name for path in folder.glob(f"*/{RESULT_FILE}"))
    if inside:
        raise ConfigError(f"{folder} holds several runs. Name one of them: {', '.join(inside)}.")
    if (folder / CONFIG_FILE).is_file():
        raise ConfigError(f"the run in {folder} did not finish. Continue it: --resume={folder}.")
    raise ConfigError(
        f"{folder} is not the folder of a run: there is no {file}. Runs are written below saved/ "
        "or to --run_dir."
    )


def run_config(
    folder: Path,
    changes: Mapping[str, Any],
    *,
    device: str | None = None,
    data_path: str | None = None,
    trust_remote_code: bool | None = None,
    log_wandb: bool | None = None,
) -> Config:
    """A run's settings with changes; the last four arguments are those of `load_run`.

    Raises:
        ConfigError: the folder has no readable `config.yaml`, or a setting is not allowed.
    """
    file = folder / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"there is no {file}: {folder} is not the folder of a run.")
    given = {
        "device": device,
        "data_path": data_path,
        "trust_remote_code": trust_remote_code,
        "log_wandb": log_wandb or False,  # nothing is logged unless asked for
    }
    if read_settings_file(file).get("model") not in LANGUAGE_MODELS:
        del given["trust_remote_code"]
    settings = {**changes, **{key: value for key, value in given.items() if value is not None}}
    return load_config((), config_dict=settings, run_folder=folder)


def prompt_of(folder: Path) -> StoredPrompt | None:
    """The prompt of a run of a language model; None, with a warning, where it keeps none."""
    prompt = read_prompt(folder)
    if prompt is None:
        getLogger().warning(
            f"the run in {folder} keeps no prompt ({PROMPT_FILE}): it is rendered again, and may "
            "be another one than the run was tested with."
        )
    return prompt


def _titles(config: Config, dataset: ContextDataset) -> list[str]:
    """Item texts for a model that does not read them: LLMRec's, or the item ids without texts."""
    wanted = {"model": LLMREC, "dataset": config["dataset"]}
    saved = config.to_dict()
    if saved["data_path"] is not None:
        wanted["data_path"] = saved["data_path"]
    try:
        settings = load_config((), config_dict=wanted).settings
        assert settings is not None
        fields, template = settings.item_text_fields, settings.item_text_template
        return read_item_texts(dataset, fields, settings.item_year_field, template)[0]
    except (ConfigError, DataError):
        return [str(token) for token in dataset.field2id_token[dataset.iid_field]]


def set_threads(config: Config) -> None:
    """Apply the run's `num_threads`."""
    if config["num_threads"]:
        torch.set_num_threads(config["num_threads"])
