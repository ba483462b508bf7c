"""The body and the head of a causal language model.

Scoring needs logits at few positions: it runs the body once and the head on selected hidden states.
The head depends on the architecture: a matrix, a matrix after a dense layer and a norm, scaled or
capped logits. So both parts are found by running the model. If the head is more than the output
embeddings, the model's own `forward` computes it, with a body that returns the selected states.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.scoring import last_layer

_KNOWN = "_recbole_multdpo_parts"  # attribute of a model that caches the result for it and copies
_PROBE_ROWS = 4


@dataclass(frozen=True)
class Parts:
    """The two parts of a causal language model.

    Attributes:
        body: maps token ids to an output with `last_hidden_state` [B, L, H].
        head: maps hidden states [n, H] to logits [n, V]: the output embeddings if the model applies
            nothing else, otherwise `OwnHead`.
        can_skip: whether `last_layer.hidden_at` serves the body.
    """

    body: nn.Module
    head: nn.Module | OwnHead
    can_skip: bool = False


@dataclass(frozen=True)
class _Found:
    """Path of the body in the model, type of its output, vocabulary size, and what was tried."""

    path: str
    output: type
    vocabulary: int
    is_plain: bool
    can_skip: bool


class OwnHead:
    """A head computed by the model's own `forward`: states [n, H] to logits [n, V].

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
        # the class's `forward`: an instance attribute would be bound to the original model
        return type(model).forward(model, input_ids=ids, use_cache=False).logits[0]


class _Given:
    """A stand-in for a body that returns a given output when called."""

    def __init__(self, body: nn.Module, output: Any) -> None:
        self._body, self._output = body, output

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._body, name)


def _with(module: Any, path: list[str], change: Any) -> Any:
    """A shallow copy of `module` with the submodule at `path` replaced by `change(submodule)`."""
    if not path:
        return change(module)
    outer = copy.copy(module)
    # an instance attribute takes precedence over nn.Module's registered submodule
    outer.__dict__[path[0]] = _with(getattr(module, path[0]), path[1:], change)
    return outer


def parts_of(model: PreTrainedModel) -> Parts:
    """Find the body and the head of a causal language model, with adapter layers in place.

    The first call for a model runs it on a few tokens, in eval mode.

    Raises:
        ConfigError: no submodule of the model returns hidden states.
    """
    found = model.__dict__.get(_KNOWN)
    if found is None:
        found = _find(model)
        model.__dict__[_KNOWN] = found
    embeddings = model.get_output_embeddings()
    own = OwnHead(model, found.path, found.output, found.vocabulary)
    body = model.get_submodule(found.path)
    return Parts(body, embeddings if found.is_plain else own, found.can_skip)


@torch.no_grad()
def _find(model: PreTrainedModel) -> _Found:
    """Run the model once to find its body, and its head once on random states."""
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
        # of nested bodies the outermost returns last
        bodies = [call for call in calls if getattr(call[1], "last_hidden_state", None) is not None]
        if not bodies:
            raise ConfigError(
                f"the backbone, a {type(model).__name__}, has no part that returns hidden states, "
                "which scoring needs. Use another model."
            )
        path, output = bodies[-1]
        found = _Found(path, type(output), logits.shape[-1], False, False)
        is_plain = _is_plain(model, found, output.last_hidden_state)
        can_skip = last_layer.serves(model.get_submodule(path))
        return replace(found, is_plain=is_plain, can_skip=can_skip)
    finally:
        for hook in hooks:
            hook.remove()
        for module, mode in modes:
            module.training = mode


def _is_plain(model: PreTrainedModel, found: _Found, like: Tensor) -> bool:
    """True if the output embeddings alone give the model's logits, for small and large states."""
    embeddings = model.get_output_embeddings()
    if embeddings is None:
        return False
    known = {*model.get_submodule(found.path).parameters(), *embeddings.parameters()}
    if not known.issuperset(model.parameters()):  # e.g. a trainable scale that is still 1
        return False
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(_PROBE_ROWS, like.shape[-1], generator=generator)
    # large states reveal a cap on the logits
    states[::2] *= 100
    states = states.to(like)
    own = OwnHead(model, found.path, found.output, found.vocabulary)
    try:
        alone = embeddings(states[None])[0]
    except RuntimeError:  # another width: there is a layer between body and embeddings
        return False
    return torch.equal(alone.float(), own(states).float())
