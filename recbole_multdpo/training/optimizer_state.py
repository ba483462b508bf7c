"""Optimizer state as tensors for a checkpoint, whole or divided over processes.

A whole tensor is named `<parameter index>.<entry>`. Under ZeRO each process saves what it holds: a
fragment `<parameter index>.<entry>@<start>` has the values from `start` on of the flattened tensor.
DeepSpeed chooses the cuts. A reader assembles the values that it needs from all saved fragments, so
that a checkpoint resumes over any number of processes. safetensors maps its files into memory:
tensors that are not read take none.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from recbole_multdpo.errors import CheckpointError

# (start, values) of one tensor's fragments in order; values are flat
Fragments = Sequence[tuple[int, Tensor]]


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's per-parameter state as `<parameter index>.<entry>` tensors."""
    return {
        f"{index}.{entry}": torch.as_tensor(value).detach().cpu().contiguous()
        for index, entries in optimizer.state_dict()["state"].items()
        for entry, value in entries.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    """Put `optimizer_tensors` back; the parameter groups keep their present settings.

    Raises:
        CheckpointError: see `whole_tensors`; the optimizer then stays as it was.
    """
    state: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, value in whole_tensors(optimizer, tensors).items():
        index, _, entry = name.partition(".")
        state[int(index)][entry] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": dict(state)})


def fragment_name(name: str, start: int) -> str:
    """Name of the fragment of tensor `name` that begins at `start`."""
    return f"{name}@{start}"


def fragments_by_name(tensors: Mapping[str, Tensor]) -> dict[str, Fragments]:
    """Fragments of each tensor in order; a whole tensor is a single one.

    Raises:
        CheckpointError: a name is malformed.
    """
    found: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
    for full_name, values in tensors.items():
        name, _, start = full_name.partition("@")
        if "@" in full_name and not start.isdecimal():
            raise CheckpointError(
                f"the saved optimizer state does not fit the model: {full_name!r} names no "
                "fragment. Remove the checkpoint."
            )
        found[name].append((int(start or 0), values.flatten()))
    return {name: sorted(fragments, key=lambda f: f[0]) for name, fragments in found.items()}


def read_fragments(fragments: Fragments, start: int, length: int) -> Tensor:
    """Values `start` ... `start + length - 1` of a flattened tensor, from its fragments.

    Args:
        fragments: of one tensor; others than those needed may be absent.
        start: from 0.
        length: at least 1.

    Returns:
        [length], a view where a single fragment has them all.

    Raises:
        CheckpointError: some of the values are in no fragment, or in two.
    """
    parts, position = [], start
    for offset, values in fragments:
        part = values[max(start - offset, 0) : max(start + length - offset, 0)]
        if len(part):
            if max(offset, start) != position:
                break
            parts.append(part)
            position += len(part)
    if position != start + length:
        raise CheckpointError(
            f"the saved optimizer state has gaps or overlaps at value {position} of a tensor. "
            "Remove the checkpoint."
        )
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def check_tensors(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Check saved tensors, whole or in fragments, against the optimizer's parameters.

    Raises:
        CheckpointError: one belongs to none of the optimizer's parameters or has another shape.
    """
    parameters = _parameters(optimizer)
    sizes: dict[str, int] = defaultdict(int)
    for full_name, value in tensors.items():
        name, _, start = full_name.partition("@")
        index, _, entry = name.partition(".")
        fits = bool(entry) and index.isdecimal() and int(index) < len(parameters)
        if fits and start:
            sizes[name] += len(value)
            fits = value.ndim == 1 and sizes[name] <= parameters[int(index)].numel()
        elif fits and value.ndim:
            # a scalar is a count of steps; torch would take a wrong shape and fail at the next step
            fits = value.shape == parameters[int(index)].shape
        if not fits:
            raise _misfit(full_name, value)
    for name, size in sizes.items():
        if size != parameters[int(name.partition(".")[0])].numel():
            raise CheckpointError(
                f"the saved optimizer state is incomplete: {name} has {size} values. Remove the "
                "checkpoint."
            )


def whole_tensors(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Saved tensors with fragments put together, in the parameters' shapes.

    Raises:
        CheckpointError: see `check_tensors`.
    """
    check_tensors(optimizer, tensors)
    parameters = _parameters(optimizer)
    whole = {name: value for name, value in tensors.items() if "@" not in name}
    divided = {name: value for name, value in tensors.items() if "@" in name}
    for name, fragments in fragments_by_name(divided).items():
        like = parameters[int(name.partition(".")[0])]
        whole[name] = read_fragments(fragments, 0, like.numel()).view(like.shape)
    return whole


def _parameters(optimizer: torch.optim.Optimizer) -> list[nn.Parameter]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _misfit(name: str, value: Tensor) -> CheckpointError:
    return CheckpointError(
        f"the saved optimizer state does not fit the model: {name!r}, of shape "
        f"{list(value.shape)}. Use the settings it was made with, or remove the checkpoint."
    )
