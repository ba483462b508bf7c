"""Save and restore the global random generators, so that a resumed run draws the same numbers.

The package itself draws from its own generators; the global ones serve dropout (torch) and
RecBole's sampled candidates (numpy).
"""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import Tensor


def random_state(device: torch.device) -> dict[str, Tensor]:
    """States of torch's, numpy's and Python's global generators, and of a CUDA device's."""
    _, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    version, words, python_gauss = random.getstate()
    state = {
        "torch": torch.get_rng_state(),
        "numpy": torch.tensor([*map(int, keys), position, has_gauss]),
        "numpy_gauss": torch.tensor(gauss, dtype=torch.float64),
        "python": torch.tensor([version, *words]),
        # nan stands for Python's None
        "python_gauss": torch.tensor(
            float("nan") if python_gauss is None else python_gauss, dtype=torch.float64
        ),
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Restore the states from `random_state`; a CUDA state is skipped on another device."""
    torch.set_rng_state(state["torch"])
    *keys, position, has_gauss = state["numpy"].tolist()
    gauss = float(state["numpy_gauss"])
    np.random.set_state(("MT19937", np.array(keys, np.uint32), position, has_gauss, gauss))
    version, *words = state["python"].tolist()
    python_gauss = float(state["python_gauss"])
    random.setstate((version, tuple(words), None if np.isnan(python_gauss) else python_gauss))
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
