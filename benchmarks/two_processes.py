"""Compare the cost of two processes with one: an epoch of training and a ranking, on ml-100k.

    python -m benchmarks.two_processes [--settings --deepspeed=zero2 --finetune=lora ...]

One thread per process, no GPU. Wall time shows the gain, but only if two cores are free. CPU
seconds hold on a shared machine too: the difference between two processes together and one is the
overhead of sharing the work (both load the data, and exchange and wait for gradients).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from recbole_multdpo.quick_start import run
from recbole_multdpo.training.trainer import SetwiseTrainer

SETTINGS = [
    "--model=LLMRec",
    "--dataset=ml-100k",
    "--device=cpu",
    "--num_threads=1",
    "--loss=sft",
    "--sft_epochs=2",
    "--sft_batch_size=32",
    "--sft_cache=False",
    "--show_progress=False",
    "--state=ERROR",
]


def timed(method: Callable[..., Any], name: str, spent: dict[str, list[float]]) -> Any:
    """Wrap a method to add its CPU and wall seconds to `spent[name]`."""

    def run_timed(*args: Any, **kwargs: Any) -> Any:
        cpu, wall = time.process_time(), time.perf_counter()
        result = method(*args, **kwargs)
        total = spent.setdefault(name, [0.0, 0.0])
        total[0] += time.process_time() - cpu
        total[1] += time.perf_counter() - wall
        return result

    return run_timed


def work(rank: int, count: int, port: int, folder: str, settings: list[str], results: Any) -> None:
    """Run one process of a run; puts its seconds per part and its metrics into the queue."""
    if count > 1:
        launcher = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in launcher.items()})
        os.environ["MASTER_ADDR"] = "127.0.0.1"
    torch.set_num_threads(1)
    sys.stdout = Path(os.devnull).open("w")
    spent: dict[str, list[float]] = {}
    for name, part in (("_train_epoch", "training"), ("evaluate", "ranking")):
        setattr(SetwiseTrainer, name, timed(getattr(SetwiseTrainer, name), part, spent))
    result = run([*SETTINGS, f"--run_dir={folder}", *settings])
    results.put((spent, result["test_result"]))


def measure(count: int, settings: list[str]) -> tuple[list[dict[str, list[float]]], Any]:
    """Seconds of every process of a run, and its metrics."""
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    with tempfile.TemporaryDirectory() as scratch:
        folder = str(Path(scratch) / "run")
        workers = [
            context.Process(target=work, args=(rank, count, port, folder, settings, results))
            for rank in range(count)
        ]
        for worker in workers:
            worker.start()
        gathered = [results.get(timeout=3600) for _ in workers]
        for worker in workers:
            worker.join()
    return [spent for spent, _ in gathered], gathered[0][1]


def main() -> None:
    """Print CPU and wall seconds of one and of two processes."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--settings", nargs=argparse.REMAINDER, default=[])
    settings = parser.parse_args().settings
    (one, metrics), (two, metrics_of_two) = (measure(count, settings) for count in (1, 2))
    print("| | CPU s, one | CPU s, two together | efficiency | wall s, one | wall s, two |")
    print("|---|---|---|---|---|---|")
    for part in ("training", "ranking"):
        cpu_one, wall_one = one[0][part]
        cpu_two = sum(spent[part][0] for spent in two)
        wall_two = max(spent[part][1] for spent in two)
        print(
            f"| {part} | {cpu_one:.1f} | {cpu_two:.1f} | {cpu_one / cpu_two:.0%} | "
            f"{wall_one:.1f} | {wall_two:.1f} |"
        )
    apart = max(abs(metrics[name] - metrics_of_two[name]) for name in metrics)
    print(f"largest difference of a test metric: {apart:.1e}")


if __name__ == "__main__":
    main()
