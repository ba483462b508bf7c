"""Recognise an error as want of memory, and give memory back after one."""

from __future__ import annotations

import gc

import torch

# what torch says where it raises a plain RuntimeError
_WORDS = ("not enough memory", "can't allocate memory", "out of memory")


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a device, or torch's allocator on the CPU, ran out of memory."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(word in text for word in _WORDS)


def release_memory() -> None:
    """Free what nothing refers to any more, on the device too."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
