"""The stages of a run: supervised fine-tuning, then preference training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from logging import getLogger

import numpy as np
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader
from recbole.utils import init_seed

from recbole_multdpo.data.dataset import LLMRecDataset
from recbole_multdpo.data.dynamic_negatives import DynamicNegatives
from recbole_multdpo.data.loader import SetwiseDataLoader
from recbole_multdpo.data.prompt_file import PROMPT_FILE, StoredPrompt, read_prompt, write_prompt
from recbole_multdpo.data.sampler import AllNegatives, NegativeSampler, SetwiseSampler
from recbole_multdpo.data.soft_targets import SoftTargets, Teacher
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.losses import LOSSES
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.ranking.ranker import Ranker
from recbole_multdpo.runs.checkpoint import check_checkpoint
from recbole_multdpo.runs.fingerprints import BACKBONE, PROMPT, check_resumed
from recbole_multdpo.runs.folder import RunFolder
from recbole_multdpo.runs.resume import REFIT, STAGES, ResumePoint
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import counted, log_detail
from recbole_multdpo.runtime.interruption import SignalHandler
from recbole_multdpo.runtime.shown_text import terminal
from recbole_multdpo.runtime.stage_clock import StageClock
from recbole_multdpo.settings.by_size import AUTO, epochs_for
from recbole_multdpo.settings.config import Config
from recbole_multdpo.settings.llmrec import ZERO_SHOT, LLMRecSettings
from recbole_multdpo.training.price import Price, Pricing, Work, log_price
from recbole_multdpo.training.sft_cache import (
    cache_folder,
    load_cached_sft,
    sft_checkpoint,
    sft_is_cached,
    sft_key,
    store_sft,
)
from recbole_multdpo.training.step import Stage
from recbole_multdpo.training.trainer import SetwiseTrainer, chosen_epoch

# examples per step and GPU below which launching kernels takes the longer part of a step (0.5B,
# modelled in docs/scaling.md: 4 are even)
ENOUGH_EXAMPLES = 8
PROMPT_LETTERS = 240  # of an example in the log, of a longer prompt its beginning and end
TITLES = {"sft": "supervised fine-tuning", "preference": "preference training"}
SFT_SEED_OFFSET = 2**32  # the two stages draw different histories, targets and orders


class StageRunner:
    """Build the model of a run and train its stages.

    Attributes:
        config: the run's configuration.
        folder: the run's folder.
        clock: measures the time of each stage.
        signals: handler of Ctrl-C and SIGTERM.
        point: where a resumed run continues, else None.
        fingerprints: of the data; `make_model` adds backbone and prompt.
        valid_users: who is ranked between epochs, such as `200 of 942 users`.
        n_examples: examples of an epoch, after `make_model`.
        price: expected time, in a resumed run of what remains; None before `train`.
        best_epochs: of every stage that this run has trained, by name: the `epoch` after which the
            chosen weights were saved, from 1, 0 for those that it began with; `of` so many epochs.
        make_teacher: trains the teacher of the supervised stage on some rows; None for no teacher.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        clock: StageClock,
        signals: SignalHandler,
        point: ResumePoint | None,
        fingerprints: dict[str, str],
        make_teacher: Callable[[LLMRecDataset], Teacher] | None = None,
    ) -> None:
        self.make_teacher = make_teacher
        self.config, self.folder, self.clock = config, folder, clock
        self.signals, self.point, self.fingerprints = signals, point, fingerprints
        self._prompt: StoredPrompt | None = None
        self.valid_users = ""
        self.n_examples = 0
        self.price: Price | None = None
        self.best_epochs: dict[str, dict[str, int]] = {}

    @property
    def settings(self) -> LLMRecSettings:
        """The language model's own settings."""
        assert self.config.settings is not None
        return self.config.settings

    def make_model(self, part: LLMRecDataset, train: LLMRecDataset | None = None) -> LLMRec:
        """Build a model on the CPU; later models reuse the prompt of the first.

        Args:
            part: the training part of the split.
            train: rows to train on instead, as in `test_information=refit`.
        """
        with self.clock.stage("backbone"):
            stored = self._prompt
            if stored is None:
                stored = processes.broadcast_from_main(self._stored_prompt)
            model: LLMRec = self.config.model_class(self.config, part, stored, for_training=True)
            self.fingerprints |= {
                BACKBONE: model.backbone.fingerprint,
                PROMPT: model.prompt.fingerprint,
            }
            self.check_fingerprints()
            if stored is None:
                processes.broadcast_from_main(lambda: write_prompt(self.folder.path, model.prompt))
            self._prompt = model.prompt  # the template may render another one later
            if train is not None:
                model.fit_to(train)
            self.n_examples = model.n_examples
        return model

    def stages(self) -> list[Stage]:
        """List the stages: supervised fine-tuning, and preference training if the loss has it.

        Their length is known once there is a model, see `n_examples`.
        """
        config, settings = self.config, self.settings
        sft_epochs = 0 if settings.loss == ZERO_SHOT else settings.sft_epochs
        sft = Stage(
            "sft",
            epochs_for(sft_epochs, "sft", self.n_examples),
            settings.sft_learning_rate,
            settings.sft_eval_step,
            settings.max_sft_steps,
        )
        if not settings.has_preference_stage or config["epochs"] == 0:
            return [sft]
        preference = Stage(
            "preference",
            epochs_for(config["epochs"], "preference", self.n_examples),
            config["learning_rate"],
            config["eval_step"],
            settings.max_steps,
        )
        return [sft, preference]

    def check_fingerprints(self) -> None:
        """Refuse to continue from a checkpoint of other data, backbone or prompt.

        Raises:
            CheckpointError: see `fingerprints.check_resumed`.
        """
        if self.point is not None:
            saved = self.point.state.get("fingerprints", {})
            check_resumed(self.folder.path, saved, self.fingerprints)

    def _stored_prompt(self) -> StoredPrompt | None:
        """Read the prompt of a resumed run; None if it must be rendered.

        Raises:
            CheckpointError: its file is damaged.
        """
        if not self.config["resume"]:
            return None
        prompt = read_prompt(self.folder.path)
        if prompt is None and self.point is not None:
            getLogger().warning(
                f"the run in {self.folder.path} keeps no prompt, as it was started by an older "
                f"version, or {PROMPT_FILE} was removed: it is rendered again, and may differ from "
                "the previous one."
            )
        return prompt

    def train(
        self,
        ranker: Ranker,
        train: LLMRecDataset,
        valid: AbstractDataLoader | None,
        stages: Sequence[Stage],
        test_start: Callable[[SetwiseTrainer], None] | None = None,
        ranked: Mapping[str, AbstractDataLoader] | None = None,
    ) -> SetwiseTrainer:
        """Train a model through its stages; returns the trainer of the last one.

        Args:
            ranker: of a model as `make_model` returns it; validates between epochs.
            train: rows to train on.
            valid: loader for choosing the best epoch; None for a refit, whose number of epochs is
                given and which trains on validation rows too.
            stages: as `stages` returns them.
            test_start: called before preference training with the trainer of the first stage, whose
                weights the model then has.
            ranked: loaders that are ranked after training, by `valid` and `test`, to say before it
                how long the run will take; None to say nothing.
        """
        with self.clock.stage("backbone"):
            model = ranker.model.to(self.config["device"])
            _log_model(model)
        loaders = {
            stage.name: self._loader(stage, model, train) for stage in stages if stage.epochs
        }
        sft, *later = stages
        with self.clock.stage(sft.name):
            trainer = self._trainer(ranker, sft)
            if ranked is not None:
                with self.clock.stage("price"):
                    tests_start = test_start is not None and self.config["test_sft"] is not False
                    self._expect(trainer, loaders, valid, stages, ranked, tests_start=tests_start)
            self._train_sft(trainer, train, loaders.get(sft.name), valid)
        for stage in later:
            if not stage.epochs:  # a refit of weights that were best before the stage
                getLogger().info(f"{self._title(stage)}: left out, no epoch was better than none")
                continue
            if test_start is not None:
                with self.clock.stage("test_sft"):
                    test_start(trainer)
            with self.clock.stage(stage.name):
                cache_dir = None
                if self.settings.reference_cache:
                    cache_dir = cache_folder(self.settings, self.folder.path)
                model.start_preference_stage(self.settings.loss, cache_dir)
                trainer = self._trainer(ranker, stage)
                loader = loaders[stage.name]
                fit_stage(trainer, loader, valid, self.point, self._title(stage))
                self._log_best(trainer, valid)
        return trainer

    def _loader(self, stage: Stage, model: LLMRec, train: LLMRecDataset) -> SetwiseDataLoader:
        """The loader of a stage; the teacher of the first one comes later, when it is needed."""
        loss_name, batch_size = self.settings.loss, self.config["train_batch_size"]
        if stage.kind == "sft":
            loss_name, batch_size = "sft", self.settings.sft_batch_size
        return train_loader(self.config, model, train, loss_name, batch_size)

    def _expect(
        self,
        trainer: SetwiseTrainer,
        loaders: Mapping[str, SetwiseDataLoader],
        valid: AbstractDataLoader | None,
        stages: Sequence[Stage],
        ranked: Mapping[str, AbstractDataLoader],
        *,
        tests_start: bool,
    ) -> None:
        """Say what the run will cost, or the rest of it, all its stages and rankings together."""
        works, names = [], [stage.name for stage in stages if stage.name in loaders]
        n_steps = {
            stage.name: stage.max_steps or stage.epochs * len(loaders[stage.name])
            for stage in stages
            if stage.name in loaders
        }
        for stage in stages:
            if stage.name not in loaders:
                continue
            loader, n_left = loaders[stage.name], self._left(stage.name, n_steps[stage.name])
            if stage.kind == "sft" and self._is_cached(trainer.model):
                n_left = 0
            n_epochs = -(-n_left // len(loader))
            n_validations = n_epochs // stage.eval_step if stage.eval_step and valid else 0
            if stage.kind == "preference" and n_left == n_steps[stage.name]:
                n_validations += bool(n_validations and self.settings.eval_on_start)
                if tests_start and "test" in ranked:
                    works.append(Work("test_sft", n_validations=1, ranked=ranked["test"]))
            works.append(Work(stage.name, n_left, loader, n_validations, ranked=valid))
        if self.config["test_information"] == "refit":
            again = {name: self._left(REFIT + name, n_steps[name]) for name in names}
            works += [Work(REFIT + name, again[name], loaders[name]) for name in names]
        works += [Work(name, n_validations=1, ranked=loader) for name, loader in ranked.items()]
        model = trainer.model
        self.price = Pricing(self.config, model, trainer.ranking_seconds).price(works)
        if self.price is not None:
            log_price(self.price, is_rest=self.point is not None)
            self._tell(trainer)

    def _left(self, name: str, n_steps: int) -> int:
        """Steps of a stage that are still to be made, all but in a resumed run."""
        if self.point is None or STAGES.index(self.point.stage) < STAGES.index(name):
            return n_steps
        done = int(self.point.state["global_step"]) if self.point.stage == name else n_steps
        return max(n_steps - done, 0)

    def _is_cached(self, model: LLMRec) -> bool:
        return self.settings.sft_cache and sft_is_cached(self.config, model, self.folder.path)

    def _tell(self, trainer: SetwiseTrainer) -> None:
        """Let a trainer say what is left, and how long its steps were expected to take."""
        if self.price is not None:
            name = trainer.stage.name
            trainer.time_left = partial(self.price.left, name)
            trainer.expected_step = self.price.steps.get(name)

    def _title(self, stage: Stage) -> str:
        """The stage's number among all of the run, and its name."""
        planned = [planned.name for planned in self.stages()]
        if self.config["test_information"] == "refit":
            planned += [REFIT + name for name in planned]
        number = planned.index(stage.name) + 1
        again = " on validation rows too" if stage.refit_epochs is not None else ""
        return f"stage {number}/{len(planned)}: {TITLES[stage.kind]}{again}"

    def _log_best(self, trainer: SetwiseTrainer, valid: AbstractDataLoader | None) -> None:
        """Log and keep the epoch whose weights a stage has chosen."""
        epoch, stage = trainer.best_epoch, trainer.stage
        if epoch is None:
            return
        self.best_epochs[stage.name] = {"epoch": epoch, "of": trainer.epochs}
        if not valid or not stage.eval_step:
            return
        chosen = f"epoch {epoch} of {trainer.epochs}"
        if not epoch:
            chosen += ", the start: SFT kept"
        getLogger().info(f"best of {stage.name}: {chosen}")

    def _trainer(self, ranker: Ranker, stage: Stage) -> SetwiseTrainer:
        trainer = SetwiseTrainer(
            self.config,
            ranker.model,
            stage,
            self.folder.path,
            ranker,
            self.signals,
            self.fingerprints,
        )
        trainer.valid_users = self.valid_users
        self._tell(trainer)
        return trainer

    def refit(self, stage: Stage, model: LLMRec) -> Stage:
        """The stage for training on validation rows too, with its best number of epochs or steps.

        Args:
            stage: the stage as it was trained and validated.
            model: the model after all stages.
        """
        n_epochs = n_steps = 0
        if stage.epochs:
            best = self.folder.checkpoints_dir / stage.name / "best"
            if stage.name == "sft":
                best = sft_checkpoint(self.folder.path, self.config, model)
            state = check_checkpoint(best)
            n_epochs = chosen_epoch(state)
            n_steps = state["global_step"] if stage.max_steps else 0
        return replace(
            stage, name=REFIT + stage.name, epochs=n_epochs, eval_step=0, max_steps=n_steps
        )

    def _train_sft(
        self,
        trainer: SetwiseTrainer,
        train: LLMRecDataset,
        loader: SetwiseDataLoader | None,
        valid: AbstractDataLoader | None,
    ) -> None:
        """Train the supervised stage, or load it from the cache."""
        model, settings, stage = trainer.model, self.settings, trainer.stage
        if loader is None:
            getLogger().info(f"{self._title(stage)}: none, the backbone is not changed")
            return
        run_folder = self.folder.path
        cache_dir = cache_folder(settings, run_folder)
        key = sft_key(self.config, model, stage.refit_epochs)
        is_under_way = self.point is not None and self.point.stage == stage.name
        if settings.sft_cache and not is_under_way:
            load = partial(load_cached_sft, cache_dir, key, model, run_folder, self._title(stage))
            if processes.broadcast_from_main(load):  # the main process has copied the logs
                if not processes.is_main_process():
                    load()
                return
        if self.make_teacher is not None:
            with self.clock.stage("teacher"):
                teacher = self.make_teacher(train)
            loader.setwise_sampler.soft_targets = soft_targets(model, teacher)
        fit_stage(trainer, loader, valid, self.point, self._title(stage))
        self._log_best(trainer, valid)
        if settings.sft_cache:
            processes.broadcast_from_main(
                lambda: store_sft(cache_dir, key, trainer.best_folder, run_folder)
            )


def fit_stage(
    trainer: SetwiseTrainer,
    train_data: SetwiseDataLoader,
    valid: AbstractDataLoader | None,
    point: ResumePoint | None = None,
    title: str = "",
) -> None:
    """Train a stage, or the rest of it after `point`, and load its best weights.

    Args:
        trainer: trainer of the stage.
        train_data: result of `train_loader`.
        valid: loader for choosing the best epoch; None for the last one.
        point: checkpoint of a resumed run.
        title: of the stage, for its first line.
    """
    config, name = trainer.config, trainer.stage.name
    is_finished = point is not None and STAGES.index(point.stage) > STAGES.index(name)
    if not (is_finished and trainer.best_folder.exists()):
        trainer.set_epochs(len(train_data))
        _log_length(title or name, trainer, train_data)
        _log_batches(trainer.stage, train_data.examples_per_batch, trainer.device.type)
        # the same after a cached stage and a trained one; dropout differs by process
        init_seed(config["seed"] + processes.rank(), config["reproducibility"])
        if point is not None and point.stage == name:
            trainer.resume_checkpoint(point.folder)
        if not valid:  # no validation part, or none of its users is ranked
            trainer.eval_step = 0
        trainer.fit(
            train_data, valid if trainer.eval_step else None, show_progress=config["show_progress"]
        )
    trainer.load_best()


def _log_length(title: str, trainer: SetwiseTrainer, train_data: SetwiseDataLoader) -> None:
    """Log how long a stage is."""
    n_steps, max_steps = len(train_data), trainer.stage.max_steps
    asked = trainer.settings.sft_epochs
    if trainer.stage.kind == "preference":
        asked = trainer.config["epochs"]
    by_size = ", which follow from their number" if asked == AUTO and not max_steps else ""
    length = f"{counted(trainer.epochs, 'epoch')} x {counted(n_steps, 'step')}"
    if max_steps:
        whole = trainer.stage.epochs * n_steps
        length = f"{counted(max_steps, 'step')} of {whole:,} (max_steps)"
    size = counted(train_data.examples_per_batch, "example")
    step = trainer.expected_step
    if step is not None:
        size += f" of about {step.tokens:,.0f} tokens, about {step.seconds:.2g} s per step"
    getLogger().info(f"{title}, {length} of {size}{by_size}")


def _log_batches(stage: Stage, n_examples: int, device_type: str) -> None:
    """Log how many examples a step has in all and per process; a warning if GPUs get too few."""
    n_processes = processes.world_size()
    line = f"{stage.name}: {counted(n_examples, 'example')} per step"
    if n_processes == 1:
        log_detail(line)
        return
    share = -(-n_examples // n_processes)
    most = "at most " if n_examples % n_processes else ""
    getLogger().info(f"{line}: {most}{share:,} on each of {n_processes} processes")
    if device_type == "cuda" and share < ENOUGH_EXAMPLES:
        enough = ENOUGH_EXAMPLES * n_processes
        getLogger().warning(
            f"{share} examples per step on each of {n_processes} GPUs leave them waiting for "
            f"their next kernel. Raise --{stage.batch_setting} to {enough}, which is "
            f"{ENOUGH_EXAMPLES} on each, and try a higher --{stage.rate_setting} with it; or start "
            f"fewer processes, which train on the same batches."
        )


def training_limits(model: LLMRec) -> dict[str, int]:
    """Limits of a trial's training, for `result.json`; {} without any.

    `users` are those who are trained on, `of_users` those who have training items; 0 steps stand
    for those of the stage's epochs.
    """
    settings = model.settings
    if not (settings.train_users or settings.max_steps or settings.max_sft_steps):
        return {}
    return {
        "users": model.n_examples,
        "of_users": int((model.histories.counts > 0).sum()),
        "sft_steps": settings.max_sft_steps,
        "preference_steps": settings.max_steps,
    }


def _log_model(model: LLMRec) -> None:
    total = sum(parameter.numel() for parameter in model.lm.parameters())
    trained = sum(p.numel() for p in model.lm.parameters() if p.requires_grad)
    lengths, trie = model.catalogue.items.lengths[1:].float(), model.catalogue.trie
    trainable = "all trained" if trained == total else f"{trained:,} trained"
    getLogger().info(
        f"model: {model.settings.backbone}, {total:,} parameters, {trainable}"
        f"{' (LoRA)' if model.uses_lora else ''}, {model.settings.dtype} on "
        f"{model.device.type}"
    )
    prompt = terminal(model.example_prompt())
    if len(prompt) > PROMPT_LETTERS:
        half = PROMPT_LETTERS // 2
        prompt = f"{prompt[:half]} ... {prompt[-half:]}"
    getLogger().info(f"a prompt (prompt_template={model.settings.prompt_template}): {prompt}")
    log_detail(
        f"{lengths.mean():.1f} scored tokens per item, at most {int(lengths.max())}; "
        f"{trie.num_leaves:,} distinct texts, {trie.num_internal:,} inner trie nodes"
    )


def train_loader(
    config: Config,
    model: LLMRec,
    train: LLMRecDataset,
    loss_name: str,
    batch_size: int,
) -> SetwiseDataLoader:
    """Make the set-wise loader of the training part for a loss.

    Args:
        config: the run's configuration.
        model: the model, with its histories and prompts.
        train: rows to train on.
        loss_name: `sft` or another key of `LOSSES`.
        batch_size: examples per optimizer step.
    """
    settings, loss = model.settings, LOSSES[loss_name]
    many = settings.set_of_negatives
    takes_all = loss.negatives == "many" and many == "all"
    n_all = train.item_num - 1
    n_negatives = {"none": 0, "one": 1, "many": n_all if many == "all" else many}[loss.negatives]
    low_rated, known = None, model.histories
    if train.excluded is not None:
        known = known.union(train.excluded)
    if settings.low_ratings != "ignore" and n_negatives:
        low_rated = train.low_rated_items()
        known = known.union(low_rated)
    # The model cannot prefer an item to another of the same text. If all items have the same text,
    # there is nothing to learn, and the run finishes like any other.
    if model.catalogue.trie.num_leaves > 1:
        known = known.with_groups(model.catalogue.trie.leaf_of_item.cpu().numpy())
    if takes_all:
        _warn_of_long_titles(model)
        negatives: NegativeSampler = AllNegatives(known, train.item_num)
    else:
        negatives = _negative_sampler(settings, model.histories, known, train.item_num, n_negatives)
    sampler = SetwiseSampler(
        model.histories,
        model.prompts,
        negatives,
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
        disliked=model.disliked,
    )
    return SetwiseDataLoader(config, train, sampler, batch_size)


def _warn_of_long_titles(model: LLMRec) -> None:
    """Warn of the price of `num_negatives: all` where titles are fed to the LM."""
    lengths = model.catalogue.items.lengths[1:]
    n_tokens = int((lengths - 1).clamp(min=0).sum())
    if model.settings.scorer == "padded":
        n_tokens = model.longest_row(0) * len(lengths) + int(lengths.sum())
    if n_tokens:
        getLogger().warning(
            f"num_negatives=all: an example has {len(lengths):,} candidates and feeds up to "
            f"{n_tokens:,} tokens of them to the language model, where --num_negatives=64 feeds "
            f"about {64 * n_tokens // len(lengths):,}. Titles of one token cost nothing: see "
            "tiny_title_tokens and normalize_over=catalogue."
        )


def soft_targets(model: LLMRec, teacher: Teacher) -> SoftTargets:
    """The teacher's targets as the settings describe them; over the whole catalogue if it is free.

    Where every title is one token the policy's log-probabilities of all items are there anyway.
    """
    settings, texts = model.settings, model.catalogue.trie.leaf_of_item
    n_items = None if model.scores_in_one_token else settings.sft_teacher_items
    scope = (
        "the whole catalogue" if n_items is None else f"its {n_items} best and the observed ones"
    )
    of_whom = "the user" if teacher.by_user else "the items that the prompt shows"
    getLogger().info(
        f"teacher {teacher.name} scores {of_whom}; its target is over {scope}, with "
        f"{settings.sft_teacher_weight:.0%} of the loss"
    )
    return SoftTargets(
        teacher,
        settings.sft_teacher_sharpness,
        teacher.popularity.clip(1).astype(np.float32) ** settings.sft_teacher_popularity,
        np.unique(texts.cpu().numpy(), return_inverse=True)[1],
        model.histories,
        n_items,
    )


def _negative_sampler(
    settings: LLMRecSettings, train_items: UserItems, known: UserItems, n_items: int, n: int
) -> NegativeSampler:
    """Make the sampler of `n` negatives outside the known items, as the settings describe."""
    if n and settings.negatives == "dynamic":
        return DynamicNegatives(known, n_items, n)
    weights = None
    if settings.negative_distribution == "popularity":
        counts = np.bincount(train_items.items, minlength=n_items)
        weights = counts.astype(float) ** settings.popularity_alpha
    return NegativeSampler(known, n_items, weights)
