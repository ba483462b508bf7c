"""Memory of a training step: what it needs by token, and the settings that fit.

A step's memory is the weights, the state of their training (`state_bytes`), the head's logits
(`scoring.head.logits_bytes`), and the activations that the backward pass needs. The latter are
counted on the model itself (`count_activations`), adapter, dtype and attention included, since
formulas go wrong by what a library casts on the way. `benchmarks.training_memory` has a formula as
well, for tables of models that are not at hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedConfig

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.free_memory import free_bytes
from recbole_multdpo.runtime.random_state import random_state, restore_random_state
from recbole_multdpo.scoring.head import logits_bytes
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.packed import block_mask
from recbole_multdpo.scoring.parts import parts_of
from recbole_multdpo.scoring.windows import LayerKinds
from recbole_multdpo.settings.llmrec import ZERO_SHOT, LLMRecSettings

GIB = 2**30
# Of the free memory, what a step may take; the rest is for fragments, the libraries' own workspace
# and, on a CPU, for other programs.
USABLE = {"cuda": 0.9, "cpu": 0.7}
# A part of so many tokens keeps a device busy (an estimate for GPUs), so that fewer are worth
# gradient checkpointing, which makes a step a third slower.
ENOUGH_TOKENS = 2048
# Besides what is kept, a backward pass takes memory for gradients: between 0.25 and 0.6 of what one
# block keeps, as counted in tests/model/test_memory.py.
GRADIENTS_OF_BLOCK = 0.6
_ROWS = (64, 128)  # tokens of the counted rows


class Trainable(Protocol):
    """A model whose step is counted, such as `LLMRec`."""

    lm: nn.Module

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Switch it on or off."""


@dataclass(frozen=True)
class Activations:
    """Bytes that a forward pass keeps for the backward pass, by tokens of a row.

    A row of L tokens keeps linear * L + quadratic * L^2: the mask [L, L], and with eager attention
    the attention's weights.

    Attributes:
        linear: bytes per token.
        quadratic: bytes per pair of tokens.
    """

    linear: float
    quadratic: float

    def per_token(self, width: int) -> float:
        """Bytes per token in rows of `width` tokens."""
        return self.linear + self.quadratic * width


@dataclass(frozen=True)
class StepMemory:
    """Activations of one training step, with and without gradient checkpointing.

    Attributes:
        whole: kept without checkpointing.
        checkpointed: kept with checkpointing, besides the block that is computed again; None if it
            is not wanted or the model has none.
        n_layers: number of blocks.
        mask_bytes: bytes of an element of the mask.
    """

    whole: Activations
    checkpointed: Activations | None
    n_layers: int
    mask_bytes: int

    def per_token(self, width: int, *, checkpointing: bool) -> float:
        """Peak bytes per token of a part in rows of `width` tokens, forward and backward pass."""
        block = self.whole.per_token(width) / self.n_layers
        if not checkpointing:
            return self.whole.per_token(width) + GRADIENTS_OF_BLOCK * block
        assert self.checkpointed is not None
        kept = self.checkpointed.linear + self.mask_bytes * width
        return kept + (1 + GRADIENTS_OF_BLOCK) * block


@dataclass(frozen=True)
class MemoryPlan:
    """The sizes of the parts of a stage's batches, and gradient checkpointing.

    Attributes:
        max_tokens: tokens of a part, padding included; 0 for no limit: every batch fits.
        checkpointing: recompute activations in the backward pass.
    """

    max_tokens: int
    checkpointing: bool


def plan(
    memory: StepMemory,
    room: float,
    *,
    width: int,
    batch_tokens: int,
    checkpointing: bool | None = None,
) -> MemoryPlan | None:
    """Choose the size of a batch's parts, and gradient checkpointing where it is needed.

    The size is a power of two or 1.5 times one, so that it does not change with every megabyte.

    Args:
        memory: of a step.
        room: bytes for activations.
        width: tokens of the longest row.
        batch_tokens: tokens of the largest batch, padding included.
        checkpointing: None to choose, for parts of `ENOUGH_TOKENS`.

    Returns:
        None if not even one token fits.
    """
    fits = {
        choice: int(room / memory.per_token(width, checkpointing=choice))
        for choice in ([False, True] if checkpointing is None else [checkpointing])
        if not (choice and memory.checkpointed is None)
    }
    enough = min(batch_tokens, ENOUGH_TOKENS)
    # of equals the first, without checkpointing
    chosen = next(
        (choice for choice in fits if fits[choice] >= enough),
        max(fits, key=lambda choice: fits[choice]),
    )
    if fits[chosen] < 1:
        return None
    if fits[chosen] >= batch_tokens:
        return MemoryPlan(0, chosen)
    return MemoryPlan(_rounded_down(fits[chosen]), chosen)


def _rounded_down(number: int) -> int:
    """Largest power of two, or 1.5 times one, that is not above `number` >= 1."""
    power = 2 ** (number.bit_length() - 1)
    return power * 3 // 2 if number >= power * 3 // 2 and power > 1 else power


class _Kept:
    """Bytes of the distinct storages that autograd keeps, without those of given tensors."""

    def __init__(self, known: Iterator[Tensor]) -> None:
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        self._storages: dict[int, torch.UntypedStorage] = {}

    def keep(self, tensor: Tensor) -> Tensor:
        """Count a saved tensor; its storage stays alive, so that no other gets its address."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._known:
            self._storages[storage._cdata] = storage
        return tensor

    @property
    def n_bytes(self) -> int:
        return sum(storage.nbytes() for storage in self._storages.values())


@contextmanager
def kept_bytes(lm: nn.Module) -> Iterator[_Kept]:
    """Count the bytes that autograd keeps in the block, besides the weights of `lm`.

    `n_bytes` of what is yielded is the count so far.
    """
    kept = _Kept(iter((*lm.parameters(), *lm.buffers())))
    with torch.autograd.graph.saved_tensors_hooks(kept.keep, lambda tensor: tensor):
        yield kept


def count_activations(lm: nn.Module) -> Activations:
    """Run the body of `lm` on two short rows, with its mode and adapter, and count what it keeps.

    The random state is left as it was.

    Args:
        lm: a Hugging Face causal LM, possibly wrapped by PEFT, with its trained weights marked.
    """
    model = causal_lm(lm)
    body, device = parts_of(model).body, model.device
    before = random_state(device)
    counts = []
    for n_tokens in _ROWS:
        segments = torch.zeros(1, n_tokens, dtype=torch.long, device=device)
        positions = torch.arange(n_tokens, device=device)[None]
        mask = LayerKinds.of(model.config).masks(
            block_mask(segments, model.dtype), positions, positions
        )
        with torch.enable_grad(), kept_bytes(lm) as kept:
            # the output keeps the graph alive until the count is taken
            output = body(
                input_ids=segments, attention_mask=mask, position_ids=positions, use_cache=False
            )
            counts.append(kept.n_bytes)
        del output
    restore_random_state(before, device)
    (first, second), (few, many) = counts, _ROWS
    quadratic = max((second / many - first / few) / (many - few), 0.0)
    return Activations(first / few - quadratic * few, quadratic)


def count_step(model: Trainable, checkpointing: bool | None) -> StepMemory:
    """Count the activations of a model's step; checkpointing is off afterwards unless it is True.

    Args:
        model: in the mode of its training.
        checkpointing: None to count with and without.
    """
    lm = causal_lm(model.lm)
    checkpointed = None
    if checkpointing is not False and lm.supports_gradient_checkpointing:
        model.set_gradient_checkpointing(True)
        checkpointed = count_activations(model.lm)
    model.set_gradient_checkpointing(False)
    whole = count_activations(model.lm)
    model.set_gradient_checkpointing(bool(checkpointing))
    n_layers = getattr(lm.config.get_text_config(), "num_hidden_layers", 1)
    return StepMemory(whole, checkpointed, n_layers, lm.dtype.itemsize)


def state_bytes(
    total: int,
    trained: int,
    *,
    weight_bytes: int,
    trained_bytes: int,
    is_lora: bool,
    zero: int = 0,
    n_processes: int = 1,
) -> dict[str, float]:
    """Bytes per process of the tensors that exist during the whole training, with AdamW.

    Args:
        total: number of weights, without an adapter.
        trained: number of trained weights.
        weight_bytes: bytes of a weight: 2 for bfloat16, 4 for float32.
        trained_bytes: bytes of a trained weight, where the model computes with it.
        is_lora: the trained weights are an adapter; otherwise a frozen copy is the reference.
        zero: DeepSpeed's ZeRO stage; 0 without DeepSpeed.
        n_processes: number of processes that share the divided tensors.

    Returns:
        `weights`, `reference`, `gradients`, `optimizer`.
    """
    # two moments, and the weights again in float32: DeepSpeed's always, else those of bfloat16
    moments = 12 if zero or trained_bytes < 4 else 8
    weights = weight_bytes * total + (trained_bytes * trained if is_lora else 0)
    return {
        "weights": weights / (n_processes if zero == 3 else 1),
        "reference": (0 if is_lora else weight_bytes * total) / (n_processes if zero == 3 else 1),
        # added up in float32
        "gradients": 4 * trained / (n_processes if zero >= 2 else 1),
        "optimizer": moments * trained / (n_processes if zero >= 1 else 1),
    }


def check_room(
    config: PreTrainedConfig,
    settings: LLMRecSettings,
    dtype: torch.dtype,
    device: torch.device,
    deepspeed: Mapping[str, Any] | None,
) -> None:
    """Refuse a model that cannot be trained in the memory of a GPU, before it is loaded.

    Counted are the weights, the state of their training and the head's logits; what activations
    need is known when the model is there. Nothing is said of a CPU, where memory can be swapped.

    Args:
        config: of the model.
        settings: of the run.
        dtype: of the weights.
        device: of this process.
        deepspeed: DeepSpeed's configuration; None without.

    Raises:
        ConfigError: it does not fit; the message has the numbers and names the settings.
    """
    if device.type != "cuda" or getattr(config, "auto_map", None):  # whose code is not trusted yet
        return
    with torch.device("meta"):
        lm = AutoModelForCausalLM.from_config(config)
    total, low = sum(p.numel() for p in lm.parameters()), dtype.itemsize
    is_lora = not settings.trains_all_weights
    trained = total
    if is_lora:
        linears = [m for m in lm.modules() if isinstance(m, nn.Linear)]
        trained = sum(settings.lora_r * (m.in_features + m.out_features) for m in linears)
    if settings.loss == ZERO_SHOT:
        trained = 0
    zero = (deepspeed or {}).get("zero_optimization", {})
    state = state_bytes(
        total,
        trained,
        weight_bytes=low,
        trained_bytes=low,
        is_lora=is_lora,
        zero=zero.get("stage", 0),
        n_processes=processes.launched_world_size(),
    )
    if is_offloaded(zero):
        state["optimizer"] = 0
    if not (settings.has_preference_stage and settings.uses_reference):
        state["reference"] = 0
    if zero.get("stage") == 3:  # whole while it is loaded and while it ranks
        state["whole copies"] = low * total * (2 if state["reference"] else 1)
    state["logits"] = logits_bytes(config.get_text_config().vocab_size, dtype, True)
    needed, free = sum(state.values()), free_bytes(device)
    if needed > free:
        parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in state.items() if size)
        raise ConfigError(
            f"backbone={settings.backbone}: to train its {total / 1e9:.2f} billion weights takes "
            f"at least {needed / GIB:.1f} GiB of memory per process ({parts}), and {device} has "
            f"{free / GIB:.1f} GiB free. {remedies(settings, deepspeed)}"
        )


def is_offloaded(zero: Mapping[str, Any]) -> bool:
    """True if DeepSpeed's `zero_optimization` keeps the optimizer's state off the device."""
    return (zero.get("offload_optimizer") or {}).get("device", "none") != "none"


def remedies(settings: LLMRecSettings, deepspeed: Mapping[str, Any] | None) -> str:
    """Settings that make training smaller, as a sentence."""
    ways = []
    if settings.trains_all_weights:
        ways.append("--finetune=lora")
    if settings.dtype == "float32":
        ways.append("--dtype=bfloat16")
    if settings.gradient_checkpointing is False:
        ways.append("--gradient_checkpointing=True")
    if deepspeed is None:
        ways.append("--deepspeed=zero2_offload")
    if (deepspeed or {}).get("zero_optimization", {}).get("stage") != 3:
        ways.append("--deepspeed=zero3 over several GPUs")
    return f"Use {', or '.join([*ways, 'a smaller backbone'])}."
