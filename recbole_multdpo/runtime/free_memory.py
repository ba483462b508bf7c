"""Memory that a process can still allocate."""

from __future__ import annotations

import os
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import torch

from recbole_multdpo.runtime import processes

_CGROUP = Path("/sys/fs/cgroup")


def free_bytes(device: torch.device) -> int:
    """Memory that this process can still allocate on a device.

    On a CPU it is what the machine has available, within the limit of the container, divided by
    the processes that a launcher has started on the machine.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    available = min([psutil.virtual_memory().available, *_left_by_cgroup(_CGROUP)])
    n_processes = int(os.environ.get("LOCAL_WORLD_SIZE") or processes.world_size())
    return int(available) // n_processes


def _left_by_cgroup(folder: Path) -> list[int]:
    """Bytes below a container's limit of memory (cgroup version 2 or 1); none without a limit."""
    names = [("memory.max", "memory.current", "memory.stat", "inactive_file")]
    names.append(
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        )
    )
    left = []
    for limit, usage, statistics, reclaimable in names:
        try:
            most, used = ((folder / name).read_text().strip() for name in (limit, usage))
            stat = dict(line.split() for line in (folder / statistics).read_text().splitlines())
        except (OSError, ValueError):
            continue
        if most.isdecimal():  # "max" without a limit
            left.append(max(int(most) - int(used) + int(stat.get(reclaimable, 0)), 0))
    return left
