"""The two parts of a causal language model: its body, and what it makes of the body's states.

Scoring needs logits at few positions. It runs the body once and the rest on chosen rows of hidden
states. What the rest is, an architecture's own code decides: a matrix, a matrix behind a dense
layer and a norm, logits that are scaled or capped. So the parts are found by running the model, and
where the rest is more than the output embeddings, the model's own `forward` computes it, with a
body that only hands over the chosen states.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_multdpo.errors import ConfigError

_KNOWN = "_recbole_multdpo_parts"  # what was found out about a model, kept with it and its copies
_PROBE_ROWS = 4


@dataclass(frozen=True)
class Parts:
    """A causal language model in two parts, made anew for every use.

    Attributes:
        body: token ids in, an output with `last_hidden_state` [B, L, H] out.
        head: hidden states [n, H] in, logits [n, V] out. The module of the output embeddings where
            it alone is what the model applies, otherwise `OwnHead`.
    """

    body: nn.Module
    head: nn.Module | OwnHead


@dataclass(frozen=True)
class _Found:
    """Path of the body inside of the model, type of its output, vocabulary, kind of head."""

    path: str
    output: type
    vocabulary: int
    is_plain: bool


class OwnHead:
    """All that a model computes after its body, by its own code: states [n, H] to logits [n, V].

    Attributes:
        out_features: V.
    """

    def __init__(self, model: PreTrainedModel, path: str, output: type, vocabulary: int) -> None:
        self.out_features = vocabulary
        self._model, self._path, self._output = model, path.split("."), output

    def __call__(self, hidden: Tensor) -> Tensor:
        given = self._output(last_hidden_state=hidden[None])
        model = _with(self._model, self._path, lambda body: _Given(body, given))
        ids = torch.zeros(1, len(hidden), dtype=torch.long, device=hidden.device)
        # the class's: an instance's own would be bound to the model with its real body
        return type(model).forward(model, input_ids=ids, use_cache=False).logits[0]


class _Given:
    """Stands in for a body: called, it returns a given output; otherwise it is the body."""

    def __init__(self, body: nn.Module, output: Any) -> None:
        self._body, self._output = body, output

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


def _with(module: Any, path: list[str], change: Any) -> Any:
    """A shallow copy of `module` in which what stands at `path` is changed; all else is shared."""
    if not path:
        return change(module)
    outer = copy.copy(module)
    # an entry of the instance goes before the module that nn.Module keeps under the name
    outer.__dict__[path[0]] = _with(getattr(module, path[0]), path[1:], change)
    return outer


def parts_of(model: PreTrainedModel) -> Parts:
    """Body and head of a causal language model, adapter layers in place.

    The first call for a model runs it on a few tokens, in eval mode and without randomness.

    Raises:
        ConfigError: no part of the model returns hidden states to it.
    """
    found = model.__dict__.get(_KNOWN)
    if found is None:
        found = _find(model)
        model.__dict__[_KNOWN] = found
    embeddings = model.get_output_embeddings()
    own = OwnHead(model, found.path, found.output, found.vocabulary)
    return Parts(model.get_submodule(found.path), embeddings if found.is_plain else own)


@torch.no_grad()
def _find(model: PreTrainedModel) -> _Found:
    """Run the model once to see which part hands it hidden states, and its head on random ones."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    calls: list[tuple[str, Any]] = []

    def watch(name: str) -> Any:
        return lambda module, inputs, output: calls.append((name, output))

    hooks = [
        module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name
    ]
    try:
        ids = torch.zeros(1, _PROBE_ROWS, dtype=torch.long, device=model.device)
        logits = model(input_ids=ids, use_cache=False).logits
        # of parts within parts the outermost returns last
        bodies = [call for call in calls if getattr(call[1], "last_hidden_state", None) is not None]
        if not bodies:
            raise ConfigError(
                f"the backbone, a {type(model).__name__}, has no part that returns hidden states, "
                "which scoring needs. Use another model."
            )
        path, output = bodies[-1]
        found = _Found(path, type(output), logits.shape[-1], False)
        is_plain = _is_plain(model, found, output.last_hidden_state)
        return _Found(path, found.output, found.vocabulary, is_plain)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode


def _is_plain(model: PreTrainedModel, found: _Found, like: Tensor) -> bool:
    """Whether the output embeddings alone make the logits: the same numbers, small and large."""
    embeddings = model.get_output_embeddings()
    if embeddings is None:
        return False
    known = {*model.get_submodule(found.path).parameters(), *embeddings.parameters()}
    if not known.issuperset(model.parameters()):  # a scale that is 1 so far, and may be trained
        return False
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(_PROBE_ROWS, like.shape[-1], generator=generator)
    # large ones show a cap on the logits that small ones hardly reach
    states[::2] *= 100
    states = states.to(like)
    own = OwnHead(model, found.path, found.output, found.vocabulary)
    try:
        alone = embeddings(states[None])[0]
    except RuntimeError:  # of another width: something stands between body and embeddings
        return False
    return torch.equal(alone.float(), own(states).float())
