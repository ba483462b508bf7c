"""The whole run, top to bottom: configuration, data, model, training, evaluation, result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from logging import getLogger
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.utils import init_seed
from safetensors import SafetensorError
from torch import nn

from recbole_multdpo.classical.assistant import (
    CURVE_FILE,
    choose_weight,
    make_assistant,
    write_curve,
)
from recbole_multdpo.classical.conversations import check_conversation_model
from recbole_multdpo.classical.run import explained, prepare_classical
from recbole_multdpo.classical.weights import save_weights
from recbole_multdpo.data.atomic_file import check_atomic_files
from recbole_multdpo.data.contexts import UserItems
from recbole_multdpo.data.dataset import ContextDataset, LLMRecDataset
from recbole_multdpo.data.dynamic_negatives import DynamicNegatives
from recbole_multdpo.data.linked_users import check_linked_users, linked_users
from recbole_multdpo.data.loader import SetwiseDataLoader, evaluation_loaders
from recbole_multdpo.data.loading import dataset_class
from recbole_multdpo.data.prompt_file import (
    PROMPT_FILE,
    StoredPrompt,
    read_prompt,
    write_prompt,
)
from recbole_multdpo.data.sampler import NegativeSampler, SetwiseSampler
from recbole_multdpo.data.sources import present
from recbole_multdpo.errors import ConfigError, DataError, MultDPOError, TrainingError
from recbole_multdpo.losses import LOSSES
from recbole_multdpo.model.backbone import merge_lora, save_backbone
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.model.reference_cache import ReferenceCache, reference_key
from recbole_multdpo.runs.checkpoint import check_checkpoint
from recbole_multdpo.runs.fingerprints import (
    BACKBONE,
    PROMPT,
    check_resumed,
    data_fingerprints,
    pairs_fingerprint,
)
from recbole_multdpo.runs.folder import RunFolder, create_run_folder, read_result
from recbole_multdpo.runs.model_files import MODEL_FOLDER, file_checksums, not_finite
from recbole_multdpo.runs.per_user import FILE_NAME, PerUserEvaluator, write_per_user
from recbole_multdpo.runs.resume import (
    REFIT,
    STAGES,
    ResumePoint,
    check_unchanged,
    find_resume_point,
    settings_hash,
    settle_resume,
)
from recbole_multdpo.runs.unchanged import check_folder
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.durable_files import is_write_failure
from recbole_multdpo.runtime.interruption import Interrupted, SignalHandler
from recbole_multdpo.settings.config import Config, load_config
from recbole_multdpo.settings.llmrec import ZERO_SHOT, LLMRecSettings
from recbole_multdpo.settings.test_information import train_and_valid
from recbole_multdpo.training.sft_cache import (
    cache_folder,
    load_cached_sft,
    sft_checkpoint,
    sft_key,
    store_sft,
)
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
        Interrupted: Ctrl-C or SIGTERM; the run can be resumed.
    """
    config = load_config(argv)
    if config.settings is None and processes.launched_world_size() > 1:
        raise ConfigError(
            f"model={config['model']}: RecBole's own models run in one process, and "
            f"{processes.launched_world_size()} were started. Start it without torchrun or "
            "deepspeed."
        )
    if config["num_threads"]:
        torch.set_num_threads(config["num_threads"])
    with processes.process_group(config["device"], single=config.deepspeed is not None):
        config["resume"] = processes.broadcast_from_main(lambda: settle_resume(config))
        if not processes.is_main_process():
            config["show_progress"] = config["log_wandb"] = False
        return _run(config)


def _run(config: Config) -> dict[str, Any]:
    """Run one model in a folder of its own, together with the other processes if there are any."""
    with create_run_folder(config) as folder, SignalHandler() as signals:
        if config["resume"] and processes.broadcast_from_main(folder.result_file.exists):
            getLogger().info(f"this run is finished: {folder.result_file}")
            result = read_result(folder.result_file)
            processes.broadcast_from_main(lambda: check_folder(folder.path, result))
            return result
        clock = StageClock()
        try:
            if config.settings is None:
                folder.rewind({})  # RecBole's own models begin anew
                result = _run_classical(config, folder, clock)
            else:
                result = _run_llmrec(config, config.settings, folder, clock, signals)
        except Interrupted as interruption:
            interruption.args = (f"{interruption}; go on with --resume={folder.path}",)
            raise
        except (OSError, SafetensorError) as error:
            if not is_write_failure(error):
                raise
            raise MultDPOError(
                f"cannot write ({error}). Free disk space, or make {folder.path} writable; then go "
                f"on with --resume={folder.path}"
            ) from error
        result["seconds"] = {name: round(value, 2) for name, value in clock.seconds.items()}
        written = folder.write_result(result)
        getLogger().info(f"result in {folder.result_file}\n{_table(written)}")
        return written


def _table(result: Mapping[str, Any]) -> str:
    """Validation and test metrics side by side, as text."""
    valid, test = result["valid_result"], result["test_result"]
    rows = [f"{name:<20}{valid.get(name, float('nan')):>10.4f}{test[name]:>10.4f}" for name in test]
    return "\n".join([f"{'metric':<20}{'valid':>10}{'test':>10}", *rows])


def _load(config: Config, make_dataset: Callable[[Config], Dataset]) -> Dataset:
    """Load and filter the data set; RecBole's complaint of an empty one gets a remedy."""
    # what is missing is downloaded, by one process of each machine
    missing = processes.all_reduce_max(int(not Path(config["data_path"]).exists()))
    in_turn = processes.local_main_process_first() if missing else nullcontext()
    try:
        with in_turn, present(config):
            check_atomic_files(config)
            dataset = make_dataset(config)
    except MultDPOError:
        raise
    # the files are in order: RecBole stumbles over settings, or over that nothing is left
    except (ValueError, KeyError, IndexError, TypeError) as error:
        raise DataError(
            f"{config['dataset']} cannot be used: {error!r}. Is the .inter file empty, does "
            "val_interval, user_inter_num_interval or item_inter_num_interval remove everything, "
            "or is a column that a setting names not in load_col?"
        ) from error
    check_cutoffs(config, dataset)
    getLogger().info(dataset)
    return dataset


def check_cutoffs(config: Config, dataset: Dataset) -> None:
    """Refuse lists that are longer than the catalogue.

    Raises:
        ConfigError: it names the size of the catalogue.
    """
    if max(config["topk"]) > dataset.item_num - 1:
        raise ConfigError(
            f"topk={config['topk']} asks for more items than the {dataset.item_num - 1} of the "
            "catalogue; lower --topk"
        )


def _prepare(config: Config, dataset: Dataset) -> list[Dataset]:
    """Train, validation and test part, split right after seeding: the same for every model."""
    init_seed(config["seed"], config["reproducibility"])
    return dataset.build()


def load_parts(config: Config) -> tuple[Dataset, list[Dataset]]:
    """The data set of a run and the three parts of its split, the same at every call.

    Raises:
        DataError: files are missing or malformed, or what is left cannot be trained on and tested.
        ConfigError: settings that the data set cannot serve.
    """
    make_dataset: Callable[[Config], Dataset]
    if config.settings is not None:
        make_dataset = LLMRecDataset
    elif config["context"] == "conversation":
        make_dataset = ContextDataset
    else:
        make_dataset = dataset_class(config)
    dataset = _load(config, make_dataset)
    check_labels(config, dataset)
    links = linked_users(config, dataset)
    parts = _prepare(config, dataset)
    _check_parts(config, dataset, parts)
    check_linked_users(config, dataset, parts, links)
    return dataset, parts


def check_labels(config: Config, dataset: Dataset) -> None:
    """Refuse to measure by labels that the data set lacks.

    Raises:
        ConfigError: it says how to get them.
    """
    label = config["LABEL_FIELD"]
    if "labeled" in config["eval_args"]["mode"].values() and label not in dataset.inter_feat:
        raise ConfigError(
            f"eval_args: mode labeled needs a label of every row. Add a column {label}:float of 0 "
            "and 1 to the .inter file and to load_col; a model that learns from labelled rows, "
            "such as NeuMF or FM, also takes --train_neg_sample_args=~ with "
            f"--threshold=\"{{'{config['RATING_FIELD']}': 4}}\"."
        )


def known_at_test(config: Config, parts: Sequence[LLMRecDataset]) -> UserItems:
    """What the prompts show at test, as `test_information` says.

    A model on conversations shows none of it.
    """
    settings = config.settings
    assert settings is not None
    known = parts[0] if config["test_information"] == "train" else train_and_valid(list(parts))
    return known.user_items(settings.levels)


def _check_parts(config: Config, dataset: Dataset, parts: Sequence[Dataset]) -> None:
    """Refuse a split that cannot be trained on and tested.

    Raises:
        DataError: nothing is left to train on or to test, or to choose on what the model needs a
            validation part for; or a user has all items, on which RecBole's samplers give up.
    """
    files, made_by = config["benchmark_filename"], f"eval_args={config['eval_args']}"
    remedy = "give more data, or other shares by --eval_args"
    if files:
        made_by = f"benchmark_filename={files}"
        remedy = "give more data, or name a file of each part by --benchmark_filename"
    if not len(parts[1]) and config.settings is not None and config.settings.ranks_by_validation:
        what = "an assistant" if config.settings.assistant else "grounding_gamma=auto"
        # D3 is a model with an assistant
        instead = "Use --model=LLMRec" if config["model"] == "D3" else "Leave it out"
        raise DataError(
            f"the validation part of the split is empty, and {what} needs one. {instead}, or "
            f"{remedy}."
        )
    for name, part in zip(("training", "test"), (parts[0], parts[2]), strict=True):
        if not len(part):
            raise DataError(
                f"the {name} part of the split is empty: {sum(map(len, parts))} interactions are "
                f"too few for {made_by}. {remedy.capitalize()}."
            )
    pairs = np.unique(np.concatenate([pairs_of(part) for part in parts]))
    complete = np.flatnonzero(np.bincount(pairs // dataset.item_num) >= dataset.item_num - 1)
    if len(complete):
        names = ", ".join(map(str, dataset.id2token(dataset.uid_field, complete[:5])))
        raise DataError(
            f"{len(complete)} users have all {dataset.item_num - 1} items of the catalogue, e.g. "
            f"{names}: nothing can be ranked for them. Leave them out with "
            f'--user_inter_num_interval="[0,{dataset.item_num - 1})", or add items.'
        )


def pairs_of(part: Dataset) -> np.ndarray:
    """A number per interaction of a part, equal for equal pairs of user and item: int64 [n]."""
    users, items = (part.inter_feat[f].numpy() for f in (part.uid_field, part.iid_field))
    return users.astype(np.int64) * part.item_num + items


def _known_answers(parts: Sequence[Dataset]) -> int:
    """How many test interactions repeat a pair of the training part; a warning where any do.

    RecBole ranks a user's test items even where training knew them, so that memory alone finds
    them. (Known items that are no answers it leaves out.)
    """
    repeated = int(np.isin(pairs_of(parts[2]), pairs_of(parts[0])).sum())
    if repeated:
        getLogger().warning(
            f"{repeated:,} of {len(parts[2]):,} test interactions repeat a training interaction of "
            "the same user with the same item: what is measured is in part memory. "
            "--rm_dup_inter=first keeps one of each pair."
        )
    return repeated


def _run_classical(config: Config, folder: RunFolder, clock: StageClock) -> dict[str, Any]:
    """Any model of RecBole, through RecBole's own loaders and trainer."""
    on_conversations = config["context"] == "conversation"
    if on_conversations:
        check_conversation_model(config)
    with clock.stage("data"):
        dataset, parts = load_parts(config)
        fingerprints = data_fingerprints(dataset, parts)
    show_progress = config["show_progress"]
    with clock.stage("train"), explained(config):
        classical = prepare_classical(config, dataset, parts)
        valid_result = classical.fit(show_progress)
    with clock.stage("refit" if config["test_information"] == "refit" else "test"):
        classical = classical.for_test(show_progress)
    with clock.stage("test"), explained(config):
        trainer = classical.trainer
        trainer.evaluator = PerUserEvaluator(config)
        init_seed(config["seed"], config["reproducibility"])  # `evaluate` draws the same candidates
        test_result = trainer.evaluate(
            classical.test_data,
            load_best_model=not classical.has_best_weights,
            show_progress=show_progress,
        )
        write_per_user(folder.path / FILE_NAME, trainer.evaluator, classical.test_data, parts[0])
    save_weights(classical.model, folder.path / MODEL_FOLDER)  # the best: evaluate loads them
    return {
        **_made_from(config, folder, fingerprints),
        "valid_result": valid_result,
        "test_result": test_result,
        **test_description(parts[2]),
        "num_items": dataset.item_num - 1,
        "rows": dataset.row_counts.as_dict(),
        "test_answers_in_training": _known_answers(parts),
        "test_information": config["test_information"],
        **_conversation_counts(config, dataset),
    }


def _run_llmrec(
    config: Config,
    settings: LLMRecSettings,
    folder: RunFolder,
    clock: StageClock,
    signals: SignalHandler,
) -> dict[str, Any]:
    """Supervised fine-tuning, preference training, exact ranking."""
    point = processes.broadcast_from_main(lambda: _resume_point(config, folder))
    with clock.stage("data"):
        dataset, parts = load_parts(config)
        fingerprints = processes.broadcast_from_main(lambda: data_fingerprints(dataset, parts))
        _check_point(folder, point, fingerprints)
        quick_valid, valid, test = evaluation_loaders(config, dataset, parts)
    make = partial(_make_llmrec, config, folder, clock, point, fingerprints, parts[0])
    model = make(parts[0])  # before all else that takes long, as a backbone may be refused
    assistant = None
    if config.assistant is not None:
        with clock.stage("assistant"):
            cache_dir = cache_folder(settings, folder.path) if settings.sft_cache else None
            own = folder.checkpoints_dir / "assistant"
            assistant = make_assistant(config.assistant, dataset, parts, cache_dir, own)
    sft_epochs = 0 if settings.loss == ZERO_SHOT else settings.sft_epochs
    sft = Stage("sft", sft_epochs, settings.sft_learning_rate, settings.sft_eval_step)
    preference = Stage("preference", config["epochs"], config["learning_rate"], config["eval_step"])
    stages = [sft]
    if settings.has_preference_stage and preference.epochs > 0:
        stages.append(preference)
    train = partial(_train_llmrec, config, folder, clock, signals, point, fingerprints)
    trainer = train(model, parts[0], quick_valid, stages)

    init_seed(config["seed"], config["reproducibility"])  # whether stages were resumed or not
    trainer.eval_collector.data_collect(SimpleNamespace(dataset=parts[0]))
    with clock.stage("tune"):
        model.assistant = assistant
        chosen = model.tune_ranking(partial(_validation_score, trainer, quick_valid))
    with clock.stage("valid"):
        valid_result, fusion = _validate(trainer, valid)
    refitted = {}
    if config["test_information"] == "refit" and len(parts[1]):
        stages = [_refit_stage(stage, config, model, parts[0], folder.path) for stage in stages]
        ranking = model.ranking_choices()
        refitted = {"refit_epochs": {stage.kind: stage.epochs for stage in stages}}
        config.stored_prompt = model.prompt  # a template may make another one now
        del trainer, model  # one model at a time
        everything = train_and_valid(parts)
        model = make(everything)
        trainer = train(model, everything, None, stages)
        model.take_ranking_choices(ranking)
        trainer.eval_collector.data_collect(SimpleNamespace(dataset=everything))
    model.histories = known_at_test(config, parts)
    model.assistant = None if assistant is None else assistant.at_test()
    if model.uses_lora and not model.ranks_by_base:
        # before the test, so that it ranks by the weights that are kept, rounded as they are;
        # plain transformers loads them: the adapter alone would need the SFT weights
        model.lm = merge_lora(model.lm)
    with clock.stage("test"):
        trainer.evaluator = PerUserEvaluator(config)
        init_seed(config["seed"], config["reproducibility"])  # `evaluate` draws the same candidates
        test_result = trainer.evaluate(
            test, load_best_model=False, show_progress=config["show_progress"]
        )
        per_user = folder.path / FILE_NAME
        processes.broadcast_from_main(
            lambda: write_per_user(per_user, trainer.evaluator, test, parts[0])
        )
    lm = merge_lora(model.lm) if model.uses_lora and model.ranks_by_base else model.lm
    _check_finite(lm)
    processes.broadcast_from_main(
        lambda: save_backbone(lm, model.tokenizer, folder.path / MODEL_FOLDER)
    )
    return {
        **_made_from(config, folder, fingerprints),
        "loss": settings.loss,
        "valid_result": valid_result,
        "test_result": test_result,
        **test_description(parts[2]),
        "num_items": dataset.item_num - 1,
        "rows": dataset.row_counts.as_dict(),
        "test_answers_in_training": _known_answers(parts),
        "item_texts": vars(dataset.text_report),
        "test_information": config["test_information"],
        **refitted,
        **fusion,
        **_conversation_counts(config, dataset),
        **chosen,
    }


def _make_llmrec(
    config: Config,
    folder: RunFolder,
    clock: StageClock,
    point: ResumePoint | None,
    fingerprints: dict[str, str],
    part: LLMRecDataset,
    train: LLMRecDataset,
) -> LLMRec:
    """A new model, on the CPU.

    Args:
        config: the run's configuration.
        folder: where the run writes.
        clock: what measures the time.
        point: where a resumed run goes on.
        fingerprints: of the data; backbone and prompt are added.
        part: the training part of the split.
        train: what the model is trained on: `part`, or validation rows as well.
    """
    with clock.stage("backbone"):
        if config.stored_prompt is None:
            config.stored_prompt = processes.broadcast_from_main(
                lambda: _stored_prompt(config, folder, point)
            )
        model: LLMRec = config.model_class(config, part)
        fingerprints |= {BACKBONE: model.backbone.fingerprint, PROMPT: model.prompt.fingerprint}
        _check_point(folder, point, fingerprints)
        if config.stored_prompt is None:
            processes.broadcast_from_main(lambda: write_prompt(folder.path, model.prompt))
        if train is not part:
            model.fit_to(train)
    return model


def _train_llmrec(
    config: Config,
    folder: RunFolder,
    clock: StageClock,
    signals: SignalHandler,
    point: ResumePoint | None,
    fingerprints: dict[str, str],
    model: LLMRec,
    train: LLMRecDataset,
    quick_valid: AbstractDataLoader | None,
    stages: Sequence[Stage],
) -> SetwiseTrainer:
    """A model through its stages, the supervised one first; the last stage's trainer.

    Args:
        config: the run's configuration.
        folder: where it writes.
        clock: what measures the time.
        signals: handler of Ctrl-C and SIGTERM.
        point: where a resumed run goes on.
        fingerprints: of data, backbone and prompt.
        model: as `_make_llmrec` makes it.
        train: what it is trained on.
        quick_valid: what chooses the best epoch; None where it is chosen already, and validation
            rows are trained on too.
        stages: supervised fine-tuning, and preference training where there is such a stage.
    """
    settings = config.settings
    assert settings is not None
    with clock.stage("backbone"):
        model = model.to(config["device"])
        _log_model(model)
    sft, *later = stages
    with clock.stage(sft.name):
        trainer = SetwiseTrainer(config, model, sft, folder.path, signals, fingerprints)
        _train_sft(trainer, train, quick_valid, point)
    for stage in later:
        with clock.stage(stage.name):
            model.start_preference_stage(settings.loss)
            if settings.reference_cache:
                cache_dir = cache_folder(settings, folder.path)
                model.reference_cache = ReferenceCache(
                    cache_dir / f"reference-{reference_key(model)}"
                )
            trainer = SetwiseTrainer(config, model, stage, folder.path, signals, fingerprints)
            batch_size = config["train_batch_size"]
            train_data = _train_loader(config, model, train, settings.loss, batch_size)
            _fit(trainer, train_data, quick_valid, point)
    return trainer


def _refit_stage(
    stage: Stage, config: Config, model: LLMRec, train: LLMRecDataset, run_folder: Path
) -> Stage:
    """The stage as it is trained on validation rows too: as many epochs as made its best weights.

    Args:
        stage: as it was trained and validated.
        config: the run's configuration.
        model: after all stages.
        train: the training part, without the validation rows.
        run_folder: the run's folder.
    """
    if stage.epochs:
        best = run_folder / "checkpoints" / stage.name / "best"
        if stage.name == "sft":
            best = sft_checkpoint(run_folder, config, model)
        n_epochs = check_checkpoint(best)["position"]["epoch"] + 1
    return replace(stage, name=REFIT + stage.name, epochs=stage.epochs and n_epochs, eval_step=0)


def _validate(
    trainer: SetwiseTrainer, valid: AbstractDataLoader
) -> tuple[dict[str, float], dict[str, Any]]:
    """Validation metrics; where an assistant has weights, those of the best, which the model keeps.

    Returns:
        The metrics, {} without a validation part; and what `result.json` says about the assistant.
    """
    if not valid:
        getLogger().warning("the validation part is empty: the weights are those of the last epoch")
        return {}, {}
    config, model = trainer.config, trainer.model

    def metrics_with(weight: float) -> dict[str, float]:
        model.assistant_weight = weight
        found = trainer.evaluate(
            valid, load_best_model=False, show_progress=config["show_progress"]
        )
        return dict(found)

    described: dict[str, Any] = {}
    if model.assistant is not None:
        described = {
            "model": model.assistant.name,
            "settings": model.settings.assistant_settings,
            "valid_result": model.assistant.valid_result,
        }
    if not model.settings.assistant_weights:
        return metrics_with(0.0), {"assistant": described} if described else {}
    weight, curve = choose_weight(
        model.settings.assistant_weights,
        metrics_with,
        config["valid_metric"].lower(),
        config["valid_metric_bigger"],
    )
    model.assistant_weight = weight
    processes.broadcast_from_main(lambda: write_curve(trainer.run_folder / CURVE_FILE, curve))
    chosen = next(point for point in curve if point["weight"] == weight)
    fusion = {"assistant": {**described, "weight": weight, "curve": curve}}
    return {k: v for k, v in chosen.items() if k != "weight"}, fusion


def _validation_score(trainer: SetwiseTrainer, valid: AbstractDataLoader) -> float:
    """`valid_metric` of the model as it is, with the sign that makes larger values better."""
    result = trainer.evaluate(valid, load_best_model=False)
    score = float(result[trainer.valid_metric])
    return score if trainer.valid_metric_bigger else -score


def _conversation_counts(config: Config, dataset: Dataset) -> dict[str, Any]:
    """What `result.json` says about conversations; nothing where contexts are histories."""
    if config["context"] == "history":
        return {}
    counts = {"mentioned_items": config["mentioned_items"], "answers_left_out": dataset.repeats}
    return {"context": "conversation", **counts}


def _resume_point(config: Config, folder: RunFolder) -> ResumePoint | None:
    """Where a resumed run goes on; its logs are cut back to there.

    Raises:
        CheckpointError: no checkpoint of the run is whole.
        ConfigError: the settings are not those of the checkpoint.
    """
    if not config["resume"]:
        return None
    point = find_resume_point(folder.checkpoints_dir)
    if point is None:
        getLogger().info("no checkpoint was written yet: the run begins anew")
        folder.rewind({})
        return None
    # config.yaml, which has been compared, may have been edited since
    check_unchanged(
        folder.path,
        point.state["settings"],
        config.to_dict(),
        backbone_moved=BACKBONE in point.state.get("fingerprints", {}),
    )
    if "fingerprints" not in point.state:
        getLogger().warning(
            f"{point.folder} is of a version that kept no fingerprints: whether data and backbone "
            "are still the same is not known."
        )
    folder.rewind(point.state["logs"])
    return point


def _check_point(
    folder: RunFolder, point: ResumePoint | None, fingerprints: Mapping[str, str]
) -> None:
    """Refuse to go on from a checkpoint that was made from something else; see `check_resumed`."""
    if point is not None:
        check_resumed(folder.path, point.state.get("fingerprints", {}), fingerprints)


def _stored_prompt(
    config: Config, folder: RunFolder, point: ResumePoint | None
) -> StoredPrompt | None:
    """The prompt of a resumed run; None where it is to be rendered.

    Raises:
        CheckpointError: its file is damaged.
    """
    if not config["resume"]:
        return None
    prompt = read_prompt(folder.path)
    if prompt is None and point is not None:
        getLogger().warning(
            f"the run in {folder.path} keeps no prompt, as it was begun by an older version, or "
            f"{PROMPT_FILE} was removed: it is rendered anew, and may be another one than before."
        )
    return prompt


def _check_finite(lm: nn.Module) -> None:
    """Refuse to save weights that are no numbers.

    Raises:
        TrainingError: NaN or an infinity is among them.
    """
    name = not_finite(lm.named_parameters())
    if name is not None:
        raise TrainingError(
            f"the trained model's weight {name} holds NaN or an infinity, and is not saved. Lower "
            "the step size or --clip_grad_norm, or use --dtype=float32, in a new run."
        )


def _made_from(
    config: Config, folder: RunFolder, fingerprints: Mapping[str, str]
) -> dict[str, Any]:
    """What `result.json` says of the run's inputs and of the files of its model."""
    return {
        "fingerprints": dict(fingerprints),
        "settings_hash": settings_hash(config.to_dict()),
        "model_files": processes.broadcast_from_main(
            lambda: file_checksums(folder.path / MODEL_FOLDER)
        ),
    }


def _train_sft(
    trainer: SetwiseTrainer,
    train: LLMRecDataset,
    valid: AbstractDataLoader | None,
    point: ResumePoint | None,
) -> None:
    """The supervised stage, from the cache where all that determines it is the same."""
    config, model = trainer.config, trainer.model
    settings = model.settings
    if trainer.stage.epochs == 0:
        getLogger().info("no supervised stage: the backbone stays as it is")
        return
    cache_dir = cache_folder(settings, trainer.run_folder)
    key = sft_key(config, model, trainer.stage.refit_epochs)
    is_under_way = point is not None and point.stage == trainer.stage.name
    if settings.sft_cache and not is_under_way:
        load = partial(load_cached_sft, cache_dir, key, model, trainer.run_folder)
        if processes.broadcast_from_main(load):  # which has copied the logs
            if not processes.is_main_process():
                load()
            return
    train_data = _train_loader(config, model, train, "sft", settings.sft_batch_size)
    _fit(trainer, train_data, valid, point)
    if settings.sft_cache:
        processes.broadcast_from_main(
            lambda: store_sft(cache_dir, key, trainer.best_folder, trainer.run_folder)
        )


def _train_loader(
    config: Config, model: LLMRec, train: LLMRecDataset, loss_name: str, batch_size: int
) -> SetwiseDataLoader:
    """The set-wise sampler and loader that serve a loss."""
    settings, loss = model.settings, LOSSES[loss_name]
    n_negatives = {"none": 0, "one": 1, "many": settings.num_negatives}[loss.negatives]
    low_rated, known = None, model.histories
    if train.excluded is not None:
        known = known.union(train.excluded)
    if settings.low_ratings != "ignore" and n_negatives:
        low_rated = train.low_rated_items()
        known = known.union(low_rated)
    # The model cannot prefer an item to another of the same text. Where all have the same one,
    # nothing can be learned either way, and a run ends as any other.
    if model.trie.num_leaves > 1:
        known = known.with_groups(model.trie.leaf_of_item.cpu().numpy())
    sampler = SetwiseSampler(
        model.histories,
        model.prompts,
        _negative_sampler(settings, model.histories, known, train.item_num, n_negatives),
        seed=config["seed"] + (SFT_SEED_OFFSET if loss_name == "sft" else 0),
        history_split=settings.history_split,
        target_share=settings.target_share,
        max_targets=settings.max_targets,
        n_negatives=n_negatives,
        one_positive=loss.positives == "one",
        history_as_targets=loss_name == "sft" and settings.sft_targets == "all",
        low_rated=low_rated,
        low_above_unrated=settings.low_ratings == "above_unrated",
        conversations=model.conversations,
    )
    return SetwiseDataLoader(config, train, sampler, batch_size)


def _negative_sampler(
    settings: LLMRecSettings, train_items: UserItems, known: UserItems, n_items: int, n: int
) -> NegativeSampler:
    """The draw of `n` negatives outside the known items that the settings describe."""
    if settings.negatives == "dynamic" and n:
        return DynamicNegatives(known, n_items, n)
    weights = None
    if settings.negative_distribution == "popularity":
        counts = np.bincount(train_items.items, minlength=n_items)
        weights = counts.astype(float) ** settings.popularity_alpha
    return NegativeSampler(known, n_items, weights)


def _fit(
    trainer: SetwiseTrainer,
    train_data: SetwiseDataLoader,
    valid: AbstractDataLoader | None,
    point: ResumePoint | None,
) -> None:
    """Train a stage, or what is left of it after `point`, and load its best weights."""
    config = trainer.config
    name = trainer.stage.name
    is_finished = point is not None and STAGES.index(point.stage) > STAGES.index(name)
    if not (is_finished and trainer.best_folder.exists()):
        # after a cached stage as after another; every process drops out units of its own
        init_seed(config["seed"] + processes.rank(), config["reproducibility"])
        if point is not None and point.stage == name:
            trainer.resume_checkpoint(point.folder)
        if not valid:  # no validation part, or none of its users is ranked
            trainer.eval_step = 0
        trainer.fit(
            train_data, valid if trainer.eval_step else None, show_progress=config["show_progress"]
        )
    trainer.load_best()


def _log_model(model: LLMRec) -> None:
    total = sum(parameter.numel() for parameter in model.lm.parameters())
    trained = sum(p.numel() for p in model.lm.parameters() if p.requires_grad)
    lengths = model.items.lengths[1:].float()
    getLogger().info(
        f"backbone {model.settings.backbone}: {total:,} parameters, {trained:,} trained "
        f"({'LoRA' if model.uses_lora else 'full fine-tuning'}); "
        f"{lengths.mean():.1f} scored tokens per item, at most {int(lengths.max())}; "
        f"{model.trie.num_leaves:,} distinct texts, {model.trie.num_internal:,} inner trie nodes"
    )


def test_description(part: Dataset) -> dict[str, Any]:
    """How many users a part of the split has, and the hash of its rows."""
    n_users = int(part.inter_feat[part.uid_field].unique().numel())
    return {"num_users_evaluated": n_users, "test_set": pairs_fingerprint(part)}
