"""`dtype: auto`: bfloat16 where the hardware is fast at it, and once decided, decided."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.plan import make_plan
from recbole_multdpo.comparison.request import (
    REQUEST_FILE,
    Request,
    request_text,
    saved_request,
)
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.quick_start import _settled
from recbole_multdpo.runs.resume import resolve_resume, run_dtype
from recbole_multdpo.runtime import processes
from recbole_multdpo.settings.config import Config, load_config
from recbole_multdpo.settings.hardware import apply_tf32, fast_dtype
from recbole_multdpo.settings.text import dump_settings
from tests.several_processes import run_processes

BASE = ["--model=LLMRec", "--dataset=ml-100k"]
PRETRAINED = [*BASE, "--backbone=org/lm"]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def make_gpu(patch: pytest.MonkeyPatch, capability: tuple[int, int]) -> None:
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    patch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    patch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X")


def make_cpu(patch: pytest.MonkeyPatch, *instructions: str, library: bool = True) -> None:
    """A CPU with some of: amx, avx512_bf16, and bf16, which ARM has."""
    flags = {"architecture": "aarch64" if "bf16" in instructions else "x86_64"}
    patch.setattr(torch.backends.mkldnn, "is_available", lambda: library)
    patch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: "amx" in instructions)
    patch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: "avx512_bf16" in instructions)
    capabilities = {**flags, **dict.fromkeys(instructions, True)}
    patch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    make_cpu(monkeypatch, "avx512_bf16")


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    make_cpu(monkeypatch)


@pytest.mark.parametrize(
    ("capability", "dtype"),
    [((7, 5), "float32"), ((8, 0), "bfloat16"), ((8, 9), "bfloat16"), ((12, 0), "bfloat16")],
)
def test_gpus_are_fast_from_ampere_on(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: str
) -> None:
    """torch.cuda.is_bf16_supported would be true of all of them: torch emulates it."""
    make_gpu(monkeypatch, capability)
    found, reason = fast_dtype(GPU)
    assert found == dtype
    assert f"NVIDIA X has compute capability {capability[0]}.{capability[1]}" in reason
    config = load_config(PRETRAINED)
    assert config["dtype"] == dtype and config["device"] == GPU


@pytest.mark.parametrize(
    ("instructions", "library", "dtype", "reason"),
    [
        ((), True, "float32", "this CPU has no instructions for bfloat16"),
        (("avx512_bf16",), True, "bfloat16", "this CPU has AVX512-BF16"),
        (("avx512_bf16", "amx"), True, "bfloat16", "this CPU has AMX"),
        (("avx512_bf16",), False, "float32", "this CPU has no instructions for bfloat16"),
    ],
)
def test_cpus_are_fast_with_instructions_that_torch_uses(
    monkeypatch: pytest.MonkeyPatch,
    instructions: tuple[str, ...],
    library: bool,
    dtype: str,
    reason: str,
) -> None:
    make_cpu(monkeypatch, *instructions, library=library)
    assert fast_dtype(CPU) == (dtype, reason)


@pytest.mark.parametrize(("built", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_on_arm_the_library_must_be_built_for_it(
    monkeypatch: pytest.MonkeyPatch, built: bool, dtype: str
) -> None:
    make_cpu(monkeypatch, "bf16")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: built)
    assert fast_dtype(CPU)[0] == dtype


def test_this_machine_says_what_it_is() -> None:
    dtype, reason = fast_dtype(CPU)
    assert dtype in ("float32", "bfloat16") and reason.startswith("this CPU has ")


def test_pretrained_backbones_are_auto_and_tiny_is_not(fast: None) -> None:
    config = load_config(PRETRAINED)
    assert config.settings is not None
    assert config["dtype"] == config.settings.dtype == config.to_dict()["dtype"] == "bfloat16"
    assert config.dtype_choice == "dtype=auto is bfloat16: this CPU has AVX512-BF16"
    assert config.warnings == []
    for argv in (BASE, [*PRETRAINED, "--dtype=float32"]):
        config = load_config(argv)
        assert (config["dtype"], config.dtype_choice) == ("float32", None)
    assert load_config(["--model=BPR", "--dataset=ml-100k"]).dtype_choice is None


def test_deepspeed_gets_the_type(fast: None, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[Any] = []
    monkeypatch.setattr(
        "recbole_multdpo.settings.config.deepspeed_settings",
        lambda setting, run, *others: runs.append(run["dtype"]) or {"zero_optimization": {}},
    )
    load_config([*PRETRAINED, "--deepspeed=zero2"])
    assert runs == ["bfloat16"]


def test_bfloat16_where_it_is_slow_is_a_warning(slow: None) -> None:
    (warning,) = load_config([*PRETRAINED, "--dtype=bfloat16"]).warnings
    assert "many times slower than float32 here: this CPU has no instructions" in warning
    assert load_config(PRETRAINED).warnings == []


def test_bfloat16_where_it_is_fast_is_none(fast: None) -> None:
    assert load_config([*PRETRAINED, "--dtype=bfloat16"]).warnings == []


# ---- resumed on another machine ----


def save(folder: Path, settings: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(dump_settings(settings), encoding="utf-8")
    return folder


@pytest.fixture
def begun(tmp_path: Path) -> Path:
    """The folder of a run that was begun in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        make_cpu(patch, "avx512_bf16")
        saved = load_config([*PRETRAINED, f"--checkpoint_dir={tmp_path}"]).to_dict()
    assert saved["dtype"] == "bfloat16"
    return save(tmp_path / "run", saved)


@pytest.mark.parametrize("asked", [[], ["--dtype=auto"], ["--backbone=org/other"]])
def test_a_run_keeps_its_type(begun: Path, slow: None, asked: list[str]) -> None:
    assert load_config([f"--resume={begun}", *asked])["dtype"] == "bfloat16"
    assert load_config(asked, run_folder=begun)["dtype"] == "bfloat16"


def test_a_found_run_keeps_its_type(begun: Path, slow: None) -> None:
    def found(*argv: str) -> tuple[Config, str | None]:
        config = load_config(
            [*PRETRAINED, f"--checkpoint_dir={begun.parent}", "--resume=auto", *argv]
        )
        return config, resolve_resume(config)

    config, folder = found()
    assert (config["dtype"], folder) == ("float32", str(begun))
    assert run_dtype(config, folder) == "bfloat16"
    settled = _settled(config)
    assert (settled["dtype"], settled["resume"]) == ("bfloat16", str(begun))
    assert settled.dtype_choice == "dtype=auto is bfloat16: as the run was begun"
    assert "many times slower" in settled.warnings[0]
    config, folder = found("--dtype=float32")  # another run
    assert folder is None and run_dtype(config, folder) == "float32"


def test_all_processes_take_the_type_of_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def settled() -> tuple[str, str]:
        make_cpu(monkeypatch, *(["avx512_bf16"] if processes.rank() == 1 else []))
        config = load_config(PRETRAINED)
        return config["dtype"], _settled(config)["dtype"]

    own, common = zip(*run_processes(2, settled), strict=True)
    assert own == ("float32", "bfloat16") and common == ("float32", "float32")


@pytest.mark.parametrize("asked", [[], ["--dtype=auto"]])
def test_runs_from_before_auto_are_in_float32(begun: Path, fast: None, asked: list[str]) -> None:
    settings = load_config([], run_folder=begun).to_dict()
    save(begun, {**settings, "dtype": "float32"})
    assert load_config([f"--resume={begun}", *asked])["dtype"] == "float32"
    del settings["dtype"]
    save(begun, settings)
    assert load_config([f"--resume={begun}", *asked])["dtype"] == "float32"


def test_a_type_in_a_folder_that_is_none_is_refused(begun: Path) -> None:
    save(begun, {**load_config([], run_folder=begun).to_dict(), "dtype": "int8"})
    for asked in ([], ["--dtype=auto"]):
        with pytest.raises(ConfigError, match="dtype.*must be 'auto', 'float32' or 'bfloat16'"):
            load_config([f"--resume={begun}", *asked])


# ---- comparisons ----


def test_a_comparison_decides_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "comparison"
    argv = ["--model=LLMRec,D3,Pop", "--dataset=ml-100k", "--backbone=org/lm"]
    request = read_request([*argv, f"--run_dir={folder}"])

    def types(request: Request, resumed: bool = False) -> dict[str, str | None]:
        plan = make_plan(request, resumed=resumed)
        return {system.name: own.get("dtype") for system, own in plan.settings.items()}

    in_bfloat16 = {"LLMRec": "bfloat16", "D3": "bfloat16", "Pop": None}
    make_cpu(monkeypatch, "avx512_bf16")
    plan = make_plan(request)
    assert types(request) == in_bfloat16
    assert (plan.auto_dtype, plan.dtype_choice) == (
        "bfloat16",
        "dtype=auto is bfloat16: this CPU has AVX512-BF16",
    )
    folder.mkdir()
    (folder / REQUEST_FILE).write_text(request_text(replace(request, auto_dtype=plan.auto_dtype)))
    make_cpu(monkeypatch)  # continued on another machine
    assert types(saved_request(folder), resumed=True) == in_bfloat16
    assert types(request)["D3"] == "float32"


def test_comparisons_from_before_auto_are_in_float32(tmp_path: Path, fast: None) -> None:
    argv = ["--model=LLMRec,Pop", "--dataset=ml-100k", "--backbone=org/lm", "--tf32=True"]
    saved = json.loads(request_text(read_request(argv)))
    del saved["auto_dtype"]
    (tmp_path / REQUEST_FILE).write_text(json.dumps(saved))
    plan = make_plan(saved_request(tmp_path), resumed=True)
    (settings,) = [own for system, own in plan.settings.items() if system.name == "LLMRec"]
    assert (settings["dtype"], settings["tf32"]) == ("float32", "True")


# ---- TF32 ----


def test_tf32_is_off_unless_asked_for_and_is_for_float32(fast: None) -> None:
    before = torch.backends.cuda.matmul.allow_tf32
    try:
        for argv, allowed in ((["--tf32=True"], True), ([], False)):
            apply_tf32(load_config([*BASE, *argv]).settings)
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
            apply_tf32(None)  # RecBole's models leave it
            assert torch.backends.cuda.matmul.allow_tf32 is allowed
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    with pytest.raises(ConfigError, match="tf32: no effect with dtype=bfloat16. Use --dtype"):
        load_config([*PRETRAINED, "--tf32=True"])
    assert load_config([*PRETRAINED, "--dtype=float32", "--tf32=True"])["tf32"] is True
