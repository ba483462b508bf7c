"""A search on a virtual GPU waits once per step, in widths that attention takes as they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recbole_multdpo.scoring import head as head_module
from recbole_multdpo.scoring.beam import beam_topk
from recbole_multdpo.scoring.best_first import TrieSearch
from recbole_multdpo.scoring.topk import TopK
from recbole_multdpo.scoring.trie_scores import trie_scores
from tests.scoring.test_best_first import case, excluding_all_but, random_bias, tiny_lm
from tests.virtual_cuda import VirtualCuda

HERE = "cuda:0"


@pytest.fixture
def widths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Widths of the masks that attention gets."""
    seen = []
    given = F.scaled_dot_product_attention

    def watched(*args: Tensor, attn_mask: Tensor | None = None, **options: object) -> Tensor:
        if attn_mask is not None:
            seen.append(attn_mask.shape[-1])
        return given(*args, attn_mask=attn_mask, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    return seen


def on_device(
    rank: Callable[..., object], widths: list[int] | None = None
) -> tuple[object, VirtualCuda, int]:
    """The result of `rank(lm, case)` on a virtual GPU, its waits, and the forward passes.

    `widths` are of this ranking only.
    """
    with VirtualCuda() as cuda:
        lm = tiny_lm(sliding_window=None).to(HERE)
        made = case()
        made = replace(
            made, catalogue=made.catalogue.to(HERE), prompts=made.prompts.to(torch.device(HERE))
        )
        rank(lm, made)  # once for what is kept with the model and the catalogue
        cuda.waits.clear()
        if widths is not None:
            widths.clear()
        passes = []
        lm.model.embed_tokens.register_forward_hook(lambda *_: passes.append(1))
        result = rank(lm, made)
    assert not cuda.mixes
    return result, cuda, len(passes)


def search(lm, made, **options):  # type: ignore[no-untyped-def]
    """A search whose users end at different steps; one row per chunk of the head."""
    excluded = excluding_all_but(12).to(made.prompts.device)
    return made.rank(lm, k=8, excluded=excluded, expand_per_step=3, **options)


def test_a_search_waits_once_per_step_and_ranks_as_on_a_cpu(widths, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK_LOGITS_CUDA", 1)
    monkeypatch.setattr(head_module, "MIN_CHUNK_ROWS", 2)
    expected = search(tiny_lm(), case())
    assert any(width % 8 for width in widths)  # a CPU has no such rule
    found, cuda, n_forwards = on_device(search, widths)
    assert isinstance(found, TopK)
    assert found.items.equal(expected.items) and found.expanded.equal(expected.expanded)
    torch.testing.assert_close(found.scores, expected.scores, rtol=0, atol=1e-6)
    assert widths and all(width % 8 == 0 for width in widths)
    # the prompts' pass has none; the last step finds all users finished; 4 for the result
    assert cuda.waits.total() == n_forwards + 4, cuda.waits


def test_a_search_with_a_bias_waits_once_per_step():
    added = random_bias(2.0)
    _, cuda, n_forwards = on_device(
        lambda lm, made: search(lm, made, item_bias=added.to(made.prompts.device))
    )
    assert cuda.waits.total() == n_forwards + 4, cuda.waits


def test_a_beam_waits_once_per_step():
    def rank(lm, made):  # type: ignore[no-untyped-def]
        return beam_topk(lm, made.catalogue, made.prompts, None, 5, beam_size=4)

    _, cuda, n_forwards = on_device(rank)
    by_line = Counter(line.split(":")[0] for line in cuda.waits for _ in range(cuda.waits[line]))
    assert by_line["scoring/best_first.py"] == n_forwards, cuda.waits
    assert cuda.waits.total() <= n_forwards + 5


def test_scores_along_the_trie_wait_twice_in_all(widths):
    expected = trie_scores(tiny_lm(), case().catalogue, case().prompts, nodes_per_chunk=7)

    def rank(lm, made):  # type: ignore[no-untyped-def]
        return trie_scores(lm, made.catalogue, made.prompts, nodes_per_chunk=7)

    found, cuda, n_forwards = on_device(rank, widths)
    assert isinstance(found, Tensor)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert n_forwards > 4 and cuda.waits.total() == 2, cuda.waits
    assert all(width % 8 == 0 for width in widths)


def test_a_step_that_asks_for_its_width_is_found(monkeypatch):
    """Control: one more wait in every step."""
    mask = TrieSearch._mask

    def asking(self, nodes, total):  # type: ignore[no-untyped-def]
        return mask(self, nodes, total + int(nodes.max()) * 0)

    monkeypatch.setattr(TrieSearch, "_mask", asking)
    _, cuda, n_forwards = on_device(search)
    assert cuda.waits.total() == 2 * n_forwards + 3


@pytest.mark.parametrize(("n_users", "nodes"), [(1, 1024), (4, 512), (32, 128)])
def test_chunks_on_a_gpu_fill_it(n_users, nodes, monkeypatch):
    """At few users as many nodes as keep a GPU busy, at many as on a CPU."""
    from recbole_multdpo.scoring import trie_scores as module

    seen = []
    chunks = module._chunks
    monkeypatch.setattr(
        module, "_chunks", lambda trie, size: seen.append(size) or chunks(trie, size)
    )
    prompts = case(n_users=n_users).prompts
    with VirtualCuda():
        lm, catalogue = tiny_lm().to(HERE), case().catalogue.to(HERE)
        trie_scores(lm, catalogue, prompts.to(torch.device(HERE)))
    trie_scores(tiny_lm(), case().catalogue, prompts)
    assert seen == [nodes, 128]
