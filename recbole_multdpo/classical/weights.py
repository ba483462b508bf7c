"""Save and load the weights of RecBole's models as safetensors.

RecBole's own checkpoints are pickles, and loading one runs any code in it. Attributes that a
constructor computes from the training data (EASE's matrix, ItemKNN's neighbours) are not stored;
the constructor computes them again.
"""

from __future__ import annotations

from pathlib import Path

import torch
from recbole.model.abstract_recommender import AbstractRecommender
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from recbole_multdpo.errors import CheckpointError, MultDPOError
from recbole_multdpo.runs.checkpoint import MAX_TENSORS
from recbole_multdpo.runs.model_files import check_finite, not_finite
from recbole_multdpo.runtime.durable_files import atomic_folder
from recbole_multdpo.runtime.reading import check_regular

FILE_NAME = "weights.safetensors"
OTHER = "other_parameter."  # RecBole's name for trained values that are no parameters, as in Pop


def save_weights(model: AbstractRecommender, folder: Path) -> None:
    """Write all dense trained tensors into `folder`, atomically.

    Raises:
        TrainingError: a weight is NaN or infinite.
        MultDPOError: the folder cannot be written.
    """
    check_finite(model, "Lower --learning_rate.")
    trained = dict(model.state_dict())
    trained |= {OTHER + name: value for name, value in model.other_parameter().items()}
    tensors = {
        name: value.detach().cpu().clone().contiguous()
        for name, value in trained.items()
        if isinstance(value, Tensor) and value.layout == torch.strided
    }
    try:
        with atomic_folder(folder) as temporary:
            save_file(tensors, temporary / FILE_NAME)
    except (OSError, SafetensorError) as error:
        raise MultDPOError(f"cannot write {folder}: {error}. Free space.") from error


def load_weights(model: AbstractRecommender, folder: Path) -> None:
    """Load saved tensors into a model built from the same settings and training part.

    Raises:
        CheckpointError: the file is missing, damaged, of another model, or holds NaN.
    """
    file = folder / FILE_NAME
    if not file.is_file():
        raise CheckpointError(
            f"there is no {file}: the run did not finish, or is from a version that did not "
            "write it. Run its command again."
        )
    try:
        check_regular(file, MAX_TENSORS)
        tensors = load_file(file)
        other = {name: tensors.pop(name) for name in list(tensors) if name.startswith(OTHER)}
        model.load_state_dict(tensors, strict=True)
    except (OSError, ValueError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(
            f"{file} is damaged or does not fit the run's settings and data ({error}). Run its "
            "command again."
        ) from error
    damaged = not_finite([*model.named_parameters(), *other.items()])
    if damaged is not None:
        raise CheckpointError(
            f"{file} holds NaN or an infinity in {damaged}: it is damaged, or its training had "
            "diverged. Run its command again."
        )
    device = next(model.parameters()).device
    now = model.other_parameter()
    found = {name.removeprefix(OTHER): value.to(device) for name, value in other.items()}
    for name, value in found.items():
        shape = getattr(now.get(name), "shape", None)
        if shape is not None and shape != value.shape:
            raise CheckpointError(
                f"{file} does not fit the run's settings and data: {name} has shape "
                f"{list(value.shape)} there and {list(shape)} here. Run its command again."
            )
    model.load_other_parameter(found)
