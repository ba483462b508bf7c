"""Compute the training memory per process of real models, and measure that of a small one.

    python -m benchmarks.training_memory [--processes 8] [--tokens 8192]
    python -m benchmarks.training_memory --measure            # two CPU processes, a minute

Computed: weights, reference, gradients and optimizer state by data parallelism and ZeRO stage, and
the activations of a part of `max_tokens_per_batch` tokens, for models of the Qwen2.5 family in
bfloat16 with AdamW. Not counted: the CUDA context (0.5 GB), buckets of gradients (1 to 2 GB,
`reduce_bucket_size`), the head's logits (0.5 GB), fragmentation.

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
from recbole_multdpo.runtime import processes
from recbole_multdpo.training.distributed import DeepSpeedEngine, Engine, TorchEngine

GB = 2**30
LORA_R = 8
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


def state_bytes(
    shape: Shape, method: str, n_processes: int, *, lora: bool, low: int = 2
) -> dict[str, float]:
    """Bytes per process of the tensors that exist during the whole training.

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
    total = shape.parameters()
    trained = shape.lora_parameters() if lora else total
    # PEFT keeps adapters in float32; DeepSpeed casts them and keeps a float32 copy
    of_trained = 4 if lora and method == "plain" else low
    weights = low * total + (of_trained * trained if lora else 0)
    reference = 0 if lora else low * total
    gradients = 4 * trained  # added up in float32
    # AdamW's two moments, and the weights again, in float32: DeepSpeed's always, else of bfloat16
    has_masters = method != "plain" or of_trained < 4
    optimizer = (12 if has_masters else 8) * trained
    stage = METHODS.index(method)
    return {
        "weights": weights / (n_processes if stage == 3 else 1),
        "reference": reference / (n_processes if stage == 3 else 1),
        "gradients": gradients / (n_processes if stage >= 2 else 1),
        "optimizer": optimizer / (n_processes if stage >= 1 else 1),
    }


def activation_bytes(shape: Shape, n_tokens: int, *, checkpointing: bool, low: int = 2) -> float:
    """Bytes of activations kept for the backward pass of `n_tokens`, with fused attention.

    A block keeps, per token: the inputs of both norms in float32 and their outputs, q and k before
    and after rotation, k and v of every head, the attention's output, and in the MLP gate, its
    activation, up and their product. With checkpointing: the input of every block, and all of this
    for one block at a time.
    """
    h, i = shape.hidden, shape.intermediate
    block = low * (2 * h + 6 * h + 4 * i) + 4 * 2 * h
    if checkpointing:
        return n_tokens * (shape.layers * low * h + block)
    return n_tokens * shape.layers * block


def markdown(n_processes: int, n_tokens: int) -> str:
    """The computed table as Markdown."""
    titles = ["model", "trained", "plain", *(f"ZeRO-{stage}" for stage in (1, 2, 3))]
    rows = [f"| {' | '.join(titles)} | activations | with checkpointing |"]
    rows.append("|" + "---|" * (len(titles) + 2))
    for shape in SHAPES:
        kept = [
            activation_bytes(shape, n_tokens, checkpointing=checkpointing) / GB
            for checkpointing in (False, True)
        ]
        for lora in (True, False):
            states = [
                sum(state_bytes(shape, method, n_processes, lora=lora).values()) / GB
                for method in METHODS
            ]
            cells = [f"{value:.1f}" for value in (*states, *kept)]
            rows.append(f"| {shape.name} | {'LoRA' if lora else 'all'} | {' | '.join(cells)} |")
    return "\n".join(rows)


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
        states = state_bytes(SMALL, method, count, lora=False, low=4)
        computed = sum(states.values()) - states["gradients"]
        rows.append(f"| {method} | {computed / 2**20:.0f} | {max(found_bytes) / 2**20:.0f} |")
    return "\n".join(rows)


def main() -> None:
    """Print one of the two tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=8192, help="of a part of the batch")
    parser.add_argument("--measure", action="store_true", help="the small model, in two processes")
    options = parser.parse_args()
    print(measure() if options.measure else markdown(options.processes, options.tokens))


if __name__ == "__main__":
    main()
