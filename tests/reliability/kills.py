"""Kill training runs with SIGKILL again and again, resume them, compare with undisturbed runs.

`python -m tests.reliability.kills --kills=200` prints the counts as JSON. Half of the kills come at
a random time; the other half at a random call of those that write, flush, rename or remove the
files of checkpoints and logs, which is where a kill can do harm.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recbole_multdpo.quick_start import run
from recbole_multdpo.runs import checkpoint
from recbole_multdpo.runtime import durable_files as atomic
from tests.integration.toy import toy_arguments, write_toy

SHORT = ["--sft_epochs=2", "--epochs=2", "--save_steps=1", "--sft_cache=False"]
# what each kind of run has that could be lost: bounds.csv; negatives drawn by a policy that is gone
# and numpy's generator in validation; torch's generator in dropout
KINDS = {
    "bounds": ["--track_bounds=True", "--save_steps=2", "--eval_step=2"],
    "dynamic": [
        "--negatives=dynamic",
        "--learning_rate=3e-3",
        "--eval_args={'mode': {'valid': 'uni5', 'test': 'full'}}",
    ],
    "lora": ["--finetune=lora", "--lora_r=2", "--lora_dropout=0.2", "--loss=s_dpo"],
}
# where a forked run kills itself: before one of these calls
WRITES: list[tuple[Any, str]] = [
    (checkpoint, "save_file"),
    (checkpoint, "_checksum"),
    (atomic, "sync"),
    (Path, "rename"),
    (Path, "write_text"),
    (os, "replace"),
    (os, "truncate"),
    (shutil, "rmtree"),
]


@dataclass
class Outcome:
    """Counts of kills, and of the runs that were equal in the end."""

    kills: int = 0
    kills_while_writing: int = 0
    runs: int = 0
    equal: int = 0
    differences: tuple[str, ...] = ()


def in_child(work: Callable[[], None], log: Path, kill_after: float | None = None) -> int:
    """Do the work in a forked process, killed after so many seconds; its exit status or -signal.

    Forking saves the seconds that imports take; this process must not have trained before.
    """
    child = os.fork()
    if child == 0:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            status = 1
            try:
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(status)
    end = None if kill_after is None else time.monotonic() + kill_after
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if end is not None and time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            end = None
        time.sleep(0.002)


def dying_at_write(work: Callable[[], None], number: int) -> Callable[[], None]:
    """The work, killing its own process before the n-th call of those in `WRITES`."""

    def dying() -> None:
        calls = 0

        def counted(function: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **options: Any) -> Any:
                nonlocal calls
                calls += 1
                if calls == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*arguments, **options)

            return call

        for owner, name in WRITES:
            patch.object(owner, name, counted(getattr(owner, name))).start()
        work()

    return dying


def what_is_left(folder: Path) -> dict[str, Any]:
    """All that a run leaves behind that must not depend on signals."""
    events = EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    scalars = {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }
    result = json.loads((folder / "result.json").read_text())
    bounds = folder / "bounds.csv"
    return {
        "weights": load_file(folder / "model" / "model.safetensors"),
        "result": {key: result[key] for key in ("valid_result", "test_result")},
        "per_user": (folder / "per_user.csv").read_text(),
        "bounds": bounds.read_text() if bounds.exists() else None,
        "steps": steps_without_seconds(folder / "steps.csv"),
        "validations": (folder / "validations.csv").read_text(),
        "tensorboard": scalars,
        "hparams": len([path for path in (folder / "tensorboard").iterdir() if path.is_dir()]),
        "leftovers": sorted(p.name for p in folder.rglob(".*") if p.name != ".lock"),
    }


def steps_without_seconds(file: Path) -> list[list[str]]:
    """Rows of `steps.csv` but for what the clock said."""
    rows = [line.split(",") for line in file.read_text().splitlines()]
    column = rows[0].index("seconds")
    return [row[:column] + row[column + 1 :] for row in rows]


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Names of what differs, weights compared bit for bit."""
    found = [name for name in one if name != "weights" and one[name] != other[name]]
    first, second = one["weights"], other["weights"]
    if first.keys() != second.keys() or not all(torch.equal(first[n], second[n]) for n in first):
        found.append("weights")
    return found


def try_kills(n_kills: int, folder: Path, seed: int, kinds: tuple[str, ...]) -> Outcome:
    """Run, kill and resume until so many kills have hit; every run is brought to its end.

    A run is killed up to five times. The time of a kill is uniform over twice what the undisturbed
    run took, the number of a write uniform over those of one and a half epochs.
    """
    rng = random.Random(seed)
    data_path = write_toy(folder / "data")
    log = folder / "log.txt"

    def arguments(kind: str, run_dir: Path) -> list[str]:
        return toy_arguments(data_path, run_dir, *SHORT, *KINDS[kind])

    wholes, seconds = {}, {}
    for kind in kinds:
        start = time.monotonic()
        status = in_child(lambda kind=kind: run(arguments(kind, folder / kind)), log)  # type: ignore[misc]
        assert status == 0, log.read_text()
        wholes[kind], seconds[kind] = what_is_left(folder / kind), time.monotonic() - start

    outcome = Outcome()
    while outcome.kills < n_kills:
        kind = kinds[outcome.runs % len(kinds)]
        run_dir = folder / f"{kind}-{outcome.runs}"
        killed = 0
        while True:
            started = (run_dir / "config.yaml").exists()
            argv = [f"--resume={run_dir}"] if started else arguments(kind, run_dir)
            if not started:
                shutil.rmtree(run_dir, ignore_errors=True)

            def work(argv: list[str] = argv) -> None:
                run(argv)

            if killed == 5 or outcome.kills == n_kills:
                status = in_child(work, log)
            elif rng.random() < 0.5:
                status = in_child(work, log, kill_after=rng.uniform(0, 2 * seconds[kind]))
            else:
                status = in_child(dying_at_write(work, rng.randint(1, 150)), log)
                outcome.kills_while_writing += status == -signal.SIGKILL
            if status != -signal.SIGKILL:
                break
            killed += 1
            outcome.kills += 1
        outcome.runs += 1
        assert status == 0, f"{kind} with seed {seed} ended with {status}:\n{log.read_text()}"
        found = differences(wholes[kind], what_is_left(run_dir))
        outcome.equal += not found
        outcome.differences += tuple(f"{run_dir.name}: {name}" for name in found)
        if not found:
            shutil.rmtree(run_dir)
    return outcome


def main() -> None:
    """Print the counts of a long session as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        start = time.monotonic()
        outcome = try_kills(options.kills, Path(folder), options.seed, tuple(KINDS))
        print(json.dumps({**vars(outcome), "seconds": round(time.monotonic() - start)}, indent=1))
    sys.exit(bool(outcome.differences))


if __name__ == "__main__":
    main()
