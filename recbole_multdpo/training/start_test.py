"""Test of the model that preference training starts from: what the aligned one is compared with.

It is made once for each first stage, test part and way of ranking, and kept next to the cached
stage. Where ranking takes long it is made only if `test_sft` asks for it.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from logging import getLogger
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pydantic import TypeAdapter
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset

from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.ranking.ranker import Ranker
from recbole_multdpo.runs.per_user import START_FILE, PerUserEvaluator, write_per_user
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import duration, log_detail
from recbole_multdpo.runtime.durable_files import atomic_folder, restore_interrupted
from recbole_multdpo.runtime.out_of_memory import is_out_of_memory, release_memory
from recbole_multdpo.runtime.reading import fitted, read_json, readable
from recbole_multdpo.settings.acts import Part
from recbole_multdpo.settings.config import Config
from recbole_multdpo.training.sft_cache import acting, cache_folder, sft_key
from recbole_multdpo.training.trainer import SetwiseTrainer

AUTO_SECONDS = 180.0  # test_sft=auto: a longer ranking is left out
_METRICS = "metrics.json"


@dataclass
class StartTest:
    """The test of the first stage's weights, for a run with a preference stage.

    Attributes:
        config: the run's configuration.
        run_folder: gets `per_user_sft.csv`.
        train: the training part, for the number of each user's training rows.
        fitted: the part that the weights are fitted to, whose counts some metrics need.
        test: the loader of the test.
        ranker_for_test: makes the ranker of the test; with an assistant it chooses the weight on
            the validation part, as for the aligned model.
        fingerprints: of data, backbone and prompt.
        result: RecBole's test metrics, by name; None if the test was left out.
        left_out: the reason for that, in one sentence.
    """

    config: Config
    run_folder: Path
    train: Dataset
    fitted: Dataset
    test: AbstractDataLoader
    ranker_for_test: Callable[[SetwiseTrainer], Ranker]
    fingerprints: dict[str, str]
    result: dict[str, float] | None = None
    left_out: str = field(default="")

    def make(self, trainer: SetwiseTrainer) -> None:
        """Test the weights of the first stage, which the trainer's model has.

        The trainer's evaluator and the random state are left as they were: the next stage begins
        with a seed of its own.
        """
        asked = self.config["test_sft"]
        if asked is False:
            self.left_out = "SFT was not tested (test_sft=False)"
            return
        cached = self._cache_folder(trainer)
        self.result = processes.broadcast_from_main(lambda: self._read(cached))
        if self.result is not None:
            log_detail(f"the first stage's test is taken from {cached}")
            return
        trainer.eval_collector.data_collect(SimpleNamespace(dataset=self.fitted))
        if asked == "auto":
            seconds = max(processes.all_gather(_seconds(trainer, self.test)))
            if seconds > AUTO_SECONDS:
                self.left_out = (
                    f"SFT was not tested, which would take about {duration(seconds)}: "
                    "--test_sft=True does it"
                )
                return
        ranker = self.ranker_for_test(trainer)
        before, trainer.evaluator = trainer.evaluator, PerUserEvaluator(self.config)
        try:
            found = trainer.evaluate_ranker(ranker, self.test, self.config["show_progress"])
            self.result = {name: float(value) for name, value in found.items()}
            processes.broadcast_from_main(lambda: self._store(trainer, cached))
        finally:
            trainer.evaluator = before

    def _cache_folder(self, trainer: SetwiseTrainer) -> Path:
        """Folder of the test in the cache, named by all that determines it."""
        settings, model = trainer.settings, trainer.model
        everything = {**self.config.to_dict(), **settings.model_dump(mode="json")}
        parts: list[Part] = ["data", "filter", "prompt", "model", "validation", "ranking", "test"]
        described = {
            "stage": sft_key(self.config, model, trainer.stage.refit_epochs),
            "settings": acting(everything, self.config.settings, *parts),
            "fingerprints": self.fingerprints,
        }
        text = json.dumps(described, sort_keys=True, default=str)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        return cache_folder(settings, self.run_folder) / f"test-{name}"

    def _read(self, cached: Path) -> dict[str, float] | None:
        """The cached metrics, whose values per user are copied into the run's folder; or None."""
        if not self.config["sft_cache"] or not (cached / _METRICS).is_file():
            return None
        try:
            with readable(cached / _METRICS, "Remove it.", CheckpointError):
                found = fitted(TypeAdapter(dict[str, float]), read_json(cached / _METRICS))
        except CheckpointError as error:
            getLogger().warning(f"{error} The first stage is tested again")
            return None
        if (cached / START_FILE).is_file():
            shutil.copyfile(cached / START_FILE, self.run_folder / START_FILE)
        return dict(found)

    def _store(self, trainer: SetwiseTrainer, cached: Path) -> None:
        """Write the values per user, and both into the cache unless it is off or has them."""
        own = self.run_folder / START_FILE
        evaluator: Any = trainer.evaluator
        write_per_user(own, evaluator, self.test, self.train)
        if not self.config["sft_cache"]:
            return
        cached.parent.mkdir(parents=True, exist_ok=True)
        restore_interrupted(cached)
        if cached.exists():
            return
        with atomic_folder(cached) as temporary:
            (temporary / _METRICS).write_text(json.dumps(self.result), encoding="utf-8")
            if own.is_file():
                shutil.copyfile(own, temporary / START_FILE)


def _seconds(trainer: SetwiseTrainer, test: AbstractDataLoader) -> float:
    """Seconds of a ranking; 0 if memory runs out, of which the ranking itself tells more."""
    try:
        return trainer.ranking_seconds(test)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        error.__traceback__ = None
    release_memory()
    return 0.0
