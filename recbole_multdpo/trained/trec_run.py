"""A test's rankings as a run of TREC, which TREC's tools and ranx read: one line per item.

    user Q0 item rank score tag

Evaluation tools order by the score and break ties in their own ways; items of equal scores are
written by ascending rank.
"""

from __future__ import annotations

from pathlib import Path

import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from torch import Tensor

from recbole_multdpo.data.candidates import ListedCandidatesLoader
from recbole_multdpo.errors import DataError, MultDPOError
from recbole_multdpo.runtime.durable_files import write_atomically
from recbole_multdpo.scoring.topk import TopK, stable_topk


class TrecRun:
    """Collects rankings of a loader's users; call it with each batch, then `write`."""

    def __init__(self, loader: AbstractDataLoader, k: int) -> None:
        """Begin without rankings.

        Args:
            loader: has one ranking per user.
            k: items of each user, unless there are candidate lists, which are written whole.
        """
        self.loader = loader
        self.k = loader.largest if isinstance(loader, ListedCandidatesLoader) else k
        self._batches: list[tuple[Tensor, Tensor]] = []

    def __call__(self, scores: TopK | Tensor) -> None:
        """Keep a batch of B users: a `TopK`, or scores [B, n_items], −inf where nothing ranks."""
        if isinstance(scores, TopK):
            items, values = scores.items[:, : self.k], scores.scores[:, : self.k]
        else:
            items, values = stable_topk(scores, self.k)
        self._batches.append((items.cpu(), values.cpu()))

    def write(self, file: Path, tag: str) -> None:
        """Write the run to a file.

        Args:
            file: replaced if it exists.
            tag: the system's name; spaces become underscores.

        Raises:
            DataError: an id has a space, which the form cannot hold.
            MultDPOError: the file cannot be written.
        """
        part = self.loader._dataset
        users = part.id2token(part.uid_field, torch.as_tensor(self.loader.uid_list).numpy())
        items, scores = (torch.cat(of_batches) for of_batches in zip(*self._batches, strict=True))
        names = part.field2id_token[part.iid_field]
        for name in (*users, *names[items.unique().numpy()]):
            if len(str(name).split()) != 1:
                raise DataError(
                    f"--write_run: a run of TREC cannot hold the id {str(name)!r}, with a space."
                )
        tag = "_".join(tag.split())
        lines = [
            f"{user} Q0 {names[item]} {rank} {score:.9g} {tag}\n"
            for user, of_user, values in zip(users, items.tolist(), scores.tolist(), strict=True)
            for rank, (item, score) in enumerate(zip(of_user, values, strict=True), 1)
            if item  # 0 pads
        ]
        try:
            write_atomically(file, "".join(lines))
        except OSError as error:
            raise MultDPOError(
                f"cannot write {file}: {error.strerror}. Name a file that can be written: "
                "--write_run=FILE."
            ) from error
