"""Checkpoints: tensors in safetensors, everything else in JSON; loading one executes no code.

A checkpoint is a folder with `model.safetensors`, `state.json` and, where training can go on from
it, `optimizer.safetensors`. It is written under a temporary name beside its place, flushed and
renamed, so that a folder of the final name is always whole. `state.json` holds checksums of itself
and of the other files: what a disk or a copy damaged later is noticed.

A stage of training has `best` and the last few `step-<number of optimizer steps>`.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.runs.model_files import not_finite
from recbole_multdpo.runtime.durable_files import atomic_folder
from recbole_multdpo.runtime.reading import check_regular, fitted, read_json

FORMAT = 2
MAX_TENSORS = 2**50  # bytes; a limit that only what is no file exceeds
MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"


class _State(TypedDict, total=False):
    """What `state.json` must be like where it is read; `best` has less in it than a step."""

    stage: str
    global_step: Annotated[int, Field(ge=0)]
    position: dict[str, int | float | None | dict[str, float | None]]
    cur_step: Annotated[int, Field(ge=0)]
    best_valid_score: float
    best_valid_result: dict[str, float | None] | None
    max_rows: Annotated[int, Field(ge=1)] | None
    schedule: dict[str, Any]
    settings: dict[str, Any]
    fingerprints: dict[str, str]
    logs: dict[str, Annotated[int, Field(ge=0)]]


_STATE: TypeAdapter[_State] = TypeAdapter(_State)


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
        CheckpointError: names or shapes differ from the model's, or a value is not finite; the
            model then stays as it was.
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
        if not tensors[name].is_floating_point():
            raise CheckpointError(
                f"{source}: {name} is of type {tensors[name].dtype}, which holds no weights. Use "
                "the checkpoint as it was written, or remove it."
            )
    damaged = not_finite(tensors.items())
    if damaged is not None:
        raise CheckpointError(
            f"{source} holds NaN or an infinity in {damaged}: its training had diverged. Remove it."
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
        CheckpointError: see `optimizer_state`; the optimizer then stays as it was.
    """
    state = optimizer_state(optimizer, tensors)
    optimizer.load_state_dict({**optimizer.state_dict(), "state": state})


def optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]
) -> dict[int, dict[str, Tensor]]:
    """`optimizer_tensors` by parameter index and entry.

    Raises:
        CheckpointError: an entry belongs to none of the optimizer's parameters or has another
            shape.
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
    return state


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
            checksums = {file.name: _checksum(file) for file in sorted(temporary.iterdir())}
            described = {"format": FORMAT, **state, "checksums": checksums}
            described["checksum"] = _text_checksum(described)
            text = json.dumps(described, indent=1)
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
        CheckpointError: a file is missing, truncated, changed, or of another format.
    """
    state = check_checkpoint(folder)
    try:
        model = load_file(folder / MODEL_FILE)
        has_optimizer = OPTIMIZER_FILE in state["checksums"]
        optimizer = load_file(folder / OPTIMIZER_FILE) if has_optimizer else None
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    return model, state, optimizer


def check_checkpoint(folder: Path) -> dict[str, Any]:
    """Whether the checkpoint is whole, by its checksums: its state.

    Raises:
        CheckpointError: a file is missing, truncated, changed, or of another format.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint at {folder}")
    try:
        state: dict[str, Any] = read_json(folder / STATE_FILE, finite=False)
        found = state.get("format") if isinstance(state, dict) else None
        if found != FORMAT:
            raise CheckpointError(
                f"{folder / STATE_FILE} is of checkpoint format {found!r} and not {FORMAT}: it was "
                "made by another version of recbole_multdpo. Use that version, or start anew."
            )
        if state.pop("checksum", None) != _text_checksum(state):
            raise ValueError(f"{STATE_FILE} is not what was written")
        checksums = state["checksums"]
        if not isinstance(checksums, dict) or MODEL_FILE not in checksums:
            raise ValueError(f"{STATE_FILE} names no {MODEL_FILE}")
        for name, checksum in checksums.items():
            if name not in (MODEL_FILE, OPTIMIZER_FILE):
                raise ValueError(f"{STATE_FILE} names {name!r}")
            check_regular(folder / name, MAX_TENSORS)
            if _checksum(folder / name) != checksum:
                raise ValueError(f"{name} is not what was written")
        fitted(_STATE, state)
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(folder, error) from error
    return state


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {folder} is damaged ({error}); remove it to go on without it"
    )


def _checksum(file: Path) -> int:
    """CRC-32 of a file."""
    checksum = 0
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _text_checksum(state: dict[str, Any]) -> int:
    """CRC-32 of a state's JSON."""
    return zlib.crc32(json.dumps(state).encode())


def step_folder(parent: Path, step: int) -> Path:
    """Where the checkpoint after `step` optimizer steps of a stage is."""
    return parent / f"step-{step}"


def step_folders(parent: Path) -> list[Path]:
    """The stage's `step-<n>` checkpoints, newest first; none where there is no such folder."""
    found = []
    for folder in parent.iterdir() if parent.is_dir() else ():
        if match := re.fullmatch(r"step-(\d+)", folder.name):
            found.append((int(match[1]), folder))
    return [folder for _, folder in sorted(found, reverse=True)]


def remove_old_steps(parent: Path, step: int, n_kept: int) -> None:
    """Keep the checkpoint of `step` and the n_kept - 1 before it; remove all others of the stage.

    Later ones are leftovers of a run that went on from an earlier one, because they were damaged.
    """
    folders = step_folders(parent)
    newest = folders.index(step_folder(parent, step))
    for folder in folders[:newest] + folders[newest + n_kept :]:
        shutil.rmtree(folder, ignore_errors=True)
