"""The text that a tokenizer's chat template renders around a user's message, up to the answer.

The result depends only on the tokenizer and the settings: a template that shows the date gets
`DATE`, so the same command has the same prompt tomorrow. A prompt never ends inside a thinking
block: a title there would be scored as the first words of a thought.
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

# the default of Llama 3's template without a clock
DATE = datetime(2024, 7, 26)
DEFAULT_KWARGS = {"enable_thinking": False}
_HISTORY_MARK, _ANSWER_MARK = "historygoeshere", "answergoeshere"  # letters need no escaping
_OFF = "set --use_chat_template=False"

# words in tags of thinking blocks: <think>, [THINK], <|START_THINKING|>, <seed:think>, ...
_THOUGHTS = frozenset(
    "think thinking thought thoughts reason reasoning analysis reflect reflection reflections"
    " scratchpad scratch cot monologue deliberate deliberation rationale plan planning".split()
)
_ENDS = {"start": "end", "begin": "end", "open": "close"}
_OFF_WORDS = frozenset("no non not off disabled without".split())
# with attributes, and with DeepSeek's wide bars and underscores
_NAME = r"(/?[\w:.▁-]+)"
_TAG = re.compile(rf"<{_NAME}(?: [^<>]*)?>|\[{_NAME}\]|◁{_NAME}▷|<[|｜]{_NAME}[|｜]>")
_TAGS_ONLY = re.compile(r"\s*[<\[◁].*[>\]▷]\s*", re.DOTALL)  # not only white space or quotes
# models that think in a separate channel: its opening, and the text that leads to the answer
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
    """Render the chat template around a user's message `head` + history + `tail`.

    Args:
        tokenizer: a tokenizer with a chat template.
        head: beginning of the message, before the history.
        tail: end of the message, after the history.
        template_kwargs: variables of the template; `enable_thinking` defaults to False.

    Returns:
        The text before the history, and the text between history and answer.

    Raises:
        ConfigError: the template fails, does not show the message exactly once, is not
            deterministic, or opens a thinking block that cannot be closed; or a variable is
            reserved.
    """
    given = {**DEFAULT_KWARGS, **(template_kwargs or {})}
    _check_kwargs(given)
    asked = [{"role": "user", "content": head + _HISTORY_MARK + tail}]
    try:
        rendered = _render(tokenizer, asked, True, given)
        again = _render(tokenizer, asked, True, given)
    except Exception as error:  # a chat template is a program and can raise anything
        raise ConfigError(
            f"the backbone's chat template fails on a plain user message ({error}); {_OFF}"
        ) from error
    if rendered != again:
        raise ConfigError(
            "the backbone's chat template renders the same message differently each time, so "
            f"prompts would not be reproducible; {_OFF}"
        )
    parts = rendered.split(_HISTORY_MARK)
    if len(parts) != 2:
        raise ConfigError(
            f"the backbone's chat template shows the user's message {len(parts) - 1} times instead "
            f"of once; {_OFF}"
        )
    before, after = parts
    opening = _answer_opening(tokenizer, asked, rendered, given)
    thinks = open_thinking_tag(_after_message(after, tail)) is not None
    if opening and (thinks or not given["enable_thinking"]):
        after += opening
    return before, _close_thinking(after, tail, tokenizer)


def _check_kwargs(given: Mapping[str, Any]) -> None:
    taken = sorted(
        {*inspect.signature(PreTrainedTokenizerBase.apply_chat_template).parameters, "messages"}
        & given.keys()
    )
    if taken:
        raise ConfigError(
            f"chat_template_kwargs: {', '.join(taken)} cannot be set; use variables that the "
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
    """A `datetime` whose current time is always `DATE`."""

    @classmethod
    def now(cls, tz: tzinfo | None = None) -> _FixedDate:
        return cls(DATE.year, DATE.month, DATE.day, tzinfo=tz)


@contextmanager
def _fixed_clock() -> Iterator[None]:
    """Context manager in which `strftime_now` of chat templates returns `DATE`.

    It cannot be passed as a variable: transformers gives templates plain data, not functions.
    """
    clock = chat_template_utils.datetime
    chat_template_utils.datetime = _FixedDate  # type: ignore[misc]
    try:
        yield
    finally:
        chat_template_utils.datetime = clock  # type: ignore[misc]


def _answer_opening(
    tokenizer: PreTrainedTokenizerBase,
    asked: list[dict[str, str]],
    rendered: str,
    given: Mapping[str, Any],
) -> str:
    """The tags that the template inserts between its generation prompt and an answer's first word.

    An empty thinking block in Qwen3's template, the header of the answer channel in gpt-oss's;
    empty in most. Also empty if an earlier answer begins differently from the generation prompt.
    Quotation marks and white space around an answer do not count.
    """
    try:
        answered = [*asked, {"role": "assistant", "content": _ANSWER_MARK}]
        whole = _render(tokenizer, answered, False, given)
    except Exception:  # a template may require more fields of an answer
        return ""
    begun, mark, _ = whole.partition(_ANSWER_MARK)
    if not mark or not begun.startswith(rendered):
        return ""
    opening = begun[len(rendered) :]
    return opening if _TAGS_ONLY.fullmatch(opening) else ""


def open_thinking_tag(text: str) -> str | None:
    """The tag of a thinking block that is open at the end of `text`; None if none is open."""
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
    """The tag that closes a tag of `open_thinking_tag`; None if it is unknown.

    Args:
        tag: the opening tag.
        known: returns True if the template or the tokenizer has a special token.
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


def _after_message(after: str, tail: str) -> str:
    """The part of `after` behind the user's message; all of it if the template changed `tail`."""
    return after.rpartition(tail.strip())[2]


def _close_thinking(after: str, tail: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """`after` with the thinking block that it opens, if any, closed as an empty one.

    Raises:
        ConfigError: the closing tag is unknown.
    """
    behind = _after_message(after, tail)
    tag = open_thinking_tag(behind)
    if tag is None:
        return after
    source, vocabulary = str(tokenizer.chat_template), tokenizer.get_added_vocab()
    end = _closing_tag(tag, lambda name: name in source or name in vocabulary)
    closed = after
    if end is not None and tag.startswith(("<|channel|>", "<|channel>")):
        closed += end
    elif end is not None:
        closed += ("\n" if behind.endswith("\n") else "") + f"{end}\n\n"
    if open_thinking_tag(_after_message(closed, tail)) is not None:
        raise ConfigError(
            f"the backbone's chat template opens a thinking block ({tag}), which cannot contain a "
            "title, and its closing tag is unknown; choose a model that answers without thinking, "
            f"or {_OFF}"
        )
    return closed
