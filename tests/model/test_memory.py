"""The memory of a step: what autograd keeps, the true peak, and the settings chosen from them."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoConfig, AutoModelForCausalLM

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.model import memory
from recbole_multdpo.model.backbone import DTYPES, add_lora, set_gradient_checkpointing
from recbole_multdpo.model.memory import (
    GIB,
    Activations,
    MemoryPlan,
    StepMemory,
    check_room,
    count_activations,
    count_step,
    kept_bytes,
    plan,
)
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.packed import block_mask
from recbole_multdpo.scoring.parts import parts_of
from recbole_multdpo.settings.config import load_config

SIZES = {
    "vocab_size": 300,
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
}
KINDS = [
    ("qwen2", "full", torch.float32, "sdpa"),
    ("qwen2", "lora", torch.float32, "sdpa"),
    ("qwen2", "full", torch.bfloat16, "sdpa"),
    ("qwen2", "lora", torch.bfloat16, "sdpa"),
    ("llama", "lora", torch.bfloat16, "sdpa"),
    ("llama", "full", torch.float32, "eager"),
]


class Model:
    """A model for `count_step`, in place of `LLMRec`."""

    def __init__(self, family: str, finetune: str, dtype: torch.dtype, attention: str) -> None:
        config = AutoConfig.for_model(family, **SIZES)
        torch.manual_seed(0)
        self.lm: nn.Module = AutoModelForCausalLM.from_config(
            config, attn_implementation=attention, dtype=dtype
        )
        if finetune == "lora":
            self.lm = add_lora(
                self.lm, r=8, alpha=16, dropout=0.0, target_modules="all-linear", seed=0
            )
        self.lm.train()

    def set_gradient_checkpointing(self, on: bool) -> None:
        set_gradient_checkpointing(self.lm, on)
        self.lm.train()

    def forward(self, n_tokens: int) -> torch.Tensor:
        """The body's output for one row of so many tokens."""
        model = causal_lm(self.lm)
        ids = torch.zeros(1, n_tokens, dtype=torch.long)
        return (
            parts_of(model)
            .body(  # type: ignore[no-any-return]
                input_ids=ids, attention_mask=block_mask(ids, model.dtype), use_cache=False
            )
            .last_hidden_state
        )


class Live(TorchDispatchMode):
    """Bytes of all storages that operations make, while they live, besides those of `known`."""

    def __init__(self, known: Any) -> None:
        super().__init__()
        self.known = {tensor.untyped_storage()._cdata for tensor in known}
        self.bytes = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                self._add(tensor.untyped_storage())
        return output

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.known:
            return
        self.known.add(key)
        self.bytes += size
        self.peak = max(self.peak, self.bytes)

        def gone() -> None:
            self.known.discard(key)
            self.bytes -= size

        weakref.finalize(storage, gone)


def peak_bytes(model: Model, n_tokens: int) -> int:
    """Most bytes of activations and their gradients at once, in a forward and backward pass."""
    model.forward(8).float().mean().backward()  # so that the weights' gradients exist
    weights = [*model.lm.parameters(), *model.lm.buffers()]
    gradients = [p.grad for p in model.lm.parameters() if p.grad is not None]
    with Live([*weights, *gradients]) as live:
        model.forward(n_tokens).float().mean().backward()
    return live.peak


@pytest.mark.parametrize(("family", "finetune", "dtype", "attention"), KINDS)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_two_short_rows_foretell_a_long_one(
    family: str, finetune: str, dtype: torch.dtype, attention: str, checkpointing: bool
) -> None:
    model, n_tokens = Model(family, finetune, dtype, attention), 400
    model.set_gradient_checkpointing(checkpointing)
    found = count_activations(model.lm)
    with kept_bytes(model.lm) as kept:
        output = model.forward(n_tokens)
    assert n_tokens * found.per_token(n_tokens) == pytest.approx(kept.n_bytes, rel=0.01)
    assert output.requires_grad


@pytest.mark.parametrize(("family", "finetune", "dtype", "attention"), KINDS)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_the_peak_of_a_step(
    family: str, finetune: str, dtype: torch.dtype, attention: str, checkpointing: bool
) -> None:
    model, n_tokens = Model(family, finetune, dtype, attention), 400
    found = count_step(model, None)
    model.set_gradient_checkpointing(checkpointing)
    peak = peak_bytes(model, n_tokens)
    computed = n_tokens * found.per_token(n_tokens, checkpointing=checkpointing)
    assert peak <= computed <= 1.4 * peak
    # control: what is kept alone is too little
    kept = found.checkpointed if checkpointing else found.whole
    assert kept is not None and n_tokens * kept.per_token(n_tokens) < peak


def test_counting_leaves_the_model_and_the_random_state_alone() -> None:
    model = Model("qwen2", "lora", torch.float32, "sdpa")
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    for asked in (None, False, True):
        count_step(model, asked)
        layers = [m for m in model.lm.modules() if hasattr(m, "gradient_checkpointing")]
        assert {m.gradient_checkpointing for m in layers} == {asked is True}
        assert model.lm.training
        assert all(p.grad is None for p in model.lm.parameters())
    assert torch.equal(torch.rand(4), expected)
    hooks = model.lm.get_input_embeddings()._forward_hooks  # type: ignore[operator]
    assert len(hooks) == 1


# 10.6 kB per token, 2.1 with checkpointing: a layer keeps 1 kB, its gradients take 0.6
MEMORY = StepMemory(Activations(1e4, 0), Activations(500, 0), 10, 0)


@pytest.mark.parametrize(
    ("room", "asked", "expected"),
    [
        (1e9, None, MemoryPlan(0, False)),  # the batch fits
        (1.06e4 * 20_000, None, MemoryPlan(0, False)),
        (1.06e4 * 19_999, None, MemoryPlan(16_384, False)),
        (1.06e4 * 12_300, None, MemoryPlan(12_288, False)),
        (1.06e4 * 2048, None, MemoryPlan(2048, False)),
        (1.06e4 * 2047, None, MemoryPlan(8192, True)),  # 2047 x 10.6 / 2.1 = 10,332
        (1.06e4 * 2047, False, MemoryPlan(1536, False)),
        (1e9, True, MemoryPlan(0, True)),
        (2.2e3, None, MemoryPlan(1, True)),
        (1e3, None, None),
        (-1e9, None, None),
    ],
)
def test_choice(room: float, asked: bool | None, expected: MemoryPlan | None) -> None:
    assert plan(MEMORY, room, width=300, batch_tokens=20_000, checkpointing=asked) == expected


def test_a_model_without_checkpointing_gets_smaller_parts() -> None:
    without = StepMemory(Activations(1e4, 0), None, 10, 0)
    assert plan(without, 1.06e4 * 100, width=9, batch_tokens=999) == MemoryPlan(96, False)


QWEN_7B = {
    "vocab_size": 152064,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
}
ZERO3 = {"zero_optimization": {"stage": 3}}
OFFLOADED = {"zero_optimization": {"stage": 2, "offload_optimizer": {"device": "cpu"}}}


@pytest.mark.parametrize(
    ("free", "given", "deepspeed", "n_processes", "message"),
    [
        (22, [], None, 1, None),
        (15, [], None, 1, r"7\.62 billion.*weights 14\.2.*Use --deepspeed=zero2_offload, or --dee"),
        (22, ["--dtype=float32"], None, 1, "weights 28.*--dtype=bfloat16"),
        (79, ["--finetune=full"], None, 1, r"reference 14\.2, gradients 28\.4.*--finetune=lora"),
        (79, ["--finetune=full"], ZERO3, 8, None),
        (22, ["--finetune=full"], ZERO3, 8, r"whole copies 28\.4.*--finetune=lora, or a smaller"),
        (79, ["--finetune=full"], OFFLOADED, 1, None),
        (79, ["--finetune=full", "--loss=sft"], None, 1, r"gradients 28\.4, optimizer 85\.1"),
        (16, ["--loss=zero_shot"], None, 1, None),
    ],
)
def test_a_model_that_is_too_large_is_refused_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch,
    free: float,
    given: list[str],
    deepspeed: dict[str, Any] | None,
    n_processes: int,
    message: str | None,
) -> None:
    settings = load_config(
        [
            "--model=LLMRec",
            "--dataset=ml-100k",
            "--device=cpu",
            "--backbone=Qwen/Qwen2.5-7B",
            *given,
        ],
        config_dict={"dtype": "bfloat16"},
    ).settings
    assert settings is not None
    dtype = DTYPES[settings.dtype]
    monkeypatch.setattr(memory, "free_bytes", lambda device: free * GIB)
    monkeypatch.setenv("WORLD_SIZE", str(n_processes))
    for variable in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(variable, "0")
    config = AutoConfig.for_model("qwen2", **QWEN_7B)
    arguments = (config, settings, dtype)
    check_room(*arguments, torch.device("cpu"), deepspeed)
    with nullcontext() if message is None else pytest.raises(ConfigError, match=message):
        check_room(*arguments, torch.device("cuda", 0), deepspeed)
