"""Prompts: a named template around a user's history, joined from ready token ids.

A prompt is `head + history + tail`. Every title is tokenised once, with its separator, when the
builder is made; a context's prompt is then a concatenation of ready token lists. Nothing is ever
tokenised across a joint, so prompt and item tokens cannot merge (see
`recbole_multdpo.data.item_tokens`). Titles never pass through a chat template, and special tokens
are recognised in the frame only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from recbole_multdpo.data.item_tokens import encode_plain
from recbole_multdpo.errors import ConfigError


@dataclass(frozen=True)
class PromptTemplate:
    """The words around a history.

    Attributes:
        head: before the first title.
        separator: before every title of the history.
        plain_tail: after the history where the model simply continues the text.
        chat_tail: after the history where the tokenizer's chat template asks for an answer.
    """

    head: str
    separator: str
    plain_tail: str
    chat_tail: str


def _liked(noun: str, verb: str) -> PromptTemplate:
    return PromptTemplate(
        head=f"A user {verb} these {noun}s:",
        separator="\n-",
        plain_tail=f"\nAnother {noun} for this user:",
        chat_tail=f"\n\nName one more {noun} that this user will like. Answer with its title only.",
    )


TEMPLATES: dict[str, PromptTemplate] = {
    "movies": _liked("movie", "liked"),
    "books": _liked("book", "liked"),
    "items": _liked("item", "liked"),
}


@dataclass(frozen=True)
class PromptFrame:
    """The fixed text of a prompt: before and after the history, and before an item's text."""

    head: str
    separator: str
    tail: str
    item_prefix: str

    def texts(self) -> list[str]:
        """The fixed pieces, so that a tokenizer can be fitted to them too."""
        return [self.head, self.separator, self.tail]


_HISTORY_MARK = "historygoeshere"  # letters only: a template may escape punctuation


def prompt_frame(
    template_name: str, tokenizer: PreTrainedTokenizerBase | None, use_chat_template: bool | str
) -> PromptFrame:
    """Resolve a template name against a tokenizer.

    Args:
        template_name: a key of `TEMPLATES`.
        tokenizer: where the chat template comes from; None stands for "has none".
        use_chat_template: True, False, or 'auto' (where the tokenizer has one).

    Raises:
        ConfigError: unknown template; a chat template is demanded of a tokenizer without one, or
            fails, or does not show the user's message exactly once.
    """
    if template_name not in TEMPLATES:
        allowed = ", ".join(sorted(TEMPLATES))
        raise ConfigError(f"prompt_template={template_name!r} is not known; allowed: {allowed}")
    template = TEMPLATES[template_name]
    has_chat = tokenizer is not None and bool(tokenizer.chat_template)
    if use_chat_template is True and not has_chat:
        raise ConfigError(
            "use_chat_template=True, but the backbone's tokenizer has no chat template; "
            "set --use_chat_template=False or choose an instruct model"
        )
    if use_chat_template is False or not has_chat:
        # the title after the tail begins with a space, as the titles of the history do
        return PromptFrame(template.head, template.separator, template.plain_tail, item_prefix=" ")
    assert tokenizer is not None
    message = template.head + _HISTORY_MARK + template.chat_tail
    try:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
        )
    except Exception as error:  # a chat template is a program; it can fail in any way
        raise ConfigError(
            f"the backbone's chat template fails on a plain user message ({error}); "
            "set --use_chat_template=False"
        ) from error
    parts = str(rendered).split(_HISTORY_MARK)
    if len(parts) != 2:
        raise ConfigError(
            f"the backbone's chat template shows the user's message {len(parts) - 1} times instead "
            "of once; set --use_chat_template=False"
        )
    return PromptFrame(parts[0], template.separator, parts[1], item_prefix="")


class PromptBuilder:
    """Turns histories of item ids into right-padded prompt token ids."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        frame: PromptFrame,
        *,
        max_history: int,
        max_prompt_tokens: int,
    ) -> None:
        """Tokenise the frame and every title once.

        Args:
            tokenizer: a Hugging Face tokenizer. Where it opens every text with its BOS token, so
                does every prompt.
            texts: one text per inner item id; entry 0 belongs to [PAD].
            frame: the fixed text, from `prompt_frame`.
            max_history: titles kept at most, the latest ones.
            max_prompt_tokens: token limit of a prompt; the oldest titles are left out to meet it,
                each as a whole.

        Raises:
            ConfigError: the frame alone exceeds `max_prompt_tokens`.
            DataError: the tokenizer makes a special token of a title.
        """
        self.frame = frame
        self.max_history = max_history

        def encode(text: str) -> np.ndarray:
            ids = tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
            return np.array(ids, dtype=np.int64)

        self._head, self._tail = encode(frame.head), encode(frame.tail)
        opening = tokenizer(frame.head)["input_ids"][:1]
        if opening == [tokenizer.bos_token_id] and self._head[:1].tolist() != opening:
            self._head = np.concatenate([np.array(opening, dtype=np.int64), self._head])
        separator = encode(frame.separator)
        encoded = encode_plain(tokenizer, [f" {text}" for text in texts[1:]])
        self._pieces = [separator[:0]] + [
            np.concatenate([separator, np.array(ids, dtype=np.int64)]) for ids in encoded
        ]
        self._piece_lengths = np.array([len(piece) for piece in self._pieces])
        self._history_budget = max_prompt_tokens - len(self._head) - len(self._tail)
        if self._history_budget < 0:
            raise ConfigError(
                f"max_prompt_tokens={max_prompt_tokens} is less than the template itself takes "
                f"({len(self._head) + len(self._tail)} tokens); raise it"
            )

    def kept(self, history: np.ndarray, max_history: int | None = None) -> np.ndarray:
        """The part of `history` (item ids, oldest first) that the prompt shows: its latest titles.

        The oldest go first, even where an older title would fit and a later one does not.
        """
        limit = self.max_history if max_history is None else max_history
        latest = history[max(len(history) - limit, 0) :]
        from_the_end = self._piece_lengths[latest[::-1]].cumsum()
        n_fitting = int(np.searchsorted(from_the_end, self._history_budget, side="right"))
        return latest[len(latest) - n_fitting :]

    def build(
        self, histories: Sequence[np.ndarray], max_history: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Prompts of several contexts.

        Args:
            histories: per context the item ids, oldest first; each may be empty.
            max_history: titles kept at most; by default the builder's own limit.

        Returns:
            prompt_ids long [B, P] right padded with 0, prompt_lengths long [B].
        """
        prompts = [
            np.concatenate(
                [
                    self._head,
                    *(self._pieces[item] for item in self.kept(history, max_history)),
                    self._tail,
                ]
            )
            for history in histories
        ]
        lengths = np.array([len(prompt) for prompt in prompts])
        ids = np.zeros((len(prompts), lengths.max()), dtype=np.int64)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(prompts)
        return torch.from_numpy(ids), torch.from_numpy(lengths)
