"""Prompts: a named template around a history or a conversation, concatenated from token ids.

A prompt is `head + pieces + tail`; the pieces are the titles of a history or the turns of a
conversation. A history is a list with a dash before every title, or titles alone, one per line. The
builder tokenises every piece once, with its separator, and concatenates token ids for each prompt.
A line end is not a token of its own where the tokens of titles include the white space before them,
as those of `tiny` do, so that a history of titles alone has one token per title. Text is never
tokenised across a boundary, so prompt and item tokens cannot merge (see
`recbole_multdpo.data.item_tokens`). Titles and turns never pass through a chat template, and
special tokens are recognised only in the frame. A conversation is quoted in the user's message, one
line per turn: this suits chat templates that require alternating turns, and no text of a turn can
take on another role.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.chat_frame import chat_texts
from recbole_multdpo.data.item_tokens import encode_plain
from recbole_multdpo.errors import ConfigError


@dataclass(frozen=True)
class PromptTemplate:
    """The fixed text around a history or a conversation.

    Attributes:
        head: before the first piece.
        separator: before every title of a history.
        plain_tail: after the pieces, without a chat template.
        chat_tail: after the pieces, inside a chat template.
        speakers: before every turn of a conversation, by role; empty for a history.
        disliked: before every title that the user rated low, after the history.
    """

    head: str
    separator: str
    plain_tail: str
    chat_tail: str
    speakers: Mapping[str, str] = field(default_factory=dict)
    disliked: str = "\nDisliked:"


def _history_template(noun: str) -> PromptTemplate:
    return PromptTemplate(
        head=f"A user liked these {noun}s:",
        separator="\n-",
        plain_tail=f"\nAnother {noun} for this user:",
        chat_tail=f"\n\nName one more {noun} that this user will like. Answer with its title only.",
    )


def _conversation_template(noun: str) -> PromptTemplate:
    return PromptTemplate(
        head=f"A user asks for {noun}s:",
        separator="\n",
        plain_tail=f"\nThe {noun} recommended next:",
        chat_tail=f"\n\nName one {noun} to recommend next. Answer with its title only.",
        speakers={"system": "\nNote:", "user": "\nUser:", "assistant": "\nRecommender:"},
    )


def _titles_template(noun: str) -> PromptTemplate:
    return PromptTemplate(
        head="Liked:",
        separator="\n",
        plain_tail=f"\nNext {noun}:",
        chat_tail=f"\n\nName one more {noun} that this user will like. Answer with its title only.",
    )


NOUNS = {"movies": "movie", "books": "book", "items": "item"}
TEMPLATES = {name: _history_template(noun) for name, noun in NOUNS.items()}
TITLES_TEMPLATES = {name: _titles_template(noun) for name, noun in NOUNS.items()}
CONVERSATION_TEMPLATES = {name: _conversation_template(noun) for name, noun in NOUNS.items()}


@dataclass(frozen=True)
class PromptFrame:
    """The fixed text of a prompt: around the pieces, before each one, and before an item's text.

    `disliked` is the text before a title that the user rated low; empty if prompts show none.
    """

    head: str
    separator: str
    tail: str
    item_prefix: str
    speakers: Mapping[str, str] = field(default_factory=dict)
    disliked: str = ""

    def texts(self) -> list[str]:
        """All fixed texts, for fitting a tokenizer."""
        disliked = [self.disliked] if self.disliked else []
        return [self.head, *(self.speakers.values() or [self.separator]), *disliked, self.tail]

    def marked(self, title: str) -> str:
        """A title that the user rated low, as one text: white space, the mark and the title."""
        return f"{self.disliked} {title}"

    def content(self) -> dict[str, Any]:
        """Plain data; without `disliked` where prompts show none, as in runs before it existed."""
        content = asdict(self)
        if not self.disliked:
            del content["disliked"]
        return content


def check_template(name: str) -> None:
    """Refuse a template that does not exist.

    Raises:
        ConfigError: it names those that do.
    """
    if name not in TEMPLATES:
        allowed = ", ".join(sorted(TEMPLATES))
        raise ConfigError(f"prompt_template={name!r} is unknown; allowed: {allowed}")


def prompt_frame(
    template_name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    use_chat_template: bool | str,
    context: str = "history",
    chat_template_kwargs: Mapping[str, Any] | None = None,
    titles_alone: bool = False,
    shows_disliked: bool = False,
) -> PromptFrame:
    """Make the frame of a template name and a tokenizer.

    Args:
        template_name: a key of `TEMPLATES` and `CONVERSATION_TEMPLATES`.
        tokenizer: the source of the chat template; None: no chat template.
        use_chat_template: True, False, or 'auto' (if the tokenizer has one).
        context: content of the prompt, 'history' or 'conversation'.
        chat_template_kwargs: variables of the chat template, see `chat_texts`.
        titles_alone: show a history as `TITLES_TEMPLATES` do; no effect on conversations.
        shows_disliked: True if prompts show titles that the user rated low.

    Raises:
        ConfigError: unknown template; `use_chat_template` is True for a tokenizer without a chat
            template; or the chat template cannot be used (`chat_texts`).
    """
    check_template(template_name)
    templates = TITLES_TEMPLATES if titles_alone else TEMPLATES
    if context == "conversation":
        templates = CONVERSATION_TEMPLATES
    template = templates[template_name]
    disliked = template.disliked if shows_disliked else ""
    has_chat = tokenizer is not None and bool(tokenizer.chat_template)
    if use_chat_template is True and not has_chat:
        raise ConfigError(
            "use_chat_template=True, but the backbone's tokenizer has no chat template; "
            "set --use_chat_template=False or choose an instruct model"
        )
    if use_chat_template is False or not has_chat:
        # a title begins with a space after the tail, as it does in the history
        return PromptFrame(
            template.head, template.separator, template.plain_tail, " ", template.speakers, disliked
        )
    assert tokenizer is not None
    head, tail = chat_texts(tokenizer, template.head, template.chat_tail, chat_template_kwargs)
    return PromptFrame(head, template.separator, tail, "", template.speakers, disliked)


class PromptBuilder:
    """Builds right-padded prompt token ids from histories of item ids, or lists of turns."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        texts: Sequence[str],
        frame: PromptFrame,
        *,
        max_history: int | None,
        max_prompt_tokens: int,
        roles: Sequence[str] | None = None,
        max_disliked: int = 0,
    ) -> None:
        """Tokenise the frame and every piece.

        Args:
            tokenizer: a Hugging Face tokenizer. If it prepends its BOS token, so does the builder.
            texts: one text per inner item id, or per turn; entry 0 belongs to [PAD].
            frame: the fixed text, from `prompt_frame`.
            max_history: pieces kept at most, the latest ones; None for no limit.
            max_prompt_tokens: token limit of a prompt. The oldest pieces are dropped whole to meet
                it. A turn that is too long on its own is truncated at its end, so that the latest
                turn is always shown.
            roles: for turns, the role of each text, a key of `frame.speakers`; None for titles.
            max_disliked: titles that the user rated low, at most; `frame.disliked` is before each,
                unless the tokenizer has one token for both.

        Raises:
            ConfigError: the frame alone exceeds `max_prompt_tokens`, or leaves no room for a turn.
            DataError: the tokenizer makes a special token of a text.
        """
        self.frame = frame
        self.max_history = max_history

        self._head = _encode(tokenizer, frame.head)
        self._tail = _encode_behind(tokenizer, frame.tail)
        opening = tokenizer(frame.head)["input_ids"][:1]
        if opening == [tokenizer.bos_token_id] and self._head[:1].tolist() != opening:
            self._head = np.concatenate([np.array(opening, dtype=np.int64), self._head])
        self._budget = max_prompt_tokens - len(self._head) - len(self._tail)
        encoded = encode_plain(tokenizer, [f" {text}" for text in texts[1:]])
        self._separator = _encode_behind(tokenizer, frame.separator)
        if roles is None and frame.separator.isspace():
            separated = encode_plain(tokenizer, [f"{frame.separator} {t}" for t in texts[1:]])
            # one suffices: a title that came later than the tokenizer has no token
            if any(map(operator.eq, separated, encoded)):
                self._separator = self._separator[:0]
        self._speakers = before = {
            role: _encode_behind(tokenizer, text) for role, text in frame.speakers.items()
        }
        # a turn has at least one token after its speaker
        needed = max((len(ids) + 1 for ids in before.values()), default=0)
        if self._budget < needed:
            raise ConfigError(
                f"max_prompt_tokens={max_prompt_tokens} is too small: the template needs "
                f"{max_prompt_tokens - self._budget + needed} tokens. Raise it"
            )
        if roles is None:
            openings = [self._separator] * len(encoded)
        else:
            openings = [before[role] for role in roles[1:]]
            encoded = [
                ids[: self._budget - len(opening)]
                for opening, ids in zip(openings, encoded, strict=True)
            ]
        # int32: a large data set has hundreds of millions of tokens in its turns
        self._pieces = [self._head[:0].astype(np.int32)] + [
            np.concatenate([opening, ids]).astype(np.int32)
            for opening, ids in zip(openings, encoded, strict=True)
        ]
        self._piece_lengths = np.array([len(piece) for piece in self._pieces])
        self.max_disliked = max_disliked
        self._before_disliked = _encode_behind(tokenizer, frame.disliked)
        self._disliked = self._pieces[:1]
        if max_disliked:
            marked = encode_plain(tokenizer, [frame.marked(text) for text in texts[1:]])
            self._disliked += [
                np.array(whole if len(whole) == 1 else [*self._before_disliked, *ids], np.int32)
                for whole, ids in zip(marked, encoded, strict=True)
            ]
        self._disliked_lengths = np.array([len(piece) for piece in self._disliked])

    def longest(self, max_history: int | None) -> int:
        """Length in tokens of the longest possible prompt with at most `max_history` pieces."""
        pieces = np.sort(self._piece_lengths)[::-1][:max_history].sum()
        pieces += np.sort(self._disliked_lengths)[::-1][: self.max_disliked].sum()
        return len(self._head) + len(self._tail) + min(int(pieces), self._budget)

    def frame_ids(self) -> dict[str, Any]:
        """Token ids of the fixed texts `head`, `tail`, `before_title`, and `before_turn`.

        Where prompts show them, of `before_disliked` too.
        """
        disliked = {"before_disliked": self._before_disliked.tolist()}
        return {
            **(disliked if self.frame.disliked else {}),
            "head": self._head.tolist(),
            "tail": self._tail.tolist(),
            "before_title": self._separator.tolist(),
            "before_turn": {role: ids.tolist() for role, ids in self._speakers.items()},
        }

    def kept(self, history: np.ndarray, max_history: int | None = None) -> np.ndarray:
        """The latest pieces of `history` (oldest first) that fit into the prompt.

        Pieces are dropped from the oldest on, even if a shorter, older piece would still fit.
        """
        limit = self.max_history if max_history is None else max_history
        latest = history if limit is None else history[max(len(history) - limit, 0) :]
        from_the_end = self._piece_lengths[latest[::-1]].cumsum()
        n_fitting = int(np.searchsorted(from_the_end, self._budget, side="right"))
        return latest[len(latest) - n_fitting :]

    def kept_disliked(self, disliked: np.ndarray, kept: np.ndarray) -> np.ndarray:
        """The latest items of `disliked`, rated low, that fit into a prompt with a history `kept`.

        So they are the first to be left out of a prompt that is too long.
        """
        latest = disliked[max(len(disliked) - self.max_disliked, 0) :]
        room = self._budget - int(self._piece_lengths[kept].sum())
        from_the_end = self._disliked_lengths[latest[::-1]].cumsum()
        return latest[len(latest) - int(np.searchsorted(from_the_end, room, side="right")) :]

    def build(
        self,
        histories: Sequence[np.ndarray],
        max_history: int | None = None,
        disliked: Sequence[np.ndarray] | None = None,
    ) -> Prompts:
        """Build the prompts of a batch.

        Args:
            histories: the pieces of each prompt (item ids, or indices of turns), oldest first; may
                be empty.
            max_history: pieces kept at most; None: the builder's own limit.
            disliked: item ids that the users rated low; None for none.

        Returns:
            The prompts on the CPU, padded with 0.
        """
        prompts = []
        for row, history in enumerate(histories):
            kept = self.kept(history, max_history)
            low = kept[:0] if disliked is None else self.kept_disliked(disliked[row], kept)
            pieces = [self._pieces[item] for item in kept]
            pieces += [self._disliked[item] for item in low]
            prompts.append(np.concatenate([self._head, *pieces, self._tail]))
        lengths = np.array([len(prompt) for prompt in prompts])
        ids = np.zeros((len(prompts), lengths.max()), dtype=np.int64)
        ids[np.arange(ids.shape[1]) < lengths[:, None]] = np.concatenate(prompts)
        return Prompts(torch.from_numpy(ids), torch.from_numpy(lengths))


def _encode(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    """Token ids of a fixed text with special tokens recognised, int64 [n]."""
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=False)["input_ids"]
    return np.array(ids, dtype=np.int64)


def _encode_behind(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    """`_encode` of a text that follows another one, without a prepended space.

    SentencePiece tokenizers prepend a space to every text: Llama 2 and Mistral would read each line
    break of a prompt as a space and a line break.
    """
    alone = _encode(tokenizer, text)
    if len(alone) > 1 and tokenizer.convert_ids_to_tokens(int(alone[0])) == "▁":
        behind = np.concatenate([_encode(tokenizer, "a"), alone[1:]])
        if np.array_equal(_encode(tokenizer, f"a{text}"), behind):
            return alone[1:]
    return alone
