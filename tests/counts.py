"""Counts of a run on a virtual GPU: launches, host waits, bytes kept for the backward pass.

A launch is an ATen operation that is no view and allocates more than memory: on a GPU it starts a
kernel or a copy. The counts depend on the code and on the versions of torch and transformers, not
on the machine.

    python -m tests.counts [--layers=24] [--setting=value ...]

prints those of the last step of each stage and of the first and last ranked batch, with LoRA.
"""

from __future__ import annotations

import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen2Config, Qwen2ForCausalLM

from recbole_multdpo.model.tiny import fit_tokenizer
from recbole_multdpo.quick_start import run
from recbole_multdpo.ranking.exact import ExactRanker
from recbole_multdpo.training.trainer import SetwiseTrainer
from tests.integration.toy import WORDS, toy_arguments, write_toy
from tests.virtual_cuda import VirtualCuda

GENRES = ("Red", "Blue", "Green")
# operations that start nothing on a device, besides views
HOST_ONLY = set(
    """empty empty_like empty_strided new_empty new_empty_strided set_ _unsafe_view _reshape_alias
    lift_fresh is_same_size _local_scalar_dense _record_function_enter_new _record_function_exit
    """.split()
)


class Launches(TorchDispatchMode):
    """Count the launches within a block by operation.

    Attributes:
        by_name: launches of every ATen operation.
        forwards: (launches, host waits) before each forward pass of the language model.
        n_tokens: tokens that were fed while gradients were recorded.
    """

    def __init__(self, cuda: VirtualCuda) -> None:
        super().__init__()
        self.by_name: Counter[str] = Counter()
        self.forwards: list[tuple[int, int]] = []
        self.n_tokens = 0
        self._cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.split("::")[1]
        if name == "embedding":  # once in a forward pass
            self.forwards.append((self.by_name.total(), self._cuda.waits.total()))
            self.n_tokens += args[1].numel() * torch.is_grad_enabled()
        if not func.is_view and name not in HOST_ONLY:
            self.by_name[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def kept_for_backward(module: nn.Module) -> Iterator[Counter[torch.dtype]]:
    """Collect the bytes that autograd keeps in the block, by dtype; the module's weights apart."""
    weights = {p.untyped_storage().data_ptr() for p in module.parameters()}
    found: Counter[torch.dtype] = Counter()
    # with the tensors, so that their memory is not used again
    storages: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights and storage.data_ptr() not in storages:
            storages[storage.data_ptr()] = tensor
            found[tensor.dtype] += storage.nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        yield found


@dataclass
class Counts:
    """Counts of a training step or of a ranked batch.

    Attributes:
        launches: by ATen operation.
        waits: host waits by line of code.
        kept: bytes kept for the backward pass, by dtype.
        n_tokens: tokens that were fed with gradient, padding included.
        forwards: (launches, host waits) before each forward pass of the language model.
    """

    launches: Counter[str]
    waits: Counter[str]
    kept: Counter[torch.dtype]
    n_tokens: int
    forwards: list[tuple[int, int]]

    def search_step(self) -> tuple[float, float]:
        """Launches (median) and host waits (mean) from one forward pass to the next."""
        pairs = list(pairwise(self.forwards))
        waits = self.forwards[-1][1] - self.forwards[0][1]
        return median(after[0] - before[0] for before, after in pairs), waits / len(pairs)


def counted(cuda: VirtualCuda, module: nn.Module, call: Callable[[], Any]) -> tuple[Counts, Any]:
    """Counts of a call on the virtual device, and its result."""
    before = cuda.waits.copy()
    with kept_for_backward(module) as kept, Launches(cuda) as seen:
        n_waits = cuda.waits.total()
        result = call()
    forwards = [(launches, waits - n_waits) for launches, waits in seen.forwards]
    return Counts(seen.by_name, cuda.waits - before, kept, seen.n_tokens, forwards), result


def counted_run(arguments: Sequence[str]) -> dict[str, list[Counts]]:
    """Run the command with these arguments, `--device=cuda` among them, on a virtual GPU.

    Returns:
        Counts of every training step under 'sft' and 'preference', of every ranked batch under
        'ranking'.
    """
    found: dict[str, list[Counts]] = {"sft": [], "preference": [], "ranking": []}
    train_step, topk = SetwiseTrainer._train_step, ExactRanker.topk

    def counting_step(trainer: SetwiseTrainer, batch: Any) -> Any:
        counts, result = counted(cuda, trainer.model, lambda: train_step(trainer, batch))
        found[trainer.stage.kind].append(counts)
        return result

    def counting_topk(ranker: ExactRanker, *args: Any, **kwargs: Any) -> Any:
        counts, result = counted(cuda, ranker.model, lambda: topk(ranker, *args, **kwargs))
        found["ranking"].append(counts)
        return result

    with ExitStack() as stack:
        cuda = stack.enter_context(VirtualCuda())
        stack.enter_context(mock.patch.object(SetwiseTrainer, "_train_step", counting_step))
        stack.enter_context(mock.patch.object(ExactRanker, "topk", counting_topk))
        run(list(arguments))
    assert not cuda.mixes, cuda.mixes
    return found


def write_backbone(folder: Path, n_layers: int) -> Path:
    """Write a narrow Qwen2 model of `n_layers` layers with random weights and grouped queries."""
    titles = [f"{genre} {word} {year}" for genre in GENRES for word in WORDS for year in range(9)]
    tokenizer = fit_tokenizer(titles, vocab_size=300, max_positions=512)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=n_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Qwen2ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def lora_run(folder: Path, n_layers: int, *settings: str) -> dict[str, list[Counts]]:
    """Counts of both stages with LoRA on a pretrained model of random weights.

    Args:
        folder: an empty folder for data and run.
        n_layers: layers of the model.
        settings: replace those of the run.
    """
    backbone = write_backbone(folder / "backbone", n_layers)
    own = [
        "--device=cuda",
        f"--backbone={backbone}",
        "--lora_r=2",
        "--lora_alpha=4",
        "--epochs=1",
        *settings,
    ]
    arguments = toy_arguments(write_toy(folder / "data"), folder / "run", *own)
    return counted_run([text for text in arguments if not text.startswith("--tiny_")])


def main() -> None:
    """Print launches, waits and bytes of the last step of each kind."""
    layers = [text for text in sys.argv[1:] if text.startswith("--layers=")]
    n_layers = int(layers[0].partition("=")[2]) if layers else 24
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(sys.stderr):
        found = lora_run(Path(folder), n_layers, *set(sys.argv[1:]) - set(layers))
    print(f"{n_layers} layers, torch {torch.__version__}, transformers {transformers.__version__}")
    steps = {name: found[name][-1] for name in ("sft", "preference")}
    rankings = {"validation": found["ranking"][0], "test": found["ranking"][-1]}
    for name, one in {**steps, **rankings}.items():
        print(
            f"{name}: {one.launches.total()} launches, {one.waits.total()} host waits, "
            f"{len(one.forwards)} forward passes, {one.kept.total()} bytes kept for "
            f"{one.n_tokens} tokens"
        )
        if name in rankings:
            launches, waits = one.search_step()
            print(f"per search step: {launches} launches (median), {waits:.1f} host waits (mean)")
        for line, n in one.waits.most_common():
            print(f"    {n} {line}")


if __name__ == "__main__":
    main()
