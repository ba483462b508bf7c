"""BIGRec: a fine-tuned language model writes a title, which is grounded in the catalogue.

Bao et al., A Bi-Step Grounding Paradigm for Large Language Models in Recommendation Systems, 2023,
arXiv 2308.08434. Training is LLMRec's supervised stage. Ranking is `scoring.grounding`: every item
has a place, by its distance from the text that the model writes for the user, which the item's
popularity or a collaborative model's score for the user may weigh.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from recbole_multdpo.classical.assistant import Assistant  # noqa: F401  # in __init__'s annotations
from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.user_items import UserItems
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.model.backbone import reference_context
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.ranking.ranker import Ranker
from recbole_multdpo.scoring.grounding import (
    distances,
    generate_texts,
    grounded_scores,
    text_states,
)
from recbole_multdpo.scoring.topk import TopK, stable_topk
from recbole_multdpo.settings.llmrec import BIGRecSettings

# as in the released code
GAMMAS = (*(n / 100 for n in range(100)), *(float(n) for n in range(1, 100)))


@dataclass
class Memory:
    """Results that hold as long as the weights stay as they are.

    Attributes:
        item_states: hidden states of the catalogue, float32 [n_items - 1, H].
        texts: the text written for each user; None where texts are not kept.
        distances: float32 [n_items - 1] for each kept text.
    """

    item_states: Tensor | None = None
    texts: dict[int, str] | None = None
    distances: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class GroundingRanker(Ranker):
    """Ranks by the distance between what the model writes and each item's title.

    Attributes:
        gamma: strength of the weights in the ranking.
        popularity: float [1, n_items - 1], training rows of each item; None where they are not the
            weights.
        reads_base: hidden states are those of the model before training.
        base: that model; None where it is the model without its adapter.
        memory: of the model at its present weights; None to compute everything each time.
    """

    gamma: float = 0.0
    popularity: Tensor | None = None
    reads_base: bool = False
    base: nn.Module | None = None
    memory: Memory | None = None

    @classmethod
    def of(cls, model: LLMRec, histories: UserItems) -> GroundingRanker:
        """See `Ranker.of`.

        Raises:
            ConfigError: the backbone has no hidden layer `grounding_layer`.
        """
        ranker = cls(model, histories)
        settings, lm = ranker.settings, model.backbone.lm
        n_layers = lm.config.get_text_config().num_hidden_layers
        if not -n_layers - 1 <= settings.grounding_layer <= n_layers:
            raise ConfigError(
                f"grounding_layer={settings.grounding_layer}: the backbone has the layers 0 (its "
                f"embeddings) to {n_layers}, or -1 (the last) to {-n_layers - 1}."
            )
        popularity = base = None
        if settings.grounding_weight == "popularity":
            counts = np.bincount(model.histories.items, minlength=model.n_items)[None, 1:]
            popularity = torch.from_numpy(counts).float()
        if settings.grounds_by_base and not model.uses_lora:
            base = copy.deepcopy(lm).requires_grad_(False).eval()
        return replace(
            ranker,
            gamma=0.0 if settings.grounding_gamma == "auto" else settings.grounding_gamma,
            popularity=popularity,
            reads_base=settings.grounds_by_base,
            base=base,
        )

    @property
    def settings(self) -> BIGRecSettings:
        """The model's settings."""
        assert isinstance(self.model.settings, BIGRecSettings)
        return self.model.settings

    # ---- texts and their distances ----

    @contextmanager
    def _reader(self) -> Iterator[nn.Module]:
        """The model whose hidden states are compared, for use inside the context only."""
        if not self.reads_base:
            yield self.model.lm
        elif self.base is not None:
            yield self.base.to(self.model.device)
        else:
            with reference_context(self.model.lm):
                yield self.model.lm

    def _states(self, texts: Sequence[str]) -> Tensor:
        """Hidden states of texts, read as items are: float32 [n, H]."""
        tokenizer, prefix = self.model.tokenizer, self.model.prompts.frame.item_prefix
        encoded = tokenizer(
            [prefix + text for text in texts], split_special_tokens=True, add_special_tokens=True
        )["input_ids"]
        # a tokenizer that adds nothing leaves an empty text without a token to read
        token_lists = [ids or [tokenizer.eos_token_id] for ids in encoded]
        with self._reader() as lm:
            return text_states(
                lm,
                token_lists,
                layer=self.settings.grounding_layer,
                batch_tokens=self.settings.score_batch_tokens,
            )

    def write(self, prompts: Prompts) -> list[str]:
        """The title that the model writes after each of B prompts."""
        return generate_texts(
            self.model.lm,
            self.model.tokenizer,
            prompts,
            num_beams=self.settings.generation_beams,
            max_new_tokens=self.settings.generation_tokens,
        )

    def written_for(self, user_ids: Tensor) -> list[str]:
        """The title that the model writes for each user, long [B]."""
        known = None if self.memory is None else self.memory.texts
        if known is None:
            return self.write(self.prompts(user_ids))
        users = user_ids.tolist()
        new = [user for user in users if user not in known]
        if new:
            texts = self.write(self.prompts(user_ids.new_tensor(new)))
            known.update(zip(new, texts, strict=True))
        return [known[user] for user in users]

    @torch.no_grad()
    def item_distances(self, texts: Sequence[str]) -> Tensor:
        """Distance of every item's title from each text: float32 [B, n_items - 1]."""
        memory = self.memory or Memory()
        if memory.item_states is None:
            distinct, index = np.unique(self.model.item_texts[1:], return_inverse=True)
            memory.item_states = self._states(distinct.tolist())[torch.from_numpy(index)]
        if memory.texts is None:
            return distances(self._states(texts), memory.item_states)
        unseen = sorted(set(texts) - memory.distances.keys())
        if unseen:
            found = distances(self._states(unseen), memory.item_states)
            memory.distances.update(zip(unseen, found, strict=True))
        return torch.stack([memory.distances[text] for text in texts])

    def weights_for(self, user_ids: Tensor) -> Tensor | None:
        """Weights of the distances for users, long [B]: [B or 1, n_items - 1]; None for no weights.

        An assistant's own scores, as in the released code. A log-softmax would only subtract one
        number per user, which min-max scaling takes out again, but for rounding.
        """
        if self.assistant is None:
            return self.popularity
        return self.assistant.scores_of(user_ids.to(self.model.device))[:, 1:]

    def catalogue_scores(self, texts: Sequence[str], weights: Tensor | None) -> Tensor:
        """Scores of all items for written texts, [B, n_items], −inf for [PAD]."""
        distance = self.item_distances(texts)
        if weights is not None:
            weights = weights.to(distance.device)
        scores = grounded_scores(distance, weights, self.gamma)
        return nn.functional.pad(scores, (1, 0), value=-torch.inf)

    # ---- what is chosen on the validation part ----

    def prepared(self) -> GroundingRanker:
        """See `Ranker.prepared`: the catalogue is read once."""
        return self if self.memory is not None else replace(self, memory=Memory())

    def tune(self, validate: Callable[[Ranker], float]) -> tuple[Ranker, dict[str, Any]]:
        """Choose `gamma` from `GAMMAS` if it is to be chosen; equal ones: the smallest."""
        chosen: dict[str, Any] = {"grounding_by": "base" if self.reads_base else "tuned"}
        weighs = self.settings.grounding_weight != "none"
        if not weighs or self.settings.grounding_gamma != "auto":
            return self, chosen
        memory = Memory(texts={})  # what is written does not depend on gamma
        curve = [(gamma, validate(replace(self, gamma=gamma, memory=memory))) for gamma in GAMMAS]
        gamma = max(curve, key=lambda point: point[1])[0]  # the first of equals
        chosen |= {"grounding_gamma": gamma, "grounding_gamma_curve": curve}
        return replace(self, gamma=gamma), chosen

    @property
    def choices(self) -> dict[str, Any]:
        """See `Ranker.choices`."""
        return {"gamma": self.gamma}

    def restore(self, result: Mapping[str, Any]) -> GroundingRanker:
        """See `Ranker.restore`.

        Raises:
            ConfigError: its texts were read by the base model, which is not in its folder.
        """
        if result.get("grounding_by") != "tuned":
            raise ConfigError(
                "this run of BIGRec compares hidden states of the base model, and its folder holds "
                "the fine-tuned one only. Train it with --grounding_model=tuned to load it."
            )
        gamma = result.get("grounding_gamma", self.gamma)
        return replace(self, gamma=gamma, reads_base=False, base=None)

    # ---- ranking ----

    def pair_scores(self, user_ids: Tensor, items: Tensor) -> Tensor:
        """See `Ranker.pair_scores`."""
        users, row = torch.unique(user_ids, return_inverse=True)
        return self.catalogue_scores(self.written_for(users), self.weights_for(users))[row, items]

    def topk(
        self, user_ids: Tensor, excluded: Tensor | None, k: int, targets: Tensor | None = None
    ) -> TopK:
        """See `Ranker.topk`: all places are exact, `targets` or not."""
        return self._ground(self.written_for(user_ids), self.weights_for(user_ids), excluded, k)

    def rank(self, prompts: Prompts, excluded: Tensor | None, k: int) -> TopK:
        """`topk` for B prompts, with popularity but without an assistant."""
        return self._ground(self.write(prompts), self.popularity, excluded, k)

    def _ground(
        self, texts: Sequence[str], weights: Tensor | None, excluded: Tensor | None, k: int
    ) -> TopK:
        """The k best items for written texts; `scores` are those of `grounded_scores`."""
        scores = self.catalogue_scores(texts, weights)
        if excluded is not None:
            scores = scores.masked_fill(excluded, -torch.inf)
        items, scores = stable_topk(scores, k)
        return TopK(items, scores, torch.zeros(len(texts), dtype=torch.long, device=items.device))
