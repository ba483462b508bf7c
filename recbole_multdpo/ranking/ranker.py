"""The interface of rankers, which rank the catalogue for users."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from recbole_multdpo.classical.assistant import Assistant
from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.scoring.topk import TopK, stable_topk
from recbole_multdpo.settings.llmrec import LLMRecSettings


@dataclass(frozen=True, eq=False)
class Ranker(ABC):
    """Ranks the catalogue with a model at the weights that it has at the time.

    A ranker does not change: `tune`, `restore` and `for_test` return another one.

    Attributes:
        model: its language model; the histories that it was trained on play no part.
        histories: the items that prompts show of each user, unless there are conversations.
        assistant: collaborative scores that join in; None for none.
        weight: their factor, as `assistant_weight`; 0 leaves them out.
    """

    model: LLMRec
    histories: UserItems
    assistant: Assistant | None = None
    weight: float = 0.0

    @classmethod
    def of(cls, model: LLMRec, histories: UserItems) -> Ranker:
        """A ranker without an assistant, by settings alone; made before the model is trained."""
        return cls(model, histories)

    @property
    def settings(self) -> LLMRecSettings:
        """The model's settings."""
        return self.model.settings

    def prompts(self, user_ids: Tensor) -> Prompts:
        """Prompts of users, long [B], on the model's device."""
        return self.model.user_prompts(user_ids, self.histories)

    def shown_histories(self, users: np.ndarray) -> list[np.ndarray]:
        """The items that the prompts of users, int [B], show."""
        return self.model.shown_histories(users, self.histories)

    @abstractmethod
    def pair_scores(self, user_ids: Tensor, items: Tensor) -> Tensor:
        """Scores of pairs of a user and an item, long [n] each: float [n]."""

    @abstractmethod
    def topk(
        self, user_ids: Tensor, excluded: Tensor | None, k: int, targets: Tensor | None = None
    ) -> TopK:
        """The k best items of every user.

        Args:
            user_ids: long [B].
            excluded: bool [B, n_items], items that must not rank, or None.
            k: list length.
            targets: long [B, T], 0 is padding: only the places of these items need to be exact.
                None for exact lists.

        Returns:
            Items and scores [B, k]; equal scores are ordered by ascending item id.
        """

    def topk_by_weight(
        self,
        weights: Sequence[float],
        user_ids: Tensor,
        excluded: Tensor | None,
        k: int,
        targets: Tensor | None = None,
    ) -> list[TopK]:
        """`topk` with each of several weights of the assistant."""
        return [
            replace(self, weight=weight).topk(user_ids, excluded, k, targets) for weight in weights
        ]

    def topk_among(
        self,
        weights: Sequence[float],
        user_ids: Tensor,
        candidates: Tensor,
        k: int,
        targets: Tensor | None = None,
    ) -> list[TopK]:
        """`topk_by_weight` of some candidates of each user, bool [B, n_items], by their scores."""
        found = [
            stable_topk(scores, k) for scores in self.scores_among(weights, user_ids, candidates)
        ]
        return [TopK(*best, torch.zeros_like(best[0][:, 0])) for best in found]

    def scores_among(
        self, weights: Sequence[float], user_ids: Tensor, candidates: Tensor
    ) -> list[Tensor]:
        """Scores of candidates, bool [B, n_items], with each of several weights of the assistant.

        Returns:
            float [B, n_items] for each weight, −inf for other items.
        """
        rows, items = candidates.nonzero(as_tuple=True)
        users = user_ids.to(rows.device)[rows]
        found = []
        for weight in weights:
            of_pairs = replace(self, weight=weight).pair_scores(users, items)
            scores = of_pairs.new_full(candidates.shape, -torch.inf)
            scores[rows, items] = of_pairs
            found.append(scores)
        return found

    @abstractmethod
    def rank(self, prompts: Prompts, excluded: Tensor | None, k: int) -> TopK:
        """`topk` for B prompts of nobody whom an assistant could know."""

    def tune(self, validate: Callable[[Ranker], float]) -> tuple[Ranker, dict[str, Any]]:
        """Choose on the validation part what only the ranking depends on, but for `weight`.

        Args:
            validate: ranks the validation part and returns its `valid_metric`, with the sign that
                makes larger values better.

        Returns:
            The best ranker; and for `result.json` the choice and the scores of all candidates.
        """
        return self, {}

    @property
    def choices(self) -> dict[str, Any]:
        """Attributes that the validation part decides, to be given to another model's ranker."""
        return {"weight": self.weight}

    def restore(self, result: Mapping[str, Any]) -> Ranker:
        """A ranker with the choices of a finished run, from its `result.json`."""
        return replace(self, weight=float(result.get("assistant", {}).get("weight", 0.0)))

    def for_test(self, known: UserItems) -> Ranker:
        """The ranker of the test: prompts show `known`, the assistant's scores are the test's."""
        assistant = None if self.assistant is None else self.assistant.at_test()
        return replace(self, histories=known, assistant=assistant)

    @property
    def reads_base(self) -> bool:
        """True if the model without its adapter takes part: then it must not be merged."""
        return False

    def prepared(self) -> Ranker:
        """A ranker that may keep what depends on the weights, which stay as they are now."""
        return self
