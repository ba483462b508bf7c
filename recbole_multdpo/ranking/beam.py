"""D3 (Bao et al., EMNLP 2024): decoding of a fine-tuned language model against two biases.

It is LLMRec after supervised fine-tuning; what is D3's is the ranking. A constrained beam search
writes item texts, without dividing by their length, so that tokens that are almost certain ("ghost
tokens") do not lift long texts. A text-free assistant takes part in every token t after the prefix
p: with w = `assistant_weight` (the paper's alpha is 1 − w)

    score(p t) = score(p) + (1 − w) log π(t | prompt, p) + w log [m(p t) / m(p)],

m(p) being the sum of the assistant's softmax over all items whose text begins with p. The second
terms telescope to log m(p), as m of the empty prefix is 1. Divided by 1 − w, which changes no
order, a prefix scores log π(p | prompt) + w / (1 − w) log m(p); for a whole text that is LLMRec's
fusion with the weight w / (1 − w), which can be ranked exactly instead (`ranker`).
"""

from __future__ import annotations

from torch import Tensor

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.ranking.exact import ExactRanker
from recbole_multdpo.scoring.beam import beam_topk, node_log_probs
from recbole_multdpo.scoring.topk import TopK
from recbole_multdpo.settings.llmrec import D3Settings


class BeamRanker(ExactRanker):
    """Ranks by D3's beam search, or exactly by D3's score; `weight` is the share w."""

    @property
    def settings(self) -> D3Settings:
        """The model's settings."""
        assert isinstance(self.model.settings, D3Settings)
        return self.model.settings

    @staticmethod
    def bias_factor(weight: float) -> float:
        """See `ExactRanker.bias_factor`."""
        return weight / (1 - weight)

    def whole_bias(self, user_ids: Tensor) -> Tensor:
        """See `ExactRanker.whole_bias`; items of one text share the sum of their probabilities."""
        of_nodes = self._node_log_probs(user_ids)
        of_items = of_nodes[:, self.model.catalogue.trie.leaf_of_item.clamp(min=0)].float()
        of_items[:, 0] = 0.0  # item 0, which has no text, is never ranked
        return of_items

    def topk(
        self, user_ids: Tensor, excluded: Tensor | None, k: int, targets: Tensor | None = None
    ) -> TopK:
        """The beam's items and then the others, see `beam_topk`; or the k best by D3's score.

        A beam makes no use of `targets`.
        """
        if self.settings.ranker != "beam":
            return super().topk(user_ids, excluded, k, targets)
        node_bias = self._node_bias(user_ids.to(self.model.device))
        return self._beam(self.prompts(user_ids), excluded, k, node_bias)

    def rank(self, prompts: Prompts, excluded: Tensor | None, k: int) -> TopK:
        """`topk` for B prompts, without the assistant."""
        if self.settings.ranker != "beam":
            return super().rank(prompts, excluded, k)
        return self._beam(prompts, excluded, k, None)

    def _beam(
        self, prompts: Prompts, excluded: Tensor | None, k: int, node_bias: Tensor | None
    ) -> TopK:
        return beam_topk(
            self.model.lm,
            self.model.catalogue,
            prompts,
            excluded,
            k,
            beam_size=self.settings.beam_size,
            node_bias=node_bias,
        )

    def _node_bias(self, user_ids: Tensor) -> Tensor | None:
        """w / (1 − w) log m of every prefix, float64 [B, n_nodes]."""
        if self.assistant is None or self.weight == 0:
            return None
        return self.bias_factor(self.weight) * self._node_log_probs(user_ids)

    def _node_log_probs(self, user_ids: Tensor) -> Tensor:
        """log m of every prefix, float64 [B, n_nodes]."""
        assert self.assistant is not None
        shares = self.assistant.log_probs(user_ids, self.settings.assistant_temperature)
        return node_log_probs(self.model.catalogue.trie, shares)
