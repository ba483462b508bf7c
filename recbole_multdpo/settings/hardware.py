"""The device of a run, and the type of weights that it computes fast with."""

from __future__ import annotations

from typing import Any

import torch

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.llmrec import LLMRecSettings

AUTO = "auto"  # value of dtype: `fast_dtype`
FLOAT32, BFLOAT16 = "float32", "bfloat16"
TENSOR_CORES = (8, 0)  # lowest compute capability that multiplies bfloat16 fast: Ampere


def device_of(setting: str, gpu_allowed: bool, local_rank: int | None) -> torch.device:
    """The torch device for the setting `auto`, `cpu`, `cuda` or `cuda:N`; a GPU's has an index.

    Args:
        setting: the user's value.
        gpu_allowed: RecBole's use_gpu, with a gpu_id that is not empty; matters to `auto` only.
        local_rank: this process's local rank under a launcher, else None.

    Raises:
        ConfigError: the GPU asked for does not exist.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if setting == "cpu" or (setting == "auto" and not (gpu_allowed and count)):
        return torch.device("cpu")
    if count == 0:
        raise ConfigError(f"device={setting}: torch finds no GPU. Use --device=cpu or auto.")
    device = torch.device(setting if setting != "auto" else "cuda")
    if device.index is None:
        current = torch.cuda.current_device() if torch.cuda.is_initialized() else 0
        device = torch.device("cuda", current if local_rank is None else local_rank)
    if device.index >= count:
        launcher = "" if local_rank is None else " Start no more processes than there are GPUs."
        raise ConfigError(
            f"device={setting}: GPU {device.index} does not exist, torch finds {count} "
            f"(numbered from 0).{launcher}"
        )
    return device


def fast_dtype(device: torch.device) -> tuple[str, str]:
    """The type of weights that a device is fast at, `float32` or `bfloat16`, and the reason.

    What counts is what the hardware says of itself: torch computes in bfloat16 everywhere, but
    without such instructions many times slower than in float32.
    """
    if device.type == "cuda":
        capability = torch.cuda.get_device_capability(device)
        found = f"{torch.cuda.get_device_name(device)} has compute capability {_dotted(capability)}"
        if capability >= TENSOR_CORES:
            return BFLOAT16, found
        return FLOAT32, f"{found}, and below {_dotted(TENSOR_CORES)} bfloat16 is slow"
    instructions = _bfloat16_instructions()
    if instructions is None:
        return FLOAT32, f"this {device.type.upper()} has no instructions for bfloat16"
    return BFLOAT16, f"this CPU has {instructions}"


def _dotted(capability: tuple[int, int]) -> str:
    return ".".join(map(str, capability))


def _bfloat16_instructions() -> str | None:
    """Name of the CPU's instructions that multiply bfloat16; None without, or if torch is."""
    if not torch.backends.mkldnn.is_available():  # the library that uses them
        return None
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return "AVX512-BF16"
    # of newer versions of torch; on ARM its library has to be built for them too
    flags: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    if flags.get("architecture") != "x86_64" and flags.get("bf16"):
        return "BF16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() else None
    return None


def apply_tf32(settings: LLMRecSettings | None) -> None:
    """Let this process multiply float32 matrices on GPUs as a language model's settings say."""
    if settings is not None:
        torch.backends.cuda.matmul.allow_tf32 = settings.tf32
