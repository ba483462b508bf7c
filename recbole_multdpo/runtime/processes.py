"""Ranks, collectives and shared work of the processes of one run.

A launcher (torchrun, deepspeed, accelerate) starts the same command several times and sets RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. All functions work in a run of one process too,
where nothing is communicated; of several, all processes call the same ones in the same order.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from recbole_multdpo.errors import ConfigError, ProcessError, doc_page
from recbole_multdpo.runtime.out_of_memory import is_out_of_memory

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# Between GPUs, whose collectives belong to one training step, and for the processes to find each
# other.
_TIMEOUT = timedelta(hours=2)
# Everything else waits for work of any length: a download, an assistant's training, a validation, a
# checkpoint. A process that ends closes its connections, which ends the wait of the others; its
# launcher ends them at once. torch knows no "never", so this is some thirty years.
_NO_LIMIT = timedelta(days=10_000)

# The store behind the group, and the group for tensors on the CPU; set by `process_group`.
_store: Any = None
_cpu_group: Any = None
_was_distributed = False
_rounds = itertools.count()


def launched_world_size() -> int:
    """WORLD_SIZE as the launcher set it, before `process_group`; 1 without a launcher.

    Raises:
        ConfigError: a variable of the launcher is missing or is no number.
    """
    count = _number("WORLD_SIZE", 1)
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if count > 1 and missing:
        raise ConfigError(
            f"WORLD_SIZE={count} asks for several processes, but {', '.join(missing)} is not set. "
            f"Start with torchrun or deepspeed, which set them all ({doc_page('scaling')})."
        )
    return count


def local_rank() -> int:
    """Rank of this process on its machine."""
    return _number("LOCAL_RANK", 0)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal():
        raise ConfigError(f"the environment variable {variable} must be a number, got {text!r}.")
    return int(text)


def rank() -> int:
    """Rank of this process, 0 without a process group."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes of the run, 1 without a process group."""
    return dist.get_world_size() if dist.is_initialized() else 1


def was_distributed() -> bool:
    """True if this process is or was one of several in a process group."""
    return _was_distributed


def is_main_process() -> bool:
    """True for rank 0, the only process that writes and logs."""
    return rank() == 0


@contextmanager
def process_group(device: torch.device, *, single: bool = False) -> Iterator[None]:
    """Initialise torch.distributed, and destroy the process group at the end.

    Args:
        device: what this process computes on; with CUDA the processes talk through NCCL.
        single: make a group of one process too, which DeepSpeed needs.

    Raises:
        ConfigError: the launcher's variables are incomplete.
    """
    global _store, _cpu_group, _was_distributed
    several = launched_world_size() > 1
    if dist.is_initialized() or not (several or single):
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if several:
        _store, number, total = next(dist.rendezvous("env://", timeout=_TIMEOUT))
    else:
        _store, number, total = dist.HashStore(), 0, 1
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore("group", _store),
        rank=number,
        world_size=total,
        timeout=_TIMEOUT if backend == "nccl" else _NO_LIMIT,
    )
    _cpu_group = dist.new_group(backend="gloo", timeout=_NO_LIMIT) if backend == "nccl" else None
    _was_distributed = several
    try:
        yield
    finally:
        dist.destroy_process_group()
        _store = _cpu_group = None


@contextmanager
def _connected() -> Iterator[None]:
    """Turn a lost connection, which torch reports as a RuntimeError, into a ProcessError."""
    try:
        yield
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        raise ProcessError(
            "a process of this run has ended, and the others cannot continue without it. Its own "
            "message says why; continue with --resume=<run folder>. "
            f"({str(error).splitlines()[0]})"
        ) from error


def barrier() -> None:
    """Wait until all processes have reached this call, however long that takes.

    Call it where the next collective is one of tensors on GPUs, whose wait has a limit, and one
    process may have had much else to do.
    """
    if world_size() > 1:
        with _connected():
            dist.barrier(group=_cpu_group)


@contextmanager
def local_main_process_first() -> Iterator[None]:
    """Let local rank 0 of every machine run the block before the others: it may download files."""
    if local_rank() != 0:
        barrier()
    yield
    if local_rank() == 0:
        barrier()


def broadcast_from_main(make: Callable[[], T]) -> T:
    """Call `make` on the main process only and broadcast its result, or its failure.

    Raises:
        SystemExit: on the other ranks, where `make` raised on the main process, which reports it.
    """
    if world_size() == 1:
        return make()
    made: list[Any] = [False, None]
    try:
        if is_main_process():
            made = [True, make()]
    finally:
        with _connected():
            dist.broadcast_object_list(made, src=0, group=_cpu_group)
    if not made[0]:
        raise SystemExit(2)
    return made[1]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of all ranks' tensors, which have one shape, on the tensor's device."""
    if world_size() == 1:
        return tensor
    tensor = tensor.clone()
    with _connected():
        dist.all_reduce(tensor, group=None if tensor.is_cuda else _cpu_group)
    return tensor


def all_reduce_max(number: int) -> int:
    """Maximum of all ranks' numbers."""
    if world_size() == 1:
        return number
    tensor = torch.tensor(number)
    with _connected():
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_cpu_group)
    return int(tensor)


def all_gather(value: T) -> list[T]:
    """Values of all ranks, in order of rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    with _connected():
        dist.all_gather_object(values, value, group=_cpu_group)
    return values


def work_queue(n_tasks: int) -> Iterator[int]:
    """Indices of the tasks that this process takes from a queue of `n_tasks`, one at a time.

    A process gets the next task when it asks for one, so that those with cheap tasks do more of
    them; every task goes to exactly one process. All processes must iterate to the end.
    """
    if world_size() == 1:
        yield from range(n_tasks)
        return
    counter = f"work queue {next(_rounds)}"
    while True:
        with _connected():
            task = _store.add(counter, 1) - 1
        if task >= n_tasks:
            return
        yield task
