"""DeepSpeed's configuration: a name, a file or a mapping, completed by the run's own settings.

The format is that of transformers' Trainer, where "auto" leaves a value to the run or to DeepSpeed,
or accelerate's, whose `deepspeed_config` is translated. Batch sizes, optimizer, schedule, clipping
and precision come from the run's own settings, and the configuration must not contradict them: a
run means the same with and without DeepSpeed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from recbole_multdpo.errors import ConfigError, install_extra
from recbole_multdpo.runtime.reading import read_json
from recbole_multdpo.settings.llmrec import LLMRecSettings
from recbole_multdpo.settings.text import read_settings_file

AUTO = "auto"
# sections that our own settings replace, with these settings
_REPLACED = {"amp": "dtype", "wandb": "log_wandb", "comet": "log_wandb"}
# DeepSpeed's schedules by transformers' names for them
_SCHEDULES = {
    "WarmupLR": "constant_with_warmup",
    "WarmupDecayLR": "linear",
    "WarmupCosineLR": "cosine",
}
# values that torch's optimizers and our schedules have
_OPTIMIZER = {"betas": [0.9, 0.999], "eps": 1e-8, "torch_adam": True, "adam_w_mode": True}
_SCHEDULE = {"warmup_min_lr": 0, "warmup_type": "linear", "last_batch_iteration": -1}
_OF_NO_NUMBER = {
    "warmup_num_steps": "warmup_ratio",
    "total_num_steps": "the number of epochs, or max_steps",
}
# entries of accelerate's deepspeed_config that concern its launcher, or how it loads and saves
_LAUNCHER = ("zero3_", "deepspeed_")


def deepspeed_settings(
    setting: str | Mapping[str, Any],
    run: Mapping[str, Any],
    n_processes: int,
    folder: Path,
    warnings: list[str],
) -> dict[str, Any]:
    """Configuration for `deepspeed.initialize`.

    Args:
        setting: the setting `deepspeed`.
        run: the run's settings.
        n_processes: number of processes of the run.
        folder: folder of the files that can be given by name.
        warnings: gets a sentence about each entry that is not taken as it is.

    Raises:
        ConfigError: DeepSpeed is not installed, or the file is missing, malformed or contradicts
            the run's own settings.
    """
    given, origin = _read(setting, folder)
    own = _own(run, n_processes)
    problems = [*_problems(given, own, run)]
    if problems:
        raise ConfigError(f"{origin}: " + " ".join(problems))
    if importlib.util.find_spec("deepspeed") is None:
        raise ConfigError(
            f"deepspeed={setting}: DeepSpeed is not installed. Run: {install_extra('deepspeed')}"
        )
    kept = {key: given[key] for key in given.keys() - {"optimizer", "scheduler", "fp16"}}
    made = {**_without_auto(kept), **own}
    zero = made["zero_optimization"] = dict(made["zero_optimization"])
    if zero.pop("round_robin_gradients", False):
        warnings.append(
            f"{origin}: zero_optimization.round_robin_gradients is not taken: DeepSpeed then takes "
            "the optimizer state of one parameter for that of another, and no checkpoint would be "
            "right. It only saves time, with offload."
        )
    if made["bf16"]["enabled"]:
        # else the gradients of a batch's parts are added up in bfloat16, and small ones are lost
        made["data_types"] = {"grad_accum_dtype": "fp32", **made.get("data_types", {})}
    return made


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
    """Read the configuration; returns it in DeepSpeed's format, and its origin for messages."""
    if not isinstance(setting, str):
        return _translated(setting, folder, "deepspeed")
    named = {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    path = named.get(setting, Path(setting))
    if not path.is_file():
        raise ConfigError(
            f"deepspeed={setting}: there is no such file. Use one of {', '.join(named)}, the path "
            "of a DeepSpeed configuration in JSON or YAML, or a mapping."
        )
    if path.suffix != ".json":
        return _translated(read_settings_file(path), folder, str(path))
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a mapping, got {type(content).__name__}.")
    return _translated(content, folder, str(path))


def _translated(
    content: Mapping[str, Any], folder: Path, origin: str
) -> tuple[dict[str, Any], str]:
    """Translate accelerate's format; returns DeepSpeed's as it is, and the origin for messages.

    `mixed_precision: no` leaves the precision to the run, as with the Trainer's `--bf16`. What
    concerns accelerate's launcher (`num_processes`, ...) is left to ours.
    """
    if "deepspeed_config" not in content:
        return dict(content), origin
    given = dict(content["deepspeed_config"] or {})
    if "deepspeed_config_file" in given:
        return _read(given["deepspeed_config_file"], folder)
    zero = {"stage": given.pop("zero_stage", None)}
    for part in ("optimizer", "param"):
        device = given.pop(f"offload_{part}_device", "none")
        path = given.pop(f"offload_{part}_nvme_path", None)
        if device != "none":
            zero[f"offload_{part}"] = {
                "device": device,
                **({"nvme_path": path} if device == "nvme" else {}),
            }
    made = {key: value for key, value in given.items() if not key.startswith(_LAUNCHER)}
    precision = {"fp16": "fp16", "bf16": "bf16"}.get(content.get("mixed_precision", "no"))
    if precision:
        made[precision] = {"enabled": True}
    return {**made, "zero_optimization": zero}, f"{origin}, deepspeed_config"


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


def _problems(
    given: Mapping[str, Any], own: Mapping[str, Any], run: Mapping[str, Any]
) -> Iterator[str]:
    """Entries that contradict the run's own settings, one sentence each with the remedy."""
    for key, settings in _REPLACED.items():
        section = given.get(key)
        off = isinstance(section, Mapping) and section.get("enabled") in (False, AUTO)
        if section not in (None, AUTO) and not off:
            yield f"{key} is decided by {settings}: remove it."
    fp16 = given.get("fp16", AUTO)
    if (fp16.get("enabled", AUTO) if isinstance(fp16, Mapping) else fp16) not in (False, AUTO):
        yield (
            "fp16.enabled: weights in float16 need a scaled loss, which is not offered. Say false "
            "or auto, and use --dtype=bfloat16."
        )
    bf16 = given.get("bf16", AUTO)
    bf16 = bf16.get("enabled", AUTO) if isinstance(bf16, Mapping) else bf16
    if bf16 not in (AUTO, own["bf16"]["enabled"]):
        wanted = "bfloat16" if bf16 is True else "float32"
        yield (
            f"bf16.enabled={bf16} is decided by dtype, which is {run['dtype']}: say auto, or use "
            f"--dtype={wanted}."
        )
    yield from _optimizer_problems(given.get("optimizer", AUTO), run)
    yield from _schedule_problems(given.get("scheduler", AUTO), run)
    names = {
        "train_batch_size": "train_batch_size and sft_batch_size, examples of all processes",
        "train_micro_batch_size_per_gpu": "max_tokens_per_batch",
        "gradient_accumulation_steps": "gradient_accumulation_steps, the run's own setting",
        "gradient_clipping": "clip_grad_norm",
    }
    for key, settings in names.items():
        if given.get(key, AUTO) not in (AUTO, own[key]):
            yield f"{key}={given[key]} is decided by {settings}: remove it or say auto."
    zero = given.get("zero_optimization", {})
    stage = zero.get("stage") if isinstance(zero, Mapping) else None
    if stage not in (1, 2, 3):
        yield (
            f"zero_optimization.stage must be 1, 2 or 3, got {stage!r}. Without ZeRO, leave "
            "--deepspeed out."
        )
    # DeepSpeed replaces torch's Adagrad by one that ignores our schedule
    if run["learner"] in ("adagrad", "sparse_adam"):
        yield f"learner={run['learner']} is not for DeepSpeed: use adamw."
    norm_type = (run["clip_grad_norm"] or {}).get("norm_type", 2)
    if norm_type != 2:
        yield f"clip_grad_norm: norm_type={norm_type}, but DeepSpeed has 2 only."


def _optimizer_problems(section: Any, run: Mapping[str, Any]) -> Iterator[str]:
    """Entries that contradict `learner`, `learning_rate` and `weight_decay`."""
    if section in (None, AUTO):
        return
    kind, params = _kind_and_params(section)
    if str(kind).lower() != run["learner"]:
        yield (
            f"optimizer.type={kind} is decided by learner, which is {run['learner']}: remove "
            "optimizer, or use another --learner."
        )
    rates = {run["learning_rate"], run["sft_learning_rate"]}
    for key, value in params.items():
        if key == "lr":
            taken, settings = rates == {value}, "learning_rate and sft_learning_rate"
        elif key == "weight_decay":
            taken, settings = value == run["weight_decay"], "weight_decay"
        else:
            taken, settings = value == _OPTIMIZER.get(key), "torch's defaults"
        if value != AUTO and not taken:
            yield f"optimizer.params.{key}={value} is decided by {settings}: say auto."


def _schedule_problems(section: Any, run: Mapping[str, Any]) -> Iterator[str]:
    """Entries that contradict `lr_scheduler_type`, `warmup_ratio` and the learning rates."""
    if section in (None, AUTO):
        return
    kind, params = _kind_and_params(section)
    wanted = _SCHEDULES.get(kind)
    if wanted is None or wanted != run["lr_scheduler_type"]:
        use = f", or use --lr_scheduler_type={wanted}" if wanted else ""
        yield (
            f"scheduler.type={kind} is decided by lr_scheduler_type, which is "
            f"{run['lr_scheduler_type']}: remove scheduler{use}."
        )
    rates = {run["learning_rate"], run["sft_learning_rate"]}
    for key, value in params.items():
        if key == "warmup_max_lr":
            taken, settings = rates == {value}, "learning_rate and sft_learning_rate"
        else:
            taken = key in _SCHEDULE and value == _SCHEDULE[key]
            settings = _OF_NO_NUMBER.get(key, "lr_scheduler_type")
        if value != AUTO and not taken:
            yield f"scheduler.params.{key}={value} is decided by {settings}: say auto."


def _kind_and_params(section: Any) -> tuple[Any, Mapping[str, Any]]:
    """Entries `type` and `params` of a section; None and {} for what has no such entries."""
    if not isinstance(section, Mapping):
        return None, {}
    params = section.get("params")
    return section.get("type"), params if isinstance(params, Mapping) else {}


def _without_auto(value: Any) -> Any:
    """Remove "auto", which DeepSpeed does not know, so that its defaults apply."""
    if not isinstance(value, Mapping):
        return value
    return {key: _without_auto(item) for key, item in value.items() if item != AUTO}
