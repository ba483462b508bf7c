"""Train a small model for a long time and watch the memory of the process.

`python -m tests.reliability.soak --minutes=20` prints a JSON: resident memory in MiB at the start,
in the middle and at the end, and its growth by a straight line. The first fifth of
the time, in which caches fill, is left out.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import torch

from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.checkpoint import check_checkpoint, step_folders
from recbole_multdpo.runtime.interruption import Interrupted
from tests.integration.toy import toy_arguments, write_toy

EVERY = 2.0  # seconds between two measurements
ENDLESS = [
    "--sft_epochs=1",
    "--epochs=1000000",
    "--eval_step=5",
    "--stopping_step=1000000",
    "--save_steps=7",
    "--negatives=dynamic",
    "--track_bounds=True",
    "--state=WARNING",
]


def soak(seconds: float, folder: Path) -> dict[str, float]:
    """Train for so long, with validations, checkpoints, draws of negatives and logs."""
    samples: list[tuple[float, float]] = []
    end = time.monotonic() + seconds

    def watch() -> None:
        while (now := time.monotonic()) < end:
            samples.append((now, psutil.Process().memory_info().rss / 2**20))
            time.sleep(EVERY)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()
    try:
        run(toy_arguments(write_toy(folder / "data"), folder / "run", *ENDLESS))
    except Interrupted:
        pass
    last = step_folders(folder / "run" / "checkpoints" / "preference")[0]
    return {**summary(samples), "steps": check_checkpoint(last)["global_step"]}


def summary(samples: list[tuple[float, float]]) -> dict[str, float]:
    """Duration and memory, from samples of (seconds, MiB)."""
    times, sizes = np.array(samples[len(samples) // 5 :]).T
    return {
        "minutes": round((samples[-1][0] - samples[0][0]) / 60, 1),
        "first": round(float(sizes[0]), 1),
        "middle": round(float(sizes[len(sizes) // 2]), 1),
        "last": round(float(sizes[-1]), 1),
        "most": round(float(sizes.max()), 1),
        "growth_per_hour": round(float(np.polyfit(times, sizes, 1)[0]) * 3600, 1),
    }


def main() -> None:
    """Print the figures of a long session as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(soak(60 * options.minutes, Path(folder)), indent=1))


if __name__ == "__main__":
    main()
