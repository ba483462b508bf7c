"""LLMRec: a Hugging Face causal LM as a RecBole general recommender.

An item's score for a user is log pi(item text | prompt of the user's history or conversation), the
sum over its tokens in nats. Training has two stages over the same batches: supervised fine-tuning,
then preference training against the frozen result of the first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftModel
from recbole.config import Config
from recbole.data.interaction import Interaction
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from recbole_multdpo.data.batch import Prompts, SetwiseBatch
from recbole_multdpo.data.dataset import LLMRecDataset
from recbole_multdpo.data.item_tokens import encode_items
from recbole_multdpo.data.prompt import PromptBuilder, PromptFrame, prompt_frame
from recbole_multdpo.data.prompt_file import StoredPrompt
from recbole_multdpo.data.user_items import UserItems, ranking_histories
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.losses import LOSSES, kl_estimate, preference_loss
from recbole_multdpo.losses.sets import POSITIVE_LEVEL
from recbole_multdpo.model.backbone import (
    DTYPES,
    add_lora,
    frozen_copy,
    load_backbone,
    merge_lora,
    reference_context,
    save_backbone,
    set_gradient_checkpointing,
)
from recbole_multdpo.model.backbone_check import (
    MAX_ITEM_TOKENS,
    BackboneUse,
    InexactBackbone,
    check_backbone,
    scoring_methods,
)
from recbole_multdpo.model.memory import check_room
from recbole_multdpo.model.modes import train_without_dropout
from recbole_multdpo.model.probe import Trial
from recbole_multdpo.model.reference_cache import ReferenceCache
from recbole_multdpo.runtime import processes
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.one_token import OneTokenExamples, is_one_token, one_token_logps
from recbole_multdpo.scoring.packed import (
    PackedExamples,
    packed_logps,
    packed_logps_with_prompt,
    split_candidates,
)
from recbole_multdpo.scoring.padded import MAX_LOGITS, padded_logps, padded_logps_with_prompt
from recbole_multdpo.scoring.parts import OwnHead, parts_of
from recbole_multdpo.scoring.trie_scores import trie_scores
from recbole_multdpo.scoring.windows import LayerKinds

PREFERENCE_ADAPTER_SEED = 1  # added to the run's seed: the second adapter must not repeat the first


@dataclass(frozen=True)
class StepOutput:
    """Losses and log-probabilities of one batch.

    Attributes:
        losses: float [B], one value per example, nats, with gradient.
        policy_logps: float [B, C], detached, nats.
        reference_logps: float [B, C], nats; None if the loss has no reference.
        teacher_losses: float [B], cross-entropy of the policy to the teacher's target, nats, with
            gradient; 0 where the teacher has no opinion; None without a teacher.
    """

    losses: Tensor
    policy_logps: Tensor
    reference_logps: Tensor | None
    teacher_losses: Tensor | None = None

    @property
    def terms(self) -> Tensor:
        """Terms that the weights of examples multiply: `losses`, or both losses [B, 2]."""
        if self.teacher_losses is None:
            return self.losses
        return torch.stack([self.losses, self.teacher_losses], 1)

    def detached(self) -> StepOutput:
        """The same values without gradient."""
        teacher = None if self.teacher_losses is None else self.teacher_losses.detach()
        return replace(self, losses=self.losses.detach(), teacher_losses=teacher)

    def select(self, rows: Tensor) -> StepOutput:
        """Select examples by indices, or by a mask [B]."""
        reference = None if self.reference_logps is None else self.reference_logps[rows]
        teacher = None if self.teacher_losses is None else self.teacher_losses[rows]
        return StepOutput(self.losses[rows], self.policy_logps[rows], reference, teacher)


class LLMRec(GeneralRecommender):
    """Language-model recommender over item texts.

    Attributes:
        automatic_max_tokens: value of `max_tokens_per_batch: auto`, 0 for no limit; None before it
            is chosen.
    """

    input_type = InputType.POINTWISE

    def __init__(
        self,
        config: Config,
        dataset: LLMRecDataset,
        prompt: StoredPrompt | None = None,
        *,
        for_training: bool = False,
    ) -> None:
        """Load the backbone and tokenise catalogue and prompts.

        Args:
            config: a `recbole_multdpo.settings.config.Config` whose `settings` describe the model.
            dataset: the training part; prompts show its items as histories, or its conversations if
                it has any.
            prompt: fixed text of the prompt of an existing run; None to render it.
            for_training: refuse a backbone whose training does not fit into the device's memory,
                before it is loaded.
        """
        super().__init__(config, dataset)
        settings = config.settings
        self.settings = settings
        self.seed = config["seed"]
        self.loss_name = "sft"
        self.histories = dataset.user_items(settings.levels)
        self.conversations = dataset.conversations
        shows_disliked = dataset.low_ratings is not None and self.conversations is None
        self.max_disliked = settings.disliked_in_prompt if shows_disliked else 0
        self.disliked = self._low_rated(dataset)
        frame = None if prompt is None else prompt.frame
        plain_frame = prompt_frame(
            settings.prompt_template,
            None,
            False,
            config["context"],
            titles_alone=settings.shows_titles_alone,
            shows_disliked=self.max_disliked > 0,
        )
        fitted_frame = plain_frame if frame is None else frame
        self.backbone = load_backbone(
            settings.backbone,
            dtype=settings.dtype,
            device=config["device"],
            attn_implementation=settings.attn_implementation,
            use_liger_kernel=settings.use_liger_kernel,
            gradient_checkpointing=settings.gradient_checkpointing is True,
            trust_remote_code=settings.trust_remote_code,
            tiny_kwargs={
                "texts": self._fitted_texts(dataset.item_texts[1:], fitted_frame),
                "whole_texts": self._whole_texts(dataset.item_texts[1:], fitted_frame),
                "separator": fitted_frame.separator if self.conversations is None else "",
                "hidden_size": settings.tiny_hidden_size,
                "num_layers": settings.tiny_num_layers,
                "num_heads": settings.tiny_num_heads,
                "vocab_size": settings.tiny_vocab_size,
                "seed": self.seed,
            },
            check=partial(
                check_room,
                settings=settings,
                dtype=DTYPES[settings.dtype],
                device=config["device"],
                deepspeed=config.deepspeed,
            )
            if for_training
            else None,
        )
        self.tokenizer = self.backbone.tokenizer
        if frame is None:
            # on one process for all, as a template may render differently in each
            frame = processes.broadcast_from_main(
                lambda: prompt_frame(
                    settings.prompt_template,
                    self.tokenizer,
                    settings.use_chat_template,
                    config["context"],
                    settings.chat_template_kwargs,
                    settings.shows_titles_alone,
                    self.max_disliked > 0,
                )
            )
        self.item_texts = dataset.item_texts
        items = encode_items(
            self.tokenizer,
            dataset.item_texts,
            prefix=frame.item_prefix,
            max_item_tokens=settings.max_item_tokens,
        )
        normalised = settings.normalize_over == "catalogue"
        self.catalogue = ItemCatalogue.build(items, normalised=normalised)
        self.prompts = self._prompt_builder(frame)
        if prompt is not None:
            prompt.check_tokens(self.prompts.frame_ids())
        self._check_max_length()
        self._user_names = dataset.field2id_token[dataset.uid_field]
        self.uses_lora = not settings.trains_all_weights
        self.lm: nn.Module = self.backbone.lm
        if self.uses_lora:
            self.lm = self._with_adapter(self.seed)
        self._probed_tokens = self._longest_prompt()
        processes.broadcast_from_main(
            lambda: check_backbone(self.lm, self._use(), config["device"])
        )
        self.automatic_max_tokens: int | None = None
        self.reference: nn.Module | None = None
        self.reference_cache: ReferenceCache | None = None

    def fit_to(self, train: LLMRecDataset) -> None:
        """Train on other rows, such as training and validation rows together; call it first.

        The tokenizer of `tiny` stays as fitted to the training part.
        """
        self.histories = train.user_items(self.settings.levels)
        self.disliked = self._low_rated(train)

    def _low_rated(self, train: LLMRecDataset) -> UserItems | None:
        """Low-rated items that prompts may show; None if they show none."""
        return train.low_rated_items() if self.max_disliked else None

    def _fitted_texts(self, titles: Sequence[str], frame: PromptFrame) -> list[str]:
        """Texts that the tokenizer of `tiny` is fitted to: those that prompts hold, if known.

        Where a title is one token, a prompt of a history never holds a part of one: tokens for
        parts would only cost time, in the embedding's gradient and in the optimizer.
        """
        fixed = frame.texts() * 20  # several copies, so that the frame is split into few tokens
        if self.settings.tiny_title_tokens and self.conversations is None:
            return fixed
        return [f" {text}" for text in titles] + fixed + self._training_turns()

    def _whole_texts(self, titles: Sequence[str], frame: PromptFrame) -> list[str]:
        """Texts that become one token of `tiny`: titles, and where prompts show them, marked ones.

        A marked title has an embedding of its own, so that one layer can tell it from a liked one.
        """
        if not self.settings.tiny_title_tokens:
            return []
        marked = [frame.marked(title) for title in titles] if frame.disliked else []
        return [*titles, *marked]

    @property
    def n_examples(self) -> int:
        """Examples of an epoch: users or conversations with training items, or `train_users`."""
        n_users = int((self.histories.counts > 0).sum())
        return min(self.settings.train_users or n_users, n_users)

    def _training_turns(self) -> list[str]:
        """Texts of training conversations, to fit the tokenizer of `tiny`."""
        if self.conversations is None:
            return []
        return self.conversations.texts(np.flatnonzero(self.histories.counts))

    def _check_max_length(self) -> None:
        """Refuse prompts and items that are longer together than the LM's maximum length.

        Raises:
            ConfigError: the longest prompt and the longest item exceed its positions.
        """
        positions = self._positions
        if positions is None:
            return
        settings = self.settings
        prompt, item = self._longest_prompt(), int(self.catalogue.items.lengths.max())
        if prompt + item > positions:
            raise ConfigError(
                f"max_prompt_tokens={settings.max_prompt_tokens}: prompts take up to {prompt} "
                f"tokens and items up to {item}, and backbone={settings.backbone} was made for "
                f"{positions} in all. Set --max_prompt_tokens to at most {positions - item}"
                f"{', or --max_item_tokens lower' if positions <= 2 * item else ''}."
            )

    @property
    def _positions(self) -> int | None:
        """Maximum number of tokens of the LM; None if its configuration has none.

        With `longrope` it is the length up to which the model uses its first set of frequencies:
        the longest row of a batch chooses the set for all rows, so longer rows would change the
        scores of others.
        """
        config = self.backbone.lm.config.get_text_config()
        limits = [getattr(config, "max_position_embeddings", None)]
        rope = getattr(config, "rope_parameters", None) or {}
        for kind in (rope, *rope.values()):  # of all layers, or by kind of layer
            if isinstance(kind, dict) and kind.get("rope_type") == "longrope":
                limits.append(kind["original_max_position_embeddings"])
        return min((limit for limit in limits if limit is not None), default=None)

    def _longest_prompt(self) -> int:
        """Upper bound of the prompts' number of tokens, in training and ranking."""
        most = None
        if self.conversations is None:
            most = max(self.settings.max_history, self.settings.ranking_history)
        return self.prompts.longest(most)

    def _use(self) -> BackboneUse:
        """The run's use of the LM, for a probe at prompts of `_probed_tokens`."""
        settings = self.settings
        item_tokens = min(max(int(self.catalogue.items.lengths.max()), 5), MAX_ITEM_TOKENS)
        prompt_tokens = self._probed_tokens
        if self._positions is not None:
            prompt_tokens = max(min(prompt_tokens, self._positions - item_tokens), 1)
        terminator = self.tokenizer.eos_token_id
        tokens = set(self.catalogue.items.ids[self._is_item_token()].tolist()) - {terminator}
        used: dict[str, Any] = {"scorer": settings.scorer}
        if settings.search is not None:
            used["ranker"] = settings.search
        if self.uses_lora:
            targets = settings.lora_target_modules
            used["lora_target_modules"] = targets if isinstance(targets, str) else list(targets)
        return BackboneUse(
            name=settings.backbone,
            trial=Trial(
                prompt_tokens=prompt_tokens,
                item_tokens=item_tokens,
                tokens=sorted(tokens) or [terminator],
                terminator=terminator,
                methods=scoring_methods(settings.scorer, settings.search),
            ),
            shortest_prompt=self.prompts.longest(1),
            settings=used,
            key={
                "fingerprint": self.backbone.fingerprint,
                "dtype": settings.dtype,
                **({"use_liger_kernel": True} if settings.use_liger_kernel else {}),
            },
        )

    def _is_item_token(self) -> Tensor:
        """Mask of the items' tokens in their table: bool [n_items, L]."""
        return (
            torch.arange(self.catalogue.items.ids.shape[1])
            < self.catalogue.items.lengths.cpu()[:, None]
        )

    def _placed(self, prompts: Prompts) -> Prompts:
        """Move prompts to the device; the LM is probed first if they are the longest so far."""
        if prompts.width > self._probed_tokens:
            self._probed_tokens = prompts.width
            try:
                check_backbone(self.lm, self._use(), self.device)
            except InexactBackbone as error:
                raise ConfigError(
                    f"a prompt of {prompts.width} tokens is longer than any of the run, and "
                    f"{error} Or give a shorter history or conversation."
                ) from error
        return prompts.to(self.device)

    def _prompt_builder(self, frame: PromptFrame) -> PromptBuilder:
        if self.conversations is None:
            return PromptBuilder(
                self.tokenizer,
                self.item_texts,
                frame,
                max_history=self.settings.max_history,
                max_prompt_tokens=self.settings.max_prompt_tokens,
                max_disliked=self.max_disliked,
            )
        return self._turn_prompts(self.conversations.turns, frame)

    def _turn_prompts(self, turns: Sequence[tuple[str, str]], frame: PromptFrame) -> PromptBuilder:
        roles, texts = zip(*turns, strict=True)
        limit = self.settings.max_prompt_tokens
        return PromptBuilder(
            self.tokenizer, texts, frame, max_history=None, max_prompt_tokens=limit, roles=roles
        )

    @property
    def prompt(self) -> StoredPrompt:
        """The fixed text of the prompts and its tokens, as a run stores them."""
        return StoredPrompt(self.prompts.frame, self.prompts.frame_ids())

    def _with_adapter(self, seed: int) -> nn.Module:
        settings = self.settings
        return add_lora(
            self.lm,
            r=settings.lora_r,
            alpha=settings.lora_alpha,
            dropout=settings.lora_dropout,
            target_modules=settings.lora_target_modules,
            seed=seed,
        )

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        """Move the token tables together with the weights."""
        super()._apply(fn, recurse)
        device = next(self.lm.parameters()).device
        self.catalogue = self.catalogue.to(device)
        self.device = device
        return self

    def start_preference_stage(self, loss_name: str, cache_dir: Path | None = None) -> None:
        """Freeze the current policy as the reference and continue training with `loss_name`.

        With LoRA the adapter is merged and replaced by a fresh one, so that the reference is the
        model with the adapter disabled; otherwise a frozen copy is kept. The log-ratio starts at
        zero.

        Args:
            loss_name: a key of `LOSSES`.
            cache_dir: folder for the cache of log-probabilities under the reference; None for no
                cache.
        """
        self.loss_name = loss_name
        if self.uses_lora:
            self.merge_adapter()
            self.lm = self._with_adapter(self.seed + PREFERENCE_ADAPTER_SEED).to(self.device)
        elif self._uses_reference:
            self.reference = frozen_copy(self.lm)
        if cache_dir is not None:
            self.reference_cache = ReferenceCache(
                cache_dir / f"reference-{self.reference_digest()}"
            )

    def merge_adapter(self) -> None:
        """Merge the LoRA adapter, if there is one, into the base weights."""
        if isinstance(self.lm, PeftModel):
            self.lm = merge_lora(self.lm)

    def drop_adapter(self) -> None:
        """Remove the LoRA adapter without merging it."""
        assert isinstance(self.lm, PeftModel)
        self.lm = self.lm.unload()
        if hasattr(self.lm, "peft_config"):
            del self.lm.peft_config

    def save(self, folder: Path) -> None:
        """Write LM and tokenizer as plain transformers loads them; of a LoRA model the adapter."""
        save_backbone(self.lm, self.tokenizer, folder)

    def user_name(self, user_id: int) -> str:
        """The user's id in the data files."""
        return str(self._user_names[user_id])

    # ---- training ----

    def train(self, mode: bool = True) -> LLMRec:
        """Change the mode; in preference training only the adapter has dropout.

        Policy and reference then differ only by the training: the backbone's own dropout would add
        noise of several nats to every log-ratio.
        """
        super().train(mode)
        if mode and self.loss_name != "sft":
            train_without_dropout(self.lm)
        if self.reference is not None:
            self.reference.eval()
        return self

    @property
    def max_tokens(self) -> int:
        """Tokens of a part of a batch, at most: `max_tokens_per_batch`; 0 for no limit."""
        given = self.settings.max_tokens_per_batch
        return (self.automatic_max_tokens or 0) if given == "auto" else given

    def set_max_tokens(self, max_tokens: int | None) -> None:
        """Set the value of `max_tokens_per_batch: auto`, 0 for no limit; None: not chosen yet."""
        self.automatic_max_tokens = max_tokens

    def set_gradient_checkpointing(self, on: bool) -> None:
        """Switch gradient checkpointing on or off, in the present mode."""
        set_gradient_checkpointing(self.lm, on)
        self.train(self.training)  # which treats checkpointed layers in a way of their own

    def longest_row(self, n_candidates: int) -> int:
        """Upper bound of the tokens of an example with so many candidates, prompt included."""
        fed = (self.catalogue.items.lengths[1:] - 1).clamp(min=0)
        return self._longest_prompt() + int(fed.topk(min(n_candidates, len(fed))).values.sum())

    @property
    def scores_in_one_token(self) -> bool:
        """True if one row of logits per prompt has the log-probabilities of all items."""
        return is_one_token(self.catalogue)

    @property
    def _is_padded(self) -> bool:
        """True if candidates are scored in separate padded rows."""
        return self.settings.scorer == "padded"

    def _scorer(self, batch: SetwiseBatch) -> Callable[[nn.Module], Tensor]:
        """A function of an LM that returns log pi of the batch's candidates under it, [B, C].

        Policy and reference share it: the batch is packed once.
        """
        parts, run = self._parts(batch)
        items, trie = self.catalogue.items, self.catalogue.normaliser
        scores: list[Callable[[nn.Module], Tensor]] = [
            partial(padded_logps, prompts=batch.prompts, candidates=part, catalogue=self.catalogue)
            if self._is_padded
            else OneTokenExamples.of(batch.prompts, part, self.catalogue).logps
            if self.scores_in_one_token
            else PackedExamples.of(batch.prompts, part, items, trie).logps
            for part in parts
        ]
        return lambda lm: torch.cat([run(score, lm) for score in scores], 1)

    def _logps_with_prompt(self, batch: SetwiseBatch) -> tuple[Tensor, Tensor]:
        """The policy's log pi of candidates [B, C] and of prompts [B], over the vocabulary."""
        score, with_prompt = packed_logps, packed_logps_with_prompt
        if self._is_padded:
            score, with_prompt = padded_logps, padded_logps_with_prompt
        (first, *rest), run = self._parts(batch)
        logps, prompt_logps = run(with_prompt, self.lm, batch.prompts, first, self.catalogue.items)
        others = [run(score, self.lm, batch.prompts, part, self.catalogue) for part in rest]
        return torch.cat([logps, *others], 1), prompt_logps

    def _parts(self, batch: SetwiseBatch) -> tuple[list[Tensor], Callable[..., Any]]:
        """Split the candidates into parts; returns them and the function that scores a part.

        Candidates of an example longer than `max_tokens_per_batch` are split into parts. The
        forward pass of a part keeps only its log-probabilities, and the backward pass recomputes
        one part at a time. Loss and gradients are identical to scoring all candidates at once.
        """
        parts = split_candidates(
            batch.prompts.lengths, batch.candidates, self.catalogue.items, self.max_tokens
        )
        if len(parts) == 1:
            return parts, lambda score, *arguments: score(*arguments)
        return parts, partial(checkpoint, use_reentrant=False)

    @property
    def _uses_reference(self) -> bool:
        """True if the current stage's loss uses log-ratios against a reference."""
        return self.settings.reference == "sft" and LOSSES[self.loss_name].needs_reference

    @contextmanager
    def reference_lm(self) -> Iterator[nn.Module]:
        """Yield the reference LM, for use inside the block only."""
        if self.uses_lora:
            with reference_context(self.lm):
                yield self.lm
        else:
            assert self.reference is not None, "start_preference_stage has not been called"
            yield self.reference

    @torch.no_grad()
    def reference_digest(self) -> str:
        """Hash of everything that log π_ref of given tokens depends on, 16 hexadecimal digits.

        Call it at the start of the preference stage.
        """
        settings = self.settings
        numerics = [settings.attn_implementation, settings.scorer, settings.normalize_over]
        if self.is_scored_specially:
            numerics.append("by layer and own head")
        if settings.tf32:
            numerics.append("TF32")
        if settings.use_liger_kernel:
            numerics.append("Liger")
        # as a tuple, to find the keys of earlier versions
        digest = hashlib.sha256(repr(tuple(numerics)).encode())
        items = self.catalogue.items
        tables = {"ids": items.ids, "lengths": items.lengths}
        with self.reference_lm() as reference:
            tensors = tables | {
                name: value for name, value in reference.state_dict().items() if "lora_" not in name
            }
        for name, tensor in tensors.items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
        return digest.hexdigest()[:16]

    @torch.no_grad()
    def _reference_logps(self, batch: SetwiseBatch, score: Callable[[nn.Module], Tensor]) -> Tensor:
        """log pi_ref of every candidate, [B, C], nats; from the cache if there is one.

        Args:
            batch: the examples.
            score: `_scorer` of the batch.
        """

        def compute(some: SetwiseBatch) -> Tensor:
            with self.reference_lm() as reference:
                return (score if len(some) == len(batch) else self._scorer(some))(reference)

        if self.reference_cache is None:
            return compute(batch)
        return self.reference_cache.logps(batch, compute)

    @torch.no_grad()
    def batch_kl(self, batch: SetwiseBatch) -> Tensor | None:
        """KL estimate of a whole batch for KTO, nats; None for every other loss.

        A mismatched pair is an example with the first target of the next example by user number,
        over all processes, so the estimate does not depend on their number. A batch of one example
        has no such pair; its estimate is 0, the smallest possible value.
        """
        if not LOSSES[self.loss_name].needs_kl:
            return None
        counted = batch.user_ids != 0
        candidates = _targets_of_the_next(batch, counted)
        if candidates is None:
            return batch.candidates.new_zeros((), dtype=torch.float32)
        mismatched = replace(batch, candidates=candidates)
        score = self._scorer(mismatched)
        logps = [
            values.cpu()[counted.cpu()]
            for values in (score(self.lm), self._reference_logps(mismatched, score))
        ]
        policy, reference = zip(*processes.all_gather(logps), strict=True)
        return kl_estimate(torch.cat(policy), torch.cat(reference)).to(self.device)

    def step(self, batch: SetwiseBatch, kl: Tensor | None = None) -> StepOutput:
        """Compute losses and log-probabilities of a batch, or a part of it, for the stage's loss.

        Args:
            batch: the examples.
            kl: `batch_kl` of the whole batch.
        """
        if self.loss_name == "sft" and self.settings.sft_on_prompt:
            policy_logps, prompt_logps = self._logps_with_prompt(batch)
            is_positive, lengths = batch.levels >= POSITIVE_LEVEL, self.catalogue.items.lengths
            # mean over tokens, so that prompt and targets are weighted by length
            item_tokens = torch.where(is_positive, lengths[batch.candidates], 0).sum(1)
            positive_logps = torch.where(is_positive, policy_logps, 0.0).sum(1)
            n_tokens = item_tokens + batch.prompts.lengths - 1
            losses = -(positive_logps + prompt_logps) / n_tokens
            taught = _teacher_losses(batch, policy_logps)
            return StepOutput(losses, policy_logps.detach(), None, taught)
        score = self._scorer(batch)
        reference_logps = self._reference_logps(batch, score) if self._uses_reference else None
        policy_logps = score(self.lm)
        losses = preference_loss(
            self.loss_name,
            policy_logps,
            # a loss that needs a reference gets a uniform one if the settings have none
            torch.zeros_like(policy_logps) if reference_logps is None else reference_logps,
            batch.levels,
            self.settings.beta,
            lengths=self.catalogue.items.lengths[batch.candidates],
            kl=kl,
            **{name: getattr(self.settings, name) for name in LOSSES[self.loss_name].options},
        )
        taught = _teacher_losses(batch, policy_logps)
        return StepOutput(losses, policy_logps.detach(), reference_logps, taught)

    def calculate_loss(self, interaction: SetwiseBatch) -> Tensor:
        """Mean loss over the batch's examples (RecBole's hook), a scalar in nats."""
        return self.step(interaction, self.batch_kl(interaction)).losses.mean()

    # ---- scoring ----

    @property
    def is_scored_specially(self) -> bool:
        """True if some layers have windowed attention, or the head is more than a matrix.

        Earlier versions scored such backbones wrong, so caches keep these results separate.
        """
        lm = causal_lm(self.lm)
        return LayerKinds.of(lm.config).has_windows or isinstance(parts_of(lm).head, OwnHead)

    def user_prompts(self, user_ids: Tensor, histories: UserItems) -> Prompts:
        """Prompts of users from their conversations or these histories, on the model's device."""
        if self.conversations is not None:
            said = [self.conversations.of(user) for user in user_ids.tolist()]
            return self._placed(self.prompts.build(said))
        users = user_ids.cpu().numpy()
        shown = self.shown_histories(users, histories)
        return self.history_prompts(shown, self.shown_disliked(users, shown))

    def example_prompt(self) -> str:
        """Text of one prompt, of the latest two items or turns and one low-rated item at most."""
        frame, user = self.prompts.frame, int((self.histories.counts > 1).argmax())
        if self.conversations is not None:
            turns = (self.conversations.turns[turn] for turn in self.conversations.of(user)[-2:])
            pieces = [f"{frame.speakers[role]} {text}" for role, text in turns]
        else:
            items = self.histories.history(user)[-2:]
            pieces = [f"{frame.separator} {self.item_texts[item]}" for item in items]
            if self.disliked is not None:
                low = self.disliked.history(user)[-1:]
                pieces += [frame.marked(self.item_texts[item]) for item in low]
        return "".join([frame.head, *pieces, frame.tail])

    def shown_disliked(
        self, users: np.ndarray, shown: Sequence[np.ndarray]
    ) -> list[np.ndarray] | None:
        """Low-rated item ids for the users' prompts beside the shown histories, per user [B].

        None if the prompts of the run show none.
        """
        if self.disliked is None:
            return None
        low = ranking_histories(
            self.disliked,
            users,
            seed=self.seed,
            mode=self.settings.history_split,
            max_history=self.max_disliked,
        )
        return [self.prompts.kept_disliked(*pair) for pair in zip(low, shown, strict=True)]

    def shown_histories(self, users: np.ndarray, histories: UserItems) -> list[np.ndarray]:
        """Item ids for the users' prompts, as far as `max_prompt_tokens` allows, per user [B]."""
        shown = ranking_histories(
            histories,
            users,
            seed=self.seed,
            mode=self.settings.history_split,
            max_history=self.settings.ranking_history,
        )
        return [self.prompts.kept(items, self.settings.ranking_history) for items in shown]

    def history_prompts(
        self, histories: Sequence[np.ndarray], disliked: Sequence[np.ndarray] | None = None
    ) -> Prompts:
        """Prompts that show these item ids, the latest last, and low-rated ones; see `build`."""
        built = self.prompts.build(histories, self.settings.ranking_history, disliked)
        return self._placed(built)

    def conversation_prompts(self, conversations: Sequence[Sequence[tuple[str, str]]]) -> Prompts:
        """Prompts of conversations of (role, text) turns; as `user_prompts`."""
        turns = [turn for conversation in conversations for turn in conversation]
        builder = self._turn_prompts([("", ""), *turns], self.prompts.frame)
        numbers = np.split(
            np.arange(1, len(turns) + 1), np.cumsum([len(said) for said in conversations])[:-1]
        )
        return self._placed(builder.build(numbers))

    @torch.no_grad()
    def score(self, prompts: Prompts, candidates: Tensor, lm: nn.Module | None = None) -> Tensor:
        """log pi of candidates [B, C], 0 padding, in chunks of `score_batch_tokens`: [B, C], nats.

        Uses the policy, or another `lm` with the same tokenizer.
        """
        lm = self.lm if lm is None else lm
        budget = self.settings.score_batch_tokens
        shared, each = prompts.width, int(self.catalogue.items.lengths.max())
        score: Callable[..., Tensor] = packed_logps
        if self._is_padded:
            shared, each, score = 0, shared + each, padded_logps
            vocabulary = self.backbone.lm.config.get_text_config().vocab_size
            budget = min(budget, MAX_LOGITS // vocabulary)
        n_columns = max((budget - shared) // each, 1)
        if self.scores_in_one_token and not self._is_padded:
            n_columns, score = candidates.shape[1], one_token_logps
        rows_at_once = max(budget // (shared + min(n_columns, candidates.shape[1]) * each), 1)
        rows = [
            torch.cat(
                [
                    score(lm, some, columns, self.catalogue)
                    for columns in part.split(n_columns, dim=1)
                ],
                dim=1,
            )
            for some, part in zip(
                prompts.split(rows_at_once), candidates.split(rows_at_once), strict=True
            )
        ]
        return torch.cat(rows)

    def score_all(self, prompts: Prompts, lm: nn.Module | None = None) -> Tensor:
        """log pi of the whole catalogue, [B, n_items], nats, -inf for [PAD]; as `score`."""
        if not self._is_padded:
            return trie_scores(self.lm if lm is None else lm, self.catalogue, prompts)
        every_item = torch.arange(self.n_items, device=self.device).expand(len(prompts), -1)
        scores = self.score(prompts, every_item, lm)
        scores[:, 0] = -torch.inf
        return scores

    def score_pairs(self, prompts: Prompts, row: Tensor, items: Tensor) -> Tensor:
        """log pi of `items`, long [n], each after the prompt of its `row`, long [n]: [n], nats.

        Each of the B prompts has at least one item.
        """
        order = row.argsort(stable=True)
        counts = torch.bincount(row, minlength=len(prompts))
        column = torch.empty_like(row)
        column[order] = torch.arange(len(row), device=row.device) - torch.repeat_interleave(
            counts.cumsum(0) - counts, counts
        )
        # the mean number of items in a row: a prompt with more has several rows, and at most half
        # of all places are padding
        width = -(-len(row) // len(prompts))
        n_rows = -(-counts // width)
        part = (n_rows.cumsum(0) - n_rows)[row] + column // width
        repeated = prompts.select(
            torch.arange(len(prompts), device=row.device).repeat_interleave(n_rows)
        )
        candidates = torch.zeros(len(repeated), width, dtype=torch.long, device=row.device)
        candidates[part, column % width] = items
        return self.score(repeated, candidates)[part, column % width]

    def predict(self, interaction: Interaction) -> Tensor:
        """RecBole's hook: log pi of (user, item) pairs after prompts of training items, [n], nats.

        A run ranks by a `ranking.Ranker`, which has the histories and the assistant.
        """
        users, row = torch.unique(interaction[self.USER_ID].to(self.device), return_inverse=True)
        items = interaction[self.ITEM_ID].to(self.device)
        return self.score_pairs(self.user_prompts(users, self.histories), row, items)

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """RecBole's hook: `predict` of the whole catalogue, [n_users * n_items], -inf for [PAD]."""
        prompts = self.user_prompts(interaction[self.USER_ID], self.histories)
        every_item = torch.arange(self.n_items, device=self.device).expand(len(prompts), -1)
        scores = self.score(prompts, every_item)
        scores[:, 0] = -np.inf
        return scores.flatten()


def _teacher_losses(batch: SetwiseBatch, policy_logps: Tensor) -> Tensor | None:
    """Cross-entropy −Σ P log π of each example, [B], nats; None without a teacher."""
    if batch.teacher_probs is None:
        return None
    probs = batch.teacher_probs
    return -torch.where(probs > 0, probs * policy_logps, 0.0).sum(1)


def _targets_of_the_next(batch: SetwiseBatch, counted: Tensor) -> Tensor | None:
    """First target of the next example by user number over all processes, for every example.

    Args:
        batch: this process's examples.
        counted: bool [B], False for rows that only fill up the batch.

    Returns:
        long [B, 1], the example's own first target where not `counted`; None if all processes
        together have one example.
    """
    own = [ids[counted].cpu() for ids in (batch.user_ids, batch.candidates[:, 0])]
    shares = processes.all_gather(own)
    users, items = (torch.cat(parts) for parts in zip(*shares, strict=True))
    if len(users) == 1:
        return None
    order = users.argsort()
    of_next = torch.empty_like(items)
    of_next[order] = items[order].roll(-1)
    own_next = of_next.split([len(share[0]) for share in shares])[processes.rank()]
    candidates = batch.candidates[:, :1].clone()
    candidates[counted] = own_next[:, None].to(candidates)
    return candidates
