"""Time loading, splitting, prompts and set-wise sampling on generated data of ml-10m's shape.

`python -m benchmarks.data` uses a tenth of it (7,157 users, 1 M ratings), `--full` the whole
(71,567 users, 10 M half-star ratings). `--titles=FILE` uses the titles of a MovieLens
`movies.csv`; without it they are made up.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import generated
from benchmarks.common import Row, Timer, arguments, faster, report
from recbole_multdpo import compat
from recbole_multdpo.data.random_keys import random_uniforms
from recbole_multdpo.data.sampler import ROWS_AT_ONCE
from recbole_multdpo.runs.folder import peak_memory_mb

N_USERS, N_RATINGS, N_ITEMS = 71_567, 10_000_000, 9_742
MEMORY_LIMIT = 6 * 1024  # MiB beyond what RecBole itself needs to load and split the data
SAMPLER_GOAL = 10.0
BATCH = 32
PART_TOKENS = 128  # cost of a part, as of the default `tiny` on a CPU


def main() -> None:
    """Run the command."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--full", action="store_true", help="71,567 users, 10 M ratings")
    parser.add_argument("--titles", type=Path, help="MovieLens movies.csv, may be gzipped")
    parser.add_argument("--negatives", type=int, default=32, help="per example")
    options = parser.parse_args()
    titles = (
        generated.real_titles(options.titles)
        if options.titles
        else generated.made_up_titles(N_ITEMS)
    )
    share = 1 if options.full else 10
    with tempfile.TemporaryDirectory() as folder:
        generated.write(Path(folder), titles, N_USERS // share, N_RATINGS // share)
        # each in its own process, so that its peak memory is its own
        theirs = _in_process(_recbole, folder, options)
        ours = _in_process(_llmrec, folder, options)
    rows = [
        faster(f"{stage}: LLMRec vs RecBole alone", [ours[stage]], [theirs[stage]])
        for stage in ("load", "split")
    ]
    beyond = ours["memory"] - theirs["memory"]
    rows += [
        Row(
            "load: peak memory, LLMRec vs RecBole alone",
            ours["load memory"],
            theirs["memory"],
            "MiB",
            theirs["memory"] / ours["load memory"],
        ),
        Row(
            "all stages: peak memory beyond RecBole vs limit",
            beyond,
            MEMORY_LIMIT,
            "MiB",
            MEMORY_LIMIT / max(beyond, 1.0),
            goal=1.0,
        ),
        *ours["rows"],
    ]
    stages = {
        name: ours[name] for name in ("load", "split", "histories and texts", "prompts", "epoch")
    }
    print(", ".join(f"{name} {value:.1f} s" for name, value in stages.items()))
    report(rows, options)


def _in_process(function: Callable[..., Any], *args: Any) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result: dict[str, Any] = pool.apply(function, args)
        return result


def _config(folder: str, negatives: int) -> Any:
    from recbole_multdpo.settings.config import load_config

    return load_config(
        [
            "--model=LLMRec",
            "--device=cpu",
            f"--run_dir={folder}/run",
            f"--data_path={folder}",
            f"--num_negatives={negatives}",
            "--show_progress=False",
            *generated.SETTINGS,
        ]
    )


def _recbole(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak MiB of RecBole's own loading and splitting."""
    compat.apply()
    from recbole.data.dataset import Dataset

    result, _ = _load_and_split(folder, options, Dataset)
    return result


def _load_and_split(folder: str, options: argparse.Namespace, dataset_class: Any) -> Any:
    torch.set_num_threads(options.threads)
    config = _config(folder, options.negatives)
    start = time.process_time()
    dataset = dataset_class(config)
    loaded = time.process_time()
    parts = dataset.build()
    split = time.process_time() - loaded
    result = {"load": loaded - start, "split": split, "memory": peak_memory_mb()["rss"]}
    return result, (config, parts)


def _llmrec(folder: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak MiB of all stages up to an epoch of sampling, and the samplers' rows."""
    compat.apply()
    from recbole_multdpo.data.dataset import LLMRecDataset
    from recbole_multdpo.model.llmrec import LLMRec
    from recbole_multdpo.training.stages import train_loader

    result, (config, parts) = _load_and_split(folder, options, LLMRecDataset)
    result["load memory"] = result["memory"]
    start = time.process_time()
    model = LLMRec(config, parts[0])
    loader = train_loader(config, model, parts[0], "mult_dpo", BATCH)
    result["histories and texts"] = time.process_time() - start
    start = time.process_time()
    sampler = loader.setwise_sampler
    for first in range(0, len(loader.users), BATCH):
        users = loader.users[first : first + BATCH]
        sampler.build_prompts(users, sampler.split(users, 0))
    result["prompts"] = time.process_time() - start
    start = time.process_time()
    loader.set_epoch(0)
    n_candidates = 0
    batches: list[Any] = []
    for batch in loader:
        n_candidates += int((batch.levels >= 0).sum())
        if len(batches) < 100:
            batches.append(batch)
    result["epoch"] = time.process_time() - start
    result["memory"] = peak_memory_mb()["rss"]
    rate = n_candidates / result["epoch"]
    result["rows"] = [
        *_samplers(loader, parts, rate, options),
        _padding(model, batches),
    ]
    return result


def _samplers(loader, parts, rate: float, options) -> list[Row]:  # type: ignore[no-untyped-def]
    """Candidates per second of the set-wise epoch and of the negatives alone, and of RecBole's."""
    from recbole.sampler import Sampler

    sampler, n = loader._sampler, options.negatives
    negatives = sampler.negative_sampler
    recbole = Sampler(["train"], [parts[0]], distribution="uniform").set_phase("train")
    few = loader.users[: 64 * BATCH]
    timer = Timer("cpu", options.threads)

    def ours() -> None:  # like the loader at the start of an epoch
        negatives.draw_epoch(loader.users, n, seed=0, epoch=0)

    def ours_by_batch() -> None:
        for first in range(0, len(few), BATCH):
            negatives.sample(few[first : first + BATCH], n, seed=1, epoch=0)

    def theirs(at_once: int) -> None:
        for first in range(0, len(few), at_once):
            part = few[first : first + at_once]
            drawn = recbole.sample_by_user_ids(part, np.zeros_like(part), n)
            assert len(drawn) == n * len(part)

    def numbers() -> None:  # the random numbers alone: a lower bound
        for first in range(0, len(loader.users), ROWS_AT_ONCE):
            part = loader.users[first : first + ROWS_AT_ONCE]
            random_uniforms(0, 0, 0, part[:, None], np.arange(n))

    functions: dict[str, Callable[[], Any]] = {
        "ours": ours,
        "ours by batch": ours_by_batch,
        "recbole by batch": partial(theirs, BATCH),
        "recbole at once": partial(theirs, len(few)),
        "numbers": numbers,
    }
    seconds = timer.alternate(functions, options.repeats)
    n_drawn = {"ours": n * len(loader.users), "numbers": n * len(loader.users)}
    per_second = {
        name: n_drawn.get(name, n * len(few)) / statistics.median(values)
        for name, values in seconds.items()
    }
    other = max(per_second["recbole by batch"], per_second["recbole at once"])

    def row(name: str, rate: float, **more: float) -> Row:
        name = f"sampler: {name} vs RecBole's sampler"
        return Row(name, rate, other, "candidates/s", rate / other, **more)

    return [
        row(
            "negatives of an epoch",
            per_second["ours"],
            floor_ratio=per_second["numbers"] / other,
            goal=SAMPLER_GOAL,
        ),
        row(f"negatives by batches of {BATCH}", per_second["ours by batch"]),
        row("whole examples with prompts", rate),
    ]


def _padding(model, batches) -> Row:  # type: ignore[no-untyped-def]
    """Share of padding in packed rows: parts of similar length against whole batches."""
    from recbole_multdpo.data.batch import length_buckets
    from recbole_multdpo.scoring.packed import packed_lengths

    filled = whole = parts = 0
    for batch in batches:
        lengths = packed_lengths(batch.prompts.lengths, batch.candidates, model.catalogue.items)
        groups = length_buckets(lengths, max_rows=len(batch), max_tokens=0, part_tokens=PART_TOKENS)
        filled += int(lengths.sum())
        whole += len(lengths) * int(lengths.max())
        parts += sum(len(rows) * int(lengths[rows].max()) for rows in groups)
    ours, other = (100 * (1 - filled / padded) for padded in (parts, whole))
    name = f"padding, batches of {BATCH}: parts of similar length vs whole batches"
    return Row(name, ours, other, "%", other / ours)


if __name__ == "__main__":
    main()
