"""Memory that a process can still allocate: a container's limit, and processes of one machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from recbole_multdpo.runtime.free_memory import _left_by_cgroup, free_bytes


def test_the_limit_of_a_container(tmp_path: Path) -> None:
    assert _left_by_cgroup(tmp_path) == []
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 5\ninactive_file 200\n")
    assert _left_by_cgroup(tmp_path) == []
    (tmp_path / "memory.max").write_text("1000\n")
    assert _left_by_cgroup(tmp_path) == [500]


def test_processes_of_a_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = free_bytes(torch.device("cpu"))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert free_bytes(torch.device("cpu")) == pytest.approx(alone / 4, rel=0.3)
