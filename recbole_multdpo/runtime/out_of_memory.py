"""Detect out-of-memory errors and free memory afterwards."""

from __future__ import annotations

import gc

import torch

# messages of torch where it raises a plain RuntimeError
_MESSAGES = ("not enough memory", "can't allocate memory", "out of memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    """True if a device, or torch's allocator on the CPU, ran out of memory."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _MESSAGES)


def release_memory() -> None:
    """Free unreferenced memory, on the GPU too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
