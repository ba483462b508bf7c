"""Checkpoints that several processes write together: whole or not there, and nobody hangs."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_multdpo.errors import CheckpointError, ProcessError
from recbole_multdpo.runs import checkpoint
from recbole_multdpo.runs.checkpoint import check_checkpoint, load_checkpoint, save_checkpoint
from recbole_multdpo.runtime import processes
from tests.several_processes import run_processes

SHARDS = ["optimizer-00001-of-00002.safetensors", "optimizer-00002-of-00002.safetensors"]
FILES = ["model.safetensors", *SHARDS, "state.json"]


def save(folder: Path, step: int = 1) -> str:
    """Save this process's shard; what became of it."""
    rank = processes.rank()
    shard = {f"0.exp_avg@{2 * rank}": torch.full((2,), float(step + rank))}
    try:
        save_checkpoint(folder, {"w": torch.ones(4)}, {"step": step}, shard, sharded=True)
    except (CheckpointError, ProcessError) as error:
        return f"{type(error).__name__}: {error}"
    return "saved"


def listing(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint of two processes."""
    assert run_processes(2, save, tmp_path / "run" / "last") == ["saved", "saved"]
    return tmp_path / "run" / "last"


def test_every_process_writes_its_shard(folder: Path) -> None:
    assert listing(folder) == FILES and listing(folder.parent) == ["last"]
    model, state, optimizer = load_checkpoint(folder)
    assert (list(model), state["step"], state["format"]) == (["w"], 1, 3)
    assert optimizer is not None
    assert {name: value.tolist() for name, value in optimizer.items()} == {
        "0.exp_avg@0": [1.0, 1.0],
        "0.exp_avg@2": [2.0, 2.0],
    }
    assert run_processes(2, save, folder, 5) == ["saved", "saved"]  # in place of the other
    assert load_checkpoint(folder)[1]["step"] == 5 and listing(folder.parent) == ["last"]


def test_one_process_writes_one_shard(tmp_path: Path) -> None:
    assert save(tmp_path / "last") == "saved"
    assert listing(tmp_path / "last")[1] == "optimizer-00001-of-00001.safetensors"


def test_a_whole_state_is_mapped_and_not_read(tmp_path: Path) -> None:
    """A process reads its part of a whole state without having the rest in memory."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux tells")
    save_checkpoint(tmp_path / "whole", {}, {}, {"0.exp_avg": torch.ones(1000)})

    def is_mapped(tensor: torch.Tensor) -> bool:
        for line in maps.read_text().splitlines():
            first, last = (int(number, 16) for number in line.split()[0].split("-"))
            if first <= tensor.data_ptr() < last:
                return "optimizer" in line
        return False

    tensors = load_checkpoint(tmp_path / "whole")[2]
    assert tensors is not None and is_mapped(tensors["0.exp_avg"])
    assert not is_mapped(tensors["0.exp_avg"].clone())


# -------------------------------------------------------------------------------------------------
# damage


@pytest.mark.parametrize("name", SHARDS)
def test_a_missing_or_damaged_shard_is_noticed(folder: Path, name: str) -> None:
    content = (folder / name).read_bytes()
    (folder / name).write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(CheckpointError, match=f"damaged .{name} is not what was written"):
        check_checkpoint(folder)
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        check_checkpoint(folder)


@pytest.mark.parametrize(
    ("removed", "added", "message"),
    [
        (SHARDS[0], {}, "00002-of-00002.* is one of 1 shards"),
        (SHARDS[0], {"optimizer-00001-of-00003.safetensors": 1}, "is one of 2 shards"),
        (SHARDS[0], {"optimizer-00003-of-00002.safetensors": 1}, "00003-of-00002.* is one of 2"),
        (SHARDS[0], {"../other.safetensors": 1}, "names '../other.safetensors'|is one of"),
        ("", {"pytorch_model.bin": 1}, "names 'pytorch_model.bin'|is one of"),
    ],
)
def test_a_state_that_names_other_files_is_refused(
    folder: Path, removed: str, added: dict[str, int], message: str
) -> None:
    state = json.loads((folder / "state.json").read_text())
    state.pop("checksum")
    state["checksums"].pop(removed, None)
    state["checksums"] |= added
    state["checksum"] = checkpoint._text_checksum(state)
    (folder / "state.json").write_text(json.dumps(state))
    with pytest.raises(CheckpointError, match=message):
        check_checkpoint(folder)


def test_formats_before_and_after_are_told_apart(folder: Path) -> None:
    """Whole state has the format of before; of shards, versions before say that they are newer."""
    save_checkpoint(folder.parent / "whole", {}, {}, {"0.x": torch.zeros(1)})
    assert load_checkpoint(folder.parent / "whole")[1]["format"] == 2
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps({**state, "format": 4}))
    with pytest.raises(CheckpointError, match="of checkpoint format 4 and not 2 or 3"):
        load_checkpoint(folder)


# -------------------------------------------------------------------------------------------------
# one process fails


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def failing(folder: Path, rank: int, owner: Any, name: str) -> str:
    """`save`, while one process finds the disk full."""
    if processes.rank() == rank:
        setattr(owner, name, full_disk)
    return save(folder, 2)


@pytest.mark.parametrize(
    ("rank", "owner", "name"),
    [
        (1, checkpoint, "save_file"),
        (1, checkpoint, "_checksum"),
        (1, checkpoint, "sync"),
        (0, checkpoint, "save_file"),
        (0, Path, "mkdir"),
        (0, Path, "write_text"),
        (0, os, "fsync"),
        (0, Path, "rename"),
    ],
)
def test_a_full_disk_of_one_process_is_an_error_of_all(
    folder: Path, rank: int, owner: Any, name: str
) -> None:
    errors = run_processes(2, failing, folder, rank, owner, name)
    for error in errors:
        assert error.startswith(f"CheckpointError: the checkpoint {folder} could not be written")
        assert f"(process {rank}: [Errno 28] No space left on device)" in error
    assert listing(folder.parent) == ["last"]
    assert load_checkpoint(folder)[1]["step"] == 1


def test_both_errors_are_named(folder: Path) -> None:
    def both() -> str:
        return failing(folder, processes.rank(), checkpoint, "save_file")

    for error in run_processes(2, both):
        assert "process 0: [Errno 28]" in error and "process 1: [Errno 28]" in error


def killed(folder: Path, rank: int, name: str) -> str:
    """`save`, while one process is killed in the middle of it."""
    if processes.rank() == rank:
        setattr(checkpoint, name, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    return save(folder, 2)


@pytest.mark.parametrize("name", ["save_file", "_checksum"])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_killed_process_is_an_error_of_the_others(folder: Path, rank: int, name: str) -> None:
    start = time.monotonic()
    (error,) = run_processes(2, killed, folder, rank, name, killed=rank)
    assert time.monotonic() - start < 60
    assert error.startswith("ProcessError: a process of this run has ended")
    assert load_checkpoint(folder)[1]["step"] == 1  # the one before is whole
    if rank == 1:  # the main process has tidied up
        assert listing(folder.parent) == ["last"]
    assert run_processes(2, save, folder, 3) == ["saved", "saved"]
    assert load_checkpoint(folder)[1]["step"] == 3 and listing(folder.parent) == ["last"]
