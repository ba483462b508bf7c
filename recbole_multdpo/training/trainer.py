"""RecBole's trainer for one stage of LLMRec: epochs, validation and checkpoints."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from recbole.config import Config
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.trainer import Trainer
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_scheduler

from recbole_multdpo.data.batch import SetwiseBatch
from recbole_multdpo.data.dynamic_negatives import DynamicNegatives
from recbole_multdpo.data.loader import SetwiseDataLoader
from recbole_multdpo.errors import CheckpointError, TrainingError
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.model.lora import merged_for_ranking
from recbole_multdpo.ranking.ranker import Ranker
from recbole_multdpo.runs.checkpoint import (
    check_checkpoint,
    load_checkpoint,
    load_trainable_tensors,
    remove_old_steps,
    save_checkpoint,
    step_folder,
    step_folders,
)
from recbole_multdpo.runs.fingerprints import check_resumed
from recbole_multdpo.runs.logs import log_sizes
from recbole_multdpo.runs.resume import settings_hash
from recbole_multdpo.runs.step_log import StepLog
from recbole_multdpo.runs.wandb_run import StageLogger
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import Progress, counted, duration, log_detail
from recbole_multdpo.runtime.interruption import Interrupted, SignalHandler
from recbole_multdpo.runtime.out_of_memory import is_out_of_memory
from recbole_multdpo.runtime.random_state import random_state, restore_random_state
from recbole_multdpo.training.bounds_log import BoundsLog
from recbole_multdpo.training.collector import TopKCollector
from recbole_multdpo.training.distributed import Engine, make_engine
from recbole_multdpo.training.evaluation import collect_rankings, ranking_seconds
from recbole_multdpo.training.master_weights import saved_in_float32
from recbole_multdpo.training.memory import fit_into_memory, memory_state, restore_memory
from recbole_multdpo.training.negative_draw import draw_negatives
from recbole_multdpo.training.optimizer_state import check_tensors
from recbole_multdpo.training.price import StepPrice
from recbole_multdpo.training.step import NotFinite, OutOfMemory, Stage, TrainingStep

RANDOM, NEGATIVES = "random.", "negatives."  # prefixes in the optimizer's file
DIVERGED = 2.0  # an epoch's mean loss over that of the stage's first epoch, for a warning
SHOWN = ("loss", "margin", "reward_accuracy")  # metrics of a step that the console has room for


@dataclass
class Position:
    """Progress of a stage.

    Attributes:
        epoch: the current epoch, from 0.
        batch: number of its batches that are trained.
        n_contexts: number of examples in these batches, by its name in checkpoints.
        sums: metrics of these batches, each times the batch's number of examples.
        first_loss: mean loss of the stage's first epoch; None before its end.
    """

    epoch: int = 0
    batch: int = 0
    n_contexts: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    first_loss: float | None = None

    def next_epoch(self) -> Position:
        """The start of the next epoch."""
        return Position(self.epoch + 1, first_loss=self.first_loss)


class SetwiseTrainer(Trainer):
    """Trains one stage with RecBole's loop, early stopping and evaluator.

    Unlike RecBole's, batches are `SetwiseBatch`es, the learning rate is scheduled per step,
    checkpoints hold no pickled object, and a ranker is evaluated instead of the model. Several
    processes make the same steps, each with its share of every batch; the main process writes.

    Attributes:
        ranker: evaluated between epochs.
        step: makes the optimizer steps.
        global_step: optimizer steps of the stage so far.
        position: epoch and batch.
        folder: the stage's checkpoints, `step-<n>` and `best`.
        step_log: `steps.csv` and `validations.csv`; None on other ranks than 0.
        bounds_log: `bounds.csv`; None if bounds are not tracked.
        resumed_schedule: state of the schedule in a checkpoint, until `fit` makes the schedule.
        resumed_optimizer: optimizer tensors of a checkpoint, until the next step.
        resumed_negatives: dynamic negatives of a checkpoint, until its epoch continues.
        resumed_max_rows: `TrainingStep.max_rows` of a checkpoint, until the first use of `step`.
        drawn_negatives: the epoch's dynamic negatives; None for other negatives.
    """

    def __init__(
        self,
        config: Config,
        model: LLMRec,
        stage: Stage,
        run_folder: Path,
        ranker: Ranker,
        signals: SignalHandler | None = None,
        fingerprints: Mapping[str, str] | None = None,
    ) -> None:
        """Set up a stage.

        Args:
            config: the run's configuration.
            model: at the start of the stage, on its device.
            stage: name, length and learning rate.
            run_folder: gets the stage's checkpoints in `checkpoints/<stage>`.
            ranker: of the model, for the validations between epochs.
            signals: handler whose signals end the run after a step; None: signals are not handled.
            fingerprints: of data, backbone and prompt, for the checkpoints.
        """
        self.stage, self.settings = stage, model.settings
        self.ranker = ranker
        asked, config["epochs"] = config["epochs"], stage.epochs  # RecBole compares numbers
        super().__init__(config, model)
        config["epochs"] = asked
        self.wandblogger = StageLogger(config, stage.name)
        self.eval_step = min(stage.eval_step, stage.epochs)
        self.eval_collector = TopKCollector(config)
        self.run_folder = run_folder
        self.folder = run_folder / "checkpoints" / stage.name
        self.best_folder = self.folder / "best"
        self.signals = signals or SignalHandler()
        self.fingerprints = dict(fingerprints or {})
        self.bounds_log: BoundsLog | None = None
        self.step_log: StepLog | None = None
        self.saved_model_file = str(self.best_folder)
        self.schedule: LRScheduler | None = None
        self._step: TrainingStep | None = None
        self.resumed_schedule: dict[str, Any] | None = None
        self.resumed_optimizer: dict[str, Tensor] | None = None
        self.resumed_negatives: dict[str, Tensor] = {}
        self.resumed_max_rows: int | None = None
        self.model.set_max_tokens(None)  # there may be that of another stage
        self.drawn_negatives: DynamicNegatives | None = None
        self._valid_data: AbstractDataLoader | None = None
        self._last_metrics: dict[str, float] = {}  # of the present weights, until the next step
        self._best_metrics: dict[str, float] = {}  # of the weights in `best`
        self.global_step = 0
        self.position = Position()
        self.best_epoch: int | None = None  # of the weights that `load_best` has loaded
        self.valid_users = ""  # such as "200 of 942 users"
        self.time_left: Callable[[float, float], float] | None = None  # see `Price.left`
        self.expected_step: StepPrice | None = None
        self._first_step = 0  # of this process
        self._stage_start = self._epoch_start = time.perf_counter()
        self._n_steps = 0

    # ---- optimisation ----

    def _build_optimizer(self, **kwargs: Any) -> torch.optim.Optimizer:
        trained = [p for p in self.model.lm.parameters() if p.requires_grad]
        return super()._build_optimizer(params=trained, learning_rate=self.stage.learning_rate)

    @property
    def step(self) -> TrainingStep:
        """The stage's `TrainingStep`, made at its first use and dropped at the end of `fit`."""
        if self._step is None:
            self._step = TrainingStep(
                self.settings,
                make_engine(self.config, self.model, self.optimizer),
                self.stage,
                items=self.model.catalogue.items,
                user_name=self.model.user_name,
                bounds_log=self.bounds_log,
                max_rows=self.resumed_max_rows,
            )
        return self._step

    @property
    def engine(self) -> Engine:
        """The engine of the stage's steps."""
        return self.step.engine

    def _unsharded_model(self) -> AbstractContextManager[None]:
        """Context in which each process can run the model alone."""
        return nullcontext() if self._step is None else self.engine.unsharded()

    def _merged_for(self, ranker: Ranker) -> AbstractContextManager[None]:
        """Context in which the adapter is merged, unless the ranker reads the model without it."""
        return nullcontext() if ranker.reads_base else merged_for_ranking(self.model.lm)

    def set_epochs(self, n_batches: int) -> None:
        """Make as many epochs as the stage's `max_steps` take, if it has any.

        Args:
            n_batches: steps of a whole epoch.
        """
        max_steps = self.stage.max_steps
        if not max_steps:
            return
        self.epochs = math.ceil(max_steps / n_batches)
        self.eval_step = min(self.stage.eval_step, self.epochs)
        self.logger.info(
            f"trial: the {self.stage.name} stage ends after step {max_steps:,} "
            f"({counted(self.stage.epochs * n_batches, 'step')} by epochs)"
        )

    def fit(self, train_data: SetwiseDataLoader, valid_data=None, **kwargs: Any):  # type: ignore[no-untyped-def]
        """Train the stage; returns RecBole's (best score, best result).

        Writes a `step-<n>` checkpoint, from which `resume_checkpoint` continues, every `save_steps`
        steps, at every validation (without validation at every epoch) and before an interruption,
        and `best` when the validation metric improves.

        Args:
            train_data: loader of the training part.
            valid_data: RecBole's loader of the validation part; None for no validation.
            **kwargs: RecBole's.

        Raises:
            TrainingError: the loss is not finite, or memory runs out.
            CheckpointError: a checkpoint cannot be written, or the resumed one does not fit.
            Interrupted: a signal ended the run; the step is saved.
        """
        n_steps = self.stage.max_steps or self.epochs * len(train_data)
        self._n_steps, self._stage_start = n_steps, time.perf_counter()
        self._first_step = self.global_step
        self.schedule = get_scheduler(
            self.settings.lr_scheduler_type,
            self.optimizer,
            num_warmup_steps=math.ceil(self.settings.warmup_ratio * n_steps),
            num_training_steps=max(n_steps, 1),
        )
        if self.resumed_schedule is not None:
            self._restore_schedule(self.resumed_schedule)
        if self.eval_step and self.stage.unvalidated:
            setting = "sft_eval_step" if self.stage.kind == "sft" else "eval_step"
            self.logger.warning(
                f"no validation follows the last {self.stage.unvalidated} of {self.epochs} "
                f"{self.stage.name} epochs, so that they cannot become the result. Set --{setting} "
                "to a number that divides the epochs."
            )
        if processes.is_main_process():
            self.step_log = StepLog(self.run_folder, self.stage.name)
        if self.stage.kind == "preference" and self.settings.track_bounds:
            file = self.run_folder / "bounds.csv"
            self.bounds_log = processes.broadcast_from_main(lambda: BoundsLog(file))
        self._valid_data = valid_data
        self._validate_start(train_data, kwargs.get("show_progress", False))
        found = super().fit(
            train_data,
            valid_data,
            verbose=False,  # RecBole's lines say what ours do, with another numbering
            callback_fn=lambda epoch, score: self._save_epoch(),
            **kwargs,
        )
        if self.cur_step > self.stopping_step:
            self.logger.info(
                f"{self.stage.name}: {counted(self.cur_step, 'validation')} without improvement "
                f"(--stopping_step={self.stopping_step}), the stage ends early"
            )
        self.engine.finish()
        self._step = None
        self._save_reference_cache()  # an epoch without a checkpoint may have been the last
        return found

    def _validate_start(self, train_data: SetwiseDataLoader, show_progress: bool) -> None:
        """Validate the weights that preference training starts from: they may stay the best.

        A refit has no validation, and the first stage starts from weights of no use.
        """
        wanted = self.settings.eval_on_start and self.stage.kind == "preference"
        if self._valid_data is None or not wanted or self.global_step:
            return
        self.eval_collector.data_collect(train_data)
        score, result = self._valid_epoch(self._valid_data, show_progress)
        self._fit_into_memory(train_data)
        self.best_valid_score = score
        self._save_checkpoint(0, verbose=False)
        self.best_valid_result = result
        processes.barrier()

    def _fit_into_memory(self, train_data: SetwiseDataLoader) -> None:
        """Choose the sizes of the parts before the engine is made."""
        self.model.train()
        if self._step is None:
            fit_into_memory(self.config, self.model, train_data, self.stage.name)

    def _train_epoch(  # type: ignore[no-untyped-def]
        self, train_data, epoch_idx, loss_func=None, show_progress=False
    ) -> float:
        """Train the epoch, in a resumed run its rest; returns the epoch's mean loss."""
        assert self.schedule is not None
        if self.position.epoch != epoch_idx:
            self.position = self.position.next_epoch()
        train_data.set_epoch(epoch_idx, self.position.batch)
        self._epoch_start = time.perf_counter()
        self._draw_negatives(train_data, epoch_idx, show_progress)
        self._fit_into_memory(train_data)
        processes.barrier()  # the main process may still report the validation before
        n_batches = len(train_data)
        if self.stage.max_steps:
            if self.eval_step and epoch_idx + 1 == self.epochs:
                self.eval_step = self.epochs  # RecBole then validates after this epoch
            left = self.stage.max_steps - self.global_step
            n_batches = min(n_batches, self.position.batch + left)
        progress = Progress(
            islice(train_data, n_batches - self.position.batch),
            n_batches,
            f"{self.stage.name} epoch {epoch_idx + 1}/{self.epochs}",
            show=show_progress,
            initial=self.position.batch,
        )
        with self.signals.deferred():
            for batch in progress:
                metrics = self._train_step(batch.to(self.device))
                self._count(metrics, self.step.n_examples)
                progress.shown = {name: metrics[name] for name in SHOWN if name in metrics}
                # signals arrive at different steps in different processes
                self.signals.requested = (
                    processes.all_reduce_max(self.signals.requested or 0) or None
                )
                if self.signals.requested is not None:
                    self._save_step()
                    self.signals.stop()
                if self._is_save_due(n_batches):
                    self._save_step()
        return self._finish_epoch()

    def _count(self, metrics: Mapping[str, float], n_examples: int) -> None:
        """Log a step's metrics and add them to the epoch's sums."""
        position = self.position
        is_first = position.batch == 0
        position.batch += 1
        position.n_contexts += n_examples
        if self.step_log is not None:
            self.step_log.step(self.global_step, position.epoch + 1, metrics)
        for name, value in metrics.items():
            self.tensorboard.add_scalar(f"{self.stage.name}/{name}", value, self.global_step)
            # an epoch that an older version started lacks newer metrics in its first steps
            if is_first or name in position.sums:
                position.sums[name] = position.sums.get(name, 0.0) + value * n_examples
        self.wandblogger.log(metrics, self.global_step)

    def _finish_epoch(self) -> float:
        """Log the epoch's mean metrics; returns the mean loss."""
        position = self.position
        means = {name: total / position.n_contexts for name, total in position.sums.items()}
        epoch = f"{self.stage.name} epoch {position.epoch + 1}/{self.epochs}"
        shown = ", ".join(f"{name} {means[name]:.4g}" for name in SHOWN if name in means)
        now = time.perf_counter()
        took, left = now - self._epoch_start, ""
        done = self.global_step - self._first_step
        if self.time_left is not None and done:
            share = done / max(self._n_steps - self._first_step, 1)
            left = f", about {duration(self.time_left(share, now - self._stage_start))} left"
        if self.expected_step is not None and done:
            # in the first epoch of this process, all steps are its own
            left += (
                f" ({took / done:.2g} s per step, {self.expected_step.seconds:.2g} were expected)"
            )
            self.expected_step = None
        self.logger.info(f"{epoch}: {shown}; {duration(took)}{left}")
        log_detail(
            f"{epoch}: "
            + ", ".join(f"{name} {value:.4g}" for name, value in means.items() if "/" not in name)
        )
        if position.first_loss is None:
            position.first_loss = means["loss"]
        elif means["loss"] > DIVERGED * position.first_loss > 0:
            self.logger.warning(
                f"the mean loss has grown from {position.first_loss:.4g} in the first epoch to "
                f"{means['loss']:.4g}: training may diverge. Lower --{self.stage.rate_setting}."
            )
        return means["loss"]

    def _add_train_loss_to_tensorboard(self, *_: Any, **__: Any) -> None:
        """Do nothing: `_count` logs every step under the stage's name."""

    def _valid_epoch(self, valid_data, show_progress=False):  # type: ignore[no-untyped-def]
        """RecBole's validation; a resumed run repeats one that a signal interrupted.

        Only a single process saves the step before it: several would have to agree on where to
        stop, so they continue from their last checkpoint.
        """
        before, start = random_state(self.device), time.perf_counter()
        try:
            score, result = super()._valid_epoch(valid_data, show_progress)
        except Interrupted:
            if processes.world_size() == 1 and self.global_step:
                restore_random_state(before, self.device)
                self._save_step()
            raise
        self._last_metrics = result
        if self.step_log is not None:
            self.step_log.validation(self.global_step, result)
        self.wandblogger.log({f"valid/{k}": v for k, v in result.items()}, self.global_step)
        self._log_validation(score, result, time.perf_counter() - start)
        return score, result

    def _log_validation(self, score: float, result: Mapping[str, float], seconds: float) -> None:
        """Log a validation before its score is compared with the best one."""
        at = f"{self.stage.name} epoch {self.position.epoch + 1}/{self.epochs}"
        if not self.global_step:
            at = f"before {self.stage.name} training"
        former = self.best_valid_score
        is_best = score >= former if self.valid_metric_bigger else score <= former
        users = f" ({self.valid_users})" if self.valid_users else ""
        best = ", the best so far" if is_best and self.global_step else ""
        self.logger.info(
            f"{at}: valid {self.valid_metric} {score:.4f}{users}{best}; {duration(seconds)}"
        )
        log_detail("valid: " + ", ".join(f"{key} {value}" for key, value in result.items()))

    def _draw_negatives(
        self, train_data: SetwiseDataLoader, epoch: int, show_progress: bool
    ) -> None:
        """Draw the epoch's dynamic negatives by the current policy; nothing for other negatives."""
        sampler = train_data.setwise_sampler
        negatives = sampler.negative_sampler
        if not isinstance(negatives, DynamicNegatives):
            return
        self.drawn_negatives = negatives
        if self.resumed_negatives:  # drawn by the policy at the start of the epoch
            negatives.restore(epoch, self.resumed_negatives)
            self.resumed_negatives = {}
            return
        self.model.eval()
        start = time.perf_counter()
        # log-ratios need the weights without the adapter too
        by_ratio = self.settings.dynamic_weights == "ratio"
        with (
            self._unsharded_model(),
            nullcontext() if by_ratio else merged_for_ranking(self.model.lm),
        ):
            draw_negatives(
                self.model, sampler, negatives, train_data.users, epoch, show_progress=show_progress
            )
        self.logger.info(
            f"negatives of {counted(len(train_data.users), 'example')} drawn by the policy; "
            f"{duration(time.perf_counter() - start)}"
        )

    def _train_step(self, batch: SetwiseBatch) -> dict[str, float]:
        """Make one optimizer step over a batch and advance the schedule; the step's metrics.

        Raises:
            TrainingError: the loss is not finite, or memory runs out; after the latter, a single
                process has saved the state before the step.
        """
        assert self.schedule is not None
        if self.resumed_optimizer is not None:
            self.engine.load_optimizer_state(self.resumed_optimizer, batch)
            self.resumed_optimizer = None
        try:
            metrics = self.step.run(batch, self.global_step + 1)
        except NotFinite as error:
            raise TrainingError(
                f"{error} Last good checkpoint: {self._last_checkpoint()}"
            ) from None
        except OutOfMemory as error:
            self._save_after_failure()
            raise TrainingError(
                f"{error} Continue with --resume={self.run_folder}. Last checkpoint: "
                f"{self._last_checkpoint()}"
            ) from None
        metrics["learning_rate"] = float(self.schedule.get_last_lr()[0])
        self.schedule.step()
        self.global_step += 1
        return metrics

    def _save_after_failure(self) -> None:
        """Save the state before a failed step, if this is the only process."""
        try:
            if processes.world_size() == 1:
                self._save_step()
        except CheckpointError as failure:
            self.logger.error(str(failure))

    def _last_checkpoint(self) -> str:
        folders = step_folders(self.folder)
        return str(folders[0]) if folders else "none was written yet"

    # ---- checkpoints ----

    def _state(self) -> dict[str, Any]:
        settings = self.config.to_dict()
        return {
            "stage": self.stage.name,
            "global_step": self.global_step,
            "position": asdict(self.position),
            "cur_step": self.cur_step,
            "best_valid_score": float(self.best_valid_score),
            "best_valid_result": self.best_valid_result
            and {name: float(value) for name, value in self.best_valid_result.items()},
            "max_rows": self.step.max_rows,
            "memory": memory_state(self.model),
            "settings": settings,
            "settings_hash": settings_hash(settings),
            "fingerprints": self.fingerprints,
        }

    def _save_checkpoint(self, epoch: int, verbose: bool = True, **kwargs: Any) -> None:
        """Write `best`; RecBole calls it after an improvement, or every epoch if none validates."""
        if epoch < 0 and self.best_folder.exists():
            return  # RecBole's call for a stage without epochs left: `best` exists
        weights = self.engine.weights()
        save_checkpoint(self.best_folder, weights, self._state())
        self._best_metrics = self._last_metrics
        if self.eval_step == 0 and epoch >= 0:
            self._save_epoch()

    def _is_save_due(self, n_batches: int) -> bool:
        """True if `save_steps` asks for a checkpoint that the end of the epoch does not write."""
        save_steps = self.settings.save_steps
        is_last = self.position.batch == n_batches
        epoch_saves = self.eval_step == 0 or (self.position.epoch + 1) % self.eval_step == 0
        return (
            bool(save_steps)
            and self.global_step % save_steps == 0
            and not (is_last and epoch_saves)
        )

    def _save_epoch(self) -> None:
        """Save a checkpoint that continues with the next epoch."""
        self.position = self.position.next_epoch()
        self._save_step()

    def _save_step(self) -> None:
        """Save a checkpoint of this step and remove all but the last `save_total_limit`."""
        assert self.schedule is not None
        weights = self.engine.weights()
        # before its first step, a resumed run has not passed its state to the engine
        if self.resumed_optimizer:
            self.resumed_optimizer = self.engine.own_part(self.resumed_optimizer)
        tensors = dict(self.resumed_optimizer or self.engine.optimizer_state())
        for rank, random in enumerate(processes.all_gather(random_state(self.device))):
            if rank == processes.rank() or not self.engine.sharded:
                tensors |= {f"{RANDOM}{rank}.{name}": value for name, value in random.items()}
        is_main = processes.is_main_process()
        if self.drawn_negatives is not None and self.position.batch and is_main:
            drawn = self.drawn_negatives.state()
            tensors |= {NEGATIVES + name: value for name, value in drawn.items()}
        schedule = {
            key: value
            for key, value in self.schedule.state_dict().items()
            if isinstance(value, (int, float, list))
        }
        logs = processes.broadcast_from_main(self._flush_logs)
        state = {**self._state(), "schedule": schedule, "logs": logs}
        folder = step_folder(self.folder, self.global_step)
        save_checkpoint(folder, weights, state, tensors, sharded=self.engine.sharded)
        if is_main:
            remove_old_steps(self.folder, self.global_step, self.settings.save_total_limit)
        self._save_reference_cache()
        processes.barrier()

    def _save_reference_cache(self) -> None:
        """Write this process's reference log-probabilities, which a killed run then has."""
        if self.model.reference_cache is not None:
            self.model.reference_cache.save()

    def _flush_logs(self) -> dict[str, int]:
        """Sizes of the logs, to which a resumed run cuts them."""
        self.tensorboard.flush()
        return log_sizes(self.run_folder)

    def resume_checkpoint(self, resume_file: str | Path) -> None:
        """Continue after the step of a `step-<n>` checkpoint of this stage.

        Raises:
            CheckpointError: the checkpoint is damaged, of another stage or of another model.
        """
        folder = Path(resume_file)
        checked = processes.broadcast_from_main(lambda: check_checkpoint(folder))
        model, state, tensors = load_checkpoint(folder, checked)
        if state.get("stage") != self.stage.name or tensors is None:
            raise CheckpointError(
                f"{folder} cannot be resumed: it is of the stage {state.get('stage')!r}"
            )
        try:
            self.global_step = state["global_step"]
            self.position = Position(**state["position"])
            self.cur_step = state["cur_step"]
            self.best_valid_score = state["best_valid_score"]
            self.best_valid_result = state["best_valid_result"]
            self.resumed_max_rows = state["max_rows"]
            if "memory" in state:  # older versions chose nothing
                restore_memory(self.model, state["memory"])
            self.resumed_schedule = state["schedule"]
            random = _taken(tensors, RANDOM + f"{processes.rank()}.")
            _taken(tensors, RANDOM)  # of other ranks
            self.resumed_negatives = _taken(tensors, NEGATIVES)
            load_trainable_tensors(self.model.lm, model, folder)
            if tensors:
                tensors |= saved_in_float32(self.model.lm, model)
            check_tensors(self.optimizer, tensors)  # the engine is made later
            self.resumed_optimizer = tensors
            if random:  # else there are more processes than before
                restore_random_state(random, self.device)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(
                f"{folder} does not hold what training needs ({error!r}); remove it to "
                "continue without it"
            ) from error
        stopped_early = self.cur_step > self.stopping_step
        self.start_epoch = self.epochs if stopped_early else self.position.epoch
        self.logger.info(
            f"resuming the {self.stage.name} stage after step {self.global_step}, batch "
            f"{self.position.batch} of epoch {self.position.epoch + 1}"
        )

    def _restore_schedule(self, state: dict[str, Any]) -> None:
        assert self.schedule is not None
        wanted = self.schedule.state_dict().keys()
        if state.keys() != wanted:
            raise CheckpointError(
                f"the checkpoint's schedule of step sizes has {', '.join(sorted(state))} and not "
                f"{', '.join(sorted(wanted))}; remove the checkpoint to continue "
                "from the one before"
            )
        self.schedule.load_state_dict(state)
        for group, rate in zip(
            self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True
        ):
            group["lr"] = rate

    def load_best(self) -> None:
        """Load the stage's best weights into the model.

        Raises:
            CheckpointError: they are damaged, or of other data, backbone or prompt.
        """
        model, state, _ = load_checkpoint(self.best_folder)
        self.best_epoch = chosen_epoch(state)
        check_resumed(self.run_folder, state.get("fingerprints", {}), self.fingerprints)
        load_trainable_tensors(self.model.lm, model, self.best_folder)

    # ---- evaluation ----

    def evaluate(self, eval_data, *args: Any, **kwargs: Any):  # type: ignore[no-untyped-def]
        """RecBole's hook, which validates between epochs: `evaluate_ranker` of `ranker`."""
        return self.evaluate_ranker(self.ranker, eval_data, kwargs.get("show_progress", False))

    def evaluate_ranker(
        self, ranker: Ranker, eval_data: AbstractDataLoader, show_progress: bool = False
    ) -> dict[str, float]:
        """`evaluate_weights` with the ranker's own weight."""
        return self.evaluate_weights(ranker, [ranker.weight], eval_data, show_progress)[0]

    def evaluate_weights(
        self,
        ranker: Ranker,
        weights: Sequence[float],
        eval_data: AbstractDataLoader,
        show_progress: bool = False,
    ) -> list[dict[str, float]]:
        """Metrics at the present weights of the model, for each weight of the ranker's assistant.

        All processes share the users; every rank gets the metrics.

        Raises:
            TrainingError: memory runs out.
        """
        self.model.eval()
        try:
            with self._unsharded_model(), self._merged_for(ranker):
                collectors = collect_rankings(
                    ranker.prepared(), weights, eval_data, self.eval_collector, show_progress
                )
                collected = [collector.get_data_struct() for collector in collectors]
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            settings = self.settings
            raise TrainingError(
                f"out of memory while ranking ({str(error).splitlines()[0]}). Lower "
                f"--rank_batch_users (now {settings.rank_batch_users}), --score_batch_tokens (now "
                f"{settings.score_batch_tokens}) or --expand_per_step (now "
                f"{settings.expand_per_step}) with --resume={self.run_folder}. "
                f"Last checkpoint: {self._last_checkpoint()}"
            ) from None
        return [self.evaluator.evaluate(of_weight) for of_weight in collected]

    def ranking_seconds(self, eval_data: AbstractDataLoader) -> float:
        """Seconds that this process would take for its share of a ranking, by a few users."""
        self.model.eval()
        with self._unsharded_model(), self._merged_for(self.ranker):
            n_users = self.settings.rank_batch_users
            return ranking_seconds(self.ranker.prepared(), eval_data, self.eval_collector, n_users)

    def best_metrics(self, ranker: Ranker, valid_data: AbstractDataLoader) -> dict[str, float]:
        """Metrics that `fit` has found for the stage's best weights; {} if it has not.

        They are a ranker's only if it ranks as `ranker` does, and for the users that `fit` ranked.
        """
        as_in_fit = ranker.assistant is None and ranker.choices == self.ranker.choices
        known = as_in_fit and valid_data is self._valid_data
        return dict(self._best_metrics) if known else {}


def chosen_epoch(state: Mapping[str, Any]) -> int:
    """Epochs after which a stage's best weights were saved; 0 for those that it started from."""
    return int(state["position"]["epoch"]) + 1 if state["global_step"] else 0


def _taken(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Remove the tensors with this prefix from `tensors`; returned by name without the prefix."""
    names = [name for name in tensors if name.startswith(prefix)]
    return {name.removeprefix(prefix): tensors.pop(name) for name in names}
