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

from recbole_multdpo.losses.batch import Prompts
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.scoring.beam import beam_topk, log_shares_of_nodes
from recbole_multdpo.scoring.topk import TopK
from recbole_multdpo.settings.llmrec import D3Settings


class D3(LLMRec):
    """LLMRec decoded by D3's beam search, or ranked exactly by D3's score."""

    settings: D3Settings

    def item_bias(self, user_ids: Tensor) -> Tensor | None:
        """What the assistant adds to log π of each item, [B, n_items], nats; None for nothing.

        Items of the same text share what it thinks of all of them.
        """
        of_nodes = self._node_bias(user_ids)
        if of_nodes is None:
            return None
        of_items = of_nodes[:, self.catalogue.trie.leaf_of_item.clamp(min=0)].float()
        of_items[:, 0] = 0.0  # item 0, which has no text, is never ranked
        return of_items

    def topk(
        self, user_ids: Tensor, excluded: Tensor | None, k: int, targets: Tensor | None = None
    ) -> TopK:
        """The beam's items and then the others, see `beam_topk`; or the k best by D3's score.

        Args:
            user_ids: long [B].
            excluded: bool [B, n_items], items that must not rank, or None.
            k: list length.
            targets: as for LLMRec; a beam makes no use of them.
        """
        if self.settings.ranker != "beam":
            return super().topk(user_ids, excluded, k, targets)
        node_bias = self._node_bias(user_ids.to(self.device))
        return self._beam(self.user_prompts(user_ids), excluded, k, node_bias)

    def rank(
        self,
        prompts: Prompts,
        excluded: Tensor | None,
        k: int,
        targets: Tensor | None = None,
        item_bias: Tensor | None = None,
    ) -> TopK:
        """`topk` for prompts, whose users the assistant does not know, as `LLMRec.rank`.

        Raises:
            ValueError: `item_bias` with a beam, which would need one for prefixes.
        """
        if self.settings.ranker != "beam":
            return super().rank(prompts, excluded, k, targets, item_bias)
        if item_bias is not None:
            raise ValueError("a beam search takes no bias of items; use topk")
        return self._beam(prompts, excluded, k, None)

    def _beam(
        self, prompts: Prompts, excluded: Tensor | None, k: int, node_bias: Tensor | None
    ) -> TopK:
        return beam_topk(
            self.lm,
            self.catalogue,
            prompts,
            excluded,
            k,
            beam_size=self.settings.beam_size,
            node_bias=node_bias,
        )

    def _node_bias(self, user_ids: Tensor) -> Tensor | None:
        """w / (1 − w) log m of every prefix, float64 [B, n_nodes]."""
        if self.assistant is None or self.assistant_weight == 0:
            return None
        odds = self.assistant_weight / (1 - self.assistant_weight)
        shares = self.assistant.log_probs(user_ids, self.settings.assistant_temperature)
        return odds * log_shares_of_nodes(self.catalogue.trie, shares)
