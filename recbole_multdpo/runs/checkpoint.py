"""Checkpoints: tensors in safetensors, everything else in JSON; loading one executes no code.

A checkpoint is a folder with `model.safetensors`, `state.json` and, if training can continue from
it, `optimizer.safetensors`, or under ZeRO one `optimizer-<number>-of-<processes>.safetensors` per
process. It is written to a temporary sibling, flushed and renamed, so that a folder of the final
name is always complete. `state.json` holds checksums of itself and of the other files, which detect
later damage by a disk or a copy.

A stage of training has `best` and the last few `step-<number of optimizer steps>`.
"""

from __future__ import annotations

import json
import re
import shutil
import zlib
from collections import ChainMap
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any, TypeVar

import torch
from pydantic import Field, TypeAdapter
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typing_extensions import TypedDict

from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.runs.model_files import not_finite
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.durable_files import atomic_folder, sync
from recbole_multdpo.runtime.reading import check_regular, fitted, read_json

FORMAT, SHARDED_FORMAT = 2, 3  # versions before the second cannot read shards
MAX_TENSORS = 2**50  # bytes; a limit that only what is no file exceeds
MODEL_FILE, OPTIMIZER_FILE, STATE_FILE = "model.safetensors", "optimizer.safetensors", "state.json"
_SHARD = re.compile(r"optimizer-(\d{5})-of-(\d{5})\.safetensors")

T = TypeVar("T")


class _State(TypedDict, total=False):
    """Types of the entries of `state.json` that are read; `best` lacks some that a step has."""

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


def save_checkpoint(
    folder: Path,
    model: dict[str, Tensor],
    state: dict[str, Any],
    optimizer: dict[str, Tensor] | None = None,
    *,
    sharded: bool = False,
) -> None:
    """Write a checkpoint folder, replacing one of the same name only when the new one is whole.

    All processes call it together. The main process writes, and with `sharded` every process writes
    its own part of the optimizer state. If one of them fails, nothing is written, and all raise.

    Args:
        folder: where to, on a file system that all processes see; its parents are made.
        model: tensors by name; of the main process.
        state: anything that JSON can hold; infinities are written as Python's JSON does. Of the
            main process.
        optimizer: tensors by name, from an engine's `optimizer_state` and the like.
        sharded: whether `optimizer` is another part of the state in every process.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; what was there before
            stays.
        ProcessError: another process has ended.
    """
    is_main = processes.is_main_process()
    name = shard_file(processes.rank(), processes.world_size()) if sharded else OPTIMIZER_FILE
    opened = ExitStack()  # of the main process: moves the folder into place when it is closed

    def begin() -> Path | None:
        return opened.enter_context(atomic_folder(folder)) if is_main else None

    def write() -> dict[str, int]:
        files = {MODEL_FILE: model} if is_main else {}
        if optimizer is not None and (is_main or sharded):
            files[name] = optimizer
        for file, tensors in files.items():
            save_file(tensors, temporary / file)
            if not is_main:  # the main process may be on another machine
                sync(temporary / file)
        return {file: _checksum(temporary / file) for file in files}

    def seal() -> None:
        if is_main:
            described = {"format": SHARDED_FORMAT if sharded else FORMAT, **state}
            described["checksums"] = dict(sorted(ChainMap(*checksums).items()))
            described["checksum"] = _text_checksum(described)
            text = json.dumps(described, indent=1)
            (temporary / STATE_FILE).write_text(text, encoding="utf-8")
        opened.close()

    try:
        with opened:
            temporary: Any = _together(begin)[0]
            checksums = _together(write)
            _together(seal)
    except (OSError, SafetensorError, _Failure) as error:
        raise CheckpointError(
            f"the checkpoint {folder} could not be written ({error}). Free disk space or choose "
            "another --run_dir; the previous checkpoint, if any, is untouched."
        ) from error


class _Failure(Exception):
    """Errors of some of the processes."""


def _together(make: Callable[[], T]) -> list[T]:
    """Results of `make` in all processes, in order of rank; if it raises in one, all raise.

    Raises:
        _Failure: it raised in one of several processes; the message names them.
    """
    if processes.world_size() == 1:
        return [make()]
    failure, result = None, None
    try:
        result = make()
    except Exception as error:
        failure = error
    text = failure and f"process {processes.rank()}: {failure}"
    results: list[Any] = processes.all_gather((result, text))
    failures = [text for _, text in results if text]
    if failures:
        raise _Failure("; ".join(failures)) from failure
    return [result for result, _ in results]


def shard_file(rank: int, world_size: int) -> str:
    """Name of the file with one process's part of the optimizer state."""
    return f"optimizer-{rank + 1:05}-of-{world_size:05}.safetensors"


def load_checkpoint(
    folder: Path, state: dict[str, Any] | None = None
) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Tensor] | None]:
    """Read model tensors, state, and optimizer tensors (None where there are none).

    The tensors are mapped into memory: those that are not used are not read.

    Args:
        folder: the checkpoint.
        state: its state, if `check_checkpoint` has just returned it.

    Raises:
        CheckpointError: a file is missing, truncated, changed, or of another format.
    """
    state = check_checkpoint(folder) if state is None else state
    files = [name for name in state["checksums"] if name != MODEL_FILE]
    try:
        model = load_file(folder / MODEL_FILE)
        optimizer = {k: v for name in files for k, v in load_file(folder / name).items()}
    except (OSError, ValueError, SafetensorError) as error:
        raise _damaged(folder, error) from error
    return model, state, optimizer if files else None


def check_checkpoint(folder: Path) -> dict[str, Any]:
    """Check the files against their checksums and return the checkpoint's state.

    Raises:
        CheckpointError: a file is missing, truncated, changed, or of another format.
    """
    if not folder.is_dir():
        raise CheckpointError(f"there is no checkpoint at {folder}")
    try:
        state: dict[str, Any] = read_json(folder / STATE_FILE, finite=False)
        found = state.get("format") if isinstance(state, dict) else None
        if found not in (FORMAT, SHARDED_FORMAT):
            raise CheckpointError(
                f"{folder / STATE_FILE} is of checkpoint format {found!r} and not {FORMAT} or "
                f"{SHARDED_FORMAT}: it was made by another version of recbole_multdpo. Use that "
                "version, or start again."
            )
        if state.pop("checksum", None) != _text_checksum(state):
            raise ValueError(f"{STATE_FILE} is not what was written")
        checksums = state["checksums"]
        if not isinstance(checksums, dict) or MODEL_FILE not in checksums:
            raise ValueError(f"{STATE_FILE} names no {MODEL_FILE}")
        _check_names(checksums)
        for name, checksum in checksums.items():
            check_regular(folder / name, MAX_TENSORS)
            if _checksum(folder / name) != checksum:
                raise ValueError(f"{name} is not what was written")
        fitted(_STATE, state)
    except (OSError, ValueError, KeyError) as error:
        raise _damaged(folder, error) from error
    return state


def _check_names(names: Iterable[str]) -> None:
    """Refuse files that no checkpoint has, and shards of which some are missing."""
    shards = {name for name in names if name not in (MODEL_FILE, OPTIMIZER_FILE)}
    for name in shards:
        match = _SHARD.fullmatch(name)
        if match is None:
            raise ValueError(f"{STATE_FILE} names {name!r}")
        if len(shards) != int(match[2]) or not 1 <= int(match[1]) <= len(shards):
            raise ValueError(f"{name} is one of {len(shards)} shards")


def _damaged(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the checkpoint {folder} is damaged ({error}); remove it to continue without it"
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
    """Folder of the checkpoint after `step` optimizer steps of a stage."""
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

    Later ones are leftovers: they were damaged, and the run continued from an earlier one.
    """
    folders = step_folders(parent)
    newest = folders.index(step_folder(parent, step))
    for folder in folders[:newest] + folders[newest + n_kept :]:
        shutil.rmtree(folder, ignore_errors=True)
