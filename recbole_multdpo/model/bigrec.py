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
from typing import Any

import numpy as np
import torch
from recbole.config import Config
from recbole.data.interaction import Interaction
from torch import Tensor, nn

from recbole_multdpo.data.dataset import LLMRecDataset
from recbole_multdpo.data.prompt_file import StoredPrompt
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.losses.batch import Prompts
from recbole_multdpo.model.backbone import reference_context
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.scoring.grounding import (
    distances,
    generate_texts,
    grounded_scores,
    text_states,
)
from recbole_multdpo.scoring.topk import TopK, stable_topk

# as in the released code
GAMMAS = (*(n / 100 for n in range(100)), *(float(n) for n in range(1, 100)))


class BIGRec(LLMRec):
    """Recommender by generation and grounding.

    Attributes:
        gamma: strength of the weights in the ranking.
        popularity: float [1, n_items - 1], training rows of each item; None where they are not the
            weights.
    """

    popularity: Tensor | None

    def __init__(
        self, config: Config, dataset: LLMRecDataset, prompt: StoredPrompt | None = None
    ) -> None:
        """LLMRec's arguments.

        Raises:
            ConfigError: the backbone has no hidden layer `grounding_layer`.
        """
        super().__init__(config, dataset, prompt)
        settings = config.settings
        n_layers = self.backbone.lm.config.get_text_config().num_hidden_layers
        if not -n_layers - 1 <= settings.grounding_layer <= n_layers:
            raise ConfigError(
                f"grounding_layer={settings.grounding_layer}: the backbone has the layers 0 (its "
                f"embeddings) to {n_layers}, or -1 (the last) to {-n_layers - 1}."
            )
        self.gamma = 0.0 if settings.grounding_gamma == "auto" else settings.grounding_gamma
        self.register_buffer("popularity", self._popularity(), persistent=False)
        self._reads_base = settings.grounds_by_base
        # with LoRA the base is the model without its adapter
        self.base_lm: nn.Module | None = None
        if self._reads_base and not self.uses_lora:
            self.base_lm = copy.deepcopy(self.backbone.lm).requires_grad_(False)
        # while gamma is chosen, what was written for a user, and the distances of a text
        self._written: dict[int, str] | None = None
        self._distances: dict[str, Tensor] = {}
        self._item_states: Tensor | None = None

    def _popularity(self) -> Tensor | None:
        if self.settings.grounding_weight != "popularity":
            return None
        counts = np.bincount(self.histories.items, minlength=self.n_items)[None, 1:]
        return torch.from_numpy(counts).float()

    def fit_to(self, train: LLMRecDataset) -> None:
        """LLMRec's; popularity is counted in the new rows."""
        super().fit_to(train)
        self.popularity = self._popularity()

    def train(self, mode: bool = True) -> BIGRec:
        """Change the mode; the states of the items are computed anew, as weights may change."""
        self._item_states = None
        return super().train(mode)

    @contextmanager
    def _reader(self) -> Iterator[nn.Module]:
        """The model whose hidden states are compared, for use inside the context only."""
        if not self._reads_base:
            yield self.lm
        elif self.base_lm is not None:
            yield self.base_lm
        else:
            with reference_context(self.lm):
                yield self.lm

    def _states(self, texts: Sequence[str]) -> Tensor:
        """Hidden states of texts, read as items are: float32 [n, H]."""
        prefix = self.prompts.frame.item_prefix
        encoded = self.tokenizer(
            [prefix + text for text in texts], split_special_tokens=True, add_special_tokens=True
        )["input_ids"]
        # a tokenizer that adds nothing leaves an empty text without a token to read
        token_lists = [ids or [self.tokenizer.eos_token_id] for ids in encoded]
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
            self.lm,
            self.tokenizer,
            prompts,
            num_beams=self.settings.generation_beams,
            max_new_tokens=self.settings.generation_tokens,
        )

    def written_for(self, user_ids: Tensor) -> list[str]:
        """The title that the model writes for each user; once per user while gamma is chosen."""
        if self._written is None:
            return self.write(self.user_prompts(user_ids))
        users = user_ids.tolist()
        new = [user for user in users if user not in self._written]
        if new:
            texts = self.write(self.user_prompts(user_ids.new_tensor(new)))
            self._written.update(zip(new, texts, strict=True))
        return [self._written[user] for user in users]

    @torch.no_grad()
    def item_distances(self, texts: Sequence[str]) -> Tensor:
        """Distance of every item's title from each text: float32 [B, n_items - 1]."""
        if self._item_states is None:
            distinct, index = np.unique(self.item_texts[1:], return_inverse=True)
            self._item_states = self._states(distinct.tolist())[torch.from_numpy(index)]
        return distances(self._states(texts), self._item_states)

    def weights_for(self, user_ids: Tensor) -> Tensor | None:
        """What weighs the distances for users, long [B]: [B or 1, n_items - 1]; None for nothing.

        An assistant's own scores, as in the released code. A log-softmax would only subtract one
        number per user, which min-max scaling takes out again, but for rounding.
        """
        if self.assistant is None:
            return self.popularity
        return self.assistant.scores_of(user_ids.to(self.device))[:, 1:]

    def catalogue_scores(self, texts: Sequence[str], weights: Tensor | None) -> Tensor:
        """Scores of all items for written texts, [B, n_items], −inf for [PAD]."""
        if self._written is None:
            distance = self.item_distances(texts)
        else:
            unseen = sorted(set(texts) - self._distances.keys())
            if unseen:
                self._distances.update(zip(unseen, self.item_distances(unseen), strict=True))
            distance = torch.stack([self._distances[text] for text in texts])
        scores = grounded_scores(distance, weights, self.gamma)
        return nn.functional.pad(scores, (1, 0), value=-torch.inf)

    def _ranker(self) -> dict[str, str]:
        """Nothing: transformers generates the texts that items are compared with."""
        return {}

    # ---- what is chosen on the validation part ----

    def tune_ranking(self, validate: Callable[[], float]) -> dict[str, Any]:
        """Choose `gamma` from `GAMMAS` if it is to be chosen; equal ones: the smallest."""
        chosen: dict[str, Any] = {"grounding_by": "base" if self._reads_base else "tuned"}
        weighs = self.settings.grounding_weight != "none"
        if not weighs or self.settings.grounding_gamma != "auto":
            return chosen
        self._written, self._distances = {}, {}
        curve = []
        for gamma in GAMMAS:
            self.gamma = gamma
            curve.append((gamma, validate()))
        self._written, self._distances = None, {}
        self.gamma = max(curve, key=lambda point: point[1])[0]  # the first of equals
        return {**chosen, "grounding_gamma": self.gamma, "grounding_gamma_curve": curve}

    @property
    def ranks_by_base(self) -> bool:
        """Whether texts are compared by the base model."""
        return self._reads_base

    def ranking_choices(self) -> dict[str, Any]:
        """LLMRec's, and gamma."""
        return {**super().ranking_choices(), "gamma": self.gamma}

    def restore_ranking(self, result: Mapping[str, Any]) -> None:
        """Rank as the run did whose weights these are, but for an assistant, which is not kept.

        Raises:
            ConfigError: its texts were read by the base model, which is not in its folder.
        """
        if result.get("grounding_by") != "tuned":
            raise ConfigError(
                "this run of BIGRec compares hidden states of the base model, and its folder holds "
                "the fine-tuned one only. Train it with --grounding_model=tuned to load it."
            )
        self.base_lm = None
        self._reads_base = False
        self.gamma = result.get("grounding_gamma", self.gamma)

    # ---- RecBole's hooks, and the trainer's ----

    def predict(self, interaction: Interaction) -> Tensor:
        """Scores of (user, item) pairs, [n_pairs]."""
        users, row = torch.unique(interaction[self.USER_ID].to(self.device), return_inverse=True)
        scores = self.catalogue_scores(self.written_for(users), self.weights_for(users))
        return scores[row, interaction[self.ITEM_ID].to(self.device)]

    def full_sort_predict(self, interaction: Interaction) -> Tensor:
        """Scores of the whole catalogue, [n_users * n_items], −inf for [PAD]."""
        users = interaction[self.USER_ID]
        return self.catalogue_scores(self.written_for(users), self.weights_for(users)).flatten()

    def topk(
        self,
        user_ids: Tensor,
        excluded: Tensor | None,
        k: int,
        targets: Tensor | None = None,
    ) -> TopK:
        """LLMRec's, by grounding: all places are exact, `targets` or not."""
        return self._ground(self.written_for(user_ids), self.weights_for(user_ids), excluded, k)

    def rank(
        self,
        prompts: Prompts,
        excluded: Tensor | None,
        k: int,
        targets: Tensor | None = None,
        item_bias: Tensor | None = None,
    ) -> TopK:
        """`topk` for B prompts of nobody whom an assistant could know.

        There is no `item_bias`: distances are no log-probabilities.
        """
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
