"""The cache's argument, which transformers 5.24 renamed."""

import warnings
from functools import wraps

import pytest
from torch import nn

from recbole_multdpo.scoring.best_first import TrieSearch
from recbole_multdpo.scoring.cache import cache_argument
from recbole_multdpo.scoring.trie_scores import trie_scores
from tests.scoring.test_best_first import case, tiny_lm


class Old(nn.Module):
    def forward(self, input_ids=None, past_key_values=None, cache_position=None): ...


class New(nn.Module):
    def forward(self, input_ids=None, cache=None): ...


class Decorated(nn.Module):
    @wraps(New.forward)
    def forward(self, *args, **kwargs): ...


@pytest.mark.parametrize(
    ("model", "name"), [(Old, "past_key_values"), (New, "cache"), (Decorated, "cache")]
)
def test_name_by_signature(model: type[nn.Module], name: str):
    assert cache_argument(model()) == name


@pytest.mark.parametrize("architecture", ["qwen2", "llama"])
def test_ranking_uses_no_name_that_is_on_its_way_out(architecture: str):
    made, lm = case(), tiny_lm(architecture)
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        trie_scores(lm, made.catalogue, made.prompts)
        TrieSearch(lm, made.catalogue, made.prompts, None, 3).run()
