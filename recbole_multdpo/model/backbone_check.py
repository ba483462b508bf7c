"""A backbone is scored exactly, or refused in one sentence with remedies that were tried."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from logging import getLogger
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.model.probe import CAUSALITY, OWN_FORWARD, Trial, faults, longest_exact
from recbole_multdpo.model.probe_cache import has_passed, note_passed
from recbole_multdpo.scoring.lm import causal_lm

_OTHERS = "such as Qwen3, Llama, SmolLM2 or Mistral"
_NAMES = {
    "packed": "packed scores differ",
    "padded": "padded scores differ",
    "trie_scores": "scores along the trie differ",
    "best_first": "best-first scores differ",
    "beam": "beam scores differ",
}


# of the longest item in a probe: the search feeds a node per token, and a window does not care
MAX_ITEM_TOKENS = 12


def methods_of(scorer: str, ranker: str | None) -> tuple[str, ...]:
    """The methods to try for these settings; `ranker` is None where nothing ranks by scores."""
    # whole catalogues are scored along the trie unless `scorer` says otherwise
    scorers = ("padded",) if scorer == "padded" else ("packed", "trie_scores")
    if ranker in (None, "exhaustive"):
        return scorers
    # a search that is given up goes on along the trie
    return tuple(dict.fromkeys((*scorers, ranker, "trie_scores")))


class InexactBackbone(ConfigError):
    """The backbone is not scored as by its own forward pass."""


@dataclass(frozen=True)
class Use:
    """How a run scores with its backbone.

    Attributes:
        name: the setting `backbone`.
        trial: longest prompt and item, tokens, methods.
        shortest_prompt: what the template and one piece take, tokens.
        settings: of `scorer`, `ranker` (absent where nothing is ranked by scores) and, where there
            is an adapter, `lora_target_modules`.
        key: what else a kept result depends on: weights, their type.
    """

    name: str
    trial: Trial
    shortest_prompt: int
    settings: Mapping[str, Any]
    key: Mapping[str, Any]


def check_backbone(model: nn.Module, use: Use, device: torch.device) -> None:
    """Probe a backbone, unless the same probe has passed before.

    Args:
        model: the language model, possibly wrapped by PEFT; it is not changed.
        use: what the run does with it.
        device: where to probe.

    Raises:
        InexactBackbone: something is not scored as by the model's own forward pass.
    """
    lm = causal_lm(model)
    attention = lm.config._attn_implementation
    described = {**use.key, **vars(use.trial), **use.settings, "attention": attention}
    described["tokens"] = len(use.trial.tokens)
    described["device"] = device.type
    if has_passed(described):
        return
    start = time.perf_counter()
    found = faults(lm, use.trial, device)
    if found:
        raise InexactBackbone(_refusal(lm, use, device, found))
    seconds = time.perf_counter() - start
    if seconds > 1:
        getLogger().info(f"the backbone's scores are exact (probed in {seconds:.0f} seconds)")
    note_passed(described, seconds)


def _refusal(
    lm: PreTrainedModel, use: Use, device: torch.device, found: Mapping[str, float | str]
) -> str:
    """One sentence on what is wrong, and one on what was found to help."""
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
        longest = longest_exact(lm, use.trial, device, use.shortest_prompt)
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
            f"{backbone} predicts a token from those that come after it, as encoders do. Choose a "
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


def _remedies(lm: PreTrainedModel, use: Use, device: torch.device) -> list[str]:
    """Settings with which nothing differs."""
    helping = []
    if lm.config._attn_implementation != "eager":
        try:
            if not faults(lm, use.trial, device, attn="eager"):
                helping.append("--attn_implementation=eager")
        except ValueError:
            pass  # it has no such code
    longest = longest_exact(lm, use.trial, device, use.shortest_prompt)
    if longest is not None:
        helping.append(f"--max_prompt_tokens={longest}")
    safe = {"scorer": "padded", "ranker": "exhaustive"}
    changes = [f"--{k}={v}" for k, v in safe.items() if use.settings.get(k, v) != v]
    if changes and not faults(lm, replace(use.trial, methods=("padded",)), device):
        helping.append(f"{' '.join(changes)} (slower)")
    return helping


def _faults_with_adapters(
    lm: PreTrainedModel, use: Use, device: torch.device, names: Collection[str]
) -> dict[str, float | str]:
    """`faults` of the model with those adapters alone that are on layers of these names."""
    taken_off = [
        (name, module)
        for name, module in lm.named_modules()
        if isinstance(module, BaseTunerLayer) and name.rpartition(".")[2] not in names
    ]

    def put(name: str, module: nn.Module) -> None:
        parent, _, attribute = name.rpartition(".")
        setattr(lm.get_submodule(parent), attribute, module)

    try:
        for name, adapter in taken_off:
            put(name, adapter.get_base_layer())
        return faults(lm, use.trial, device)
    finally:
        for name, adapter in taken_off:
            assert isinstance(adapter, nn.Module)
            put(name, adapter)


def _other_targets(lm: PreTrainedModel) -> list[str]:
    """Names of adapted layers that are linear and nothing else."""
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
