"""What a tokenizer's chat template puts around a user's message, up to where the answer begins.

A chat template is a program of the model's publisher. What it renders here depends on nothing but
the tokenizer and the settings: a template that shows the date is given `DATE`, so that the same
command has the same prompt tomorrow. A prompt never ends inside of a thought: a title there would
be scored as the first words of it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime, tzinfo
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import chat_template_utils

from recbole_multdpo.errors import ConfigError

# the day that Llama 3's template falls back to where there is no clock
DATE = datetime(2024, 7, 26)
DEFAULT_KWARGS = {"enable_thinking": False}
_HISTORY_MARK, _ANSWER_MARK = "historygoeshere", "answergoeshere"  # letters: nothing to escape
_OFF = "set --use_chat_template=False"

# words of tags around a thought: <think>, [THINK], <|START_THINKING|>, <seed:think>, and the like
_THOUGHTS = frozenset(
    "think thinking thought thoughts reason reasoning analysis reflect reflection reflections"
    " scratchpad scratch cot monologue deliberate deliberation rationale plan planning".split()
)
_ENDS = {"start": "end", "begin": "end", "open": "close"}
_OFF_WORDS = frozenset("no non not off disabled without".split())
# with attributes, and with DeepSeek's wide bars and underscores
_NAME = r"(/?[\w:.▁-]+)"
_TAG = re.compile(rf"<{_NAME}(?: [^<>]*)?>|\[{_NAME}\]|◁{_NAME}▷|<[|｜]{_NAME}[|｜]>")
_TAGS_ONLY = re.compile(r"\s*[<\[◁].*[>\]▷]\s*", re.DOTALL)  # and no quotation mark or space
# where thoughts are a channel of their own: what opens it, and what leads from there to the answer
_CHANNELS = (
    (
        re.compile(r"<\|channel\|>(?:analysis|commentary)(?:<\|message\|>)?"),
        "<|end|><|start|>assistant<|channel|>final<|message|>",
    ),
    (re.compile(r"<\|channel>thought\n?"), "<channel|>"),
)


def chat_texts(
    tokenizer: PreTrainedTokenizerBase,
    head: str,
    tail: str,
    template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[str, str]:
    """The chat template around a user's message `head` + history + `tail`.

    Args:
        tokenizer: one with a chat template.
        head: of the message, before the history.
        tail: of the message, after it.
        template_kwargs: variables of the template; `enable_thinking` is False unless it is among
            them.

    Returns:
        What stands before the history, and what between it and the answer.

    Raises:
        ConfigError: the template fails, does not show the message exactly once, renders the same
            twice differently, or opens a thought that cannot be closed; or a variable is not the
            template's to set.
    """
    given = {**DEFAULT_KWARGS, **(template_kwargs or {})}
    _check_kwargs(given)
    asked = [{"role": "user", "content": head + _HISTORY_MARK + tail}]
    try:
        rendered = _render(tokenizer, asked, True, given)
        again = _render(tokenizer, asked, True, given)
    except Exception as error:  # a chat template is a program; it can fail in any way
        raise ConfigError(
            f"the backbone's chat template fails on a plain user message ({error}); {_OFF}"
        ) from error
    if rendered != again:
        raise ConfigError(
            "the backbone's chat template makes another text of the same message each time, so "
            f"that no two prompts would be alike; {_OFF}"
        )
    parts = rendered.split(_HISTORY_MARK)
    if len(parts) != 2:
        raise ConfigError(
            f"the backbone's chat template shows the user's message {len(parts) - 1} times instead "
            f"of once; {_OFF}"
        )
    before, after = parts
    own = _own_beginning(tokenizer, asked, rendered, given)
    thinks = open_thought(_behind(after, tail)) is not None
    if own and (thinks or not given["enable_thinking"]):
        after += own
    return before, _closed(after, tail, tokenizer)


def _check_kwargs(given: Mapping[str, Any]) -> None:
    taken = sorted(
        {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"}
        & given.keys()
    )
    if taken:
        raise ConfigError(
            f"chat_template_kwargs: {', '.join(taken)} cannot be set; it takes variables that the "
            "template reads, such as {'enable_thinking': False}. Leave it out."
        )


def _render(
    tokenizer: PreTrainedTokenizerBase,
    messages: list[dict[str, str]],
    opens_answer: bool,
    given: Mapping[str, Any],
) -> str:
    with _fixed_clock():
        return str(
            tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=opens_answer, **given
            )
        )


class _FixedDate(datetime):
    """A clock that stands still at `DATE`."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> _FixedDate:
        return cls(DATE.year, DATE.month, DATE.day, tzinfo=tz)


@contextmanager
def _fixed_clock() -> Iterator[None]:
    """Within it, `strftime_now` of chat templates says `DATE`.

    A variable of that name would not do: transformers hands templates plain data, no functions.
    """
    clock = chat_template_utils.datetime
    chat_template_utils.datetime = _FixedDate  # type: ignore[misc]
    try:
        yield
    finally:
        chat_template_utils.datetime = clock  # type: ignore[misc]


def _own_beginning(
    tokenizer: PreTrainedTokenizerBase,
    asked: list[dict[str, str]],
    rendered: str,
    given: Mapping[str, Any],
) -> str:
    """What the template itself puts between its opening of an answer and the answer's first word.

    An empty thought in Qwen3's, the header of the channel of answers in gpt-oss's; in most nothing.
    Empty also where an answer of the past begins in another way than one that is asked for.
    Quotation marks and white space around an answer are no part of this.
    """
    try:
        answered = [*asked, {"role": "assistant", "content": _ANSWER_MARK}]
        whole = _render(tokenizer, answered, False, given)
    except Exception:  # a template may demand more of an answer than we have
        return ""
    begun, mark, _ = whole.partition(_ANSWER_MARK)
    if not mark or not begun.startswith(rendered):
        return ""
    own = begun[len(rendered) :]
    return own if _TAGS_ONLY.fullmatch(own) else ""


def open_thought(text: str) -> str | None:
    """The tag that opens a thought in `text` which nothing after it closes, else None."""
    for opening, end in _CHANNELS:
        *_, last = [None, *opening.finditer(text)]
        if last is not None and end not in text[last.end() :]:
            return last[0]
    opened = None
    for match in _TAG.finditer(text):
        name = next(filter(None, match.groups())).lower()
        words = set(re.split("[_:/▁.-]", name))
        if not words & _THOUGHTS or words & _OFF_WORDS:
            continue
        closes = name.startswith("/") or words & {*_ENDS.values()}
        opened = None if closes else match[0]
    return opened


def _closing_tag(tag: str, known: Callable[[str], bool]) -> str | None:
    """What closes the tag of `open_thought`; None where no tag is known that does.

    Args:
        tag: the opening tag.
        known: whether template or tokenizer have a special token.
    """
    for opening, end in _CHANNELS:
        if opening.fullmatch(tag):
            return end
    if not tag.startswith(("<|", "<｜")):
        first, last = tag[0], tag[-1]
        return f"{first}/{tag[1:-1].split(' ')[0]}{last}"
    candidates = [tag[:2] + prefix + tag[2:] for prefix in ("/", "end_", "end_of_")]
    for begin, end in _ENDS.items():
        candidates += [tag.replace(begin, end), tag.replace(begin.upper(), end.upper())]
    return next((end for end in candidates if end != tag and known(end)), None)


def _behind(after: str, tail: str) -> str:
    """What follows the user's message, as far as the template has left its words as they were."""
    return after.rpartition(tail.strip())[2]


def _closed(after: str, tail: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`after`, and behind it the end of the thought that it opens, if any: an empty one.

    Raises:
        ConfigError: no tag is known that closes it.
    """
    behind = _behind(after, tail)
    tag = open_thought(behind)
    if tag is None:
        return after
    source, vocabulary = str(tokenizer.chat_template), tokenizer.get_added_vocab()
    end = _closing_tag(tag, lambda name: name in source or name in vocabulary)
    closed = after
    if end is not None and tag.startswith(("<|channel|>", "<|channel>")):
        closed += end
    elif end is not None:
        closed += ("\n" if behind.endswith("\n") else "") + f"{end}\n\n"
    if open_thought(_behind(closed, tail)) is not None:
        raise ConfigError(
            f"the backbone's chat template opens a thought ({tag}) in which a title cannot stand, "
            f"and no tag is known that closes it; choose a model that answers without, or {_OFF}"
        )
    return closed
