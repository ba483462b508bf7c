"""Checks of the files in a run's `model/`, by checksum, and of weights for NaN.

`result.json` holds the SHA-256 of every file of `model/`, which binds the result to its weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recbole_multdpo.errors import CheckpointError, TrainingError
from recbole_multdpo.runtime.reading import file_sha256

MODEL_FOLDER = "model"
# files that transformers may read from a folder; other added files are harmless
READ_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".model", ".jinja", ".py", ".bin"})


def file_checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of a folder, by its name."""
    return {file.name: file_sha256(file) for file in sorted(folder.iterdir()) if file.is_file()}


def check_files(folder: Path, checksums: Mapping[str, str]) -> None:
    """Refuse a folder whose files differ from those that were written.

    Args:
        folder: `model/` of a run.
        checksums: result of `file_checksums` when it was written.

    Raises:
        CheckpointError: a file is missing, changed, or was added; the message names it.
    """
    for name, checksum in checksums.items():
        file = folder / name
        if Path(name).name != name or not file.is_file():
            raise CheckpointError(
                f"{file} is missing, which the run wrote. Restore it, or run its command again."
            )
        if file_sha256(file) != checksum:
            raise CheckpointError(
                f"{file} is not what the run wrote: it is damaged, or of another model. "
                "Restore the file of this run, or run its command again."
            )
    added = [
        file.name
        for file in sorted(folder.iterdir())
        if file.name not in checksums and file.suffix in READ_SUFFIXES
    ]
    if added:
        raise CheckpointError(
            f"{folder / added[0]} is not of this run: it was added later. Remove it."
        )


def check_model(folder: Path, result: Mapping[str, Any]) -> bool:
    """Call `check_files` for a finished run's `model/`.

    Args:
        folder: the run's folder.
        result: its `result.json`.

    Returns:
        False if the run is from a version without checksums.

    Raises:
        CheckpointError: a file is missing, changed, or was added.
    """
    checksums = result.get("model_files")
    if checksums is None:
        return False
    check_files(folder / MODEL_FOLDER, checksums)
    return True


def not_finite(tensors: Iterable[tuple[str, Tensor]]) -> str | None:
    """Name of the first tensor that holds NaN or an infinity; None if all are finite."""
    for name, tensor in tensors:
        values = tensor.detach()
        if not (values.is_floating_point() or values.is_complex()) or not values.numel():
            continue
        if values.is_complex():
            values = torch.view_as_real(values)
        if values.element_size() < 2:  # eight-bit floats support few operations
            values = values.float()
        # minimum and maximum, as a mask would need memory of the size of a large table
        if not torch.isfinite(torch.stack(values.aminmax())).all():
            return name
    return None


def check_finite(model: nn.Module, remedy: str) -> None:
    """Refuse to save a trained model with NaN or infinities.

    Raises:
        TrainingError: a weight is not finite; the message ends with `remedy`.
    """
    name = not_finite(model.named_parameters())
    if name is not None:
        raise TrainingError(
            f"the trained model's weight {name} holds NaN or an infinity, and is not saved. "
            f"{remedy}"
        )
