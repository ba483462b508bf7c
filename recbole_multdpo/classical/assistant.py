"""The collaborative assistant: scores of one of RecBole's models, to rank with beside the text.

It is trained as `--model=<its name>` trains it, on the same training part, and its scores of all
items are kept for the users, or conversations, that are ranked: on disk, as a table of float32 of
which ranking reads the rows that it needs.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pydantic import TypeAdapter
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import init_seed
from torch import Tensor

from recbole_multdpo.classical.run import prepare_classical
from recbole_multdpo.data.dataset import ContextDataset
from recbole_multdpo.errors import CheckpointError, ConfigError, DataError
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.durable_files import atomic_folder, write_atomically
from recbole_multdpo.runtime.reading import fitted, read_json
from recbole_multdpo.settings.config import Config

CURVE_FILE = "assistant_weights.csv"
USERS_AT_ONCE = 256
# settings that change neither the assistant's data nor its weights
_NOT_IN_KEY = frozenset(
    "data_path device use_gpu num_threads state show_progress checkpoint_dir log_wandb"
    " save_dataset dataset_save_path save_dataloaders dataloaders_save_path".split()
)


@dataclass(frozen=True)
class Assistant:
    """Scores of the users of the validation and the test part.

    Attributes:
        name: the model.
        scores: float32 [n_ranked, n_items], the model's own scores, of any unit.
        test_scores: likewise, as the model is tested: with what `test_information` lets it know.
        row_of_user: long [n_users], the user's row in `scores`, −1 for the others.
        valid_result: validation metrics of the assistant alone.
    """

    name: str
    scores: np.ndarray
    test_scores: np.ndarray
    row_of_user: np.ndarray
    valid_result: dict[str, float]

    def at_test(self) -> Assistant:
        """The assistant with the scores for the test."""
        return replace(self, scores=self.test_scores)

    def scores_of(self, user_ids: Tensor) -> Tensor:
        """The model's own scores for users, long [B]: float32 [B, n_items], on their device.

        Raises:
            ValueError: a user is of neither part.
        """
        rows = self.row_of_user[user_ids.cpu().numpy()]
        if (rows < 0).any():
            raise ValueError(f"{self.name} was not asked for the scores of some of these users.")
        return torch.from_numpy(np.array(self.scores[rows])).to(user_ids.device)

    def log_shares(self, user_ids: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-softmax over the catalogue of each user's scores: float32 [B, n_items], nats.

        Of `scores_of` divided by the temperature; −inf for item 0.
        """
        scores = self.scores_of(user_ids)
        scores[:, 0] = -torch.inf
        return (scores / temperature).log_softmax(1)


def restored_assistant(
    config: Config,
    dataset: ContextDataset,
    parts: list[Dataset],
    cache_dir: Path | None,
    own: Path,
    scratch: Path,
) -> Assistant:
    """The assistant of a finished run, as `make_assistant` left it; trained again if it is gone.

    Args:
        config: the assistant's configuration.
        dataset: the whole data set.
        parts: training, validation and test part.
        cache_dir: where the run shared scores; None for nowhere.
        own: the run's folder for the assistant.
        scratch: where it is trained again.
    """
    kept = [own]
    if cache_dir is not None:
        kept.append(cache_dir / f"assistant-{_key(config, dataset, parts)}")
    for folder in kept:
        if folder.is_dir():
            return _read(config, dataset, parts, folder)
    return make_assistant(config, dataset, parts, None, scratch / "assistant")


def make_assistant(
    config: Config, dataset: ContextDataset, parts: list[Dataset], cache_dir: Path | None, own: Path
) -> Assistant:
    """Train the assistant and score, or take its scores from the cache.

    The generators' states afterwards are those of before, so that the language model is the same
    with and without an assistant.

    Args:
        config: the assistant's configuration.
        dataset: the whole data set.
        parts: training, validation and test part.
        cache_dir: where scores are shared between runs; None keeps them to this run.
        own: this run's folder for the assistant.
    """
    users = _ranked_users(parts)
    folder = own if cache_dir is None else cache_dir / f"assistant-{_key(config, dataset, parts)}"

    def train() -> None:
        if cache_dir is not None and folder.exists():
            getLogger().info(f"scores of {config['model']} taken from {folder}")
            return
        with _generators_untouched(), atomic_folder(folder) as temporary:
            config["checkpoint_dir"] = str(own.parent)
            _train(config, dataset, parts, users, temporary)

    processes.broadcast_from_main(train)  # the others read what it has written
    return _read(config, dataset, parts, folder)


def _ranked_users(parts: Sequence[Dataset]) -> Tensor:
    """The users of the validation and the test part, ascending."""
    return torch.cat([part.inter_feat[part.uid_field] for part in parts[1:]]).unique()


def _read(config: Config, dataset: Dataset, parts: Sequence[Dataset], folder: Path) -> Assistant:
    """What `_train` has written into a folder."""
    users = _ranked_users(parts)
    row_of_user = np.full(dataset.user_num, -1)
    row_of_user[users.numpy()] = np.arange(len(users))
    files = [folder / name for name in ("scores.npy", "test_scores.npy")]
    scores, test_scores = (
        _scores_in(file if file.exists() else files[0], (len(users), dataset.item_num))
        for file in files
    )
    return Assistant(
        name=config["model"],
        scores=scores,
        test_scores=test_scores,
        row_of_user=row_of_user,
        valid_result=_valid_result(folder / "valid.json"),
    )


def _scores_in(file: Path, shape: tuple[int, int]) -> np.ndarray:
    """The table that `_write_scores` wrote.

    Raises:
        CheckpointError: it is damaged, or of other users or items.
    """
    try:
        scores: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        if scores.shape != shape or scores.dtype != np.float32:
            raise ValueError(f"{scores.dtype} {scores.shape} instead of float32 {shape}")
    except (OSError, ValueError, EOFError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}). Remove its folder: the assistant is trained anew."
        ) from error
    return scores


def _valid_result(file: Path) -> dict[str, float]:
    try:
        return dict(fitted(TypeAdapter(dict[str, float]), read_json(file)))
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{file} cannot be read ({error}). Remove its folder: the assistant is trained anew."
        ) from error


def _train(
    config: Config, dataset: ContextDataset, parts: list[Dataset], users: Tensor, folder: Path
) -> None:
    """Train the model and write its scores of `users`, for validation and test, and its metrics."""
    init_seed(config["seed"], config["reproducibility"])
    run = prepare_classical(config, dataset, parts)
    show_progress = config["show_progress"]
    run.fit(show_progress)
    # which also loads the best epoch's weights
    valid_result = run.trainer.evaluate(run.valid_data, show_progress=show_progress)
    numbers = {name: float(value) for name, value in valid_result.items()}
    write_atomically(folder / "valid.json", json.dumps(numbers))
    _write_scores(folder / "scores.npy", run.model, users, dataset, config)
    tested = run.for_test(show_progress)
    if tested is not run:  # else the test's are the same
        if not tested.has_best_weights:
            tested.trainer.resume_checkpoint(tested.trainer.saved_model_file)
        _write_scores(folder / "test_scores.npy", tested.model, users, dataset, config)


def _write_scores(
    file: Path, model: AbstractRecommender, users: Tensor, dataset: Dataset, config: Config
) -> None:
    """Write the scores of all items for users, float32 [n, n_items], as an array's file."""
    scores = np.lib.format.open_memmap(
        file, mode="w+", dtype=np.float32, shape=(len(users), dataset.item_num)
    )
    for start, rows in _scores(model, users, dataset, config):
        if not np.isfinite(rows[:, 1:]).all():
            raise DataError(
                f"assistant {config['model']} gives scores that are not finite. Did its training "
                "diverge? Lower its step size, or use another model."
            )
        scores[start : start + len(rows)] = rows
    scores.flush()


@torch.no_grad()
def _scores(
    model: AbstractRecommender, users: Tensor, dataset: Dataset, config: Config
) -> Iterator[tuple[int, np.ndarray]]:
    """(first row, scores [m, n_items]) of a part of the users after the other."""
    model.eval()
    for start in range(0, len(users), USERS_AT_ONCE):
        some = users[start : start + USERS_AT_ONCE]
        try:
            found = model.full_sort_predict(
                Interaction({dataset.uid_field: some}).to(config["device"])
            )
        except NotImplementedError:
            raise ConfigError(
                f"assistant={config['model']} cannot score the whole catalogue. Use another model, "
                "such as EASE."
            ) from None
        yield start, found.float().view(len(some), -1).cpu().numpy()


def _key(config: Config, dataset: ContextDataset, parts: Sequence[Dataset]) -> str:
    """Hash of all that determines the scores, 16 hexadecimal digits."""
    settings = {k: v for k, v in config.to_dict().items() if k not in _NOT_IN_KEY}
    conversations = dataset.conversations.digest() if dataset.conversations is not None else None
    described = {"settings": settings, "n_items": dataset.item_num, "said": conversations}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    for part in parts:
        for field in sorted(part.inter_feat.interaction):
            digest.update(field.encode())
            digest.update(np.ascontiguousarray(part.inter_feat[field].numpy()).tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def _generators_untouched() -> Iterator[None]:
    """Restore the global generators, which RecBole seeds and draws from."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        yield
    np.random.set_state(numpy_state)
    random.setstate(python_state)


def choose_weight(
    weights: Sequence[float],
    evaluate: Callable[[float], dict[str, float]],
    metric: str,
    larger_is_better: bool,
) -> tuple[float, list[dict[str, float]]]:
    """The weight with the best validation metric, the smallest one of equals.

    Args:
        weights: to be tried.
        evaluate: validation metrics of a weight.
        metric: name of the metric that decides, such as `ndcg@10`.
        larger_is_better: whether larger values of it are.

    Returns:
        The weight, and the curve: `weight` and the metrics of each, by rising weight.
    """
    curve = []
    for weight in sorted(set(weights)):
        curve.append({"weight": weight, **evaluate(weight)})
        getLogger().info(f"assistant_weight={weight:g}: {metric} {curve[-1][metric]:.4f}")
    sign = 1 if larger_is_better else -1
    best = max(curve, key=lambda point: sign * point[metric])  # the first of equal ones
    return best["weight"], curve


def write_curve(path: Path, curve: Sequence[dict[str, Any]]) -> None:
    """The curve as CSV, one row per weight."""
    write_atomically(path, pd.DataFrame(curve).to_csv(index=False))
