"""Explanation of a ranking: every item's probability before and after the preference stage.

The reward that preference training gave an item is r = beta * [log pi(item | prompt) - log
pi_ref(item | prompt)], in nats, with the model after supervised fine-tuning as the reference (DPO's
implicit reward, without the part that depends on the prompt alone).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.conversation_text import Message
from recbole_multdpo.errors import CheckpointError, ConfigError
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.scoring.packed import packed_token_logps
from recbole_multdpo.scoring.padded import padded_token_logps
from recbole_multdpo.settings.language_models import LLMREC
from recbole_multdpo.settings.llmrec import WITHOUT_PREFERENCES
from recbole_multdpo.trained.recommender import Item, Query, Recommender
from recbole_multdpo.trained.run import TrainedRun, load_run, result_of, run_config
from recbole_multdpo.trained.sft_start import load_sft_start


@dataclass(frozen=True)
class TokenPart:
    """One token's part of an item's log-probability, nats."""

    text: str
    logp: float
    reference_logp: float


@dataclass(frozen=True)
class ItemExplanation:
    """One item for one prompt.

    Attributes:
        id: the item's id in the data files.
        title: its text.
        rank: after alignment, among the items that may be recommended; None for excluded items.
        reference_rank: before alignment.
        logp: log pi(item | prompt), nats.
        reference_logp: log pi_ref(item | prompt), nats.
        reward: beta * (logp - reference_logp).
        in_test: True if the user liked it in the test part; None for typed input.
        tokens: the terms of `logp`, without the forced tokens at the end of a title, whose
            log-probability is 0.
    """

    id: str
    title: str
    rank: int | None
    reference_rank: int | None
    logp: float
    reference_logp: float
    reward: float
    in_test: bool | None
    tokens: list[TokenPart]


@dataclass(frozen=True)
class Explanation:
    """The items of one ranking, best first.

    Attributes:
        user: id in the data files; None for typed input.
        history: the items shown in the prompt, or mentioned in the conversation.
        conversation: the turns shown in the prompt; None for histories.
        beta: the factor of the reward.
        items: the k best after and before alignment, and the items of `also`.
    """

    user: str | None
    history: list[Item]
    conversation: list[Message] | None
    beta: float
    items: list[ItemExplanation]

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class Explainer:
    """Policy and reference of a finished run.

    Attributes:
        run: the run with its final weights.
        recommender: ranks with the policy.
    """

    def __init__(self, run: TrainedRun, reference: LLMRec) -> None:
        """Wrap a finished run and its reference model.

        Args:
            run: a run with a preference stage.
            reference: the model from which that stage started.

        Raises:
            CheckpointError: their tokenizers differ.
        """
        self.run, self._reference = run, reference
        self.recommender = Recommender(run)
        if not torch.equal(run.model.catalogue.items.ids, reference.catalogue.items.ids):
            raise CheckpointError(
                f"the tokenizer in {run.folder / 'model'} is not that of the backbone "
                f"{reference.settings.backbone}; was one of them replaced?"
            )

    @classmethod
    def load(cls, folder: str | Path, **options: Any) -> Explainer:
        """Load policy and reference; the arguments are those of `trained.run.load_run`.

        Raises:
            ConfigError: the run has no preference stage.
            CheckpointError: the weights of the supervised stage are gone.
        """
        result = result_of(Path(folder))
        loss = result.get("loss")
        if result["model"] != LLMREC or loss is None or loss in WITHOUT_PREFERENCES:
            kind = loss or result["model"]
            raise ConfigError(
                f"the run in {folder} ({kind}) has no preference stage, so policy and reference "
                "are one. Use a run with --loss=mult_dpo or another preference loss."
            )
        run = load_run(folder, **options)
        config = run_config(run.folder, {}, **options)
        return cls(run, load_sft_start(run.folder, result, config, run.parts))

    def for_user(self, user: str | int, k: int = 10, also: Sequence[str] = ()) -> Explanation:
        """Explain a user of the data set, as ranked by `Recommender.for_users`.

        Args:
            user: id as in the data files.
            k: length of both rankings.
            also: titles of further items to explain.
        """
        return self._explain(self.recommender.user_queries([user])[0], k, also)

    def for_titles(
        self,
        liked: Sequence[str],
        k: int = 10,
        also: Sequence[str] = (),
        disliked: Sequence[str] = (),
    ) -> Explanation:
        """Explain the ranking for liked titles; see `Recommender.for_titles`."""
        return self._explain(self.recommender.titles_query(liked, disliked), k, also)

    def for_conversation(
        self, messages: Sequence[Message], k: int = 10, also: Sequence[str] = ()
    ) -> Explanation:
        """Explain the ranking for a conversation; see `Recommender.for_conversation`."""
        return self._explain(self.recommender.conversation_query(messages), k, also)

    @torch.no_grad()
    def _explain(self, query: Query, k: int, also: Sequence[str]) -> Explanation:
        self.recommender.check_k(k)
        asked = self.recommender.titles.find_all(also) if also else []
        model, beta = self.run.model, self.run.model.settings.beta
        prompt = self.recommender.prompts([query])
        scores, ranks = self._ranking(model.lm, prompt, query.excluded)
        old_scores, old_ranks = self._ranking(self._reference.lm, prompt, query.excluded)
        best = np.flatnonzero(((ranks > 0) & (ranks <= k)) | ((old_ranks > 0) & (old_ranks <= k)))
        chosen = [int(item) for item in best[np.argsort(ranks[best])]]
        chosen += [item for item in asked if item not in chosen]
        items = [
            ItemExplanation(
                id=self.run.item_name(item),
                title=self.run.titles[item],
                rank=int(ranks[item]) or None,
                reference_rank=int(old_ranks[item]) or None,
                logp=float(scores[item]),
                reference_logp=float(old_scores[item]),
                reward=beta * float(scores[item] - old_scores[item]),
                in_test=None if query.test is None else bool(item in query.test),
                tokens=tokens,
            )
            for item, tokens in zip(chosen, self._tokens(prompt, chosen), strict=True)
        ]
        history = [self.recommender.item(item) for item in query.shown.tolist()]
        user = self.recommender.user_name(query.user)
        return Explanation(user, history, query.said, beta, items)

    def _ranking(
        self, lm: nn.Module, prompt: Prompts, excluded: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Log-probabilities of all items, nats, and ranks from 1, 0 if excluded: both [n_items]."""
        model = self.run.model
        scores = model.score_all(prompt, lm)[0]
        values = scores.double().cpu().numpy()
        allowed = np.setdiff1d(np.arange(1, len(values)), excluded)
        ranks = np.zeros(len(values), dtype=np.int64)
        ranks[allowed[np.argsort(-values[allowed], kind="stable")]] = np.arange(1, len(allowed) + 1)
        return values, ranks

    def _tokens(self, prompt: Prompts, items: list[int]) -> list[list[TokenPart]]:
        model = self.run.model
        candidates = torch.tensor([items], device=model.device)
        is_padded = model.settings.scorer == "padded"
        token_logps = padded_token_logps if is_padded else packed_token_logps
        policy, slots = token_logps(model.lm, prompt, candidates, model.catalogue)
        reference, _ = token_logps(self._reference.lm, prompt, candidates, model.catalogue)
        parts: list[list[TokenPart]] = [[] for _ in items]
        for slot, *logps in zip(slots.tolist(), policy.tolist(), reference.tolist(), strict=True):
            token = model.catalogue.items.ids[items[slot], len(parts[slot])]
            parts[slot].append(TokenPart(model.tokenizer.decode([int(token)]), *logps))
        return parts
