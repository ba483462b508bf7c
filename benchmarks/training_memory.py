"""Compute the training memory per process of real models, and measure that of a small one.

    python -m benchmarks.training_memory [--processes 8] [--tokens 8192]
    python -m benchmarks.training_memory --measure            # two CPU processes, a minute

Computed: weights, reference, gradients and optimizer state by data parallelism and ZeRO stage, and
the activations of a part of `max_tokens_per_batch` tokens, for models of the Qwen2.5 family in
bfloat16 with AdamW. Not counted: the CUDA context (0.5 GB), buckets of gradients (1 to 2 GB,
`reduce_bucket_size`), the head's logits (1.3 GB), fragmentation. Then what `max_tokens_per_batch:
auto` and `gradient_checkpointing: auto` choose on GPUs of three sizes.

Measured: all tensors of a process after three steps, in float32, compared with the same formula
without gradients, which are freed by then. Resident memory is not meaningful at this size: it
includes the peak of loading the model and starting DeepSpeed.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import socket
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Qwen2Config, Qwen2ForCausalLM

from recbole_multdpo.model.llmrec import StepOutput
from recbole_multdpo.model.memory import (
    GIB,
    USABLE,
    Activations,
    MemoryPlan,
    StepMemory,
    plan,
    state_bytes,
)
from recbole_multdpo.runtime import processes
from recbole_multdpo.scoring.head import logits_bytes
from recbole_multdpo.training.distributed import DeepSpeedEngine, Engine, TorchEngine

LORA_R = 8
# of a prompt of 512 tokens with 16 candidates, of which 7 tokens each are fed
ROW_TOKENS = 512 + 16 * 7
# GiB that torch reports: RTX 4090, A100 of 40 GB, H100 of 80 GB; and what CUDA itself takes
GPUS = {"24 GB": 23.6, "40 GB": 39.4, "80 GB": 79.1}
CONTEXT_GIB = 0.5
LIVE_WEIGHTS = 1e9  # `stage3_max_live_parameters`
METHODS = ("plain", "zero1", "zero2", "zero3")


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen2-like model."""

    name: str
    hidden: int
    layers: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool

    def config(self) -> Qwen2Config:
        """The configuration in transformers."""
        return Qwen2Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            tie_word_embeddings=self.tied,
        )

    def linears(self) -> list[tuple[int, int]]:
        """(in, out) of the linear layers of one block."""
        h, i = self.hidden, self.intermediate
        kv = h // self.heads * self.kv_heads
        return [(h, h), (h, kv), (h, kv), (h, h), (h, i), (h, i), (i, h)]

    def parameters(self) -> int:
        """All weights: embedding, head, blocks (q, k, v have a bias) and norms."""
        block = sum(a * b for a, b in self.linears())
        biases = sum(out for _, out in self.linears()[:3])
        norms = 2 * self.hidden
        tables = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return tables + self.layers * (block + biases + norms) + self.hidden

    def lora_parameters(self, r: int = LORA_R) -> int:
        """LoRA matrices of rank r on every linear layer but the head."""
        return self.layers * sum(r * (a + b) for a, b in self.linears())


SHAPES = (
    Shape("0.5B", 896, 24, 4864, 14, 2, 151936, True),
    Shape("1.5B", 1536, 28, 8960, 12, 2, 151936, True),
    Shape("3B", 2048, 36, 11008, 16, 2, 151936, True),
    Shape("7B", 3584, 28, 18944, 28, 4, 152064, False),
)
SMALL = Shape("small", 512, 6, 1536, 8, 2, 4000, True)


def states(
    shape: Shape, method: str, n_processes: int, *, lora: bool, low: int = 2
) -> dict[str, float]:
    """`state_bytes` of a model.

    Args:
        shape: the model.
        method: one of `METHODS`.
        n_processes: number of processes that share the divided tensors.
        lora: LoRA on every linear layer, or all weights; the latter needs a frozen copy as the
            reference.
        low: bytes of a weight: 2 for bfloat16, 4 for float32.

    Returns:
        `weights`, `reference`, `gradients`, `optimizer`.
    """
    return state_bytes(
        shape.parameters(),
        shape.lora_parameters() if lora else shape.parameters(),
        weight_bytes=low,
        trained_bytes=low,
        is_lora=lora,
        zero=METHODS.index(method),
        n_processes=n_processes,
    )


def step_memory(shape: Shape, *, lora: bool, low: int = 2) -> StepMemory:
    """Activations of a step by a formula, with fused attention: the twin of `count_step`.

    A block keeps, per token: the inputs of both norms in float32, q, k and v of every head, the
    attention's output and in the MLP gate, its activation, up and their product. With LoRA it also
    keeps the outputs of both norms, which are the inputs of adapters, and the adapters' inner
    activations; where all weights are trained, the outputs of the norms before and after their
    factor. With checkpointing: the input of every block. The final norm keeps its input in
    float32. All blocks share the mask.
    """
    h, i = shape.hidden, shape.intermediate
    of_norms = 2 * h if lora else 4 * h
    inner = len(shape.linears()) * LORA_R if lora else 0
    small = 4 * shape.heads + 8  # log-normalisers of the attention, root mean squares
    block = low * (of_norms + 4 * h + 4 * i + inner) + 4 * 2 * h + small
    final = 4 * h + (0 if lora else low * h)
    return StepMemory(
        Activations(shape.layers * block + final, low),
        Activations(shape.layers * low * h + final, 0),
        shape.layers,
        low,
    )


def activation_gib(shape: Shape, n_tokens: int, *, lora: bool, checkpointing: bool) -> float:
    """GiB of activations and their gradients at the peak of a step of `n_tokens`, bfloat16."""
    per_token = step_memory(shape, lora=lora).per_token(ROW_TOKENS, checkpointing=checkpointing)
    return n_tokens * per_token / GIB


def markdown(n_processes: int, n_tokens: int) -> str:
    """The computed table of memory as Markdown."""
    titles = ["model", "trained", "plain", *(f"ZeRO-{stage}" for stage in (1, 2, 3))]
    rows = [f"| {' | '.join(titles)} | activations | with checkpointing |"]
    rows.append("|" + "---|" * (len(titles) + 2))
    for shape in SHAPES:
        for lora in (True, False):
            of_states = [
                sum(states(shape, method, n_processes, lora=lora).values()) / GIB
                for method in METHODS
            ]
            activations = [
                activation_gib(shape, n_tokens, lora=lora, checkpointing=checkpointing)
                for checkpointing in (False, True)
            ]
            cells = [f"{value:.1f}" for value in (*of_states, *activations)]
            rows.append(f"| {shape.name} | {'LoRA' if lora else 'all'} | {' | '.join(cells)} |")
    return "\n".join(rows)


def chosen(
    shape: Shape, gpu: str, *, lora: bool, method: str = "plain", n_processes: int = 1
) -> MemoryPlan | None:
    """The choice of `auto` for a model in bfloat16 on a GPU; None if the model does not fit.

    A batch is 16 examples of `ROW_TOKENS` tokens per process.
    """
    of_states = states(shape, method, n_processes, lora=lora)
    logits = logits_bytes(shape.vocabulary, torch.bfloat16, True)
    free = (GPUS[gpu] - CONTEXT_GIB) * GIB
    state = sum(of_states.values())
    # ZeRO-3 has whole copies while it ranks, of the reference too, and gathers layers in training
    whole = 2 * shape.parameters() * (1 if lora else 2) if method == "zero3" else 0
    if state + logits > free or state + whole > free:
        return None
    present = of_states["weights"] + of_states["reference"]
    room = USABLE["cuda"] * (free - present) - (state - present) - logits
    room -= min(whole, 2 * LIVE_WEIGHTS)
    memory = step_memory(shape, lora=lora)
    return plan(memory, room, width=ROW_TOKENS, batch_tokens=16 * ROW_TOKENS)


def choices() -> str:
    """Table of `chosen` as Markdown, with ZeRO-3 over 8 processes where one GPU is too small."""
    rows = [f"| model | trained | {' | '.join(GPUS)} |", "|" + "---|" * (2 + len(GPUS))]
    for shape in SHAPES:
        for lora in (True, False):
            cells = []
            for gpu in GPUS:
                found, note = chosen(shape, gpu, lora=lora), ""
                if found is None:
                    found = chosen(shape, gpu, lora=lora, method="zero3", n_processes=8)
                    note = ", ZeRO-3 over 8"
                cells.append("does not fit" if found is None else _in_words(found) + note)
            rows.append(f"| {shape.name} | {'LoRA' if lora else 'all'} | {' | '.join(cells)} |")
    return "\n".join(rows)


def _in_words(found: MemoryPlan) -> str:
    size = f"{found.max_tokens:,}" if found.max_tokens else "all"
    return f"{size}{' (c)' if found.checkpointing else ''}"


class _SmallModel:
    """Stand-in for `LLMRec` with an LM, its reference, and a step over token ids [B, L]."""

    def __init__(self, shape: Shape) -> None:
        torch.manual_seed(0)
        self.device = torch.device("cpu")
        self.lm = Qwen2ForCausalLM(shape.config())
        self.reference: nn.Module = Qwen2ForCausalLM(shape.config()).requires_grad_(False)

    def step(self, batch: torch.Tensor, kl: None) -> StepOutput:
        """Mean logit as a loss, which uses all weights."""
        with torch.no_grad():
            self.reference(batch)
        losses = self.lm(batch).logits.mean((1, 2))
        return StepOutput(losses, losses.detach(), None)


def _tensor_bytes() -> int:
    """Bytes of all tensors that Python can reach, each storage once."""
    gc.collect()
    storages = {}
    for found in gc.get_objects():
        if isinstance(found, torch.Tensor) and found.device.type == "cpu":
            storage = found.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def _measured(method: str, rank: int, count: int, port: int, results: Any) -> None:
    launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launcher.items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    with processes.process_group(torch.device("cpu")):
        if method != "plain":
            import deepspeed  # noqa: F401  # before measuring, to exclude its own memory
        before = _tensor_bytes()
        model: Any = _SmallModel(SMALL)
        optimizer = torch.optim.AdamW(model.lm.parameters(), lr=1e-4)
        engine: Engine
        if method == "plain":
            engine = TorchEngine(model, optimizer, None)
        else:
            zero = {"stage": METHODS.index(method), "reduce_bucket_size": 1_000_000}
            own = {"train_micro_batch_size_per_gpu": 1, "zero_allow_untested_optimizer": True}
            engine = DeepSpeedEngine(model, optimizer, {**own, "zero_optimization": zero})
        for _ in range(3):
            engine.discard_gradient()
            batch: Any = torch.randint(0, SMALL.vocabulary, (1, 8))
            engine.add_gradient(batch, torch.ones(1), None, is_last=True)
            engine.step()
        engine.discard_gradient()
        results.put(_tensor_bytes() - before)


def measure(count: int = 2) -> str:
    """Compare the formula with the tensors' memory for the small model in float32."""
    context = multiprocessing.get_context("spawn")
    rows = ["| | computed, MB | measured, MB |", "|---|---|---|"]
    for method in METHODS:
        with socket.socket() as found:
            found.bind(("127.0.0.1", 0))
            port = found.getsockname()[1]
        results: Any = context.Queue()
        workers = [
            context.Process(target=_measured, args=(method, rank, count, port, results))
            for rank in range(count)
        ]
        for worker in workers:
            worker.start()
        found_bytes = [results.get(timeout=300) for _ in workers]
        for worker in workers:
            worker.join()
        of_states = states(SMALL, method, count, lora=False, low=4)
        computed = sum(of_states.values()) - of_states["gradients"]
        rows.append(f"| {method} | {computed / 2**20:.0f} | {max(found_bytes) / 2**20:.0f} |")
    return "\n".join(rows)


def main() -> None:
    """Print the computed tables, or the measured one."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192, help="of a part of the batch")
    parser.add_argument("--measure", action="store_true", help="the small model, in two processes")
    options = parser.parse_args()
    if options.measure:
        print(measure())
    else:
        print(markdown(options.processes, options.tokens), choices(), sep="\n\n")


if __name__ == "__main__":
    main()
