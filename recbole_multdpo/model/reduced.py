"""Small copy of a large language model: one layer of each kind, embeddings, norm and head.

Faults in a layer's attention or in the logits show in the copy too, at a fraction of memory and
time.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

# a model with more kinds of layers is copied whole
MAX_KINDS = 8


def reduced_copy(
    lm: PreTrainedModel, *, dtype: torch.dtype, device: torch.device, whole: bool = False
) -> PreTrainedModel:
    """Make a frozen copy in eval mode with the first layer of each kind.

    Layers are of one kind if they have the same modules with weights of the same shapes, the same
    flags, and the same entries in all per-layer lists of the configuration. If no list of layers is
    found, all are kept.

    Args:
        lm: the model, with or without an adapter's layers in place; it is not changed.
        dtype: type of the copy's weights.
        device: device of the copy.
        whole: keep all layers.
    """
    layers = None if whole else _layers(lm)
    kept = list(range(len(layers))) if layers is not None else []
    memo: dict[int, Any] = {}
    if layers is not None:
        kept = _one_of_each(lm, layers)
        dropped = set(range(len(layers))) - set(kept)
        # placeholders for the dropped layers, until the list is replaced
        memo.update({id(layers[index]): nn.Identity() for index in dropped})
    memo.update(_copied_weights(lm, layers, kept, dtype, device))
    copied = copy.deepcopy(lm, memo)
    if layers is not None:
        path = next(name for name, module in lm.named_modules() if module is layers)
        parent, _, attribute = path.rpartition(".")
        all_layers = copied.get_submodule(path)
        assert isinstance(all_layers, nn.ModuleList)
        chosen = nn.ModuleList([all_layers[index] for index in kept])
        setattr(copied.get_submodule(parent), attribute, chosen)
        _renumber(chosen, kept)
        for config in _configs(copied):
            _cut_lists(config, kept, len(layers))
    if dtype == torch.float64:
        for config in _configs(copied):
            # grouped matrix products of experts do not support float64
            if getattr(config, "_experts_implementation", None) is not None:
                config._experts_implementation = "eager"
    return copied.requires_grad_(False).eval()


def number_of_layers(lm: PreTrainedModel) -> int:
    """Number of hidden layers in the text model's configuration; 0 if it has none."""
    return int(getattr(lm.config.get_text_config(), "num_hidden_layers", 0) or 0)


def _layers(lm: PreTrainedModel) -> nn.ModuleList | None:
    """The list of hidden layers, if there is exactly one of the configured length."""
    found = [
        module
        for module in lm.modules()
        if isinstance(module, nn.ModuleList) and len(module) == number_of_layers(lm) > 1
    ]
    return found[0] if len(found) == 1 else None


def _one_of_each(lm: PreTrainedModel, layers: nn.ModuleList) -> list[int]:
    """Indices of the first layer of each kind; of all layers if there are too many kinds."""
    lists = [
        value
        for config in _configs(lm)
        for value in vars(config).values()
        if isinstance(value, list | tuple) and len(value) == len(layers)
    ]
    first: dict[Any, int] = {}
    for index, layer in enumerate(layers):
        entries = tuple(str(values[index]) for values in lists)
        first.setdefault((entries, _structure(layer)), index)
    return list(first.values()) if len(first) <= MAX_KINDS else list(range(len(layers)))


def _structure(layer: nn.Module) -> tuple[Any, ...]:
    """Modules, flags and shapes of a layer, equal for two layers of one kind."""
    parts: list[Any] = []
    for name, module in layer.named_modules():
        flags = {
            key: value
            for key, value in vars(module).items()
            if value is None or type(value) in (bool, int, str)
        }
        flags = {key: value for key, value in flags.items() if not _is_index(key)}
        shapes = [(key, tuple(p.shape)) for key, p in module.named_parameters(recurse=False)]
        parts.append((name, type(module), tuple(sorted(flags.items(), key=str)), tuple(shapes)))
    return tuple(parts)


def _is_index(attribute: str) -> bool:
    """True if an attribute is a layer's number: layer_idx, layer_id, layer_index."""
    return attribute.lstrip("_").startswith("layer_i")


def _renumber(chosen: nn.ModuleList, kept: list[int]) -> None:
    """Renumber the kept layers, as caches find them by number."""
    for new, (layer, old) in enumerate(zip(chosen, kept, strict=True)):
        for module in layer.modules():
            for key, value in vars(module).items():
                if _is_index(key) and type(value) is int and value == old:
                    setattr(module, key, new)


def _configs(lm: PreTrainedModel) -> list[Any]:
    """The configuration, and the text model's if it is a separate one."""
    text = lm.config.get_text_config()
    return [lm.config] if text is lm.config else [lm.config, text]


def _cut_lists(config: Any, kept: list[int], n_layers: int) -> None:
    """Keep the entries of some layers, bypassing the checks that compare lists with each other."""
    fields = vars(config)
    for key, value in fields.items():
        if isinstance(value, list | tuple) and len(value) == n_layers:
            fields[key] = type(value)(value[index] for index in kept)
    count = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if fields.get(count) == n_layers:
        fields[count] = len(kept)


def _copied_weights(
    lm: PreTrainedModel,
    layers: nn.ModuleList | None,
    kept: list[int],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[int, torch.Tensor]:
    """Memo for `copy.deepcopy` with the copy's weights and buffers."""
    dropped: set[int] = set()
    if layers is not None:
        for index, layer in enumerate(layers):
            if index not in kept:
                dropped.update(map(id, [*layer.parameters(), *layer.buffers()]))
        for index in kept:
            dropped.difference_update(
                map(id, [*layers[index].parameters(), *layers[index].buffers()])
            )
    replaced: dict[int, torch.Tensor] = {}
    for parameter in lm.parameters():
        if id(parameter) not in dropped:
            moved = parameter.detach().to(device, _precise(parameter, dtype), copy=True)
            replaced[id(parameter)] = nn.Parameter(moved, requires_grad=False)
    for buffer in lm.buffers():
        if id(buffer) not in dropped:
            # float32 buffers, such as rotary frequencies, stay float32
            kind = dtype if buffer.dtype in (torch.bfloat16, torch.float16) else buffer.dtype
            replaced[id(buffer)] = buffer.detach().to(device, kind, copy=True)
    return replaced


def _precise(parameter: torch.Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if parameter.is_floating_point() else parameter.dtype
