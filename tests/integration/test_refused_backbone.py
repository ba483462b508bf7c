"""A backbone that is not scored exactly is refused at the start; what the message names works."""

import re
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, T5Config, ViTConfig

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.model import llmrec
from recbole_multdpo.model.tiny import make_tiny_backbone
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.folder import RESULT_FILE
from recbole_multdpo.trained.run import load_run
from tests.integration.toy import WORDS, toy_arguments, toy_model, write_toy
from tests.scoring.architectures import ARCHITECTURES, Architecture

ROWS = {row.name: row for row in ARCHITECTURES}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp("refused") / "data")


@pytest.fixture(scope="module")
def make_folder(tmp_path_factory):
    """Factory of model folders by the sweep's name, or by a configuration of another kind."""

    def make(name):
        folder = tmp_path_factory.mktemp("backbones") / "model"
        texts = [f" {word} Red Blue Green 0 1 19" for word in WORDS]
        _, tokenizer = make_tiny_backbone(texts, vocab_size=300, num_layers=1, seed=0)
        tokenizer.save_pretrained(folder)
        if not isinstance(name, str):
            name.save_pretrained(folder)
            return folder
        row = ROWS[name]
        positions = "max_seq_len" if name == "mpt" else "max_position_embeddings"
        options = {**row.options, "vocab_size": 300, positions: 512}
        lm = Architecture(name, row.kind, options).build(row.attention[0])
        lm.save_pretrained(folder)
        return folder

    return make


def arguments(data, run_dir, folder, *extra):
    given = toy_arguments(data, run_dir, f"--backbone={folder}", *extra)
    return [argument for argument in given if not argument.startswith("--tiny_")]


def refused(data, run_dir, folder, *extra):
    start = time.perf_counter()
    with pytest.raises(ConfigError) as caught:
        run(arguments(data, run_dir, folder, *extra))
    assert time.perf_counter() - start < 60
    assert not (run_dir / RESULT_FILE).exists()
    assert not list(run_dir.rglob("*.safetensors"))
    return str(caught.value)


@pytest.mark.integration
@pytest.mark.parametrize("finetune", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_recurrent_backbone(data, make_folder, tmp_path, finetune):
    """Whose packed run used to end with a complete result."""
    folder, tune = make_folder("lfm2"), f"--finetune={finetune}"
    exhaustive = refused(data, tmp_path / "exhaustive", folder, tune, "--ranker=exhaustive")
    assert "packed scores differ" in exhaustive
    text = refused(data, tmp_path / "packed", folder, tune)
    remedy = re.findall(r"--scorer=padded --ranker=exhaustive", text)[0].split()
    result = run(arguments(data, tmp_path / "run", folder, tune, "--loss=sft", *remedy))
    assert result["test_result"]
    loaded = load_run(tmp_path / "run")
    users = torch.arange(1, 3)
    assert loaded.ranker.topk(users, None, 3).items.shape == (2, 3)


@pytest.mark.integration
def test_attention_code_that_the_model_lacks(data, make_folder, tmp_path):
    text = refused(data, tmp_path / "sdpa", make_folder("mpt"))
    assert text.endswith("set --attn_implementation=eager.")
    assert "truncated" not in text
    text = refused(data, tmp_path / "eager", make_folder("mpt"), "--attn_implementation=eager")
    assert "scores differ" in text and "--scorer=padded --ranker=exhaustive" in text


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (T5Config(d_model=32), "is an encoder-decoder .t5.*decoder-only"),
        (ViTConfig(hidden_size=32), "is of type vit.*decoder-only"),
    ],
    ids=["t5", "vit"],
)
def test_another_kind_of_model(data, make_folder, tmp_path, config, message):
    """Said before weights are looked for: here there are none."""
    text = refused(data, tmp_path / "run", make_folder(config))
    assert re.search(message, text) and "truncated" not in text


def test_an_encoder(data, make_folder, tmp_path):
    folder = make_folder("bert")
    lm = AutoModelForCausalLM.from_pretrained(folder)
    lm.config.is_decoder = False
    lm.save_pretrained(folder)
    assert "as encoders do" in refused(data, tmp_path / "run", folder)


@pytest.mark.integration
def test_a_backbone_with_windows_and_caps_runs(data, make_folder, tmp_path):
    folder = make_folder("gemma2-softcap")
    settings = ["--attn_implementation=eager", "--loss=sft", "--max_history=6"]
    assert run(arguments(data, tmp_path / "run", folder, *settings))["test_result"]


def test_longer_prompts_than_the_run_had_are_probed(data, tmp_path, monkeypatch):
    """As a conversation or a history may be that `recommend` is given."""
    lengths = []
    monkeypatch.setattr(
        llmrec, "check_backbone", lambda lm, use, device: lengths.append(use.trial.prompt_tokens)
    )
    _, _, model = toy_model(data, tmp_path)
    model.eval()
    assert lengths == [model._longest_prompt()]
    model.user_prompts(torch.arange(1, 4), model.histories)
    assert len(lengths) == 1
    model._placed(Prompts(torch.zeros(1, lengths[0] + 7, dtype=torch.long), torch.tensor([3])))
    assert lengths[1:] == [lengths[0] + 7]
