"""Processes that find each other: who they are, what they agree on, how they share work."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from recbole_multdpo.errors import ConfigError, ProcessError
from recbole_multdpo.runtime import processes
from tests.several_processes import run_processes


def test_one_process_needs_nobody() -> None:
    assert (processes.rank(), processes.world_size(), processes.is_main_process()) == (0, 1, True)
    assert processes.broadcast_from_main(lambda: "made") == "made"
    assert processes.all_reduce_sum(torch.tensor([1.5])).tolist() == [1.5]
    assert processes.all_reduce_max(3) == 3
    assert processes.all_gather("own") == ["own"]
    assert list(processes.work_queue(3)) == [0, 1, 2]
    processes.barrier()


def test_what_they_tell_each_other() -> None:
    def tell() -> tuple:  # type: ignore[type-arg]
        rank = processes.rank()
        tensor = torch.tensor([rank, 10.0])
        return (
            rank,
            processes.world_size(),
            processes.broadcast_from_main(lambda: f"made by {processes.rank()}"),
            processes.all_reduce_sum(tensor).tolist(),
            tensor.tolist(),  # is left alone
            processes.all_reduce_max(5 - rank),
            processes.all_gather({"rank": rank}),
        )

    same = (3, "made by 0", [3.0, 30.0])
    rest = (5, [{"rank": 0}, {"rank": 1}, {"rank": 2}])
    assert run_processes(3, tell) == [(r, *same, [r, 10.0], *rest) for r in range(3)]


def test_every_task_is_claimed_once_and_the_quick_do_more() -> None:
    def work() -> list[list[int]]:
        rounds = []
        for n_tasks in (20, 0, 3):
            claimed = []
            for task in processes.work_queue(n_tasks):
                claimed.append(task)
                time.sleep(0.1 if processes.rank() == 0 else 0.001)
            processes.barrier()
            rounds.append(claimed)
        return rounds

    slow, quick = run_processes(2, work)
    for number, n_tasks in enumerate((20, 0, 3)):
        assert sorted(slow[number] + quick[number]) == list(range(n_tasks))
    assert len(quick[0]) > 10 > len(slow[0])


def test_an_error_of_the_first_ends_the_others() -> None:
    def fail() -> str:
        def make() -> None:
            raise ConfigError("the folder is not empty")

        try:
            processes.broadcast_from_main(make)
        except ConfigError:
            return "its own error"
        except SystemExit as left:
            return f"exit {left.code}"
        return "nothing"

    assert run_processes(2, fail) == ["its own error", "exit 2"]


def test_what_the_first_of_a_machine_downloads_the_others_find(tmp_path: Path) -> None:
    def load() -> str:
        with processes.local_main_process_first():
            file = tmp_path / "data"
            if not file.exists():
                time.sleep(0.2)
                file.write_text(f"by {processes.rank()}")
            return file.read_text()

    assert run_processes(2, load) == ["by 0", "by 0"]


def long_work() -> list[str]:
    """Results of waiting three times for six seconds of another process's work."""

    def work() -> str:
        time.sleep(6.0)
        return "done"

    def taken_in_turn() -> str:
        with processes.local_main_process_first():
            return work() if processes.is_main_process() else "done"

    try:
        return [
            processes.broadcast_from_main(work),
            *processes.all_gather("done" if processes.is_main_process() else work()),
            taken_in_turn(),
        ]
    except ProcessError as error:
        return [str(error)]


def test_work_takes_as_long_as_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of exchanges between GPUs, cut to three seconds, does not hold for it."""
    monkeypatch.setattr(processes, "_TIMEOUT", timedelta(seconds=3))
    assert run_processes(2, long_work) == [["done"] * 4] * 2
    monkeypatch.setattr(processes, "_NO_LIMIT", timedelta(seconds=3))  # the control
    for (text,) in run_processes(2, long_work):
        assert text.startswith("a process of this run has ended")


@pytest.mark.parametrize("dead", [0, 1])
def test_the_death_of_one_ends_the_wait_of_the_other(dead: int) -> None:
    def wait() -> str:
        if processes.rank() == dead:
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGKILL)
        start = time.perf_counter()
        try:
            processes.broadcast_from_main(lambda: time.sleep(1.0))
            processes.barrier()
        except ProcessError as error:
            assert time.perf_counter() - start < 60
            return str(error)
        return "not noticed"

    (text,) = run_processes(2, wait, killed=dead)
    assert text.startswith("a process of this run has ended")


def test_the_death_of_the_keeper_of_a_queue_ends_the_others() -> None:
    def work() -> str:
        try:
            for _ in processes.work_queue(10_000):
                if processes.is_main_process():
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(0.01)
        except ProcessError as error:
            return str(error)
        return "not noticed"

    (text,) = run_processes(2, work, killed=0)
    assert text.startswith("a process of this run has ended")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT is not set.*torchrun"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE must be a number, got 'two'"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK must be a number"),
    ],
)
def test_a_launcher_that_says_too_little(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        processes.launched_world_size()
        processes.local_rank()
