"""DeepSpeed's configuration: a name, a file or a mapping, completed by the run's own settings.

The format is that of transformers' Trainer; "auto" leaves a value to the run or to DeepSpeed.
Batch sizes, optimizer, schedule, clipping and precision come from the run's own settings, and the
configuration must not contradict them: a run means the same with and without DeepSpeed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.runtime.reading import read_json
from recbole_multdpo.settings.llmrec import LLMRecSettings
from recbole_multdpo.settings.text import read_settings_file

AUTO = "auto"
INSTALL = "pip install 'recbole-multdpo[deepspeed]'"
# sections that our own settings replace, with these settings
_REPLACED = {
    "optimizer": "learner, learning_rate and weight_decay",
    "scheduler": "lr_scheduler_type and warmup_ratio",
    "fp16": "dtype",
    "amp": "dtype",
    "wandb": "log_wandb",
    "comet": "log_wandb",
}


def deepspeed_settings(
    setting: str | Mapping[str, Any], run: Mapping[str, Any], n_processes: int, folder: Path
) -> dict[str, Any]:
    """Configuration for `deepspeed.initialize`.

    Args:
        setting: the setting `deepspeed`.
        run: the run's settings, of which dtype, learner and clip_grad_norm are read.
        n_processes: number of processes of the run.
        folder: folder of the files that can be given by name.

    Raises:
        ConfigError: DeepSpeed is not installed, or the file is missing, malformed or contradicts
            the run's own settings.
    """
    given, origin = _read(setting, folder)
    own = _own(run, n_processes)
    _check(given, own, run, origin)
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(f"deepspeed={setting}: DeepSpeed is not installed. Run: {INSTALL}")
    return {**_without_auto(given), **own}


def process_problems(
    settings: LLMRecSettings, deepspeed: Mapping[str, Any] | None, several: bool
) -> list[str]:
    """Settings that do not work with several processes, or with DeepSpeed; one sentence each.

    Args:
        settings: LLMRec's.
        deepspeed: the complete configuration, None without DeepSpeed.
        several: True with several processes or DeepSpeed.
    """
    problems = []
    if settings.auto_batch and several:
        problems.append(
            "auto_batch=True is for one process without DeepSpeed: the others would have to repeat "
            "their part too. Set --max_tokens_per_batch instead."
        )
    stage = (deepspeed or {}).get("zero_optimization", {}).get("stage")
    if settings.reference_cache and stage == 3:
        problems.append(
            "reference_cache=True leaves forward passes out, which under ZeRO-3 all processes must "
            "make together. Use --deepspeed=zero2, or --reference_cache=False."
        )
    return problems


def _read(setting: str | Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], str]:
    """Read the configuration; returns it and its origin for messages."""
    if not isinstance(setting, str):
        return dict(setting), "deepspeed"
    named = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    path = named.get(setting, Path(setting))
    if not path.is_file():
        raise ConfigError(
            f"deepspeed={setting}: there is no such file. Use one of {', '.join(named)}, the path "
            "of a DeepSpeed configuration in JSON or YAML, or a mapping."
        )
    if path.suffix != ".json":
        return read_settings_file(path), str(path)
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping, got {type(content).__name__}.")
    return content, str(path)


def _own(run: Mapping[str, Any], n_processes: int) -> dict[str, Any]:
    """Entries that follow from the run's own settings."""
    clipping = run["clip_grad_norm"] or {"max_norm": 0.0}
    return {
        # the trainer weights losses and accumulates gradients itself
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": n_processes,
        "gradient_clipping": clipping["max_norm"],
        "bf16": {"enabled": run["dtype"] == "bfloat16"},
        # optimizers are torch's; DeepSpeed would compile its own
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


def _check(
    given: Mapping[str, Any], own: Mapping[str, Any], run: Mapping[str, Any], origin: str
) -> None:
    problems = []
    for key, settings in _REPLACED.items():
        section = given.get(key)
        off = isinstance(section, Mapping) and section.get("enabled") in (False, AUTO)
        if section not in (None, AUTO) and not off:
            problems.append(f"{key} is decided by {settings}: remove it.")
    names = {
        "train_batch_size": "train_batch_size and sft_batch_size, examples of all processes",
        "train_micro_batch_size_per_gpu": "max_tokens_per_batch",
        "gradient_accumulation_steps": "gradient_accumulation_steps, the run's own setting",
        "gradient_clipping": "clip_grad_norm",
        "bf16": "dtype",
    }
    for key, settings in names.items():
        value = given.get(key, AUTO)
        enabled = value.get("enabled", AUTO) if isinstance(value, Mapping) else value
        wanted = own[key]["enabled"] if key == "bf16" else own[key]
        if enabled not in (AUTO, wanted):
            problems.append(f"{key}={enabled} is decided by {settings}: remove it or say auto.")
    zero = given.get("zero_optimization", {})
    stage = zero.get("stage") if isinstance(zero, Mapping) else None
    if stage not in (1, 2, 3):
        problems.append(
            f"zero_optimization.stage must be 1, 2 or 3, got {stage!r}. Without ZeRO, leave "
            "--deepspeed out."
        )
    elif zero.get("round_robin_gradients") is True:
        problems.append(
            "zero_optimization.round_robin_gradients: DeepSpeed then takes the optimizer state of "
            "one parameter for that of another, and no checkpoint would be right. Remove it."
        )
    # DeepSpeed replaces torch's Adagrad by one that ignores our schedule
    if run["learner"] in ("adagrad", "sparse_adam"):
        problems.append(f"learner={run['learner']} is not for DeepSpeed: use adamw.")
    norm_type = (run["clip_grad_norm"] or {}).get("norm_type", 2)
    if norm_type != 2:
        problems.append(f"clip_grad_norm: norm_type={norm_type}, but DeepSpeed has 2 only.")
    if problems:
        raise ConfigError(f"{origin}: " + " ".join(problems))


def _without_auto(value: Any) -> Any:
    """Remove "auto", which DeepSpeed does not know, so that its defaults apply."""
    if not isinstance(value, Mapping):
        return value
    return {key: _without_auto(item) for key, item in value.items() if item != AUTO}
