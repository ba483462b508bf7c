"""Another allowed value of every setting, to find out what a setting changes."""

from __future__ import annotations

from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from recbole_multdpo.settings.config import Config
from recbole_multdpo.settings.effects import _hints
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS
from recbole_multdpo.settings.recbole import RecBoleSettings

# where the type does not tell, or tells what does not fit the rest
OTHERS: dict[str, Any] = {
    "tiny_hidden_size": 64,
    "tiny_num_heads": 1,
    "lora_target_modules": ["q_proj"],
    "chat_template_kwargs": {"mood": "calm"},
    "level_thresholds": [5, 4],
    "rating_levels": [5, 4],
    "assistant_settings": {"reg_weight": 9},
    "sft_teacher_settings": {"reg_weight": 9},
    "sft_teacher_weight": 0.25,
    "assistant_weight": [0.5],
    "learner": "sgd",
    "clip_grad_norm": {"max_norm": 0.5},
    "numerical_features": ["timestamp"],
    "seq_len": {"title": 3},
    "item_year_field": None,
    "rank_history": 3,
    "negative_pool_size": 600,
    "alias_of_entity_id": ["a"],
    "alias_of_relation_id": ["a"],
    "entity_kg_num_interval": "[1,inf)",
    "relation_kg_num_interval": "[1,inf)",
}
# refused everywhere, or of no use here: a file that is not there, a package that is not installed
NO_OTHER = {
    *("deepspeed", "backbone", "model", "dataset", "data_path", "context", "device", "transform"),
    *("dtype", "loss", "shuffle", "require_pow", "enable_amp", "enable_scaler", "repeatable"),
    *("train_neg_sample_args", "low_ratings", "trust_remote_code", "log_wandb", "resume"),
    *("wandb_project", "sft_on_prompt", "discretization", "reference_cache"),
    *("reference", "sft_cache_dir", "final_test"),
    *(
        "run_dir",
        "config_files",
        "protocol",
        "save_dataset",
        "save_dataloaders",
        "valid_metric",
        "metrics",
    ),
    *("dataset_save_path", "dataloaders_save_path", "test_information", "reproducibility"),
    *(
        "mentioned_items",
        "assistant",
        "sft_teacher",
        "grounding_weight",
        "use_gpu",
        "gpu_id",
        "checkpoint_dir",
    ),
}


def other_values(config: Config) -> dict[str, Any]:
    """Settings of a run with a value that is allowed and is not the one that they have."""
    hints = _hints(RecBoleSettings) | _hints(LANGUAGE_MODELS.get(config["model"], RecBoleSettings))
    found = {}
    for key, hint in hints.items():
        if key in NO_OTHER or key not in config.final_config_dict:
            continue
        own = config.final_config_dict[key]
        value = OTHERS[key] if key in OTHERS else _other(hint, own)
        if value is not None and value != own:
            found[key] = value
    return found


def _other(hint: Any, own: Any) -> Any:
    """A value of the type, None where it is none of the simple ones."""
    if get_origin(hint) is Annotated:
        return _other(get_args(hint)[0], own)
    if get_origin(hint) in (Union, UnionType):
        values = (_other(each, own) for each in get_args(hint) if each is not type(None))
        return next((value for value in values if value is not None), None)
    if get_origin(hint) is Literal:
        return next((value for value in get_args(hint) if value != own), None)
    if hint is bool:
        return not own
    if hint is int:
        return own + 1 if isinstance(own, int) else 3
    if hint is float:
        return own / 2 if isinstance(own, int | float) and own else 0.25
    if hint is str and isinstance(own, str):
        return f"{own}_other"
    return None
