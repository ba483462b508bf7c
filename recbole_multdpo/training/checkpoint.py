"""Checkpoints: tensors in safetensors, everything else in JSON; loading one executes no code.

A checkpoint is a folder with `model.safetensors`, `state.json` and, where training can go on from
it, `optimizer.safetensors`. It is written under a temporary name beside its place and renamed, so
that a folder of the final name is always whole.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from recbole_multdpo.atomic import atomic_folder
from recbole_multdpo.errors import CheckpointError

FORMAT = 1
MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"


def trainable_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The trainable parameters by name, on the CPU; a tied parameter appears once.

    For a model on the CPU these are the parameters' own memory, not copies: save them before the
    next optimizer step.
    """
    return {
        name: parameter.detach().cpu().contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def load_trainable_tensors(model: nn.Module, tensors: dict[str, Tensor], source: Path) -> None:
    """Copy saved tensors into the trainable parameters, in the parameters' dtype.

    Args:
        model: whose trainable parameters are set.
        tensors: from `load_checkpoint`, by parameter name.
        source: the checkpoint, for the message.

    Raises:
        CheckpointError: names or shapes differ from the model's, which then stays as it was.
    """
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if parameters.keys() != tensors.keys():
        differing = sorted(parameters.keys() ^ tensors.keys())
        raise CheckpointError(
            f"{source} belongs to another model: {len(differing)} parameter names differ, e.g. "
            f"{differing[0]}. Use the settings it was made with, or remove it."
        )
    for name, parameter in parameters.items():
        if parameter.shape != tensors[name].shape:
            raise CheckpointError(
                f"{source} belongs to another model: {name} has shape "
                f"{list(tensors[name].shape)} there and {list(parameter.shape)} here. "
                "Use the settings it was made with, or remove it."
            )
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(tensors[name])


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
        CheckpointError: an entry belongs to none of the optimizer's parameters or has another
            shape; the optimizer then stays as it was.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, _, entry = name.partition(".")
        known = entry and index.isdecimal() and int(index) < len(parameters)
        # a scalar is a count of steps; torch would take a wrong shape and fail at the next step
        if not known or value.ndim and value.shape != parameters[int(index)].shape:
            raise CheckpointError(
                f"the saved optimizer state does not fit the model: {name!r}, of shape "
                f"{list(value.shape)}. Use the settings it was made with, or remove the checkpoint."
            )
        state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def save_checkpoint(
    folder: Path,
    model: dict[str, Tensor],
    state: dict[str, Any],
    optimizer: dict[str, Tensor] | None = None,
) -> None:
    """Write a checkpoint folder, replacing one of the same name only when the new one is whole.

    Args:
        folder: where to; its parents are made.
        model: tensors by name.
        state: anything that JSON can hold; infinities are written as Python's JSON does.
        optimizer: tensors by name, from `optimizer_tensors` and the like.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; what was there before
            stays.
    """
    try:
        with atomic_folder(folder) as temporary:
            save_file(model, temporary / MODEL_FILE)
            if optimizer is not None:
                save_file(optimizer, temporary / OPTIMIZER_FILE)
            text = json.dumps({"format": FORMAT, **state}, indent=1)
            (temporary / STATE_FILE).write_text(text, encoding="utf-8")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {folder} could not be written ({error}). Free disk space or choose "
            "another --run_dir; the previous checkpoint, if any, is untouched."
        ) from error


def load_checkpoint(
    folder: Path,
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor] | None]:
    """Read model tensors, state, and optimizer tensors (None where there are none).

    Raises:
        CheckpointError: a file is missing, truncated, or of another format.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint at {folder}")
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder / STATE_FILE} is not of checkpoint format {FORMAT}; "
                "it was made by another version of recbole_multdpo"
            )
        model = load_file(folder / MODEL_FILE)
        optimizer_file = folder / OPTIMIZER_FILE
        optimizer = load_file(optimizer_file) if optimizer_file.exists() else None
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(
            f"the checkpoint {folder} is damaged ({error}); remove it to start this stage anew"
        ) from error
    return model, state, optimizer
