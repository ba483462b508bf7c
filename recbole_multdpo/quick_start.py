"""Run one model, top to bottom: configuration, data, model, training, evaluation, result."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from logging import getLogger
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.data.dataset import Dataset
from recbole.utils import init_seed
from safetensors import SafetensorError

from recbole_multdpo.classical.assistant import make_assistant
from recbole_multdpo.classical.run import explain_errors, prepare_classical
from recbole_multdpo.classical.teacher import make_teacher
from recbole_multdpo.classical.weights import save_weights
from recbole_multdpo.comparison.against_start import against_start, headline
from recbole_multdpo.data.candidates import lists_of
from recbole_multdpo.data.counted_dataset import fitted_part, train_and_valid
from recbole_multdpo.data.loader import evaluation_loaders, tested_part
from recbole_multdpo.errors import ConfigError, DataError, MultDPOError
from recbole_multdpo.ranking import make_ranker
from recbole_multdpo.ranking.fusion import CURVE_FILE, validate
from recbole_multdpo.ranking.ranker import Ranker
from recbole_multdpo.runs.fingerprints import BACKBONE, data_fingerprints
from recbole_multdpo.runs.folder import (
    RESULT_FILE,
    TEST,
    RunFolder,
    create_run_folder,
    is_finished,
    read_result,
)
from recbole_multdpo.runs.known_sets import recognised
from recbole_multdpo.runs.load import (
    count_known_answers,
    known_at_test,
    load_parts,
    test_description,
)
from recbole_multdpo.runs.model_files import MODEL_FOLDER, check_finite, file_checksums
from recbole_multdpo.runs.per_user import (
    FILE_NAME,
    PerUserEvaluator,
    describe_tested_users,
    write_per_user,
)
from recbole_multdpo.runs.preflight import check_inputs
from recbole_multdpo.runs.resume import (
    ResumePoint,
    check_unchanged,
    find_resume_point,
    resolve_resume,
    run_dtype,
    settings_hash,
)
from recbole_multdpo.runs.unchanged import check_folder
from recbole_multdpo.runs.wandb_run import wandb_run
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import log_detail, quieten_libraries, shows_bars
from recbole_multdpo.runtime.durable_files import is_write_failure, write_atomically
from recbole_multdpo.runtime.interruption import Interrupted, SignalHandler
from recbole_multdpo.runtime.shown_text import show
from recbole_multdpo.runtime.stage_clock import StageClock
from recbole_multdpo.settings.config import Config, load_config
from recbole_multdpo.settings.conversation_models import check_conversation_model
from recbole_multdpo.settings.hardware import apply_tf32
from recbole_multdpo.settings.llmrec import LLMRecSettings
from recbole_multdpo.settings.protocol import lists_in_words
from recbole_multdpo.training.distributed import check_deepspeed
from recbole_multdpo.training.sft_cache import cache_folder
from recbole_multdpo.training.stages import StageRunner, training_limits
from recbole_multdpo.training.start_test import StartTest
from recbole_multdpo.training.trainer import SetwiseTrainer

# stages of the clock in which something is trained
TRAINED = {"sft", "preference", "train"}


def run(argv: Sequence[str]) -> dict[str, Any]:
    """Run one model on one data set as the command line does; returns the content of `result.json`.

    Args:
        argv: `--key=value` arguments, without the program's name.

    Raises:
        MultDPOError: any problem with settings, files or training; the message names the remedy.
        Interrupted: Ctrl-C or SIGTERM; the run can be resumed.
    """
    return run_in_folder(argv)[1]


def run_in_folder(argv: Sequence[str]) -> tuple[Path, dict[str, Any]]:
    """Like `run`; returns the run's folder too."""
    config = load_config(argv)
    quieten_libraries(show_progress=shows_bars(config["show_progress"]))
    if config.settings is None and processes.launched_world_size() > 1:
        raise ConfigError(
            f"model={config['model']}: RecBole's own models run in one process, and "
            f"{processes.launched_world_size()} were started. Start it without torchrun or "
            "deepspeed."
        )
    if config["num_threads"]:
        torch.set_num_threads(config["num_threads"])
    with processes.process_group(config["device"], single=config.deepspeed is not None):
        config = _settled(config)
        apply_tf32(config.settings)
        if config.deepspeed is not None:
            check_deepspeed(config.deepspeed, config["device"])
        if not (
            config["resume"] and is_finished(Path(config["resume"]), tested=config["final_test"])
        ):
            check_inputs(config)
        if not processes.is_main_process():
            config["show_progress"] = config["log_wandb"] = False
        result = _run(config)
        return Path(config["checkpoint_dir"]).parent, result


def _settled(config: Config) -> Config:
    """The configuration with the run to continue, and the `dtype` of that run or all processes."""

    def settle() -> tuple[str | None, str | None]:
        folder = resolve_resume(config)
        return folder, run_dtype(config, folder)

    folder, dtype = processes.broadcast_from_main(settle)
    if dtype != config["dtype"]:
        settled = load_config(config.argv, auto_dtype=dtype)
        settled.warnings = list(dict.fromkeys([*config.warnings, *settled.warnings]))
        settled.notes = config.notes
        config = settled
    config["resume"] = folder
    return config


def _run(config: Config) -> dict[str, Any]:
    """Run one model in its run folder, together with the other processes if there are any."""
    with create_run_folder(config) as folder, SignalHandler() as signals:
        if config["resume"] and processes.broadcast_from_main(lambda: folder.is_finished):
            getLogger().info(f"this run is finished: {folder.result_file}")
            result = read_result(folder.result_file)
            if TEST in result:
                processes.broadcast_from_main(lambda: check_folder(folder.path, result))
            return result
        clock = StageClock()
        try:
            with wandb_run(config, folder.path) as log_tests:
                if config.settings is None:
                    folder.rewind({})  # RecBole's own models start from scratch
                    result = _run_classical(config, folder, clock)
                else:
                    result = _run_llmrec(config, config.settings, folder, clock, signals)
                log_tests(result)
        except (ConfigError, DataError):
            # nothing was trained: a refused start leaves nothing that --resume could continue
            folder.refused = not config["resume"] and not clock.seconds.keys() & TRAINED
            raise
        except Interrupted as interruption:
            interruption.args = (f"{interruption}; continue with --resume={folder.path}",)
            raise
        except (OSError, SafetensorError) as error:
            if not is_write_failure(error):
                raise
            raise MultDPOError(
                f"cannot write ({error}). Free disk space, or make {folder.path} writable; then "
                f"continue with --resume={folder.path}"
            ) from error
        seconds = {name: round(value, 2) for name, value in clock.seconds.items()}
        if config.settings is not None:  # trained before, where only the test was missing
            seconds |= processes.broadcast_from_main(folder.seconds_before)
        result["seconds"] = seconds
        written = folder.write_result(result)
        if processes.is_main_process():
            report = "\n".join(
                [*headline(written), "", _table(written), "", *_next_commands(config, folder.path)]
            )
            log_detail(report)
            show(report, flush=True)  # a result belongs on stdout, however quiet the log is
        return written


def _next_commands(config: Config, folder: Path) -> list[str]:
    """Commands to go on with after a run."""
    if not config["final_test"]:
        name = shlex.quote(str(folder))
        return [
            f"result: {folder / RESULT_FILE}, without a test (final_test=False); to make it:",
            f"  recbole-multdpo --resume={name} --final_test=True",
        ]
    lines = [
        f"result: {folder / RESULT_FILE}; next:",
        f"  python -m recbole_multdpo.recommend {shlex.quote(str(folder))} --users=ID",
        f"  python -m recbole_multdpo.demo {shlex.quote(str(folder))}",
    ]
    # the arguments of a resumed run are not all of its settings
    if config.settings is not None and config["model"] == "LLMRec" and not config["resume"]:
        own = ("--model=", "--run_dir=", "--resume=", "--show_progress=", "--state=")
        kept = [text for text in config.argv if not text.startswith(own)]
        lines.append(f"  {shlex.join(['recbole-multdpo', '--model=LLMRec,EASE', *kept])}")
    return lines


def _table(result: Mapping[str, Any]) -> str:
    """Metrics of validation and tests side by side, as text; candidate lists stand above."""
    named = {"valid": "valid_result", "test": "test_result", "SFT test": "sft_test_result"}
    columns = {name: result[key] for name, key in named.items() if key in result}
    lines = [f"{'metric':<20}" + "".join(f"{name:>10}" for name in columns)]
    if "candidate_lists" in result:
        lines.insert(0, f"test: {lists_in_words(result['candidate_lists'])}; valid: no lists")
    for name in columns.get("test", columns["valid"]):
        values = (column.get(name, float("nan")) for column in columns.values())
        lines.append(f"{name:<20}" + "".join(f"{value:>10.4f}" for value in values))
    return "\n".join(lines)


def _run_classical(config: Config, folder: RunFolder, clock: StageClock) -> dict[str, Any]:
    """Train and test a model of RecBole through RecBole's own loaders and trainer."""
    on_conversations = config["context"] == "conversation"
    if on_conversations:
        check_conversation_model(config)
    with clock.stage("data"):
        dataset, parts = load_parts(config)
        fingerprints = data_fingerprints(dataset, parts)
    show_progress = shows_bars(config["show_progress"])
    with clock.stage("train"), explain_errors(config):
        classical = prepare_classical(config, dataset, parts)
        valid_result = classical.fit(show_progress)
    if not config["final_test"]:
        return _validated(config, fingerprints, valid_result)
    with clock.stage("refit" if config["test_information"] == "refit" else "test"):
        classical = classical.for_test(show_progress)
    with clock.stage("test"), explain_errors(config):
        trainer = classical.trainer
        trainer.evaluator = PerUserEvaluator(config)
        init_seed(config["seed"], config["reproducibility"])  # a model may draw when it ranks
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
        **test_description(tested_part(config, parts[2])),
        **lists_of(classical.test_data),
        **recognised(parts, tested_part(config, parts[2])),
        "num_items": dataset.item_num - 1,
        "rows": dataset.row_counts.as_dict(),
        "test_answers_in_training": count_known_answers(parts),
        "test_information": config["test_information"],
        "seen_items": config["seen_items"],
        **_trial(describe_tested_users(trainer.evaluator, parts[2], classical.test_data)),
        **_conversation_counts(config, dataset),
    }


def _run_llmrec(
    config: Config,
    settings: LLMRecSettings,
    folder: RunFolder,
    clock: StageClock,
    signals: SignalHandler,
) -> dict[str, Any]:
    """Train the language model, in one or two stages, and test its ranking."""
    point = processes.broadcast_from_main(lambda: _resume_point(config, folder))
    with clock.stage("data"):
        dataset, parts = load_parts(config)
        fingerprints = processes.broadcast_from_main(lambda: data_fingerprints(dataset, parts))
        cache_dir = cache_folder(settings, folder.path) if settings.sft_cache else None
        helpers = cache_dir or folder.checkpoints_dir
        teacher = None
        if config.teacher is not None:
            teacher = partial(make_teacher, config.teacher, dataset, folder=helpers)
        runner = StageRunner(config, folder, clock, signals, point, fingerprints, teacher)
        runner.check_fingerprints()
        quick_valid, valid, test = evaluation_loaders(config, dataset, parts)
        runner.valid_users = _share_of_users(quick_valid, parts[1])
    model = runner.make_model(parts[0])  # first, as a backbone may be refused
    ranker = make_ranker(model, model.histories)
    assistant = None
    if config.assistant is not None:
        with clock.stage("assistant"):
            own = folder.checkpoints_dir / "assistant"
            assistant = make_assistant(config.assistant, dataset, parts, cache_dir, own)
    stages = runner.stages()
    refits = config["test_information"] == "refit" and len(parts[1]) > 0

    def ranker_of_start(trainer: SetwiseTrainer) -> Ranker:
        of_start = replace(trainer.ranker, assistant=assistant)
        if refits:  # no validation part is left; the choice is that of the aligned model
            of_start = replace(of_start, **choices)
        elif assistant is not None and valid:
            of_start = _chosen_weight(trainer, of_start, valid)[0]
        return of_start.for_test(known_at_test(config, parts))

    fitted = fitted_part(config["test_information"], parts)
    start = StartTest(
        config, folder.path, parts[0], fitted, test, ranker_of_start, runner.fingerprints
    )
    choices: dict[str, Any] = {}
    test_start = start.make if config["final_test"] and not refits else None
    # the validation is that of the best epoch where both rank the same users
    again = bool(valid) and (assistant is not None or valid is not quick_valid)
    ranked = {"valid": valid} if again else {}
    if config["final_test"]:
        ranked["test"] = test
    trainer = runner.train(ranker, parts[0], quick_valid, stages, test_start, ranked)
    _merge_adapter(ranker)

    init_seed(config["seed"], config["reproducibility"])  # the same whether resumed or not
    trainer.eval_collector.data_collect(SimpleNamespace(dataset=parts[0]))
    ranker = replace(ranker, assistant=assistant)
    with clock.stage("tune"):
        ranker, chosen = ranker.tune(partial(_validation_score, trainer, quick_valid))
    with clock.stage("valid"):
        ranker, valid_result, fusion = _validate(trainer, ranker, valid)
    if not config["final_test"]:
        best = {"best_epochs": runner.best_epochs}
        return _validated(config, fingerprints, valid_result) | best | fusion | chosen
    refitted = {}
    if refits:
        stages = [runner.refit(stage, model) for stage in stages]
        choices = ranker.choices
        refitted = {"refit_epochs": {stage.kind: stage.epochs for stage in stages}}
        del trainer, ranker, model  # one model at a time
        everything = train_and_valid(parts)
        model = runner.make_model(parts[0], everything)
        ranker = replace(make_ranker(model, model.histories), assistant=assistant, **choices)
        trainer = runner.train(ranker, everything, None, stages, start.make)
        _merge_adapter(ranker)
        trainer.eval_collector.data_collect(SimpleNamespace(dataset=everything))
    ranker = ranker.for_test(known_at_test(config, parts))
    with clock.stage("test"):
        trainer.evaluator = PerUserEvaluator(config)
        test_result = trainer.evaluate_ranker(ranker, test, config["show_progress"])
        per_user = folder.path / FILE_NAME
        processes.broadcast_from_main(
            lambda: write_per_user(per_user, trainer.evaluator, test, parts[0])
        )
    against = processes.broadcast_from_main(
        lambda: _against_start(config, folder, start, test_result)
    )
    tested_users = describe_tested_users(trainer.evaluator, parts[2], test)
    model.merge_adapter()  # of a ranker that has read the base
    check_finite(
        model.lm,
        "Lower the step size or --clip_grad_norm, or use --dtype=float32, in a new run.",
    )
    processes.broadcast_from_main(lambda: model.save(folder.path / MODEL_FOLDER))
    return {
        **_made_from(config, folder, fingerprints),
        "loss": settings.loss,
        "dtype": settings.dtype,
        "valid_result": valid_result,
        "test_result": test_result,
        **test_description(tested_part(config, parts[2])),
        **lists_of(test),
        **recognised(parts, tested_part(config, parts[2])),
        "num_items": dataset.item_num - 1,
        "rows": dataset.row_counts.as_dict(),
        "test_answers_in_training": count_known_answers(parts),
        "item_texts": vars(dataset.text_report),
        "test_information": config["test_information"],
        **({} if settings.teacher is None else {"sft_teacher": settings.teacher}),
        "seen_items": config["seen_items"],
        **_trial({**training_limits(model), **tested_users}),
        "best_epochs": runner.best_epochs,
        **({} if runner.price is None else {"expected_seconds": runner.price.seconds}),
        **against,
        **refitted,
        **fusion,
        **_conversation_counts(config, dataset),
        **chosen,
    }


def _validated(
    config: Config, fingerprints: Mapping[str, str], valid_result: Mapping[str, float]
) -> dict[str, Any]:
    """Content of `result.json` of a run that ends after validation (`final_test=False`)."""
    return {
        "fingerprints": dict(fingerprints),
        "settings_hash": settings_hash(config.to_dict()),
        "valid_result": dict(valid_result),
    }


def _against_start(
    config: Config,
    folder: RunFolder,
    start: StartTest,
    result: Mapping[str, float],
) -> dict[str, Any]:
    """Entries of `result.json` about the model that preference training started from."""
    if start.result is None:
        return {"against_sft": {"left_out": start.left_out}} if start.left_out else {}
    metric = config["valid_metric"].lower()
    against = against_start(folder.path, metric, start.result, result)
    return {"sft_test_result": start.result, "against_sft": against}


def _share_of_users(loader: AbstractDataLoader, part: Dataset) -> str:
    """Who is ranked of a part: `200 of 942 users`, or `942 users`."""
    ranked, everybody = (
        int(each.inter_feat[each.uid_field].unique().numel()) for each in (loader._dataset, part)
    )
    return f"{everybody:,} users" if ranked == everybody else f"{ranked:,} of {everybody:,} users"


def _merge_adapter(ranker: Ranker) -> None:
    """Merge the adapter before validation and test: these rank by the weights that are saved.

    Merged weights load in plain transformers, while the adapter alone would need the SFT weights.
    """
    if not ranker.reads_base:
        ranker.model.merge_adapter()


def _validate(
    trainer: SetwiseTrainer, ranker: Ranker, valid: AbstractDataLoader
) -> tuple[Ranker, dict[str, float], dict[str, Any]]:
    """Compute validation metrics; if an assistant has several weights, choose the best.

    Returns:
        The ranker with that weight; its metrics, {} without a validation part; and the entry of
        `result.json` about the assistant.
    """
    if not valid:
        getLogger().warning("the validation part is empty: the last epoch's weights are used")
        return ranker, {}, {}
    known = trainer.best_metrics(ranker, valid)
    if known:
        return ranker, known, {}
    ranker, found, described = _chosen_weight(trainer, ranker, valid)
    if "curve" in described:
        curve = pd.DataFrame(described["curve"]).to_csv(index=False)
        file = trainer.run_folder / CURVE_FILE
        processes.broadcast_from_main(lambda: write_atomically(file, curve))
    return ranker, found, {"assistant": described} if described else {}


def _chosen_weight(
    trainer: SetwiseTrainer, ranker: Ranker, valid: AbstractDataLoader
) -> tuple[Ranker, dict[str, float], dict[str, Any]]:
    """`validate` with the users of a loader; returns what it returns."""
    return validate(
        ranker,
        lambda tried, weights: trainer.evaluate_weights(
            tried, weights, valid, trainer.config["show_progress"]
        ),
        trainer.valid_metric,
        trainer.valid_metric_bigger,
    )


def _validation_score(trainer: SetwiseTrainer, valid: AbstractDataLoader, ranker: Ranker) -> float:
    """`valid_metric` of a ranker, with the sign that makes larger values better."""
    score = float(trainer.evaluate_ranker(ranker, valid)[trainer.valid_metric])
    return score if trainer.valid_metric_bigger else -score


def _trial(limits: Mapping[str, Any]) -> dict[str, Any]:
    """Entry of `result.json` about a trial; none of a whole run."""
    return {"trial": dict(limits)} if limits else {}


def _conversation_counts(config: Config, dataset: Dataset) -> dict[str, Any]:
    """Entries of `result.json` about conversations; none if prompts show histories."""
    if config["context"] == "history":
        return {}
    counts = {"mentioned_items": config["mentioned_items"], "answers_left_out": dataset.repeats}
    return {"context": "conversation", **counts}


def _resume_point(config: Config, folder: RunFolder) -> ResumePoint | None:
    """Find the checkpoint from which a resumed run continues, and truncate the logs to it.

    Raises:
        CheckpointError: no checkpoint of the run is intact.
        ConfigError: the settings differ from the checkpoint's.
    """
    if not config["resume"]:
        return None
    point = find_resume_point(folder.checkpoints_dir)
    if point is None:
        getLogger().info("no checkpoint was written yet: starting from scratch")
        folder.rewind({})
        return None
    # config.yaml, which was compared before, may have been edited
    check_unchanged(
        folder.path,
        point.state["settings"],
        config.to_dict(),
        backbone_moved=BACKBONE in point.state.get("fingerprints", {}),
    )
    if "fingerprints" not in point.state:
        getLogger().warning(
            f"{point.folder} is from a version that kept no fingerprints: it cannot be checked "
            "that data and backbone are still the same."
        )
    folder.rewind(point.state["logs"])
    return point


def _made_from(
    config: Config, folder: RunFolder, fingerprints: Mapping[str, str]
) -> dict[str, Any]:
    """Entries of `result.json` about the run's inputs and the files of its model."""
    return {
        "fingerprints": dict(fingerprints),
        "settings_hash": settings_hash(config.to_dict()),
        "model_files": processes.broadcast_from_main(
            lambda: file_checksums(folder.path / MODEL_FOLDER)
        ),
    }
