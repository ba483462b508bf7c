"""One optimizer step: example weights, parts of a batch, out-of-memory retry, bounds, metrics."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import chain
from logging import getLogger

import torch
from torch import Tensor, nn

from recbole_multdpo.data.batch import SetwiseBatch, length_buckets
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.data.loader import FILLER
from recbole_multdpo.errors import TrainingError
from recbole_multdpo.losses import LOSSES, bounds, reward_accuracies, rewards, set_masks, set_means
from recbole_multdpo.model.llmrec import StepOutput
from recbole_multdpo.runs.resume import REFIT
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.out_of_memory import is_out_of_memory, release_memory
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.packed import packed_lengths
from recbole_multdpo.settings.llmrec import LLMRecSettings
from recbole_multdpo.training.bounds_log import BoundsLog, BoundsRows
from recbole_multdpo.training.distributed import Engine, TorchEngine

# Tokens that take as long as one more part, times what a token's products are proportional to. CPU:
# the squared hidden size and the layers; a part costs a pass over the embeddings' gradient, which
# no layer shares: 256 tokens of one layer of 256 (measured; 128 to 512 are as good), 512 of two of
# 128. Others: the squared hidden size alone, as launches grow with the layers too; from launches
# and operations of Qwen2.5 of 0.5B to 7B on an H100 (modelled, not measured): 2,700 tokens of 0.5B,
# 170 of 7B.
PART_COST_CPU, PART_COST = 2**24, 2**31
HIDDEN_SIZE = 1024  # assumed if a configuration has none


def part_tokens(lm: nn.Module, device: torch.device) -> float:
    """Tokens that take as long as one more part of a batch."""
    config = causal_lm(lm).config.get_text_config()
    hidden_size = getattr(config, "hidden_size", HIDDEN_SIZE)
    if device.type == "cpu":
        return PART_COST_CPU / (hidden_size**2 * getattr(config, "num_hidden_layers", 1))
    return PART_COST / hidden_size**2


class NotFinite(TrainingError):
    """The loss or the gradient of a step holds NaN or an infinity."""


class OutOfMemory(TrainingError):
    """A step ran out of memory; the weights are those before it."""


@dataclass(frozen=True)
class Stage:
    """One of the two training stages, or its repetition on validation rows too.

    Attributes:
        name: one of `runs.resume.STAGES`; names checkpoints and TensorBoard tags.
        epochs: length of the stage.
        learning_rate: peak learning rate.
        eval_step: epochs between validations; 0 for none during the stage.
        max_steps: length in optimizer steps, in place of the epochs; 0 for no such length.
    """

    name: str
    epochs: int
    learning_rate: float
    eval_step: int
    max_steps: int = 0

    @property
    def kind(self) -> str:
        """'sft' or 'preference'."""
        return self.name.removeprefix(REFIT)

    @property
    def refit_epochs(self) -> int | None:
        """Length of a repetition; None for the stage itself."""
        return self.epochs if self.name.startswith(REFIT) else None

    @property
    def unvalidated(self) -> int:
        """Epochs after the last validation, whose weights cannot be chosen as the best."""
        if self.max_steps:  # a validation follows the last step
            return 0
        return self.epochs % self.eval_step if 0 < self.eval_step < self.epochs else 0

    @property
    def batch_setting(self) -> str:
        """Name of the setting that is the stage's number of examples per step."""
        return "sft_batch_size" if self.kind == "sft" else "train_batch_size"

    @property
    def rate_setting(self) -> str:
        """Name of the setting that is the stage's learning rate."""
        return "sft_learning_rate" if self.kind == "sft" else "learning_rate"


class TrainingStep:
    """Makes the optimizer steps of a stage.

    In a run of several processes all of them call it together, each with its share of the batch;
    weights and metrics are those of the whole batch.

    Attributes:
        engine: computes gradients and updates the weights.
        bounds_log: file of the bounds of every example; None for no bounds.
        max_rows: examples of a part after one ran out of memory; None before.
        n_examples: examples of the last batch, of all processes together.
    """

    def __init__(
        self,
        settings: LLMRecSettings,
        engine: Engine,
        stage: Stage,
        *,
        items: ItemTokens,
        user_name: Callable[[int], str],
        bounds_log: BoundsLog | None = None,
        max_rows: int | None = None,
    ) -> None:
        """Set up the steps of a stage.

        Args:
            settings: of the model and its training.
            engine: of the stage's model.
            stage: decides how examples are weighted and which metrics there are.
            items: token table of the catalogue, on the device of the batches.
            user_name: maps RecBole's inner user id to the user's id in the data files.
            bounds_log: file of the bounds; None for no bounds.
            max_rows: examples of a part, at most; None for no limit.
        """
        self.settings, self.engine, self.stage = settings, engine, stage
        self.items, self.user_name = items, user_name
        self.bounds_log, self.max_rows = bounds_log, max_rows
        self.n_examples = 0
        loss = LOSSES["sft" if stage.kind == "sft" else settings.loss]
        self._rewards_per_token = loss.has_reward_per_token

    def run(self, batch: SetwiseBatch, number: int) -> dict[str, float]:
        """Make one optimizer step.

        Args:
            batch: this process's examples, on the model's device.
            number: of the step within the stage, from 1; for messages and `bounds.csv`.

        Returns:
            `step_metrics`, means of the bounds if they are logged, and `grad_norm`, the norm of
            the gradient before clipping.

        Raises:
            NotFinite: the loss or the gradient is not finite.
            OutOfMemory: a part does not fit, and may not or cannot be made smaller.
            TrainingError: an example is too long for ZeRO-3.
        """
        metrics = self._gradient(batch, number)
        grad_norm = self.engine.step()
        if not math.isfinite(grad_norm):
            raise self._not_finite("the gradient", batch.user_ids, number)
        metrics["grad_norm"] = grad_norm
        return metrics

    def _gradient(self, batch: SetwiseBatch, number: int) -> dict[str, float]:
        """Compute the batch's gradient in parts of examples of similar length; its metrics.

        If memory runs out, the batch is computed again in smaller parts where `may_retry` allows,
        and so are all later ones. The weights of the examples do not depend on the parts.
        """
        while True:
            self.engine.discard_gradient()
            log_rows: list[BoundsRows] = []
            sums: dict[str, float] = defaultdict(float)
            part = batch
            try:
                kl = self.engine.batch_kl(batch)
                self.n_examples = int(processes.all_reduce_sum((batch.user_ids != FILLER).sum()))
                parts = self._parts(batch, self.term_weights(batch))
                for i, (part, weights) in enumerate(parts, 1):
                    output = self.engine.add_gradient(part, weights, kl, is_last=i == len(parts))
                    finite = torch.isfinite(output.terms).view(len(part), -1).all(1)
                    if not finite.all():
                        raise self._not_finite("the loss", part.user_ids[~finite], number)
                    self._add_metrics(output, part, sums, log_rows)
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                failed = error
            else:
                break
            # outside the except block, where the error would keep the step's tensors alive
            self._retry_smaller(part, failed, number)
            del failed
        if self.bounds_log is not None:
            rows = chain.from_iterable(processes.all_gather(log_rows))
            for row in rows if processes.is_main_process() else ():
                self.bounds_log.append(number, *row)
        metrics: dict[str, float] = defaultdict(float)
        for name, value in chain.from_iterable(s.items() for s in processes.all_gather(sums)):
            metrics[name] += value
        return metrics

    def term_weights(self, batch: SetwiseBatch) -> Tensor:
        """Weights of `StepOutput.terms` in the batch's loss, of their shape.

        With a teacher of weight w it is (1 - w) times the loss without one, plus w times the mean
        cross-entropy over the examples: the teacher's term does not depend on how many positives
        an example has.
        """
        weights = self.example_weights(batch)
        if batch.teacher_probs is None:
            return weights
        share = self.settings.sft_teacher_weight
        of_teacher = (batch.user_ids != FILLER) / self.n_examples
        return torch.stack([(1 - share) * weights, share * of_teacher], 1)

    def example_weights(self, batch: SetwiseBatch) -> Tensor:
        """Weight of every example's loss in the batch's, [B]; independent of the parts.

        With an average over positives, all positives of the batch weigh the same: a preference loss
        is a sum over an example's positives, the loss of supervised fine-tuning their mean.
        """
        counted = batch.user_ids != FILLER
        n_positives = set_masks(batch.levels)[0].sum(1) * counted
        if self.stage.kind == "sft" and self.settings.sft_loss_average == "positive":
            return n_positives / processes.all_reduce_sum(n_positives.sum())
        if self.stage.kind == "preference" and self.settings.loss_average == "positive":
            return counted / processes.all_reduce_sum(n_positives.sum())
        return counted / self.n_examples

    def _parts(self, batch: SetwiseBatch, weights: Tensor) -> list[tuple[SetwiseBatch, Tensor]]:
        """Parts of the batch and the weights of their examples; equally many in all processes."""
        n_parts = min(self.settings.gradient_accumulation_steps, len(batch))
        max_tokens = self.engine.model.max_tokens
        lengths = packed_lengths(batch.prompts.lengths, batch.candidates, self.items)
        if self.engine.lockstep and 0 < max_tokens < lengths.max():
            longest = int(lengths.argmax())
            raise TrainingError(
                f"the example of user {self._users(batch.user_ids[longest, None])} has "
                f"{int(lengths[longest])} tokens, and under ZeRO-3 none can be cut into parts. "
                f"Raise --max_tokens_per_batch (now {max_tokens}), or lower "
                "--num_negatives or --max_prompt_tokens."
            )
        groups = length_buckets(
            lengths,
            max_rows=min(math.ceil(len(batch) / n_parts), self.max_rows or len(batch)),
            max_tokens=max_tokens,
            part_tokens=part_tokens(self.engine.model.lm, lengths.device),
        )
        parts = [(batch.select(rows), weights[rows]) for rows in groups]
        # processes exchange gradients, and under ZeRO-3 weights, in lockstep: fill up with the
        # shortest example
        shortest = batch.select(groups[-1][-1:])
        filler = replace(shortest, user_ids=torch.full_like(shortest.user_ids, FILLER))
        return parts + [(filler, weights[:1] * 0)] * (
            processes.all_reduce_max(len(parts)) - len(parts)
        )

    def _add_metrics(
        self,
        output: StepOutput,
        part: SetwiseBatch,
        sums: dict[str, float],
        log_rows: list[BoundsRows],
    ) -> None:
        """Add a part's share of the batch's metrics to `sums`, its bounds to `log_rows`."""
        counted = part.user_ids != FILLER
        if not counted.any():
            return
        if not counted.all():
            part, output = part.select(counted), output.select(counted)
        lengths = self.items.lengths[part.candidates] if self._rewards_per_token else None
        metrics = step_metrics(output, part.levels, self.settings.beta, lengths)
        if output.teacher_losses is not None:
            metrics["teacher_loss"] = float(output.teacher_losses.mean())
        if self.bounds_log is not None:
            metrics |= self._bounds(output, part, log_rows)
        for name, value in metrics.items():
            sums[name] += value * len(part) / self.n_examples

    def _bounds(
        self, output: StepOutput, part: SetwiseBatch, log_rows: list[BoundsRows]
    ) -> dict[str, float]:
        """Add losses and bounds of every example to `log_rows`; their means for TensorBoard."""
        assert output.reference_logps is not None  # the settings' check of `track_bounds`
        users = [self.user_name(user) for user in part.user_ids.tolist()]
        has_levels = self.settings.levels or self.settings.low_ratings != "ignore"
        means = {}
        for kind in ("sets", "levels") if has_levels else ("sets",):
            found = bounds(
                output.policy_logps,
                output.reference_logps,
                part.levels,
                self.settings.beta,
                use_levels=kind == "levels",
            )
            log_rows.append((users, kind, found))
            for name, values in vars(found).items():
                means[f"bounds_{kind}/{name}"] = float(values.double().mean())
        return means

    @property
    def may_retry(self) -> bool:
        """True if a part that ran out of memory may be computed again in smaller ones.

        Several processes would have to agree on it, and one that failed may be out of step.
        """
        is_alone = isinstance(self.engine, TorchEngine) and processes.world_size() == 1
        automatic = self.settings.max_tokens_per_batch == "auto" and is_alone
        return self.settings.auto_batch or automatic

    def _retry_smaller(self, part: SetwiseBatch, error: RuntimeError, number: int) -> None:
        """Halve the parts after one ran out of memory; of a single example, its tokens.

        Raises:
            OutOfMemory: the part may not or cannot be made smaller.
        """
        self.engine.discard_gradient()
        error.__traceback__ = None
        release_memory()
        n_tokens = self._longest(part)
        if 0 < self.engine.model.max_tokens < n_tokens:
            n_tokens = self.engine.model.max_tokens  # of one example, which is cut already
        is_cut = len(part) == 1 and self.settings.max_tokens_per_batch == "auto"
        # a single example is cut into parts of its candidates, each with the whole prompt
        least = int(part.prompts.lengths.max() + self.items.lengths[part.candidates].max())
        fewer = max(n_tokens // 2, least)
        smaller_helps = fewer < n_tokens if is_cut else len(part) > 1 and not self._is_whole(part)
        if not self.may_retry or not smaller_helps:
            raise self._out_of_memory(part, error, number)
        if is_cut:
            self.engine.model.set_max_tokens(fewer)
            limit = f"{fewer} tokens"
        else:
            self.max_rows = len(part) // 2
            limit = f"{self.max_rows} examples"
        getLogger().warning(
            f"out of memory with {len(part)} examples at once, of up to {n_tokens} tokens, in step "
            f"{number}; batches are computed in parts of at most {limit} from here on, with the "
            "same result"
        )

    def _is_whole(self, part: SetwiseBatch) -> bool:
        """True of a batch whose `batch_kl` fails although its parts were made smaller."""
        return self.max_rows is not None and len(part) > self.max_rows

    def _longest(self, part: SetwiseBatch) -> int:
        """Tokens of the longest example."""
        return int(packed_lengths(part.prompts.lengths, part.candidates, self.items).max())

    def _not_finite(self, what: str, user_ids: Tensor, number: int) -> NotFinite:
        return NotFinite(
            f"{what} is not finite in step {number} of the {self.stage.name} stage, in examples of "
            f"users {self._users(user_ids)}. Lower --{self.stage.rate_setting} or "
            "--clip_grad_norm, or use --dtype=float32, in a new run."
        )

    def _out_of_memory(self, part: SetwiseBatch, error: RuntimeError, number: int) -> OutOfMemory:
        asked = "" if self.may_retry else "set --auto_batch=True, or "
        where = f"out of memory in step {number} of the {self.stage.name} stage"
        if self._is_whole(part):
            return OutOfMemory(
                f"{where} in the forward pass for KTO's statistic, which takes all {len(part)} "
                f"examples of the batch at once ({str(error).splitlines()[0]}). In a new run, "
                f"lower --{self.stage.batch_setting} or --max_prompt_tokens."
            )
        return OutOfMemory(
            f"{where} with {len(part)} examples at once, the longest of {self._longest(part)} "
            f"tokens, of users {self._users(part.user_ids)} ({str(error).splitlines()[0]}). "
            f"To make it fit, {asked}lower --max_tokens_per_batch (now "
            f"{self.engine.model.max_tokens or 'no limit'}). A new run may also set "
            "--gradient_checkpointing=True or lower --num_negatives, --max_targets or "
            "--max_prompt_tokens."
        )

    def _users(self, user_ids: Tensor) -> str:
        """Names of the first users, for a message."""
        names = [self.user_name(user) for user in user_ids[:8].tolist()]
        return f"{', '.join(names)}{' ...' if len(user_ids) > 8 else ''}"


def step_metrics(
    output: StepOutput, levels: Tensor, beta: float, lengths: Tensor | None = None
) -> dict[str, float]:
    """Means over the examples of a batch, under the names of `steps.csv` and under TRL's.

    `loss` is the mean over examples, whatever `loss_average` is, so that runs compare.
    `positive_logp` and `negative_logp` (TRL's `logps/chosen`, `logps/rejected`) are the mean
    log-probabilities of an example's positives and negatives, nats per item.

    `rewards/chosen` and `rewards/rejected` are the mean `rewards` of an example's positives and
    negatives, nats, and `rewards/margins` is their difference. `reward_accuracy` (TRL's
    `rewards/accuracies`) is the mean of `reward_accuracies`. `margin` is `rewards/margins` with a
    reference; without one, it is the difference of the mean log-probabilities, without beta.

    Args:
        output: of the batch.
        levels: integer [B, C]; every level >= 1 is positive, 0 and -2 are negative.
        beta: factor of the rewards.
        lengths: integer [B, C], tokens of the items, for rewards per token.
    """
    positive_logps, negative_logps = set_means(output.policy_logps, levels)
    metrics = {
        "loss": float(output.losses.detach().mean()),
        "positive_logp": float(positive_logps.mean()),
    }
    if not set_masks(levels)[1].any():
        return metrics
    values = rewards(output.policy_logps, output.reference_logps, levels, beta, lengths)
    chosen, rejected = set_means(values, levels)
    margins = chosen - rejected
    has_reference = output.reference_logps is not None
    # means over the examples that have negatives; others hold NaN
    metrics["negative_logp"] = float(negative_logps.nanmean())
    metrics["margin"] = float(
        (margins if has_reference else positive_logps - negative_logps).nanmean()
    )
    metrics["reward_accuracy"] = float(reward_accuracies(values, levels).nanmean())
    return metrics | {
        "rewards/chosen": float(chosen.mean()),
        "rewards/rejected": float(rejected.nanmean()),
        "rewards/accuracies": metrics["reward_accuracy"],
        "rewards/margins": float(margins.nanmean()),
        "logps/chosen": metrics["positive_logp"],
        "logps/rejected": metrics["negative_logp"],
    }
