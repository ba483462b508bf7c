"""Shared parts of the benchmarks: alternating timer, peak memory, result rows, output."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # before torch: quiets its profiler

import torch
from torch.profiler import ProfilerActivity, profile

from recbole_multdpo.runs.folder import hardware, versions

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes:
        name: subject and size, such as 'train step, P 128 C 16 B 2: packed vs naive'.
        ours, other: the two figures.
        unit: of both.
        ratio: factor by which ours is better.
        floor_ratio: ratio of the numbers of operations; None if they were not counted.
        goal: smallest ratio that we want; None for no goal.
    """

    name: str
    ours: float
    other: float
    unit: str
    ratio: float
    floor_ratio: float | None = None
    goal: float | None = None


def arguments(description: str) -> argparse.ArgumentParser:
    """Make a parser with the common options --json, --threads, --repeats, --device, --dtype."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write rows and hardware there")
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; with 1, times are CPU seconds (default)"
    )
    parser.add_argument("--repeats", type=int, default=3, help="rounds; medians are reported")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--dtype", default="fp32", choices=tuple(DTYPES))
    return parser


class Timer:
    """Measure the seconds of a call: CPU seconds of one thread, else wall seconds.

    CPU seconds exclude other programs on a shared core, so ratios hold under load. With several
    threads they would count waiting threads.
    """

    def __init__(self, device: str, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = device
        self.clock = time.process_time if device == "cpu" and threads == 1 else time.perf_counter

    def __call__(self, function: Callable[[], Any]) -> float:
        """Run once and return the seconds."""
        self._wait()
        start = self.clock()
        function()
        self._wait()
        return self.clock() - start

    def _wait(self) -> None:
        if self.device == "cuda":
            torch.cuda.synchronize()

    def alternate(
        self, functions: Mapping[str, Callable[[], Any]], repeats: int
    ) -> dict[str, list[float]]:
        """Seconds of every function in each of `repeats` rounds, after one round to warm up.

        Each round runs every function once, every second round in reverse order, so that a drift
        of the machine affects all equally.
        """
        for function in functions.values():
            function()
        seconds: dict[str, list[float]] = {name: [] for name in functions}
        for number in range(repeats):
            for name in list(functions)[:: -1 if number % 2 else 1]:
                seconds[name].append(self(functions[name]))
        return seconds


def faster(
    name: str,
    ours: list[float],
    other: list[float],
    *,
    floor_ratio: float | None = None,
    goal: float | None = None,
) -> Row:
    """Make a row of seconds: medians, and the median of the rounds' ratios."""
    ratio = statistics.median(b / a for a, b in zip(ours, other, strict=True))
    return Row(
        name, statistics.median(ours), statistics.median(other), "s", ratio, floor_ratio, goal
    )


def peak_mebibytes(function: Callable[[], Any], device: str) -> float:
    """Peak tensor memory of a call in MiB, beyond the memory allocated before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        function()
    held = peak = 0
    # torch's allocator reports every allocation (positive) and release (negative)
    events = (e for e in recorded.profiler.kineto_results.events() if e.name() == "[memory]")
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak / 2**20


def report(rows: list[Row], options: argparse.Namespace) -> None:
    """Print the rows as a table and write them to `--json`."""
    machine = hardware() | {"device": options.device, "dtype": options.dtype}
    width = max(len(row.name) for row in rows)
    print(f"\n{machine['cpu']}, {machine['cores']} cores, {machine['threads']} threads", end="")
    print(f", {', '.join(machine['gpus'])}" if options.device == "cuda" else "")
    print(f"{'':{width}} {'ours':>10} {'other':>10} {'unit':12} {'ratio':>7} {'floor':>6} goal")
    for row in rows:
        floor = "" if row.floor_ratio is None else f"{row.floor_ratio:.1f}"
        verdict = ""
        if row.goal is not None:
            verdict = f">= {row.goal:g} {'met' if row.ratio >= row.goal else 'NOT met'}"
        print(
            f"{row.name:{width}} {row.ours:10.4g} {row.other:10.4g} {row.unit:12} "
            f"{row.ratio:7.2f} {floor:>6} {verdict}"
        )
    if options.json:
        content = {
            "rows": [asdict(row) for row in rows],
            "hardware": machine,
            "versions": versions(),
        }
        options.json.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
