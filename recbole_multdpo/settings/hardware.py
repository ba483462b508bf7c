"""The device of a run, and the type of weights that it computes fast with."""

from __future__ import annotations

import torch

from recbole_multdpo.errors import ConfigError


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
