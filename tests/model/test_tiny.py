"""The model and tokenizer made from the catalogue's texts."""

import hashlib
import random
import unicodedata

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_multdpo.model.tiny import fit_tokenizer, make_tiny_backbone

TITLES = [
    "Toy Story",
    "Toy Story 2",
    "GoldenEye",
    "Star Wars",
    "Star Trek: The Motion Picture",
    "101 Dalmatians",
    "2001: A Space Odyssey",
    "Cite\u0301 des enfants perdus, La",  # a decomposed e acute
    "Schindler's List",
    "The Story of Xinghua",
    "...And Justice for All!",
    "\u4e03\u4eba\u306e\u4f8d",
    "$1,000,000 Duck (1971)",
]
SMALL = dict(hidden_size=16, num_layers=2, num_heads=2, vocab_size=320)
FITTED = fit_tokenizer(TITLES, vocab_size=320, max_positions=64)


def small_backbone(texts=TITLES, seed=0, **changes):
    return make_tiny_backbone(texts, seed=seed, **{**SMALL, **changes})


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def digest(lm, tokenizer):
    """One string for every weight and every token."""
    sha = hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode())
    for name, tensor in lm.state_dict().items():
        sha.update(name.encode() + tensor.numpy().tobytes())
    return sha.hexdigest()


@pytest.fixture(scope="module")
def tiny():
    return small_backbone()


class TestDeterminism:
    def test_order_of_texts_does_not_matter(self, tiny):
        shuffled = random.Random(1).sample(TITLES, len(TITLES))
        assert shuffled != TITLES
        assert digest(*small_backbone(shuffled)) == digest(*tiny)

    def test_seed_and_texts_matter(self, tiny):
        assert digest(*small_backbone(seed=1)) != digest(*tiny)
        assert digest(*small_backbone(TITLES[:-3])) != digest(*tiny)

    def test_global_random_states_are_left_alone(self):
        before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
        small_backbone()
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert np.array_equal(np.random.get_state()[1], before[2])


class TestModel:
    def test_default_shape_has_one_million_parameters(self):
        lm, tokenizer = make_tiny_backbone(TITLES, seed=0)
        hidden, wide, layers = 128, 384, 4  # 8/3 * 128 = 341.3, up to the next multiple of 64
        attention = 4 * hidden * hidden + 3 * hidden  # q, k, v with bias, o without
        layer = attention + 3 * hidden * wide + 2 * hidden  # gate, up, down; two norms
        assert lm.num_parameters() == len(tokenizer) * hidden + layers * layer + hidden
        assert layers * layer + hidden + 2000 * hidden == 1_110_656  # the full vocabulary of 2,000

    def test_is_a_tied_float32_qwen2_on_the_cpu(self, tiny):
        lm, tokenizer = tiny
        assert lm.config.model_type == "qwen2"
        assert lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
        assert {p.dtype for p in lm.parameters()} == {torch.float32}
        assert not lm.training
        assert lm.config.max_position_embeddings == tokenizer.model_max_length == 4096

    def test_special_tokens(self, tiny):
        lm, tokenizer = tiny
        assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1)
        assert (lm.config.pad_token_id, lm.config.eos_token_id) == (0, 1)
        assert tokenizer.convert_ids_to_tokens([0, 1]) == ["<|pad|>", "<|endoftext|>"]


class TestVocabularySize:
    def test_bytes_alone(self):
        lm, tokenizer = small_backbone(vocab_size=258)
        assert len(tokenizer) == lm.config.vocab_size == 258
        for title in TITLES:
            composed = unicodedata.normalize("NFC", " " + title)
            assert len(ids(tokenizer, " " + title)) == len(composed.encode())

    def test_more_than_the_texts_allow(self):
        lm, tokenizer = small_backbone(vocab_size=100_000)
        assert 258 < len(tokenizer) < 1_000
        assert len(lm.get_input_embeddings().weight) == lm.config.vocab_size == len(tokenizer)
        assert len(ids(tokenizer, " Star")) == 1  # every word of the texts became one token

    def test_exact_where_the_texts_allow_it(self, tiny):
        lm, tokenizer = tiny
        assert len(tokenizer) == lm.config.vocab_size == SMALL["vocab_size"]

    def test_no_texts_leave_the_bytes(self):
        assert len(small_backbone([])[1]) == 258


class TestTokenizer:
    def test_titles_decode_to_themselves_composed(self, tiny):
        for title in TITLES:
            decoded = tiny[1].decode(ids(tiny[1], " " + title))
            assert decoded == unicodedata.normalize("NFC", " " + title)

    @given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
    def test_any_text_decodes_to_itself_composed(self, text):
        assert FITTED.decode(ids(FITTED, text)) == unicodedata.normalize("NFC", text)

    @pytest.mark.parametrize("prompt", ["A user liked these movies:", "\nNext movie:", "x.", "7"])
    def test_prompt_and_title_are_the_same_apart_and_joined(self, tiny, prompt):
        for title in TITLES:
            apart = ids(tiny[1], prompt) + ids(tiny[1], " " + title)
            assert ids(tiny[1], prompt + " " + title) == apart

    def test_without_the_space_they_are_not(self):
        tokenizer = fit_tokenizer(["Toy Story"], vocab_size=300, max_positions=64)
        assert ids(tokenizer, " Toy") + ids(tokenizer, " Story") == ids(tokenizer, " Toy Story")
        assert ids(tokenizer, " T") + ids(tokenizer, "oy") != ids(tokenizer, " Toy")

    @pytest.mark.parametrize("token", ["<|endoftext|>", "<|pad|>"])
    def test_special_tokens_in_a_text_are_plain_characters(self, tiny, token):
        encoded = ids(tiny[1], f"a{token}b")
        assert not {0, 1} & set(encoded)
        assert tiny[1].decode(encoded) == f"a{token}b"

    def test_fitting_puts_a_space_in_front(self, tiny):
        spaced = fit_tokenizer([" " + t for t in TITLES], vocab_size=320, max_positions=4096)
        assert spaced.get_vocab() == tiny[1].get_vocab()
        assert len(ids(fit_tokenizer(["Zorro"], vocab_size=300, max_positions=9), " Zorro")) == 1

    def test_repetition_is_weight(self):
        rare = fit_tokenizer([*TITLES, "recommendation"], vocab_size=300, max_positions=64)
        frequent = fit_tokenizer(
            [*TITLES, *["recommendation"] * 20], vocab_size=300, max_positions=64
        )
        assert len(ids(frequent, " recommendation")) == 1
        assert len(ids(rare, " recommendation")) > 5


@pytest.fixture(scope="module")
def reloaded(tiny, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    for part in tiny:
        part.save_pretrained(folder)
    assert (folder / "model.safetensors").is_file()
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


class TestSaveAndLoad:
    def test_same_ids(self, tiny, reloaded):
        # digits, decomposed letters and special tokens: what another splitting rule would change
        for text in [*TITLES, " x 1995  7\n- y", "a<|endoftext|>b", "<|pad|>", "e\u0301", "\r\n\t"]:
            assert ids(reloaded[1], text) == ids(tiny[1], text)
            assert reloaded[1].encode(text) == tiny[1].encode(text)

    def test_same_logits(self, tiny, reloaded):
        tokens = torch.tensor([ids(tiny[1], " Star Wars")])
        with torch.no_grad():
            assert torch.equal(reloaded[0](tokens).logits, tiny[0](tokens).logits)

    def test_same_special_tokens_and_types(self, tiny, reloaded):
        assert type(reloaded[0]) is type(tiny[0]) and type(reloaded[1]) is type(tiny[1])
        assert reloaded[1].eos_token_id == 1 and reloaded[1].pad_token_id == 0
        assert reloaded[1].padding_side == "right"


# -------------------------------------------------------------------------------------------------
# texts that are one token


WHOLE = small_backbone(
    ["It was good", *TITLES, "Alien", "Alien 3"] * 2, whole_texts=[*TITLES, "Alien", "Alien 3"]
)[1]
OWN = {title: ids(WHOLE, " " + title) for title in [*TITLES, "Alien", "Alien 3"]}


def test_a_whole_text_is_one_token_also_after_saving(tmp_path):
    assert {len(tokens) for tokens in OWN.values()} == {1}
    assert len({tokens[0] for tokens in OWN.values()}) == len(OWN)
    WHOLE.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert {title: ids(loaded, " " + title) for title in OWN} == OWN


@pytest.mark.parametrize(
    ("before", "title", "after"),
    [
        (" I liked", "Star Wars", " (1977)"),
        (" I liked", "Alien 3", " more"),
        (" Like", "Alien", ", or what?"),
        (" So:", "GoldenEye", ""),
    ],
)
def test_a_whole_text_is_found_inside_of_what_somebody_says(before, title, after):
    found = ids(WHOLE, f"{before} {title}{after}")
    assert found == ids(WHOLE, before) + OWN[title] + ids(WHOLE, after)


@pytest.mark.parametrize("said", [" two GoldenEyes", " Star Warship", " likeGoldenEye"])
def test_a_whole_text_is_not_found_inside_of_a_word(said):
    added = set(WHOLE.get_added_vocab().values())
    assert added >= {OWN["GoldenEye"][0], OWN["Star Wars"][0]}
    assert not added & set(ids(WHOLE, said))
