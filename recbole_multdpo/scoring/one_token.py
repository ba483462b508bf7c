"""Log-probabilities of items whose texts are one token each: one row of logits per prompt has all.

Nothing but the prompts is fed, and any number of candidates costs the same. Values and gradients
equal those of `recbole_multdpo.scoring.packed`, which computes its probabilities pair by pair.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.head import as_float
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.packed import PackedExamples
from recbole_multdpo.scoring.parts import parts_of


def is_one_token(catalogue: ItemCatalogue) -> bool:
    """True if `OneTokenExamples` can score the catalogue."""
    return catalogue.normalised and catalogue.items.ids.shape[1] == 1


@dataclass(frozen=True)
class OneTokenExamples:
    """B prompts with their candidates, ready to be scored by one or several models.

    Attributes:
        prompts: the prompts, packed with any item, so that their last positions are read.
        candidates: long [B, C], item ids; 0 is padding.
        catalogue: the items, which `is_one_token` accepts.
    """

    prompts: PackedExamples
    candidates: Tensor
    catalogue: ItemCatalogue

    @classmethod
    def of(cls, prompts: Prompts, candidates: Tensor, catalogue: ItemCatalogue) -> OneTokenExamples:
        """Pack the prompts; all tensors are on one device."""
        first = torch.ones_like(candidates[:, :1])
        return cls(PackedExamples.of(prompts, first, catalogue.items), candidates, catalogue)

    def logps(self, lm: nn.Module) -> Tensor:
        """log π(item | prompt) of every candidate under `lm`, as `packed_logps`."""
        trie, ids = self.catalogue.trie, self.catalogue.items.ids[:, 0]
        logits = as_float(parts_of(causal_lm(lm)).head(self.prompts.hidden(lm)))  # [B, V]
        of_texts = logits[:, trie.token[trie.num_internal :]]  # every node but the root is a text
        logps = logits[:, ids] - of_texts.logsumexp(1, keepdim=True)
        return logps.gather(1, self.candidates).masked_fill(self.candidates == 0, 0.0)


def one_token_logps(
    lm: nn.Module, prompts: Prompts, candidates: Tensor, catalogue: ItemCatalogue
) -> Tensor:
    """`packed_logps` of a catalogue that `is_one_token` accepts."""
    return OneTokenExamples.of(prompts, candidates, catalogue).logps(lm)
