"""Fit a stage into memory: `auto` of `max_tokens_per_batch` and `gradient_checkpointing`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from recbole_multdpo.data.loader import SetwiseDataLoader
from recbole_multdpo.errors import TrainingError
from recbole_multdpo.model.backbone import uses_gradient_checkpointing
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.model.memory import (
    GIB,
    USABLE,
    StepMemory,
    count_step,
    is_offloaded,
    plan,
    remedies,
    state_bytes,
)
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import log_detail
from recbole_multdpo.runtime.free_memory import free_bytes
from recbole_multdpo.scoring.head import logits_bytes
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.settings.config import Config

# DeepSpeed's defaults, in values
_BUCKET, _LIVE = 5e8, 1e9


def fit_into_memory(config: Config, model: LLMRec, data: SetwiseDataLoader, stage: str) -> None:
    """Choose the settings that are `auto` for a stage, and apply them to the model.

    Call it with the model in training mode, on its device, before the engine is made. All processes
    choose the same, by the one with the least memory. What a checkpoint has restored stays.

    Args:
        config: the run's configuration.
        model: at the start of the stage.
        data: the stage's examples.
        stage: its name, for the log.

    Raises:
        TrainingError: nothing fits.
    """
    settings = model.settings
    is_automatic = "auto" in (settings.max_tokens_per_batch, settings.gradient_checkpointing)
    if not is_automatic or model.automatic_max_tokens is not None:
        return
    asked = settings.gradient_checkpointing
    memory = count_step(model, None if asked == "auto" else asked)
    free = free_bytes(model.device)
    state = state_to_come(model, config.deepspeed)
    lm = causal_lm(model.lm)
    logits = logits_bytes(
        lm.config.get_text_config().vocab_size, lm.dtype, model.device.type == "cuda"
    )
    own_room = USABLE[model.device.type] * free - state - logits
    room = min(processes.all_gather(own_room))
    width = model.longest_row(data.setwise_sampler.most_candidates)
    n_examples = -(-data.examples_per_batch // processes.world_size())
    chosen = plan(
        memory,
        room,
        width=width,
        batch_tokens=n_examples * width,
        checkpointing=None if asked == "auto" else asked,
    )
    if chosen is None:
        raise TrainingError(
            f"the {stage} stage does not fit into the memory of {model.device}: of "
            f"{free / GIB:.1f} GiB free, gradients and optimizer take {state / GIB:.1f} and the "
            f"head's logits {logits / GIB:.1f}. {remedies(settings, config.deepspeed)}"
        )
    if asked == "auto":
        model.set_gradient_checkpointing(chosen.checkpointing)
    model.set_max_tokens(chosen.max_tokens)
    log_detail(
        f"memory of the {stage} stage: {free / GIB:.2f} GiB free, for gradients and optimizer "
        f"{state / GIB:.2f}, for the head's logits {logits / GIB:.2f}; "
        f"{_per_token(memory, width)} for activations at {width} tokens in a row: "
        f"max_tokens_per_batch={model.max_tokens or '0 (batches fit)'}, "
        f"gradient_checkpointing={chosen.checkpointing}"
    )


def memory_state(model: LLMRec) -> dict[str, Any]:
    """The choices of a stage, for its checkpoints."""
    return {
        "max_tokens": model.automatic_max_tokens,
        "gradient_checkpointing": uses_gradient_checkpointing(model.lm),
    }


def restore_memory(model: LLMRec, state: Mapping[str, Any]) -> None:
    """Apply what a checkpoint's `memory_state` says of the settings that are `auto`.

    So a resumed run computes the same parts, and its sums are the same bit by bit.

    Raises:
        TypeError: a value is of another type.
    """
    max_tokens, checkpointing = state["max_tokens"], state["gradient_checkpointing"]
    if type(max_tokens) not in (int, type(None)) or type(checkpointing) is not bool:
        raise TypeError(f"memory: {state}")
    model.set_max_tokens(max_tokens)
    if model.settings.gradient_checkpointing == "auto":
        model.set_gradient_checkpointing(checkpointing)


def _per_token(memory: StepMemory, width: int) -> str:
    """Bytes per token, as text."""
    text = f"{memory.per_token(width, checkpointing=False) / 2**10:.1f} KiB per token"
    if memory.checkpointed is not None:
        with_it = memory.per_token(width, checkpointing=True) / 2**10
        text += f" ({with_it:.1f} with gradient checkpointing)"
    return text


def state_to_come(model: LLMRec, deepspeed: Mapping[str, Any] | None) -> float:
    """Bytes on the device that the engine adds to the weights: gradients and optimizer state."""
    parameters = list(model.lm.parameters())
    trained = [p for p in parameters if p.requires_grad]
    n_trained = sum(p.numel() for p in trained)
    zero = (deepspeed or {}).get("zero_optimization", {})
    stage, n_processes = zero.get("stage", 0), processes.world_size()
    found = state_bytes(
        0,
        n_trained,
        weight_bytes=0,
        trained_bytes=min((p.element_size() for p in trained), default=4),
        is_lora=True,
        zero=stage,
        n_processes=n_processes,
    )
    state = found["gradients"] + (0 if is_offloaded(zero) else found["optimizer"])
    if stage:
        bucket = min(float(zero.get("reduce_bucket_size", _BUCKET)), n_trained)
        state += 2 * bucket * min(p.element_size() for p in trained)
    if stage == 3:  # the whole weights are on the device now, and will be divided
        modules = [model.lm, *([] if model.reference is None else [model.reference])]
        weights = sum(p.numel() * p.element_size() for m in modules for p in m.parameters())
        live = float(zero.get("stage3_max_live_parameters", _LIVE)) * parameters[0].element_size()
        state += min(live, weights) - weights * (1 - 1 / n_processes)
    return state
