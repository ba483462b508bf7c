"""Run a function in several processes that have found each other, as under a launcher."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from recbole_multdpo.runtime import processes


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def launcher_environment(rank: int, count: int, port: int) -> dict[str, str]:
    """Environment variables as torchrun sets them."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def run_processes(
    count: int,
    function: Callable[..., Any],
    *args: Any,
    killed: int | None = None,
    has_group: bool = True,
) -> list[Any]:
    """Results of `function(*args)` in each of `count` processes, by rank.

    Forked, so that nothing is imported again. What it returns must be plain data, not tensors. The
    process of rank `killed` must kill itself; it returns nothing. Without `has_group` the function
    must make the process group.
    """
    context = multiprocessing.get_context("fork")
    port, results = free_port(), context.Queue()

    def work(rank: int) -> None:
        os.environ.update(launcher_environment(rank, count, port))
        torch.set_num_threads(1)
        try:
            group = processes.process_group(torch.device("cpu")) if has_group else nullcontext()
            with group:
                results.put((rank, True, function(*args)))
        except BaseException:
            results.put((rank, False, traceback.format_exc()))

    workers = [context.Process(target=work, args=(rank,)) for rank in range(count)]
    for worker in workers:
        worker.start()
    try:
        found = [results.get(timeout=240) for _ in workers[killed is not None :]]
    finally:
        for worker in workers:
            worker.join(timeout=20)
            worker.terminate()
    if killed is not None:
        assert workers[killed].exitcode == -signal.SIGKILL
    failures = [text for _, succeeded, text in found if not succeeded]
    assert not failures, "\n".join(failures)
    return [value for _, _, value in sorted(found, key=lambda entry: entry[0])]
