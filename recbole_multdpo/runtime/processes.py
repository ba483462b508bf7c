"""The processes of one run: who they are, what they agree on, and how they share work.

A launcher (torchrun, deepspeed, accelerate) starts the same command several times and sets RANK,
WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT. Here nothing is started: the processes find
each other. All functions also work in a run of one process, where nothing is communicated; in a run
of several, all processes must call the same ones in the same order.
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

from recbole_multdpo.errors import ConfigError

T = TypeVar("T")

_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
# One process may write a large checkpoint while the others wait. Where a process dies, its launcher
# ends the others at once, long before this.
_TIMEOUT = timedelta(hours=2)

# What torch.distributed keeps to itself, and its group for tensors on the CPU; set by `joined`.
_store: Any = None
_cpu_group: Any = None
_found_each_other = False
_rounds = itertools.count()


def launched_rank() -> int:
    """This process's number as its launcher says, before the processes have found each other."""
    return _number("RANK", 0)


def launched_count() -> int:
    """How many processes the launcher has started, on all machines together; 1 without one.

    Raises:
        ConfigError: a variable of the launcher is missing or is no number.
    """
    count = _number("WORLD_SIZE", 1)
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if count > 1 and missing:
        raise ConfigError(
            f"WORLD_SIZE={count} asks for several processes, but {', '.join(missing)} is not set. "
            "Start with torchrun or deepspeed, which set them all (docs/scaling.md)."
        )
    return count


def local_rank() -> int:
    """This process's number on its machine."""
    return _number("LOCAL_RANK", 0)


def _number(variable: str, default: int) -> int:
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal():
        raise ConfigError(f"the environment variable {variable} must be a number, got {text!r}.")
    return int(text)


def rank() -> int:
    """This process's number, from 0 on, among all processes of the run."""
    return dist.get_rank() if dist.is_initialized() else 0


def count() -> int:
    """Number of processes of the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def found_each_other() -> bool:
    """Whether this process has been one of several in a group, which may have been left since."""
    return _found_each_other


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return rank() == 0


@contextmanager
def joined(device: torch.device, *, also_alone: bool = False) -> Iterator[None]:
    """Find the launcher's other processes, and leave them at the end.

    Args:
        device: what this process computes on; with CUDA the processes talk through NCCL.
        also_alone: make a group of one process too, which DeepSpeed needs.

    Raises:
        ConfigError: the launcher's variables are incomplete.
    """
    global _store, _cpu_group, _found_each_other
    several = launched_count() > 1
    if dist.is_initialized() or not (several or also_alone):
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
        timeout=_TIMEOUT,
    )
    _cpu_group = dist.new_group(backend="gloo", timeout=_TIMEOUT) if backend == "nccl" else None
    _found_each_other = several
    try:
        yield
    finally:
        dist.destroy_process_group()
        _store = _cpu_group = None


def wait() -> None:
    """Go on when all processes have come here."""
    if count() > 1:
        dist.barrier(group=_cpu_group)


@contextmanager
def first_of_machine_first() -> Iterator[None]:
    """Let one process of every machine through alone: it may download what the others then find."""
    if local_rank() != 0:
        wait()
    yield
    if local_rank() == 0:
        wait()


def from_first(make: Callable[[], T]) -> T:
    """What `make` returns in the first process, in all of them; the others do not call it.

    Raises:
        SystemExit: in the others, where `make` raised in the first, which reports it.
    """
    if count() == 1:
        return make()
    made: list[Any] = [False, None]
    try:
        if is_first():
            made = [True, make()]
    finally:
        dist.broadcast_object_list(made, src=0, group=_cpu_group)
    if not made[0]:
        raise SystemExit(2)
    return made[1]


def total(tensor: Tensor) -> Tensor:
    """The sum of the processes' tensors of one shape, on the tensor's device."""
    if count() == 1:
        return tensor
    tensor = tensor.clone()
    dist.all_reduce(tensor, group=None if tensor.is_cuda else _cpu_group)
    return tensor


def largest(number: int) -> int:
    """The largest of the processes' numbers."""
    if count() == 1:
        return number
    tensor = torch.tensor(number)
    dist.all_reduce(tensor, dist.ReduceOp.MAX, group=_cpu_group)
    return int(tensor)


def gathered(value: T) -> list[T]:
    """The processes' values, by rank."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    dist.all_gather_object(values, value, group=_cpu_group)
    return values


def claims(n_tasks: int) -> Iterator[int]:
    """The tasks of 0 ... `n_tasks` - 1 that this process should do, one at a time.

    A process gets the next task when it asks for one, so that those with cheap tasks do more of
    them; every task goes to exactly one process. All processes must iterate to the end.
    """
    if count() == 1:
        yield from range(n_tasks)
        return
    counter = f"claims {next(_rounds)}"
    while (task := _store.add(counter, 1) - 1) < n_tasks:
        yield task
