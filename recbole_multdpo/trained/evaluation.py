"""Evaluation of a finished run: its own test, or other candidates, metrics or cut-offs.

Nothing is trained or chosen again: the weights come from the folder, and so do the assistant's
weight, BIGRec's gamma and everything else that validation decided. An assistant comes from the
run's cache, or is trained again with the same settings. Sampled candidates are drawn with the run's
seed, so they are the same.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from recbole.data.dataloader import FullSortEvalDataLoader
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.evaluator import metric_types
from recbole.trainer import Trainer
from recbole.utils import EvaluatorType, init_seed

from recbole_multdpo.classical.run import prepare_classical, refit_parts
from recbole_multdpo.classical.weights import load_weights
from recbole_multdpo.data.candidates import lists_of
from recbole_multdpo.data.counted_dataset import fitted_part
from recbole_multdpo.data.loader import evaluation_loaders, tested_part
from recbole_multdpo.errors import ConfigError, DataError
from recbole_multdpo.ranking.exact import ExactRanker
from recbole_multdpo.runs.fingerprints import describe
from recbole_multdpo.runs.folder import command, hardware, no_tensorboard, plain_json, versions
from recbole_multdpo.runs.load import (
    check_cutoffs,
    check_labels,
    known_at_test,
    load_parts,
    pairs_of,
    test_description,
)
from recbole_multdpo.runs.per_user import PerUserEvaluator
from recbole_multdpo.runs.unchanged import changed_data, check_folder
from recbole_multdpo.runs.wandb_run import wandb_run
from recbole_multdpo.runtime.console import shows_bars
from recbole_multdpo.settings.config import Config
from recbole_multdpo.settings.effects import acts
from recbole_multdpo.settings.information import KEY, SEEN
from recbole_multdpo.settings.messages import nearest
from recbole_multdpo.settings.protocol import lists_in_words
from recbole_multdpo.trained.commands import EVALUATION_SETTINGS
from recbole_multdpo.trained.run import load_run, result_of, run_config, set_threads
from recbole_multdpo.trained.trec_run import TrecRun
from recbole_multdpo.training.calibration import calibration
from recbole_multdpo.training.collector import TopKCollector
from recbole_multdpo.training.step import Stage
from recbole_multdpo.training.trainer import SetwiseTrainer


def evaluate_run(
    folder: Path,
    changes: Mapping[str, Any],
    *,
    calibrates: bool = False,
    run_file: Path | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Test a finished run; returns the content of the evaluation's file.

    Args:
        folder: the run's folder.
        changes: settings of `EVALUATION_SETTINGS`, as on the command line; a part of `eval_args`
            keeps the others.
        calibrates: test the probabilities too (`training.calibration`), not only their order.
        run_file: write the rankings there, as a run of TREC; None does not.
        options: as for `trained.run.load_run`.

    Raises:
        ConfigError: a setting cannot be changed, the test is invalid for the run, as its items were
            used in training or it needs another training, or there are no probabilities to test;
            or a run of TREC cannot hold the rankings.
        DataError: the data have changed, or the run's own test does not reproduce its figures.
        MultDPOError: `run_file` cannot be written.
    """
    result = result_of(folder)
    check_folder(folder, result)
    _check_known(changes)
    base = run_config(folder, {}, **options)
    config = _changed_config(folder, base, changes, options)
    set_threads(config)
    if run_file is not None and config[KEY] == "rolling":
        raise ConfigError(
            "--write_run: a rolling test ranks several times for a user, and a run of TREC holds "
            "one ranking. Leave it out."
        )
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch, no_tensorboard():
        test = _test_language_model if base.settings is not None else _test_classical
        with wandb_run(config, folder) as log_tests:
            trainer, loader, part = test(folder, base, config, Path(scratch), options)
            rankings = _kept_rankings(trainer, config, loader) if run_file is not None else None
            found = plain_json(_tested(trainer, config, loader))
            log_tests({"test_result": found})
        probabilities = _calibration(trainer, config, loader) if calibrates else None
    deciding = [key for key in EVALUATION_SETTINGS if not acts(key).may_change]
    own_test = all(config[key] == base[key] for key in deciding)
    if own_test:
        _check_reproduced(folder, found, result["test_result"])
    if run_file is not None and rankings is not None:
        rankings.write(run_file, folder.resolve().name)
    lists = lists_of(loader)
    return plain_json(
        {
            **{key: result.get(key) for key in ("model", "dataset", "loss", "seed")},
            "run": str(folder),
            "changes": changes,
            "own_test": own_test,
            **{
                key: config[key]
                for key in ("eval_args", "metrics", "topk", KEY, SEEN, "test_users")
            },
            "test_result": found,
            "run_test_result": result["test_result"],
            **({} if probabilities is None else {"calibration": probabilities}),
            **test_description(tested_part(config, part)),
            **lists,
            **({"ranked": lists_in_words(lists["candidate_lists"])} if lists else {}),
            "num_items": part.item_num - 1,
            "seconds": round(time.perf_counter() - start, 2),
            "versions": versions(),
            "hardware": hardware(),
            "command": command(sys.argv[1:]),
        }
    )


def _check_data(folder: Path, different: Sequence[str]) -> None:
    """Refuse changed data.

    Raises:
        DataError: with the parts that have changed.
    """
    if different:
        raise DataError(
            f"the data of the run in {folder} have changed: {describe(different)}. Its model "
            "cannot be tested on them. Give the data as they were: --data_path."
        )


def _check_known(changes: Mapping[str, Any]) -> None:
    for key in changes:
        if key not in EVALUATION_SETTINGS:
            known = ", ".join(EVALUATION_SETTINGS)
            hint = nearest(key, EVALUATION_SETTINGS) or f". Those that can: {known}."
            raise ConfigError(f"{key} cannot be changed for an evaluation{hint}")


def _changed_config(
    folder: Path, base: Config, changes: Mapping[str, Any], options: Mapping[str, Any]
) -> Config:
    """The run's settings with the changes; the unused `valid_metric` is made to fit the metrics."""
    changed = dict(changes)
    wanted = changed.get(KEY, base[KEY])
    if wanted != base[KEY] and "refit" in (wanted, base[KEY]):
        raise ConfigError(
            f"{KEY}={wanted}: the run's weights are those of {KEY}={base[KEY]}. Train it again: "
            f"run its command with --{KEY}={wanted}."
        )
    if "metrics" in changed or "topk" in changed:
        metrics, topk = (changed.get(key, base[key]) for key in ("metrics", "topk"))
        metric, cutoff = (
            value[0] if isinstance(value, list) and value else value for value in (metrics, topk)
        )
        kind = metric_types.get(str(metric).lower())
        changed["valid_metric"] = f"{metric}@{cutoff}" if kind == EvaluatorType.RANKING else metric
    return run_config(folder, changed, **options)


def _test_classical(
    folder: Path, base: Config, config: Config, scratch: Path, options: Mapping[str, Any]
) -> tuple[Trainer, AbstractDataLoader, Dataset]:
    """Trainer and loader for the test of one of RecBole's models, and the tested part."""
    dataset, parts = load_parts(base)
    _check_data(folder, changed_data(folder, result_of(folder), dataset, parts))
    parts = _with_test_of(base, config, parts)
    check_cutoffs(config, dataset)
    check_labels(config, dataset)
    config["checkpoint_dir"] = str(scratch)
    if config[KEY] == "refit" and len(parts[1]):
        parts = refit_parts(parts)
    run = prepare_classical(config, dataset, parts)
    load_weights(run.model, folder / "model")
    if config[KEY] == "train_valid":
        run = run.with_validation_items()
    trainer = run.trainer
    trainer.eval_collector.data_collect(run.train_data)
    return trainer, run.test_data, parts[2]


def _test_language_model(
    folder: Path, base: Config, config: Config, scratch: Path, options: Mapping[str, Any]
) -> tuple[SetwiseTrainer, AbstractDataLoader, Dataset]:
    """Trainer and loader for the test of a language model with its assistant; the tested part."""
    run = load_run(folder, scratch=scratch, **options)
    _check_data(folder, run.changed)
    parts = _with_test_of(base, config, run.parts)
    check_cutoffs(config, run.dataset)
    *_, test = evaluation_loaders(config, run.dataset, parts)
    ranker = replace(run.ranker, histories=known_at_test(config, parts))
    stage = Stage("evaluation", epochs=0, learning_rate=1.0, eval_step=0)
    trainer = SetwiseTrainer(config, run.model, stage, scratch, ranker)
    fitted = fitted_part(config[KEY], parts)
    trainer.eval_collector.data_collect(SimpleNamespace(dataset=fitted))
    return trainer, test, parts[2]


def _tested(trainer: Trainer, config: Config, test: AbstractDataLoader) -> dict[str, Any]:
    trainer.evaluator = PerUserEvaluator(config)
    init_seed(config["seed"], config["reproducibility"])  # as before the run's own test
    show = shows_bars(config["show_progress"])
    found = trainer.evaluate(test, load_best_model=False, show_progress=show)
    return dict(found)


def _kept_rankings(trainer: Trainer, config: Config, test: AbstractDataLoader) -> TrecRun:
    """The rankings of a test that follows."""
    if not isinstance(trainer.eval_collector, TopKCollector):
        of_training = trainer.eval_collector.data_struct
        trainer.eval_collector = TopKCollector(config)
        trainer.eval_collector.data_struct = of_training
    kept = trainer.eval_collector.record = TrecRun(test, max(config["topk"]))
    return kept


def _calibration(trainer: Trainer, config: Config, test: AbstractDataLoader) -> dict[str, Any]:
    """Figures of the model's probabilities, see `training.calibration.calibration`.

    Raises:
        ConfigError: the model has none, or the test ranks a part of the catalogue.
    """
    ranker = getattr(trainer, "ranker", None)
    if type(ranker) is not ExactRanker:
        raise ConfigError(
            f"--calibration: {config['model']} ranks by scores that are no probabilities. Name a "
            "run of LLMRec."
        )
    if not isinstance(test, FullSortEvalDataLoader):
        raise ConfigError(
            "--calibration: sampled candidates are a part of the catalogue, as lists are, and "
            "probabilities are of all of it. Add --eval_args=\"{'mode': 'full'}\", without "
            "candidate_lists."
        )
    return calibration(ranker, test)


def _with_test_of(base: Config, config: Config, parts: list[Dataset]) -> list[Dataset]:
    """The run's parts, with the test part of another split.

    Raises:
        ConfigError: rows of that test part were used in training or validation, or the parts are
            files.
    """
    own, other = (
        {key: value for key, value in each["eval_args"].items() if key != "mode"}
        for each in (base, config)
    )
    if own == other:
        return parts
    if base["benchmark_filename"]:
        raise ConfigError(
            f"eval_args={other}: no effect with benchmark_filename, whose files are the parts. "
            "Change the mode alone."
        )
    test = load_parts(config)[1][2]
    known = pairs_of(parts[2])
    foreign = ~np.isin(pairs_of(test), known)
    if foreign.any():
        raise ConfigError(
            f"eval_args={other}: {foreign.sum()} of {len(foreign)} test rows are rows that the run "
            f"was trained or chosen by. Keep the run's split, {own['split']} in order "
            f"{own['order']}, or train with the new one."
        )
    return [*parts[:2], test]


def _check_reproduced(folder: Path, found: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Refuse figures of the run's own test that differ from the run's.

    Raises:
        DataError: with the differing figures.
    """
    different = [
        f"{name} {own[name]} there, {found.get(name)} now"
        for name in own
        if found.get(name) != own[name]
    ]
    if different:
        raise DataError(
            f"the test of the run in {folder} does not give its figures again: "
            f"{', '.join(different)}. Was it made by other packages or on another machine "
            "(result.json names them), or before `evaluate` was there? Other figures of it would "
            "not be the run's either: run its command again."
        )
