"""The command for a machine with a GPU, at small sizes: on the CPU and on a virtual GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import gpu
from benchmarks.training_memory import Shape
from benchmarks.training_step import Examples
from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from tests.virtual_cuda import VirtualCuda


def rows_of(file: Path) -> dict[str, dict]:
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["machine"]["seed"] == gpu.SEED and content["machine"]["cpu"]
    return {row["row"]: row for row in content["rows"]}


def test_every_row_runs_on_a_cpu(tmp_path: Path) -> None:
    gpu.main(["--device=cpu", "--tiny", f"--json={tmp_path / 'gpu.json'}"])
    found = rows_of(tmp_path / "gpu.json")
    assert list(found) == [row.name for row in gpu.rows()]
    assert not [row for row in found.values() if {"failed", "out of memory"} & row.keys()]
    assert all(row["goal met"] for name, row in found.items() if name.startswith("equal"))
    skipped = {name for name, row in found.items() if "skipped" in row}
    liger = {name for name in found if name.startswith("liger")}
    assert len(liger) == 4 and liger <= skipped <= liger | {"trl", "zero2", "smollm2"}
    assert 0 <= found["main-command"]["ndcg@10"] <= 1


def test_rows_that_compute_stay_on_the_device(tmp_path: Path) -> None:
    names = "product,equal,step-0.5B-P256,ranking"
    with VirtualCuda() as cuda:
        gpu.main(["--tiny", f"--only={names}", f"--json={tmp_path / 'gpu.json'}"])
    assert not cuda.mixes, cuda.mixes
    found = rows_of(tmp_path / "gpu.json")
    assert not [row for row in found.values() if "failed" in row]
    assert "GiB" in found["step-0.5B-P256-C32"]


def test_a_row_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def out_of_memory(n_examples: int) -> dict[str, float]:
        tries.append(n_examples)
        if n_examples > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return {"ms": 1.0}

    def never(setting: gpu.Setting) -> dict[str, float]:
        while True:
            pass

    def broken(setting: gpu.Setting) -> dict[str, float]:
        raise KeyError("x")

    rows = [
        gpu.Row("broken", broken, 100),
        gpu.Row("never", never, 1),
        gpu.Row("too large", lambda setting: gpu.fitting(out_of_memory, 8), 100),
        gpu.Row("late", lambda setting: {}, 10**6),
    ]
    monkeypatch.setattr(gpu, "rows", lambda: rows)
    gpu.main(["--device=cpu", f"--json={tmp_path / 'gpu.json'}"])
    found = rows_of(tmp_path / "gpu.json")
    assert found["broken"]["failed"].startswith("KeyError")
    assert found["never"]["failed"].startswith("TimeoutError")
    assert found["too large"]["batch"] == 2 and tries == [8, 4, 2]
    assert "left" in found["late"]["skipped"]


def test_operations_by_hand() -> None:
    """A prompt of 10 and items of 3 and 5 tokens, one layer of width 2, 7 tokens in all."""
    shape = Shape("by hand", 2, 1, 3, 1, 1, 7, True)
    examples = Examples(
        Prompts(torch.zeros(1, 10, dtype=torch.long), torch.tensor([10])),
        torch.tensor([[1, 2]]),
        ItemCatalogue.build(ItemTokens.from_lists([[], [1, 1, 2], [1, 1, 1, 1, 2]])),
    )
    linears = 2 * 2 * 4 + 2 * 3 * 3  # q, k, v and o; gate, up and down
    keys = sum(range(1, 11)) + (11 + 12) + (11 + 12 + 13 + 14)
    expected = 2 * 16 * linears + 4 * 2 * keys + 2 * 7 * 2 * 7
    assert gpu.forward_operations(shape, examples) == expected


def test_a_machine_without_a_gpu_is_told_what_to_do() -> None:
    if torch.cuda.is_available():
        pytest.skip("needs a machine without a GPU")
    with pytest.raises(SystemExit, match="--device=cpu --tiny"):
        gpu.main([])


def test_an_interruption_keeps_the_rows_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """--go-on then makes the rest."""

    def interrupted(setting: gpu.Setting) -> dict[str, float]:
        raise KeyboardInterrupt

    def fine(setting: gpu.Setting) -> dict[str, float]:
        return {"ms": 1.0}

    file = tmp_path / "gpu.json"
    command = ["--device=cpu", "--tiny", f"--json={file}"]
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "rows", lambda: [gpu.Row("a", fine, 9), gpu.Row("b", interrupted, 9)])
        with pytest.raises(SystemExit) as stopped:
            gpu.main(command)
    assert stopped.value.code == 130
    assert f"stopped in b; {file}" in capsys.readouterr().out
    assert list(rows_of(file)) == ["a"]
    monkeypatch.setattr(gpu, "rows", lambda: [gpu.Row("a", fine, 9), gpu.Row("b", fine, 9)])
    gpu.main([*command, "--go-on"])
    assert list(rows_of(file)) == ["a", "b"]


def test_names_and_files_that_do_not_exist_are_said_before_a_row_runs(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="begins with nonsense; --list"):
        gpu.main(["--device=cpu", "--tiny", "--only=nonsense"])
    with pytest.raises(SystemExit, match="No such file or directory"):
        gpu.main(["--device=cpu", "--tiny", f"--json={tmp_path / 'none' / 'gpu.json'}"])
