"""Check that a backbone is scored exactly; refuse it otherwise, with remedies that were tried."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.model.probe import CAUSALITY, OWN_FORWARD, Trial, faults, longest_exact_prompt
from recbole_multdpo.model.probe_cache import has_passed, record_pass
from recbole_multdpo.runtime.console import counted
from recbole_multdpo.scoring.lm import causal_lm

_OTHERS = "such as Qwen3, Llama, SmolLM2 or Mistral"
_NAMES = {
    "packed": "packed scores differ",
    "padded": "padded scores differ",
    "trie_scores": "scores along the trie differ",
    "best_first": "best-first scores differ",
    "beam": "beam scores differ",
}

# longest item in a probe: the search costs a step per token, and longer items find no more faults
MAX_ITEM_TOKENS = 12


def scoring_methods(scorer: str, ranker: str | None) -> tuple[str, ...]:
    """Methods to probe for these settings; `ranker` is None if nothing is ranked by scores."""
    # whole catalogues are scored along the trie unless `scorer` is padded
    scorers = ("padded",) if scorer == "padded" else ("packed", "trie_scores")
    if ranker in (None, "exhaustive"):
        return scorers
    # a search that gives up continues along the trie
    return tuple(dict.fromkeys((*scorers, ranker, "trie_scores")))


class InexactBackbone(ConfigError):
    """Scores of the backbone differ from its own forward pass."""


@dataclass(frozen=True)
class BackboneUse:
    """Use that a run makes of its backbone.

    Attributes:
        name: the setting `backbone`.
        trial: longest prompt and item, tokens, methods.
        shortest_prompt: number of tokens of the template with one piece.
        settings: `scorer`, `ranker` (absent if nothing is ranked by scores) and, with an adapter,
            `lora_target_modules`.
        key: further dependencies of a cached result: weights and their type.
    """

    name: str
    trial: Trial
    shortest_prompt: int
    settings: Mapping[str, Any]
    key: Mapping[str, Any]


def check_backbone(model: nn.Module, use: BackboneUse, device: torch.device) -> None:
    """Probe a backbone, unless the same probe has passed before.

    Args:
        model: the language model, possibly wrapped by PEFT; it is not changed.
        use: the run's use of it.
        device: device of the probe.

    Raises:
        InexactBackbone: scores differ from the model's own forward pass.
    """
    lm = causal_lm(model)
    attention = lm.config._attn_implementation
    described = {**use.key, **vars(use.trial), **use.settings, "attention": attention}
    described["tokens"] = len(use.trial.tokens)
    described["device"] = device.type
    if has_passed(described):
        return
    start = time.perf_counter()
    with _without_tf32():
        found = faults(lm, use.trial, device)
        if found:
            raise InexactBackbone(_refusal(lm, use, device, found))
    seconds = time.perf_counter() - start
    if seconds > 1:
        getLogger().info(
            f"the backbone's scores are exact (probed in {counted(round(seconds), 'second')})"
        )
    record_pass(described, seconds)


@contextmanager
def _without_tf32() -> Iterator[None]:
    """Multiply in float32 itself, which tells rounding from faults."""
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def _refusal(
    lm: PreTrainedModel, use: BackboneUse, device: torch.device, found: Mapping[str, float | str]
) -> str:
    """Describe the fault in one sentence and the remedies that helped in another."""
    backbone = f"backbone={use.name!r}"
    if OWN_FORWARD in found:
        others = _other_targets(lm)
        if not _faults_with_adapters(lm, use, device, ()):
            helping = ["--finetune=full"]
            if others and not _faults_with_adapters(lm, use, device, others):
                helping.insert(0, f"--lora_target_modules='[{','.join(others)}]'")
            return (
                f"{backbone} fails with LoRA on lora_target_modules="
                f"{use.settings.get('lora_target_modules')} ({found[OWN_FORWARD]}). Set "
                f"{', or '.join(helping)}."
            )
        longest = longest_exact_prompt(lm, use.trial, device, use.shortest_prompt)
        if longest is not None:
            return (
                f"{backbone}: its own forward pass fails at prompts of {use.trial.prompt_tokens} "
                f"tokens ({found[OWN_FORWARD]}). Set --max_prompt_tokens={longest}."
            )
        return (
            f"{backbone}: its own forward pass fails ({found[OWN_FORWARD]}). Choose another model, "
            f"{_OTHERS}."
        )
    if CAUSALITY in found:
        return (
            f"{backbone} predicts a token from later ones, as encoders do. Choose a "
            f"causal (decoder-only) language model, {_OTHERS}."
        )
    method, difference = next(iter(found.items()))
    if isinstance(difference, str):
        wrong = f"{_NAMES[method].rsplit(' ', 1)[0]} cannot be computed ({difference})"
    else:
        wrong = f"{_NAMES[method]} from the model's own forward pass by {difference:.2g} nats"
    at = f"{backbone}: {wrong} at prompts of {use.trial.prompt_tokens} tokens."
    helping = _remedies(lm, use, device)
    if not helping:
        return f"{at} Choose another model, {_OTHERS}."
    return f"{at} Set {', or '.join(helping)}."


def _remedies(lm: PreTrainedModel, use: BackboneUse, device: torch.device) -> list[str]:
    """Settings with which scores are exact."""
    helping = []
    if lm.config._attn_implementation != "eager":
        try:
            if not faults(lm, use.trial, device, attn="eager"):
                helping.append("--attn_implementation=eager")
        except ValueError:
            pass  # the model has no eager attention
    longest = longest_exact_prompt(lm, use.trial, device, use.shortest_prompt)
    if longest is not None:
        helping.append(f"--max_prompt_tokens={longest}")
    safe = {"scorer": "padded", "ranker": "exhaustive"}
    changes = [f"--{k}={v}" for k, v in safe.items() if use.settings.get(k, v) != v]
    if changes and not faults(lm, replace(use.trial, methods=("padded",)), device):
        helping.append(f"{' '.join(changes)} (slower)")
    return helping


def _faults_with_adapters(
    lm: PreTrainedModel, use: BackboneUse, device: torch.device, names: Collection[str]
) -> dict[str, float | str]:
    """`faults` of the model with only the adapters on layers of these names."""
    removed = [
        (name, module)
        for name, module in lm.named_modules()
        if isinstance(module, BaseTunerLayer) and name.rpartition(".")[2] not in names
    ]

    def put(name: str, module: nn.Module) -> None:
        parent, _, attribute = name.rpartition(".")
        setattr(lm.get_submodule(parent), attribute, module)

    try:
        for name, adapter in removed:
            put(name, adapter.get_base_layer())
        return faults(lm, use.trial, device)
    finally:
        for name, adapter in removed:
            assert isinstance(adapter, nn.Module)
            put(name, adapter)


def _other_targets(lm: PreTrainedModel) -> list[str]:
    """Names of adapted layers that are plain linear layers everywhere."""
    adapters = [(n, m) for n, m in lm.named_modules() if isinstance(m, BaseTunerLayer)]
    plain = {
        name.rpartition(".")[2]
        for name, adapter in adapters
        if type(adapter.get_base_layer()) in (nn.Linear, Conv1D)
    }
    odd = {
        name.rpartition(".")[2]
        for name, adapter in adapters
        if type(adapter.get_base_layer()) not in (nn.Linear, Conv1D)
    }
    return sorted(plain - odd)
