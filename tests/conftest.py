"""Shared fixtures: tiny random models, a byte-level tokenizer, one torch thread."""

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from recbole_multdpo.settings.backbone_folder import CACHE_VARIABLE
from tests.integration.toy import write_toy

# on a machine shared with other work an example may take any time
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

EOS, IM_START, IM_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CORPUS = [
    " Toy Story",
    " Toy Soldiers",
    " The Story of Us",
    " The Usual Suspects",
    "A user liked these movies:",
    "\nAnother movie for this user:",
] * 3
CONFIGS = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM, {"tie_word_embeddings": True}),
    "llama": (LlamaConfig, LlamaForCausalLM, {"tie_word_embeddings": False}),
}


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    """Several threads spin on a shared machine and make tiny models many times slower."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """No test leaves anything in the user's cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        if CACHE_VARIABLE not in os.environ:
            patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the data set `toy`, for --data_path; a copy for each module."""
    return write_toy(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def make_lm():
    """Factory of tiny causal LMs: hidden 32, 2 layers, grouped queries, 64 tokens.

    The weights are large for the size, so that every token's prediction depends visibly on every
    token before it: with the usual 0.02 a wrong mask would hardly show.
    """

    def make(architecture="qwen2", *, dtype=torch.float32, attn="sdpa", seed=0):
        config_class, model_class, options = CONFIGS[architecture]
        config = config_class(
            vocab_size=64,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            initializer_range=0.3,
            attn_implementation=attn,
            bos_token_id=None,
            eos_token_id=2,
            pad_token_id=0,
            **options,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lm = model_class(config)
        return lm.to(dtype).eval()

    return make


@pytest.fixture
def pure_float64(monkeypatch):
    """Keep float64 models in float64 throughout.

    transformers runs every norm, and eager attention's softmax, in float32 whatever the model's
    dtype; equal computations in another order then differ by 1e-7 instead of 1e-15.
    """

    def norm(self, hidden_states):
        mean_square = hidden_states.pow(2).mean(-1, keepdim=True)
        return self.weight * hidden_states * torch.rsqrt(mean_square + self.variance_epsilon)

    def softmax(scores, dim=None, dtype=None):
        return scores.softmax(dim, dtype=torch.promote_types(scores.dtype, dtype or scores.dtype))

    monkeypatch.setattr(LlamaRMSNorm, "forward", norm)
    monkeypatch.setattr(Qwen2RMSNorm, "forward", norm)
    monkeypatch.setattr(torch.nn.functional, "softmax", softmax)


@pytest.fixture(scope="session")
def make_tokenizer():
    """Factory of byte-level BPE tokenizers with ChatML's special tokens.

    Args of the factory: `chat_template`, and `adds_bos` for one that opens every text with
    `<|im_start|>`.
    """

    def make(chat_template=None, adds_bos=False):
        backend = Tokenizer(models.BPE())
        backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        backend.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=[EOS, IM_START, IM_END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        backend.train_from_iterator(CORPUS, trainer)
        if adds_bos:
            backend.post_processor = processors.TemplateProcessing(
                single=f"{IM_START} $A", special_tokens=[(IM_START, 1)]
            )
        return PreTrainedTokenizerFast(
            tokenizer_object=backend,
            eos_token=EOS,
            pad_token=EOS,
            bos_token=IM_START if adds_bos else None,
            additional_special_tokens=[IM_START, IM_END],
            chat_template=chat_template,
            clean_up_tokenization_spaces=False,
        )

    return make


@pytest.fixture(scope="session")
def tokenizer(make_tokenizer):
    """The plain tokenizer: no chat template, no token before a text."""
    return make_tokenizer()


@dataclass
class BrowserPage:
    """A page of a headless browser, and what it did: requested addresses, and its complaints."""

    page: Any
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """A headless Chromium of the system; tests are skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs: pip install playwright")
    names = ("chromium", "chromium-browser", "google-chrome")
    executable = next(filter(None, map(shutil.which, names)), None)
    if executable is None:
        pytest.skip(f"needs a browser on PATH: {', '.join(names)}")
    with sync_api.sync_playwright() as playwright:
        # the sandbox refuses to run as root, as containers do
        sandbox = [] if getattr(os, "geteuid", lambda: 1)() else ["--no-sandbox"]
        launched = playwright.chromium.launch(executable_path=executable, args=sandbox)
        yield launched
        launched.close()


@pytest.fixture
def browser_page(browser: Any) -> Iterator[BrowserPage]:
    """An empty page of 1280 by 900 pixels."""
    opened = BrowserPage(browser.new_page(viewport={"width": 1280, "height": 900}))
    opened.page.on("request", lambda request: opened.requests.append(request.url))
    opened.page.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.page.on(
        "console",
        lambda message: opened.complaints.append(message.text) if message.type == "error" else None,
    )
    yield opened
    opened.page.close()
