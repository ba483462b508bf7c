"""Chat templates modelled on published ones: date, thinking blocks, and variables."""

from datetime import datetime

import pytest
from transformers.utils import chat_template_utils

from recbole_multdpo.data.chat_frame import chat_texts, open_thinking_tag
from recbole_multdpo.data.prompt import prompt_frame
from recbole_multdpo.errors import ConfigError

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and own is defined %}{{ own }}{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
)
OPEN = "{% if add_generation_prompt %}<|im_start|>assistant\n"
LLAMA = (
    "{% if date_string is not defined %}{% if strftime_now is defined %}"
    "{% set date_string = strftime_now('%d %b %Y') %}{% else %}"
    "{% set date_string = '26 Jul 2024' %}{% endif %}{% endif %}"
    "Today Date: {{ date_string }}\n{% for m in messages %}{{ m.role }}: {{ m.content }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
)
QWEN3 = (
    TURNS + OPEN + "{% if enable_thinking is defined and enable_thinking is false %}"
    "<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
GPT_OSS = (
    "{% for m in messages %}<|start|>{{ m.role }}"
    "{% if m.role == 'assistant' %}<|channel|>final{% endif %}<|message|>{{ m.content }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant{% endif %}"
)
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


@pytest.fixture
def on_day(monkeypatch):
    """Set the clock that chat templates see."""

    def set_day(*day):
        class Clock(datetime):
            @classmethod
            def now(cls, tz=None):
                return cls(*day)

        monkeypatch.setattr(chat_template_utils, "datetime", Clock)

    return set_day


def tail_of(tokenizer, **kwargs):
    return chat_texts(tokenizer, "Liked:", "\n\nName one.", kwargs)[1]


def test_a_date_is_the_same_every_day(make_tokenizer, on_day):
    """Control: the template itself follows the clock."""
    tokenizer = make_tokenizer(LLAMA)
    messages = [{"role": "user", "content": "x"}]
    frames, dates = [], []
    for day in ((2026, 11, 28), (2027, 1, 5)):
        on_day(*day)
        dates.append(tokenizer.apply_chat_template(messages, tokenize=False)[:23])
        frames.append(prompt_frame("movies", tokenizer, "auto"))
    assert dates == ["Today Date: 28 Nov 2026", "Today Date: 05 Jan 2027"]
    assert frames[0] == frames[1]
    assert frames[0].head == "Today Date: 26 Jul 2024\nuser: A user liked these movies:"
    assert chat_template_utils.datetime.now().year == 2027  # the clock is restored


def test_another_date_is_a_variable_of_the_template(make_tokenizer):
    tokenizer = make_tokenizer(LLAMA)
    frame = prompt_frame("movies", tokenizer, "auto", "history", {"date_string": "1 May 2030"})
    assert frame.head.startswith("Today Date: 1 May 2030\n")


def test_a_template_that_differs_each_time_is_refused(make_tokenizer):
    names = list(range(10**6))
    tokenizer = make_tokenizer(TURNS + "{{ names | random }}")
    with pytest.raises(ConfigError, match="same message differently .*use_chat_template"):
        chat_texts(tokenizer, "a", "b", {"names": names})


@pytest.mark.parametrize("key", ["tokenize", "add_generation_prompt", "chat_template", "messages"])
def test_reserved_variables_cannot_be_set(make_tokenizer, key):
    with pytest.raises(ConfigError, match=f"chat_template_kwargs: {key} cannot be set"):
        tail_of(make_tokenizer(QWEN3), **{key: True})


# -------------------------------------------------------------------------------------------------
# thinking blocks


def test_thinking_is_off_unless_asked_for(make_tokenizer):
    tokenizer = make_tokenizer(QWEN3)
    answer = "\n\nName one.<|im_end|>\n<|im_start|>assistant\n"
    assert tail_of(tokenizer) == answer + EMPTY_THOUGHT
    assert tail_of(tokenizer, date_string="today") == answer + EMPTY_THOUGHT
    assert tail_of(tokenizer, enable_thinking=True) == answer


@pytest.mark.parametrize(
    ("opened", "closed"),
    [
        ("<think>\n", EMPTY_THOUGHT),  # DeepSeek-R1, QwQ, Qwen3-Thinking
        ("<think>", "<think></think>\n\n"),
        ("<thought>\n", "<thought>\n\n</thought>\n\n"),  # EXAONE Deep
        ("<seed:think>", "<seed:think></seed:think>\n\n"),  # Seed-OSS
        ("[THINK]", "[THINK][/THINK]\n\n"),  # Magistral
        ("◁think▷", "◁think▷◁/think▷\n\n"),  # Kimi
        ('<think budget="0">', '<think budget="0"></think>\n\n'),
        ("<reasoning>\n", "<reasoning>\n\n</reasoning>\n\n"),
        ("<chain-of-thought>\n", "<chain-of-thought>\n\n</chain-of-thought>\n\n"),
        ("<scratch_pad>", "<scratch_pad></scratch_pad>\n\n"),
        ("<planning>\n", "<planning>\n\n</planning>\n\n"),
        ("<think>\nOkay,", "<think>\nOkay,</think>\n\n"),
        (
            "<|channel|>analysis<|message|>",
            "<|channel|>analysis<|message|><|end|><|start|>assistant<|channel|>final<|message|>",
        ),
        ("<|channel>thought\n", "<|channel>thought\n<channel|>"),
        # already closed, or not a thinking block
        ("<think>\n\n</think>\n\n", EMPTY_THOUGHT),
        ("</think>", "</think>"),  # DeepSeek-V3.1
        ("<|START_THINKING|><|END_THINKING|>", "<|START_THINKING|><|END_THINKING|>"),
        ("<answer>", "<answer>"),
        ("<no_think>", "<no_think>"),
        ("<non-thinking>", "<non-thinking>"),
    ],
)
def test_an_open_thinking_block_is_closed(make_tokenizer, opened, closed):
    tokenizer = make_tokenizer(TURNS + OPEN + opened + "{% endif %}")
    assert tail_of(tokenizer) == "\n\nName one.<|im_end|>\n<|im_start|>assistant\n" + closed


def test_special_tokens_of_the_template_close_a_thinking_block(make_tokenizer):
    known = "{% if false %}<|END_THINKING|><|end_of_thought|><｜end▁of▁thought｜>{% endif %}"
    for tag, end in (
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>"),
        ("<｜begin▁of▁thought｜>", "<｜end▁of▁thought｜>"),
    ):
        opening = TURNS + OPEN + tag + "{% endif %}"
        assert tail_of(make_tokenizer(known + opening)).endswith(f"{tag}{end}\n\n")
        with pytest.raises(ConfigError, match=r"thinking block .*--use_chat_template=False"):
            tail_of(make_tokenizer(opening))


def test_a_thinking_block_is_closed_as_the_template_closes_it(make_tokenizer):
    """Its rendering of earlier answers shows the form of the empty thinking block."""
    answers = TURNS.replace("own is defined", "true").replace("own", "'<think>\n[none]</think>\n'")
    tokenizer = make_tokenizer(answers + OPEN + "<think>\n{% endif %}")
    assert tail_of(tokenizer).endswith("assistant\n<think>\n[none]</think>\n")


def test_the_channel_of_answers_is_opened(make_tokenizer):
    assert tail_of(make_tokenizer(GPT_OSS)) == (
        "\n\nName one.<|end|><|start|>assistant<|channel|>final<|message|>"
    )


def test_words_of_the_user_open_no_thinking_block(make_tokenizer):
    tokenizer = make_tokenizer(TURNS + OPEN + "{% endif %}")
    head, tail = chat_texts(tokenizer, "<think>", "[THINK] now.")
    assert (head, tail) == (
        "<|im_start|>user\n<think>",
        "[THINK] now.<|im_end|>\n<|im_start|>assistant\n",
    )


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("", None),
        ("<think>a</think><think>", "<think>"),
        ("<think>a</think>", None),
        ("<THINK>", "<THINK>"),
        ("<|thinking_start|>x<|thinking_end|>", None),
        ("<|thinking_start|>x", "<|thinking_start|>"),
        ("a <b> [c] thinking", None),
    ],
)
def test_open_thinking_tags_are_found(text, tag):
    assert open_thinking_tag(text) == tag
