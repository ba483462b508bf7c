"""The whole run, top to bottom: configuration, data, model, training, evaluation, result."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recbole.data import create_dataset, data_preparation
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.data.interaction import cat_interactions
from recbole.utils import get_trainer, init_seed

from recbole_multdpo.config import Config, load_config
from recbole_multdpo.data.dataset import LLMRecDataset
from recbole_multdpo.data.loader import SetwiseDataLoader, evaluation_loaders
from recbole_multdpo.data.sampler import NegativeSampler, SetwiseSampler
from recbole_multdpo.errors import DataError
from recbole_multdpo.losses import LOSSES
from recbole_multdpo.model.backbone import save_backbone
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.run_folder import RunFolder, create_run_folder
from recbole_multdpo.training.checkpoint import load_checkpoint, load_trainable_tensors
from recbole_multdpo.training.sft_cache import cached_sft, sft_key, store_sft
from recbole_multdpo.training.trainer import SetwiseTrainer, Stage

SFT_SEED_OFFSET = 2**32  # the two stages draw different histories, targets and orders


class StageClock:
    """Wall seconds per named stage of the run."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to `name`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Run one model on one data set as the command line does, and return what `result.json` holds.

    Args:
        argv: `--key=value` arguments, without the program's name.

    Raises:
        MultDPOError: any problem with settings, files or training; the message names the remedy.
    """
    config = load_config(argv)
    if config["num_threads"]:
        torch.set_num_threads(config["num_threads"])
    with create_run_folder(config) as folder:
        clock = StageClock()
        run_model = _run_classical if config.settings is None else _run_llmrec
        result = run_model(config, folder, clock)
        result["seconds"] = {name: round(value, 2) for name, value in clock.seconds.items()}
        return folder.write_result(result)


def _prepare(config: Config, dataset: Dataset) -> list[Dataset]:
    """Train, validation and test part, split right after seeding: every model gets the same parts."""
    if len(dataset) == 0:
        raise DataError(
            "no interaction is left after filtering; check val_interval and the *_inter_num_interval settings"
        )
    getLogger().info(dataset)
    init_seed(config["seed"], config["reproducibility"])
    return dataset.build()


def _run_classical(config: Config, folder: RunFolder, clock: StageClock) -> dict[str, Any]:
    """Any model of RecBole, through RecBole's own loaders and trainer."""
    with clock.stage("data"):
        dataset = create_dataset(config)
        parts = _prepare(config, dataset)
        # RecBole splits inside data_preparation: hand it the parts that were made above
        dataset.build = lambda: parts
        train_data, valid_data, test_data = data_preparation(config, dataset)
    init_seed(config["seed"], config["reproducibility"])
    model = config.model_class(config, train_data._dataset).to(config["device"])
    getLogger().info(model)
    trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
    show_progress = config["show_progress"]
    with clock.stage("train"):
        _, valid_result = trainer.fit(train_data, valid_data, show_progress=show_progress)
    with clock.stage("test"):
        test_result = trainer.evaluate(test_data, show_progress=show_progress)
    return {
        "valid_result": valid_result,
        "test_result": test_result,
        "num_users_evaluated": _n_users(parts[2]),
        "num_items": dataset.item_num - 1,
    }


def _run_llmrec(config: Config, folder: RunFolder, clock: StageClock) -> dict[str, Any]:
    """Supervised fine-tuning, preference training, exact ranking."""
    settings = config.settings
    with clock.stage("data"):
        dataset = LLMRecDataset(config)
        parts = _prepare(config, dataset)
        quick_valid, valid, test = evaluation_loaders(config, dataset, parts)
    with clock.stage("backbone"):
        model = LLMRec(config, parts[0]).to(config["device"])
        _log_model(model)

    checkpoints = folder.path / "checkpoints"
    sft = Stage("sft", settings.sft_epochs, settings.sft_learning_rate, settings.sft_eval_step)
    with clock.stage("sft"):
        trainer = _train_sft(config, model, parts[0], quick_valid, sft, checkpoints)
    if settings.loss != "sft" and config["epochs"] > 0:
        with clock.stage("preference"):
            model.start_preference_stage(settings.loss)
            stage = Stage(
                "preference", config["epochs"], config["learning_rate"], config["eval_step"]
            )
            trainer = SetwiseTrainer(config, model, stage, checkpoints / stage.name)
            batch_size = config["train_batch_size"]
            train_data = _train_loader(config, model, parts[0], settings.loss, batch_size)
            _fit(trainer, train_data, quick_valid, config["show_progress"])

    trainer.eval_collector.data_collect(SimpleNamespace(dataset=parts[0]))
    with clock.stage("valid"):
        valid_result = trainer.evaluate(valid, load_best_model=False, show_progress=config["show_progress"])
    if settings.test_history == "train_valid":
        known = parts[0].copy(cat_interactions([parts[0].inter_feat, parts[1].inter_feat]))
        model.histories = known.user_items(settings.level_thresholds)
    with clock.stage("test"):
        test_result = trainer.evaluate(test, load_best_model=False, show_progress=config["show_progress"])
    save_backbone(model.lm, model.tokenizer, folder.path / "model")
    return {
        "loss": settings.loss,
        "valid_result": valid_result,
        "test_result": test_result,
        "num_users_evaluated": _n_users(parts[2]),
        "num_items": dataset.item_num - 1,
        "item_texts": vars(dataset.text_report),
        "test_history": settings.test_history,
    }


def _train_sft(
    config: Config,
    model: LLMRec,
    train: LLMRecDataset,
    valid: AbstractDataLoader,
    stage: Stage,
    checkpoints: Path,
) -> SetwiseTrainer:
    """The supervised stage, taken from the cache where everything that determines it is the same."""
    settings = model.settings
    trainer = SetwiseTrainer(config, model, stage, checkpoints / stage.name)
    if stage.epochs == 0:
        getLogger().info("sft_epochs=0: the backbone stays as it is")
        return trainer
    cache_dir = Path(settings.sft_cache_dir or "saved/cache")
    key = sft_key(config, model)
    cached = cached_sft(cache_dir, key) if settings.sft_cache else None
    if cached is not None:
        tensors, _, _ = load_checkpoint(cached)
        load_trainable_tensors(model.lm, tensors, cached)
        getLogger().info(f"supervised stage taken from {cached} (--sft_cache=False trains it anew)")
        return trainer
    train_data = _train_loader(config, model, train, "sft", settings.sft_batch_size)
    _fit(trainer, train_data, valid, config["show_progress"])
    if settings.sft_cache:
        store_sft(cache_dir, key, trainer.best_folder)
    return trainer


def _train_loader(
    config: Config, model: LLMRec, train: LLMRecDataset, loss_name: str, batch_size: int
) -> SetwiseDataLoader:
    """The set-wise sampler and loader that serve a loss."""
    settings, loss = model.settings, LOSSES[loss_name]
    n_negatives = {"none": 0, "one": 1, "many": settings.num_negatives}[loss.negatives]
    weights = None
    if settings.negative_distribution == "popularity":
        counts = np.bincount(model.histories.items, minlength=train.item_num)
        weights = counts.astype(float) ** settings.popularity_alpha
    sampler = SetwiseSampler(
        model.histories,
        model.prompts,
        NegativeSampler(model.histories, train.item_num, weights),
        seed=config["seed"] + (SFT_SEED_OFFSET if loss_name == "sft" else 0),
        history_split=settings.history_split,
        target_share=settings.target_share,
        max_targets=settings.max_targets,
        n_negatives=n_negatives,
        one_positive=loss.positives == "one",
    )
    return SetwiseDataLoader(config, train, sampler, batch_size)


def _fit(
    trainer: SetwiseTrainer,
    train_data: SetwiseDataLoader,
    valid: AbstractDataLoader,
    show_progress: bool,
) -> None:
    """Train a stage, going on from its last checkpoint if the run was interrupted, and load its best weights."""
    if trainer.last_folder.exists():
        trainer.resume_checkpoint(trainer.last_folder)
    valid_data = valid if trainer.eval_step else None
    trainer.fit(train_data, valid_data, show_progress=show_progress)
    trainer.load_best()


def _log_model(model: LLMRec) -> None:
    total = sum(parameter.numel() for parameter in model.lm.parameters())
    trained = sum(p.numel() for p in model.lm.parameters() if p.requires_grad)
    lengths = model.items.lengths[1:].float()
    getLogger().info(
        f"backbone {model.settings.backbone}: {total:,} parameters, {trained:,} trained "
        f"({'LoRA' if model.uses_lora else 'full fine-tuning'}); "
        f"{lengths.mean():.1f} tokens per item with its end token, longest {int(lengths.max())}; "
        f"trie of {model.trie.num_internal:,} internal nodes, {model.trie.num_leaves:,} distinct texts"
    )


def _n_users(part: Dataset) -> int:
    """Users of a part of the split: those that its metrics average over."""
    return int(part.inter_feat[part.uid_field].unique().numel())
