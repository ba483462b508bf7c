"""Grounding: beam search, hidden states, distances and weights on cases worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.scoring.grounding import (
    distances,
    generate_texts,
    grounded_scores,
    min_max,
    text_states,
)

WORDS = ["<pad>", "<eos>", "Go", "Red", "Blue", "Moon", "Sun", '"']


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: n for n, word in enumerate(WORDS)}))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    )


def bigram_lm(probabilities: dict[str, dict[str, float]]) -> Qwen2ForCausalLM:
    """A language model whose next word depends only on the last one, by the table.

    Embeddings are unit vectors, attention and MLP add nothing, and the norm maps 1 to sqrt(8).
    """
    size = len(WORDS)
    config = Qwen2Config(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    lm = Qwen2ForCausalLM(config).eval()
    table = torch.full((size, size), 1e-9)
    for word, following in probabilities.items():
        for other, probability in following.items():
            table[WORDS.index(word), WORDS.index(other)] = probability
    with torch.no_grad():
        lm.model.embed_tokens.weight.copy_(torch.eye(size))
        lm.model.layers[0].self_attn.o_proj.weight.zero_()
        lm.model.layers[0].mlp.down_proj.weight.zero_()
        lm.lm_head.weight.copy_(table.log().T / math.sqrt(size))
    return lm


GARDEN_PATH = {
    "Go": {"Red": 0.6, "Blue": 0.4},
    "Red": {"Moon": 0.5, "Sun": 0.5},
    "Blue": {"Moon": 1.0},
    "Moon": {"<eos>": 1.0},
    "Sun": {"<eos>": 1.0},
    "<eos>": {"<eos>": 1.0},
}


def test_beam_search_finds_what_greedy_search_misses(words: PreTrainedTokenizerFast) -> None:
    """Red comes first with 0.6, but each title after it has 0.3 and "Blue Moon" has 0.4."""
    prompts = Prompts(
        torch.tensor([[2, 0, 0], [3, 3, 2]]), torch.tensor([1, 3])
    )  # "Go", "Red Red Go"
    lm = bigram_lm(GARDEN_PATH)
    assert generate_texts(lm, words, prompts, num_beams=4, max_new_tokens=9) == ["Blue Moon"] * 2
    greedy = generate_texts(lm, words, prompts, num_beams=1, max_new_tokens=9)
    assert all(text.startswith("Red ") for text in greedy)


def test_a_text_that_does_not_end_is_cut(words: PreTrainedTokenizerFast) -> None:
    lm = bigram_lm({"Go": {"Moon": 1.0}, "Moon": {"Moon": 1.0}})
    prompt = Prompts(torch.tensor([[2]]), torch.tensor([1]))
    assert generate_texts(lm, words, prompt, num_beams=2, max_new_tokens=3) == ["Moon Moon Moon"]


def test_quotes_around_a_text_go_and_an_empty_text_is_one(words: PreTrainedTokenizerFast) -> None:
    quoted = {"Go": {'"': 1.0}, '"': {"Sun": 0.5, "<eos>": 0.5}, "Sun": {"<eos>": 1.0}}
    silent = {"Go": {"<eos>": 1.0}, "<eos>": {"<eos>": 1.0}}
    prompt = Prompts(torch.tensor([[2]]), torch.tensor([1]))
    for table, expected in ((quoted, "Sun"), (silent, "")):
        lm = bigram_lm({**table, "<eos>": {"<eos>": 1.0}})
        # per token "Sun" (0.5 in three tokens) is likelier than the bare quote (0.5 in two)
        assert generate_texts(lm, words, prompt, num_beams=4, max_new_tokens=5) == [expected]


def slow_states(lm, token_lists, layer):  # type: ignore[no-untyped-def]
    """Hidden states text by text, without padding."""
    with torch.no_grad():
        return torch.stack(
            [
                lm(torch.tensor([ids]), output_hidden_states=True).hidden_states[layer][0, -1]
                for ids in token_lists
            ]
        )


@pytest.mark.parametrize("layer", [-1, 0, 1])
def test_states_are_those_of_each_text_alone(make_lm, layer) -> None:  # type: ignore[no-untyped-def]
    lm = make_lm()
    texts = [[5, 6, 7], [9], [8, 7, 6, 5, 4], [5, 6], [9]]
    expected = slow_states(lm, texts, layer)
    for batch_tokens in (1, 7, 1000):
        states = text_states(lm, texts, layer=layer, batch_tokens=batch_tokens)
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-5)
    # the control: what comes after the last token must not count, what comes before it must
    padded = slow_states(lm, [[*ids, 0] for ids in texts], layer)
    assert not torch.allclose(padded, expected, atol=1e-2)
    if layer != 0:  # layer 0 is the embedding of the last token
        assert not torch.allclose(states[0], slow_states(lm, [[4, 6, 7]], layer)[0], atol=1e-3)


def test_last_layer_is_the_one_before_the_head(make_lm) -> None:  # type: ignore[no-untyped-def]
    lm = make_lm()
    states = text_states(lm, [[5, 6, 7]], layer=-1, batch_tokens=100)
    logits = lm(torch.tensor([[5, 6, 7]])).logits[0, -1]
    torch.testing.assert_close(lm.lm_head(states[0]), logits, atol=1e-5, rtol=1e-5)


def test_a_missing_layer_is_an_error(make_lm) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(IndexError):
        text_states(make_lm(), [[5]], layer=7, batch_tokens=10)


ITEMS = torch.tensor([[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]])


def test_distances_by_hand() -> None:
    found = distances(torch.tensor([[0.0, 0.0], [6.0, 8.0]]), ITEMS)
    assert found.tolist() == [[5, 0, 10], [5, 10, 0]]


def test_a_text_has_no_distance_from_itself_in_a_large_batch() -> None:
    """cdist uses a matrix product from 26 rows on, which is visibly wrong."""
    states = 100 + torch.rand(64, 32, generator=torch.Generator().manual_seed(0))
    assert distances(states, states).diagonal().eq(0).all()
    by_product = torch.cdist(states, states, compute_mode="use_mm_for_euclid_dist")
    assert by_product.diagonal().max() > 1e-3


def test_min_max_by_hand() -> None:
    found = min_max(torch.tensor([[5.0, 0.0, 10.0], [2.0, 2.0, 2.0]]))
    assert found.tolist() == [[0.5, 0, 1], [0, 0, 0]]


def test_weighted_scores_by_hand() -> None:
    """Distances 5, 0, 10 become 1/2, 0, 1 and weights 4, 2, 6 become 1/2, 0, 1.

    With gamma 1: 1/2 : 3/2 = 1/3 and 1 : 2 = 1/2; with gamma 3: 1/2 : 27/8 = 4/27 and 1 : 8 = 1/8,
    so that the farthest item, the most popular one, passes the other.
    """
    distance, weights = torch.tensor([[5.0, 0.0, 10.0]]), torch.tensor([[4.0, 2.0, 6.0]])
    plain = torch.tensor([[-0.5, 0.0, -1.0]])
    torch.testing.assert_close(grounded_scores(distance, None, 1.0), plain)
    torch.testing.assert_close(grounded_scores(distance, weights, 0.0), plain)
    torch.testing.assert_close(
        grounded_scores(distance, weights, 1.0), torch.tensor([[-1 / 3, 0.0, -1 / 2]])
    )
    torch.testing.assert_close(
        grounded_scores(distance, weights, 3.0), torch.tensor([[-4 / 27, 0.0, -1 / 8]])
    )


def test_every_text_is_scaled_by_itself() -> None:
    distance = torch.tensor([[5.0, 0.0, 10.0], [20.0, 10.0, 12.0]])
    together = grounded_scores(distance, torch.tensor([[4.0, 2.0, 6.0]]), 2.0)
    alone = [grounded_scores(row[None], torch.tensor([[4.0, 2.0, 6.0]]), 2.0) for row in distance]
    assert torch.equal(together, torch.cat(alone))
    assert not torch.allclose(together, -min_max(distance.flatten()).view(2, 3), atol=1e-2)
