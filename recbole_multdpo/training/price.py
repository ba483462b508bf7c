"""Expected time and memory of a run, said before it starts and corrected while it goes.

One part of a training batch and a few users' rankings are timed, on real data of the run; the rest
is arithmetic. Weights, random state and results stay as they are.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from logging import getLogger

import numpy as np
import psutil  # type: ignore[import-untyped]
import torch
from recbole.data.dataloader.abstract_dataloader import AbstractDataLoader

from recbole_multdpo.data.batch import SetwiseBatch, length_buckets
from recbole_multdpo.data.dynamic_negatives import DynamicNegatives
from recbole_multdpo.data.loader import SetwiseDataLoader
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.model.memory import GIB, count_step
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.console import duration, log_detail
from recbole_multdpo.runtime.out_of_memory import is_out_of_memory, release_memory
from recbole_multdpo.runtime.random_state import random_state, restore_random_state
from recbole_multdpo.scoring.head import logits_bytes
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.packed import packed_lengths
from recbole_multdpo.settings.config import Config
from recbole_multdpo.training.memory import state_to_come
from recbole_multdpo.training.step import part_tokens

SAMPLE = 64  # training examples whose tokens are counted
PROBE_TOKENS = 4096  # of the timed part of a batch, at most
BACKWARD = 2.0  # time of a backward pass over that of the forward pass
# Nodes of the title tree that best-first search opens for a user of a trained model, a few hundred
# of thousands; each is a token. Where a title is one token, ranking is timed instead.
NODES = 300
LONG = 1800.0  # seconds of a run worth a word on how to shorten it


@dataclass(frozen=True)
class Work:
    """The work of a part of a run.

    Attributes:
        name: as in `seconds` of `result.json`.
        n_steps: optimizer steps.
        loader: their examples; None without steps.
        n_validations: rankings of `ranked` during the steps.
        ranked: a loader of users; None for none.
    """

    name: str
    n_steps: int = 0
    loader: SetwiseDataLoader | None = None
    n_validations: int = 0
    ranked: AbstractDataLoader | None = None


@dataclass(frozen=True)
class StepPrice:
    """Expected cost of a stage's optimizer steps.

    Attributes:
        seconds: of a step.
        tokens: of an example with its candidates, on average.
    """

    seconds: float
    tokens: float


@dataclass
class Price:
    """Expected seconds of a run's parts, in their order.

    Attributes:
        seconds: by name; the prediction stays, `left` corrects it by what was measured.
        memory: expected peak, bytes; of the device.
        steps: cost of the steps of the parts that train.
    """

    seconds: dict[str, float]
    memory: float
    steps: dict[str, StepPrice] = field(default_factory=dict)
    _ratio: float = field(default=1.0, init=False)

    @property
    def total(self) -> float:
        """Seconds of the whole."""
        return sum(self.seconds.values())

    def left(self, name: str, share: float, taken: float) -> float:
        """Seconds that are left of the run, at the speed of what was done.

        Args:
            name: the present part.
            share: of it that is done, above 0.
            taken: seconds that this share took.
        """
        expected = self.seconds.get(name, 0.0)
        if expected > 0:
            self._ratio = taken / share / expected
        names = list(self.seconds)
        later = names[names.index(name) + 1 :] if name in names else []
        return taken / share * (1 - share) + self._ratio * sum(self.seconds[n] for n in later)


class Pricing:
    """Measures a model before it is trained, for `price`."""

    def __init__(self, config: Config, model: LLMRec, rank: Callable[[AbstractDataLoader], float]):
        """Take what is measured.

        Args:
            config: the run's configuration.
            model: on its device, before its first stage.
            rank: seconds of ranking the users of a loader, by a few of them.
        """
        self.config, self.model, self._rank = config, model, rank
        self._forward: float | None = None  # seconds per token
        self._step: float | None = None  # seconds per token, forward and backward pass
        self._update = 0.0  # seconds of an optimizer's step
        self._per_user: float | None = None  # seconds of a ranking
        self._tokens: dict[int, float] = {}  # of an example, by the loader's id

    def price(self, works: Sequence[Work]) -> Price | None:
        """The expected time and memory; None if memory runs out, which training may not.

        In a run of several processes all of them call it together.
        """
        before = random_state(self.model.device)
        found: Price | None = None
        try:
            seconds = {work.name: self._seconds(work) for work in works}
            steps = {
                work.name: StepPrice(self._step_seconds(work.loader), self._tokens[id(work.loader)])
                for work in works
                if work.n_steps and work.loader is not None
            }
            found = Price(seconds, self._memory(works), steps)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            error.__traceback__ = None
        finally:
            restore_random_state(before, self.model.device)
            self.model.lm.zero_grad(set_to_none=True)
        if found is None:
            release_memory()
        slowest: list[Price | None] = processes.all_gather(found)
        whole = [price for price in slowest if price is not None]
        if len(whole) < len(slowest):
            return None
        return max(whole, key=lambda price: price.total)

    def _seconds(self, work: Work) -> float:
        seconds = 0.0
        if work.n_steps and work.loader is not None:
            seconds += work.n_steps * self._step_seconds(work.loader)
        if work.n_validations and work.ranked is not None:
            seconds += work.n_validations * self._ranking_seconds(work.ranked)
        return seconds

    def _step_seconds(self, loader: SetwiseDataLoader) -> float:
        """Seconds of one optimizer step."""
        per_token = self._measure(loader)
        # the reference's forward pass, where there is one
        reference = self.model.settings.uses_reference and loader.setwise_sampler.n_negatives
        factor = 1 + (1 / (1 + BACKWARD) if reference else 0)
        share = -(-loader.examples_per_batch // processes.world_size())
        share = min(share, len(loader.users))
        return per_token * factor * share * self._tokens[id(loader)] + self._update

    def _measure(self, loader: SetwiseDataLoader) -> float:
        """Seconds per token of a step's forward and backward pass; counts the loader's tokens."""
        if isinstance(loader.setwise_sampler.negative_sampler, DynamicNegatives):
            # the policy has drawn none yet
            self._tokens[id(loader)] = self.model.longest_row(
                loader.setwise_sampler.most_candidates
            )
            return self._step or 0.0
        if id(loader) in self._tokens and self._step is not None:
            return self._step
        start = time.perf_counter()
        batch = self._sample(loader)
        sampling = time.perf_counter() - start if self.config["worker"] == 0 else 0.0
        lengths = packed_lengths(
            batch.prompts.lengths, batch.candidates, self.model.catalogue.items
        ).cpu()
        self._tokens[id(loader)] = float(lengths.float().mean())
        if self._step is not None:
            return self._step
        fits = int((lengths.cumsum(0) <= PROBE_TOKENS).sum())
        n_rows = max(min(fits, loader.examples_per_batch), 1)
        device, n_tokens = self.model.device, int(lengths[:n_rows].sum())
        groups = length_buckets(  # as a step cuts it
            lengths[:n_rows],
            max_rows=n_rows,
            max_tokens=0,
            part_tokens=part_tokens(self.model.lm, device),
        )
        parts = [batch.select(rows.to(device)) for rows in groups]
        self.model.train()
        with_gradient = self.config.deepspeed is None  # else the gradients would be whole
        self._run(parts[-1], with_gradient)  # warms up
        start = time.perf_counter()
        for part in parts:
            self._run(part, with_gradient)
        # examples are made in between, unless processes of their own make them
        seconds = time.perf_counter() - start + sampling * n_rows / len(batch)
        if with_gradient:
            self._update = self._update_seconds()
        self._step = seconds / n_tokens * (1 if with_gradient else 1 + BACKWARD)
        self._forward = self._step / (1 + BACKWARD)
        return self._step

    def _update_seconds(self) -> float:
        """Seconds of an optimizer's step with the gradients that there are, on a copy."""
        trained = [p for p in self.model.lm.parameters() if p.grad is not None]
        copies = [p.detach().clone().requires_grad_() for p in trained]
        for copy, parameter in zip(copies, trained, strict=True):
            copy.grad = parameter.grad
        start = time.perf_counter()
        torch.optim.AdamW(copies).step()
        float(copies[0].detach().flatten()[0])  # waits for the device
        return time.perf_counter() - start

    def _sample(self, loader: SetwiseDataLoader) -> SetwiseBatch:
        """Examples of users spread over all, on the model's device."""
        loader.set_epoch(0)
        n_users = len(loader.users)
        index = np.linspace(0, n_users - 1, min(SAMPLE, n_users)).astype(int)
        users = loader.users[np.unique(index)]
        batch: SetwiseBatch = loader.setwise_sampler.sample(users, 0)
        return batch.to(self.model.device)

    def _run(self, batch: SetwiseBatch, with_gradient: bool) -> None:
        """Compute a part of a batch as the first stage does, and add up the gradient."""
        with nullcontext() if with_gradient else torch.no_grad():
            losses = self.model.step(batch).losses.sum()
        if with_gradient:
            losses.backward()
        float(losses.detach())  # waits for the device

    def _ranking_seconds(self, ranked: AbstractDataLoader) -> float:
        """Seconds of ranking all users of a loader with a trained model."""
        trie, settings = self.model.catalogue.trie, self.model.settings
        n_users = ranked.sample_size
        writes = settings.search is None
        if not writes and (trie.num_internal <= 1 or self._forward is None):
            if self._per_user is None:
                self._per_user = self._rank(ranked) / n_users
            return self._per_user * n_users
        users = torch.as_tensor(ranked.uid_list)
        some = users[torch.linspace(0, len(users) - 1, min(SAMPLE, len(users))).long()]
        prompts = self.model.user_prompts(some, self.model.histories).lengths.float().mean()
        if writes:
            return self._writing_seconds(ranked, float(prompts))
        lengths = self.model.catalogue.items.lengths[1:].float()
        nodes = every_token = float(lengths.sum())
        if settings.search == "best_first":
            nodes = min(NODES, every_token)
        elif settings.search == "beam":  # every step feeds the beam
            nodes = min(settings.beam_size * float(lengths.mean()), every_token)
        assert self._forward is not None
        seconds = self._forward * (float(prompts) + nodes) * len(ranked.uid_list)
        return seconds / processes.world_size()

    def _writing_seconds(self, ranked: AbstractDataLoader, n_prompt: float) -> float:
        """Seconds of a ranking by written titles.

        The timed model, which is not trained yet, writes as long as it may; a trained one writes
        titles.
        """
        if self._per_user is None:
            self._per_user = self._rank(ranked) / ranked.sample_size
        prompts = n_prompt * (self._forward or 0.0) / processes.world_size()
        title = float(self.model.catalogue.items.lengths[1:].float().mean()) + 1  # the end
        share = min(title / self.model.settings.generation_tokens, 1.0)
        per_user = prompts + max(self._per_user - prompts, 0.0) * share
        return per_user * ranked.sample_size

    def _memory(self, works: Sequence[Work]) -> float:
        """Expected peak bytes of the device: what is used now and what training adds."""
        model, device = self.model, self.model.device
        if device.type == "cuda":
            used = float(torch.cuda.memory_allocated(device))
        else:
            used = float(psutil.Process().memory_info().rss)
        lm = causal_lm(model.lm)
        weights = sum(p.numel() * p.element_size() for p in lm.parameters())
        copies = model.settings.uses_reference and not model.uses_lora
        reference = weights if copies and model.settings.has_preference_stage else 0
        logits = logits_bytes(
            lm.config.get_text_config().vocab_size, lm.dtype, device.type == "cuda"
        )
        loaders = [work.loader for work in works if work.n_steps and work.loader is not None]
        activations = 0.0
        if loaders:
            memory = count_step(model, False)
            for loader in loaders:
                width = int(self._tokens[id(loader)])
                n_examples = -(-loader.examples_per_batch // processes.world_size())
                activations = max(
                    activations,
                    n_examples * width * memory.per_token(width, checkpointing=False),
                )
        return used + state_to_come(model, self.config.deepspeed) + reference + logits + activations


def log_price(price: Price, *, is_rest: bool = False) -> None:
    """Log the expected time and memory, and how to make a long run shorter.

    Args:
        price: of the run, or of what a resumed one has still to do.
        is_rest: it is that of a resumed run.
    """
    parts = ", ".join(
        f"{name} {duration(seconds)}" for name, seconds in price.seconds.items() if seconds >= 0.5
    )
    getLogger().info(
        f"expected: about {duration(price.total)} {'for the rest' if is_rest else 'in all'}"
        + (f" ({parts})" if parts else "")
        + f", {price.memory / GIB:.1f} GiB at the peak"
    )
    log_detail(f"expected seconds: {price.seconds}")
    if price.total > LONG:
        getLogger().info(
            "to make it shorter: --train_users=N and --max_steps=N train on less, --valid_users=N "
            "and --test_users=N rank fewer users; results then say so"
        )
