"""Build a language model of about one million parameters from the catalogue's texts.

Nothing is downloaded: the tokenizer is a byte-level BPE fitted to the given texts, optionally with
one extra token per item text, and the model has the Qwen2 architecture and random weights. Both are
ordinary Hugging Face objects: `save_pretrained` writes them, and `AutoModelForCausalLM` and
`AutoTokenizer` read them back.
"""

import json
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import (
    AddedToken,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
)

PAD_TOKEN = "<|pad|>"
EOS_TOKEN = "<|endoftext|>"
# the pad token first: its id 0 pads every tensor of token ids
SPECIAL_TOKENS = (PAD_TOKEN, EOS_TOKEN)


def make_tiny_backbone(
    texts: Sequence[str],
    *,
    hidden_size: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    vocab_size: int = 2000,
    whole_texts: Sequence[str] = (),
    separator: str = "",
    max_positions: int = 4096,
    seed: int,
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """Fit a byte-level BPE tokenizer to `texts` and build a Qwen2 model with random weights.

    With the defaults the model has 1.1 million parameters. The input embedding and the LM head
    share their weight. The same texts, arguments and library versions give the same token ids and
    the same weights bit for bit. The order of the texts does not matter, only their counts. The
    global random state does not change.

    Args:
        texts: item texts, and the fixed pieces of the prompt. Each is fitted as it occurs in a
            prompt, after a space (see `fit_tokenizer`). Repetition acts as weight: give a piece of
            every prompt about as often as there are items, or its words stay split into many
            tokens.
        hidden_size: width; must be a multiple of 2 * num_heads (rotary embeddings turn pairs).
        num_layers: transformer layers.
        num_heads: attention heads, each with its own keys and values.
        vocab_size: upper bound of the vocabulary, special tokens and the 256 bytes included. The
            model gets exactly as many embedding rows as the tokenizer has tokens, which is fewer
            if the texts allow no more merges.
        whole_texts: texts that become one token each, on top of `vocab_size` (`add_whole_texts`).
        separator: text before the space of a whole text in a prompt; white space becomes part of
            its token.
        max_positions: longest sequence that the configuration declares, in tokens.
        seed: seed of the weights.

    Returns:
        The model (float32, CPU, eval mode) and its tokenizer.
    """
    tokenizer = fit_tokenizer(texts, vocab_size=vocab_size, max_positions=max_positions)
    add_whole_texts(tokenizer, whole_texts, separator if separator.isspace() else "")
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=_swiglu_width(hidden_size),
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    # seed only the CPU generator: torch.manual_seed would also reset those of accelerators, which
    # fork_rng(devices=[]) does not restore
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        lm = Qwen2ForCausalLM(config)
    return lm.float().eval(), tokenizer


def fit_tokenizer(
    texts: Sequence[str], *, vocab_size: int, max_positions: int
) -> PreTrainedTokenizerFast:
    """Fit a byte-level BPE tokenizer of the Qwen2 architecture's class.

    Text is normalised to Unicode's composed form (NFC) and split into words, each with the space
    before it, and single digits; then into bytes, so that every string can be encoded. Merges never
    cross a word: the ids of a prompt and of `" " + title` are the same apart and joined, as long as
    the prompt does not end in white space. There is no beginning-of-sequence token. The string of a
    special token inside a text is encoded as plain characters; append special tokens by id.

    A text that does not begin with white space is fitted with a space in front, since titles are
    encoded as `" " + title`: without it, " Toy" and "Toy" would compete for the vocabulary
    (measured on the MovieLens-100K titles with 2,000 tokens: 5.3 tokens per title instead of 6.0).
    """
    # AutoTokenizer reads the tokenizer of every qwen2 model as a Qwen2Tokenizer, which keeps
    # vocabulary and merges but has its own normaliser and splitting rule (transformers 5). Fitting
    # with another rule would give other ids after loading, so the rule is taken from the class.
    rule = Qwen2Tokenizer().backend_tokenizer
    backend = Tokenizer(models.BPE())
    backend.normalizer, backend.pre_tokenizer = rule.normalizer, rule.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    spaced = (text if text[:1].isspace() else " " + text for text in texts)
    backend.train_from_iterator(spaced, trainer, length=len(texts))
    fitted = json.loads(backend.to_str())["model"]
    return Qwen2Tokenizer(
        vocab=fitted["vocab"],
        merges=[tuple(merge) for merge in fitted["merges"]],  # type: ignore[misc]  # annotated str
        unk_token=EOS_TOKEN,  # required by the class; bytes leave nothing unknown
        eos_token=EOS_TOKEN,
        pad_token=PAD_TOKEN,
        split_special_tokens=True,
        clean_up_tokenization_spaces=False,
        model_max_length=max_positions,
        padding_side="right",
    )


def add_whole_texts(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[str], separator: str = ""
) -> None:
    """Add one token for every text with the white space before it, as CLLM4Rec does for items.

    A model with random weights gains nothing from the letters of a title, and a title of one token
    costs a fifth of the time. Other text is still split into BPE tokens. A text is also found
    inside other text, such as a comment about it, but only as a whole: " Alien" is not found in
    " Aliens". Of texts with a common prefix the longest is taken. A text that is one token already,
    with `separator` and a space before it, gets no other.
    """
    # lstrip makes the space part of the token but not of its content: single_word is decided by the
    # characters on both sides of the content, and a space may follow any word
    tokenizer.add_tokens(
        [
            AddedToken(text, single_word=True, lstrip=True)
            for text in sorted({text.strip() for text in texts})
            if len(_ids(tokenizer, f"{separator} {text}")) > 1
        ]
    )


def _ids(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def _swiglu_width(hidden_size: int) -> int:
    """Width of SwiGLU with as many parameters as a 4x MLP: 8/3, rounded up to a multiple of 64."""
    return -(-8 * hidden_size // 3 // 64) * 64
