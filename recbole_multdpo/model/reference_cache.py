"""Disk cache of log π_ref of the candidates of examples, shared by runs.

The reference of preference training does not change, and static negatives depend only on the seed:
a second run from the same supervised stage, with another β or another loss, needs the same numbers.
The key of an example is a digest of its prompt's tokens and its candidates; the folder is named by
a hash of the reference's weights and everything else that the numbers depend on. Within one run few
examples repeat, because every epoch draws new ones.
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from recbole_multdpo.data.batch import SetwiseBatch
from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.runtime.durable_files import atomic_folder
from recbole_multdpo.runtime.reading import readable

FILE_NAME = "logps.npz"
DIGEST_BYTES = 16


class ReferenceCache:
    """Log-probabilities by example; about 0.6 kB of memory for an example of 80 candidates.

    Attributes:
        n_computed: number of examples that were not in the cache.
    """

    def __init__(self, folder: Path) -> None:
        """Read the entries of earlier runs.

        Args:
            folder: cache of one reference model, see `LLMRec.reference_digest`.

        Raises:
            CheckpointError: a file in it is damaged.
        """
        self.folder = folder
        self.n_computed = 0
        self._new: set[bytes] = set()
        self._logps: dict[bytes, np.ndarray] = {}
        for path in sorted(folder.glob(f"*/{FILE_NAME}")):
            self._logps.update(_read(path))

    def logps(self, batch: SetwiseBatch, compute: Callable[[SetwiseBatch], Tensor]) -> Tensor:
        """log π_ref of a batch's candidates, computed for the examples that are not in the cache.

        Args:
            batch: B examples.
            compute: returns float [b, C], nats, 0 at padding, for b examples of the batch.

        Returns:
            float32 [B, C], on the batch's device.
        """
        candidates = batch.candidates.cpu().numpy()
        digests = _digests(batch, candidates)
        missing = [row for row, digest in enumerate(digests) if digest not in self._logps]
        if missing:
            rows = torch.tensor(missing, device=batch.candidates.device)
            computed = compute(batch.select(rows)).float().cpu().numpy()
            for row, values in zip(missing, computed, strict=True):
                self._logps[digests[row]] = values[candidates[row] > 0]
                self._new.add(digests[row])
        self.n_computed += len(missing)
        found = np.zeros(candidates.shape, dtype=np.float32)
        found[candidates > 0] = np.concatenate([self._logps[digest] for digest in digests])
        return torch.from_numpy(found).to(batch.candidates.device)

    def save(self) -> None:
        """Write the entries computed since the last call, atomically.

        Raises:
            CheckpointError: the disk is full or read-only; earlier entries stay.
        """
        if not self._new:
            return
        try:
            self._write_new()
        except OSError as error:
            raise CheckpointError(
                f"the reference's log-probabilities could not be stored in {self.folder} "
                f"({error}). Free disk space, set --sft_cache_dir to a folder that can be written, "
                "or --reference_cache=False."
            ) from error
        self._new.clear()

    def _write_new(self) -> None:
        digests = sorted(self._new)
        logps = [self._logps[digest] for digest in digests]
        name = hashlib.sha256(b"".join(digests)).hexdigest()[:16]
        folder = self.folder / name
        if not folder.exists():  # else another run has stored the same entries
            with atomic_folder(folder) as temporary:
                np.savez(
                    temporary / FILE_NAME,
                    digests=np.frombuffer(b"".join(digests), dtype=np.uint8),
                    counts=np.array([len(values) for values in logps]),
                    logps=np.concatenate(logps),
                )


def _digests(batch: SetwiseBatch, candidates: np.ndarray) -> list[bytes]:
    """Digest of each example: of its prompt's tokens and its candidates, in order."""
    prompts = batch.prompts.ids.cpu().numpy()
    return [
        hashlib.blake2b(
            prompt[:length].tobytes() + b"|" + row[row > 0].tobytes(), digest_size=DIGEST_BYTES
        ).digest()
        for prompt, length, row in zip(
            prompts, batch.prompts.lengths.tolist(), candidates, strict=True
        )
    ]


def _read(path: Path) -> dict[bytes, np.ndarray]:
    with readable(path, "Delete its folder.", CheckpointError, (KeyError, zipfile.BadZipFile)):
        with np.load(path, allow_pickle=False) as saved:
            digests, counts, logps = saved["digests"], saved["counts"], saved["logps"]
    whole = len(digests) == DIGEST_BYTES * len(counts) and counts.sum() == len(logps)
    if not whole or not np.isfinite(logps).all():
        raise CheckpointError(f"{path} is incomplete. Delete its folder.")
    keys = digests.tobytes()
    starts = range(0, len(keys), DIGEST_BYTES)
    pieces = np.split(logps, counts.cumsum()[:-1])
    return {keys[s : s + DIGEST_BYTES]: piece for s, piece in zip(starts, pieces, strict=True)}
