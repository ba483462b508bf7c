"""The collaborative assistant: one of RecBole's models whose scores are added to the LM's.

It is trained as `--model=<its name>` trains it, on the same training part. Its scores of all items
for all ranked users (or conversations) are stored on disk as a float32 table; ranking reads only
the rows it needs.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from logging import getLogger
from pathlib import Path

import numpy as np
import torch
from pydantic import TypeAdapter
from recbole.data.dataset import Dataset
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import AbstractRecommender
from recbole.utils import init_seed
from torch import Tensor

from recbole_multdpo.classical.run import prepare_classical
from recbole_multdpo.data.dataset import ContextDataset
from recbole_multdpo.data.low_ratings import reads_low_ratings
from recbole_multdpo.errors import CheckpointError, ConfigError, DataError
from recbole_multdpo.runs.folder import no_tensorboard
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import only_warnings, shows_bars
from recbole_multdpo.runtime.durable_files import atomic_folder, write_atomically
from recbole_multdpo.runtime.reading import fitted, read_json, readable
from recbole_multdpo.settings.config import Config
from recbole_multdpo.settings.effects import acts, idle, in_run

USERS_AT_ONCE = 256


@dataclass(frozen=True)
class Assistant:
    """Scores for the users of the validation and the test part.

    Attributes:
        name: the model.
        scores: float32 [n_ranked, n_items], the model's own scores, in any unit.
        test_scores: the same for the test, where `test_information` may let the model know more.
        row_of_user: long [n_users], the user's row in `scores`, −1 for users without one.
        valid_result: validation metrics of the assistant alone.
    """

    name: str
    scores: np.ndarray
    test_scores: np.ndarray
    row_of_user: np.ndarray
    valid_result: dict[str, float]

    def at_test(self) -> Assistant:
        """Copy of the assistant that gives the scores for the test."""
        return replace(self, scores=self.test_scores)

    def scores_of(self, user_ids: Tensor) -> Tensor:
        """The model's own scores for users, long [B]: float32 [B, n_items], on their device.

        Raises:
            ValueError: a user is in neither part.
        """
        rows = self.row_of_user[user_ids.cpu().numpy()]
        if (rows < 0).any():
            raise ValueError(f"{self.name} has no scores for some of these users.")
        return torch.from_numpy(np.array(self.scores[rows])).to(user_ids.device)

    def log_probs(self, user_ids: Tensor, temperature: float = 1.0) -> Tensor:
        """Log-softmax of `scores_of` / temperature over the catalogue.

        Returns:
            float32 [B, n_items], nats; −inf for item 0.
        """
        scores = self.scores_of(user_ids)
        scores[:, 0] = -torch.inf
        return (scores / temperature).log_softmax(1)


def restore_assistant(
    config: Config,
    dataset: ContextDataset,
    parts: list[Dataset],
    cache_dir: Path | None,
    own: Path,
    scratch: Path,
) -> Assistant:
    """Load the assistant of a finished run; train it again if its scores are gone.

    Args:
        config: the assistant's configuration.
        dataset: the whole data set.
        parts: training, validation and test part.
        cache_dir: cache of scores that the run used; None for none.
        own: the run's folder for the assistant.
        scratch: folder for training again.
    """
    kept = [own]
    if cache_dir is not None:
        kept.append(cache_dir / f"assistant-{cache_key(config, dataset, parts)}")
    for folder in kept:
        if folder.is_dir():
            return _read(config, dataset, parts, folder)
    return make_assistant(config, dataset, parts, None, scratch / "assistant")


def make_assistant(
    config: Config, dataset: ContextDataset, parts: list[Dataset], cache_dir: Path | None, own: Path
) -> Assistant:
    """Train the assistant and compute its scores, or load them from the cache.

    The global random state is restored afterwards, so that the language model is the same with and
    without an assistant.

    Args:
        config: the assistant's configuration.
        dataset: the whole data set.
        parts: training, validation and test part.
        cache_dir: cache of scores that runs share; None writes to `own`.
        own: this run's folder for the assistant.
    """
    users = _ranked_users(parts)
    folder = (
        own if cache_dir is None else cache_dir / f"assistant-{cache_key(config, dataset, parts)}"
    )

    def train() -> None:
        if cache_dir is not None and folder.exists():
            getLogger().info(f"scores of {config['model']} taken from {folder}")
            return
        getLogger().info(f"assistant {config['model']} is trained")
        with trained_aside(folder) as temporary:
            config["checkpoint_dir"] = str(own.parent)
            _train(config, dataset, parts, users, temporary)

    processes.broadcast_from_main(train)  # the other processes read its files
    return _read(config, dataset, parts, folder)


def _ranked_users(parts: Sequence[Dataset]) -> Tensor:
    """The users of the validation and the test part, ascending."""
    return torch.cat([part.inter_feat[part.uid_field] for part in parts[1:]]).unique()


def _read(config: Config, dataset: Dataset, parts: Sequence[Dataset], folder: Path) -> Assistant:
    """Load the scores that `_train` wrote into a folder."""
    users = _ranked_users(parts)
    row_of_user = np.full(dataset.user_num, -1)
    row_of_user[users.numpy()] = np.arange(len(users))
    files = [folder / name for name in ("scores.npy", "test_scores.npy")]
    scores, test_scores = (
        read_scores(file if file.exists() else files[0], (len(users), dataset.item_num), _REMEDY)
        for file in files
    )
    return Assistant(
        name=config["model"],
        scores=scores,
        test_scores=test_scores,
        row_of_user=row_of_user,
        valid_result=_read_metrics(folder / "valid.json"),
    )


_REMEDY = "Remove its folder to train the assistant again."


def read_scores(file: Path, shape: tuple[int, int], remedy: str) -> np.ndarray:
    """Memory-map a table that `write_scores` wrote: float32, of this shape.

    Args:
        file: the table.
        shape: of what was written.
        remedy: sentence for the message of an error.

    Raises:
        CheckpointError: it is damaged, or has another shape or type.
    """
    with readable(file, remedy, CheckpointError, (EOFError,)):
        scores: np.ndarray = np.load(file, mmap_mode="r", allow_pickle=False)
        if scores.shape != shape or scores.dtype != np.float32:
            raise ValueError(f"{scores.dtype} {scores.shape} instead of float32 {shape}")
    return scores


def _read_metrics(file: Path) -> dict[str, float]:
    with readable(file, _REMEDY, CheckpointError):
        return dict(fitted(TypeAdapter(dict[str, float]), read_json(file)))


def _train(
    config: Config, dataset: ContextDataset, parts: list[Dataset], users: Tensor, folder: Path
) -> None:
    """Train the model; write its validation metrics and its scores for validation and test."""
    init_seed(config["seed"], config["reproducibility"])
    run = prepare_classical(config, dataset, parts)
    show_progress = shows_bars(config["show_progress"])
    run.fit(show_progress)
    # evaluate also loads the best epoch's weights
    valid_result = run.trainer.evaluate(run.valid_data, show_progress=show_progress)
    numbers = {name: float(value) for name, value in valid_result.items()}
    write_atomically(folder / "valid.json", json.dumps(numbers))
    write_scores(folder / "scores.npy", run.model, users, dataset, config)
    tested = run.for_test(show_progress)
    if tested is not run:  # else the scores for the test are the same
        if not tested.has_best_weights:
            tested.trainer.resume_checkpoint(tested.trainer.saved_model_file)
        write_scores(folder / "test_scores.npy", tested.model, users, dataset, config)


def write_scores(
    file: Path, model: AbstractRecommender, users: Tensor, dataset: Dataset, config: Config
) -> None:
    """Write the scores of all items for n users as a .npy file, float32 [n, n_items].

    Raises:
        DataError: a score is NaN or infinite.
        ConfigError: the model cannot score the whole catalogue.
    """
    scores = np.lib.format.open_memmap(
        file, mode="w+", dtype=np.float32, shape=(len(users), dataset.item_num)
    )
    for start, rows in _scores(model, users, dataset, config):
        if not np.isfinite(rows[:, 1:]).all():
            raise DataError(
                f"{config['model']} gives scores that are not finite, with which it cannot help. "
                "Did its training diverge? Lower its step size, or use another model."
            )
        scores[start : start + len(rows)] = rows
    scores.flush()


@torch.no_grad()
def _scores(
    model: AbstractRecommender, users: Tensor, dataset: Dataset, config: Config
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, scores [m, n_items]) for consecutive chunks of the users."""
    model.eval()
    for start in range(0, len(users), USERS_AT_ONCE):
        some = users[start : start + USERS_AT_ONCE]
        try:
            found = model.full_sort_predict(
                Interaction({dataset.uid_field: some}).to(config["device"])
            )
        except NotImplementedError:
            raise ConfigError(
                f"{config['model']} cannot score the whole catalogue, so that it cannot help. Use "
                "another model, such as EASE."
            ) from None
        yield start, found.float().view(len(some), -1).cpu().numpy()


def cache_key(config: Config, dataset: ContextDataset, parts: Sequence[Dataset]) -> str:
    """Hash of settings and rows that determine a helper's scores, 16 hexadecimal digits."""
    everything, name = config.to_dict(), config["model"]
    idle_keys = idle(in_run(everything), everything, name)
    settings = {
        key: value
        for key, value in everything.items()
        if not acts(key, name).may_change
        and key not in idle_keys
        and key not in ("test_users", "candidate_lists")  # all users and items are scored
    }
    conversations = dataset.conversations.digest() if dataset.conversations is not None else None
    described = {"settings": settings, "n_items": dataset.item_num, "said": conversations}
    digest = hashlib.sha256(json.dumps(described, sort_keys=True, default=str).encode())
    if reads_low_ratings(config) and dataset.low_ratings is not None:
        for ids in (dataset.low_ratings.users, dataset.low_ratings.items):
            digest.update(ids.tobytes())
    train, *held_out = (part.inter_feat for part in parts)
    # loaders sort the rows that they rank, which may be a copy of the part's
    by_user = [rows[rows[dataset.uid_field].argsort(stable=True)] for rows in held_out]
    for rows in (train, *by_user):
        for field in sorted(rows.interaction):
            digest.update(field.encode())
            digest.update(np.ascontiguousarray(rows[field].numpy()).tobytes())
    return digest.hexdigest()[:16]


@contextmanager
def trained_aside(folder: Path) -> Iterator[Path]:
    """Train a helper of a run inside the block, and write it to a folder at the block's end.

    RecBole's account of the training, its curves included, would belong to a run of its own. Yields
    the folder to write to.
    """
    with (
        only_warnings(),
        no_tensorboard(),
        random_state_restored(),
        atomic_folder(folder) as temporary,
    ):
        yield temporary


@contextmanager
def random_state_restored() -> Iterator[None]:
    """Restore the global random state on exit; RecBole seeds it and draws from it."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        yield
    np.random.set_state(numpy_state)
    random.setstate(python_state)
