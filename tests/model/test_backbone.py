"""Loading backbones, LoRA and the reference, saving."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    dynamic_module_utils,
)

import recbole_multdpo
from recbole_multdpo.errors import ConfigError, TrainingError
from recbole_multdpo.model import backbone as backbone_module
from recbole_multdpo.model.backbone import (
    add_lora,
    frozen_copy,
    load_backbone,
    merge_lora,
    reference_context,
    save_backbone,
)
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.settings.backbone_folder import check_hub, smollm2_folder
from tests.several_processes import run_processes
from tests.virtual_cuda import VirtualCuda

TEXTS = ["Toy Story", "GoldenEye", "Star Wars", "Stargate", "A user liked these movies:"]
TINY = dict(texts=TEXTS, hidden_size=16, num_layers=2, num_heads=2, vocab_size=300, seed=0)
TOKENS = torch.tensor([[70, 71, 72, 1], [90, 80, 70, 60]])


def load(name="tiny", *, tiny_kwargs=None, **options):
    return load_backbone(name, tiny_kwargs={**TINY, **(tiny_kwargs or {})}, **options)


def logits(model):
    with torch.no_grad():
        return model(TOKENS).logits


def lora(lm, *, target_modules="all-linear", r=2, alpha=4, dropout=0.0, seed=0):
    return add_lora(lm, r=r, alpha=alpha, dropout=dropout, target_modules=target_modules, seed=seed)


def train_adapter(model, seed=1):
    """Stands for training: makes the adapter's update non-zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def edit_json(file, **changes):
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, **changes}))


@pytest.fixture
def tiny():
    return load()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A complete folder; copy it before changing it."""
    backbone = load()
    folder = tmp_path_factory.mktemp("saved") / "model"
    save_backbone(backbone.lm, backbone.tokenizer, folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    return Path(shutil.copytree(saved, tmp_path / "model"))


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


class TestLoading:
    def test_tiny_equals_its_saved_folder(self, tiny, saved):
        loaded = load(str(saved))
        assert torch.equal(logits(loaded.lm), logits(tiny.lm))
        assert loaded.tokenizer.get_vocab() == tiny.tokenizer.get_vocab()
        assert (tiny.name, loaded.name) == ("tiny", str(saved))
        assert not loaded.lm.training and all(p.requires_grad for p in loaded.lm.parameters())

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("attention", ["sdpa", "eager"])
    def test_tiny_in_every_precision_equals_the_folder(self, saved, dtype, attention):
        options = dict(dtype=str(dtype).removeprefix("torch."), attn_implementation=attention)
        made, loaded = load(**options).lm, load(str(saved), **options).lm
        assert made.dtype == loaded.dtype == made.config.dtype == dtype
        assert made.config._attn_implementation == attention
        assert torch.equal(logits(made), logits(loaded))
        # rotary frequencies rounded to bfloat16 would misplace distant tokens
        assert made.model.rotary_emb.inv_freq.dtype == torch.float32

    def test_weights_in_the_files_type_are_the_mapped_file(self, saved):
        """Processes of a machine then share them; another type is a copy of its own."""
        mapped = re.compile(rf"(\w+)-(\w+) .* {re.escape(str(saved))}/model.safetensors")

        def is_mapped(lm):
            spans = [
                (int(found[1], 16), int(found[2], 16))
                for line in Path("/proc/self/maps").read_text().splitlines()
                if (found := mapped.match(line))
            ]
            places = [parameter.data_ptr() for parameter in lm.parameters()]
            return [any(start <= place < end for start, end in spans) for place in places]

        if not Path("/proc/self/maps").is_file():
            pytest.skip("needs Linux, which lists what is mapped")
        in_float32, in_bfloat16 = load(str(saved)).lm, load(str(saved), dtype="bfloat16").lm
        assert all(is_mapped(in_float32)) and not any(is_mapped(in_bfloat16))

    def test_weights_go_to_the_device_without_a_copy_on_the_cpu(self, saved):
        gpu = torch.device("cuda", 0)
        with VirtualCuda() as cuda:
            lm = load(str(saved), dtype="bfloat16", device=gpu).lm
            assert {tensor.device for tensor in lm.parameters()} == {gpu}
            places = [parameter.data_ptr() for parameter in lm.parameters()]
            adapted = lora(lm.to(gpu))
            assert {tensor.device for tensor in adapted.parameters()} == {gpu}
        assert not cuda.mixes
        assert {p.data_ptr() for p in adapted.parameters()} >= set(places)  # not moved again

    def test_local_folder_wins_over_a_hub_id(self, saved, tmp_path, monkeypatch, offline):
        shutil.copytree(saved, tmp_path / "owner" / "model")
        monkeypatch.chdir(tmp_path)
        assert load("owner/model").lm.config.hidden_size == 16

    def test_a_folder_named_tiny_needs_a_path(self, saved, tmp_path, monkeypatch):
        shutil.copytree(saved, tmp_path / "tiny")
        monkeypatch.chdir(tmp_path)
        assert load("tiny", tiny_kwargs={"num_layers": 1}).lm.config.num_hidden_layers == 1
        assert load("./tiny", tiny_kwargs={"num_layers": 1}).lm.config.num_hidden_layers == 2

    def test_smollm2_is_the_unpacked_folder(self, saved, tmp_path, monkeypatch):
        monkeypatch.setenv("RECBOLE_MULTDPO_CACHE", str(tmp_path))
        with pytest.raises(ConfigError, match="python -m recbole_multdpo.backbones smollm2"):
            load("smollm2")
        shutil.copytree(saved, smollm2_folder())
        assert load("smollm2").name == "smollm2"

    def test_published_sampling_defaults_are_dropped(self, folder):
        edit_json(
            folder / "generation_config.json", do_sample=True, top_k=20, repetition_penalty=1.1
        )
        assert GenerationConfig.from_pretrained(folder).top_k == 20
        generation = load(str(folder)).lm.generation_config
        assert not generation.do_sample and generation.top_k != 20
        assert generation.repetition_penalty != 1.1
        assert generation.eos_token_id == 1 and generation.pad_token_id == 0

    def test_pad_token_falls_back_to_eos(self, folder):
        edit_json(folder / "tokenizer_config.json", pad_token=None)
        tokenizer = load(str(folder)).tokenizer
        assert tokenizer.pad_token_id == tokenizer.eos_token_id == 1


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def truncate(name):
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


def change_config(**changes):
    return lambda folder: edit_json(folder / "config.json", **changes)


def drop_weight(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def lose_shard(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weight_map = {"model.norm.weight": "model-00002-of-00002.safetensors"}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def drop_eos(folder):
    # unk_token is the same string, and the class would take it for a special token of its own
    edit_json(folder / "tokenizer_config.json", eos_token=None, pad_token=None, unk_token=None)


class TestDamagedFolders:
    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (remove("config.json"), "no config.json.*save_pretrained"),
            (remove("model.safetensors"), "no \\*.safetensors"),
            (remove("tokenizer.json"), "no tokenizer"),
            (truncate("model.safetensors"), "SafetensorError.*truncated"),
            (write("model.safetensors", b""), "SafetensorError.*truncated"),
            (truncate("config.json"), "not a valid JSON.*truncated"),
            (truncate("tokenizer.json"), "JSONDecodeError.*truncated"),
            (write("tokenizer.json", b"{}"), "cannot be loaded"),
            (change_config(model_type="nonsense"), "nonsense"),
            (change_config(vocab_size=100), "cannot be loaded"),
            (drop_weight, "lacks 1 weights.*layers.1.mlp.up_proj"),
            (lose_shard, "model-00002-of-00002"),
            (drop_eos, "no EOS token.*tokenizer_config.json"),
            (write("adapter_config.json", b"{}"), "PEFT adapter folder.*merge_and_unload"),
        ],
    )
    def test_each_damage_is_named(self, folder, offline, damage, message):
        load(str(folder))  # it is the damage that makes it fail
        damage(folder)
        with pytest.raises(ConfigError, match=message) as caught:
            load(str(folder))
        assert "backbone=" in str(caught.value)

    @pytest.mark.parametrize("name", ["saved/my-run", "exported"])
    def test_the_folder_of_a_run_names_the_model_in_it(self, folder, offline, name):
        outer = folder.parent / name
        shutil.copytree(folder, outer / "model")
        with pytest.raises(ConfigError, match="folder of a run or an export") as caught:
            load(str(outer))
        (remedy,) = re.findall(r"Use --backbone=(\S+)\.$", str(caught.value))
        assert remedy == str(outer / "model")
        load(remedy)

    def test_more_tokens_than_embeddings(self, folder):
        tokenizer = load(str(folder)).tokenizer
        size = len(tokenizer)
        tokenizer.add_tokens(["<extra>"])
        tokenizer.save_pretrained(folder)
        with pytest.raises(ConfigError, match=f"{size + 1} tokens.* only {size} embeddings"):
            load(str(folder))

    def test_code_in_a_folder_runs_only_when_trusted(self, folder, tmp_path, monkeypatch):
        monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
        witness = folder / "ran"
        (folder / "evil.py").write_text(f"open({str(witness)!r}, 'w')")
        edit_json(
            folder / "config.json",
            model_type="evil",
            auto_map={"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model"},
        )
        with pytest.raises(ConfigError, match="has not been run.*--trust_remote_code=True"):
            load(str(folder))
        assert not witness.exists()
        with pytest.raises(ConfigError, match="cannot be loaded"):  # it holds no model
            load(str(folder), trust_remote_code=True)
        assert witness.exists()

    @pytest.mark.parametrize(
        "name", ["/no/such/folder", "./nothing", "~/no-such", "a/b/c", "", " "]
    )
    def test_a_path_that_is_no_folder_is_never_asked_of_the_hub(self, name, monkeypatch):
        monkeypatch.setattr("recbole_multdpo.model.backbone.AutoConfig", None)  # would be an error
        with pytest.raises(ConfigError, match="is not a folder"):
            load(name)

    def test_a_file_is_no_folder(self, saved):
        with pytest.raises(ConfigError, match="is not a folder"):
            load(str(saved / "config.json"))


class TestHub:
    def test_unreachable(self, offline):
        with pytest.raises(ConfigError, match="HF_HOME.*--backbone=tiny") as caught:
            load("nobody/no-such-model")
        assert "Did you mean" not in str(caught.value)

    def test_without_a_network_nothing_is_tried_twice(self, monkeypatch, caplog):
        """One request, no retry of the libraries, one sentence; with a network both are asked."""
        asked, loaded = [], []

        class Session:
            def head(self, url, timeout):
                asked.append(timeout)
                raise OSError("Name or service not known")

        def from_pretrained(source, **where):
            loaded.append(where["local_files_only"])
            raise OSError("no such model")

        monkeypatch.setattr(huggingface_hub.utils, "get_session", Session)
        monkeypatch.setattr(AutoConfig, "from_pretrained", from_pretrained)
        with pytest.raises(ConfigError) as caught:
            load("nobody/no-such-model")
        assert loaded == [True] and asked == [5.0] and not caplog.records
        sentence, remedy = str(caught.value).split(". ", 1)
        assert len(sentence.split()) <= 40 and "hf download nobody/no-such-model" in remedy
        with pytest.raises(ConfigError, match="the hub cannot be reached"):
            check_hub("nobody/no-such-model")
        monkeypatch.setattr(Session, "head", lambda *_, **__: None)
        check_hub("nobody/no-such-model")
        with pytest.raises(ConfigError, match="the hub does not give it .OSError: no such model"):
            load("nobody/no-such-model")
        assert loaded == [True, False]

    def test_a_misspelt_name_of_ours(self, offline):
        with pytest.raises(ConfigError, match="Did you mean 'tiny'"):
            load("tyni")

    def test_from_the_cache_with_its_commit(self, saved, tiny, tmp_path, offline, monkeypatch):
        commit = "0123456789abcdef0123456789abcdef01234567"
        repository = tmp_path / "models--owner--model"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        shutil.copytree(saved, repository / "snapshots" / commit)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
        backbone = load("owner/model")
        assert backbone.fingerprint == f"owner/model@{commit}"
        assert torch.equal(logits(backbone.lm), logits(tiny.lm))


class TestFingerprint:
    def test_tiny(self, tiny):
        same = tiny.fingerprint
        assert load().fingerprint == same
        assert load(tiny_kwargs={"texts": TEXTS[::-1]}).fingerprint == same  # makes the same model
        assert load(dtype="bfloat16", attn_implementation="eager").fingerprint == same
        changes = [
            {"seed": 1},
            {"texts": TEXTS[:3]},
            {"num_heads": 1},  # changes no weight
            {"num_layers": 1},
            {"vocab_size": 290},
        ]
        others = {load(tiny_kwargs=change).fingerprint for change in changes}
        assert len(others) == len(changes) and same not in others

    def test_tiny_in_another_process(self, tiny):
        program = (
            "import torch; torch.manual_seed(5)\n"
            "from recbole_multdpo.model.backbone import load_backbone\n"
            f"print(load_backbone('tiny', tiny_kwargs={TINY!r}).fingerprint)"
        )
        finished = subprocess.run(
            [sys.executable, "-c", program],
            capture_output=True,
            text=True,
            cwd=Path(recbole_multdpo.__file__).parents[1],
        )
        assert finished.returncode == 0, finished.stderr
        assert finished.stdout.split()[-1] == tiny.fingerprint

    def test_folder_is_known_by_its_content(self, folder, tmp_path):
        before = load(str(folder)).fingerprint
        copied = shutil.copytree(folder, tmp_path / "elsewhere")
        (copied / "README.md").write_text("about")
        edit_json(copied / "generation_config.json", max_length=7)
        assert load(str(copied)).fingerprint == before
        assert load(str(copied), dtype="bfloat16").fingerprint == before

    def test_a_folder_is_read_once_on_each_machine(self, saved, tmp_path, monkeypatch):
        """Four processes on two machines, one of which may have another folder."""
        other = shutil.copytree(saved, tmp_path / "other")
        edit_json(other / "config.json", added=1)
        folder_hash, read = backbone_module._folder_hash, []

        def counted(folder):
            read.append(folder)
            return folder_hash(folder)

        def loaded(folders):
            rank = int(os.environ["RANK"])
            monkeypatch.setenv("LOCAL_RANK", str(rank % 2))
            monkeypatch.setattr(backbone_module, "_folder_hash", counted)
            try:
                return load(str(folders[rank // 2])).fingerprint, len(read)
            except ConfigError as error:
                return str(error), len(read)

        expected = load(str(saved)).fingerprint
        assert run_processes(4, loaded, [saved, saved]) == [(expected, 1), (expected, 0)] * 2
        for message, _ in run_processes(4, loaded, [saved, other]):
            assert "is not the same on all machines. Copy one" in message

    @pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json", "model.safetensors"])
    def test_every_file_that_matters_counts(self, folder, file):
        before = load(str(folder)).fingerprint
        if file == "model.safetensors":
            weights = load_file(folder / file)
            weights["model.norm.weight"][0] += 1e-3
            save_file(weights, folder / file, metadata={"format": "pt"})
        else:
            edit_json(folder / file, added=1)
        assert load(str(folder)).fingerprint != before


class TestLora:
    def test_starts_at_zero_and_trains_the_adapter_alone(self, tiny):
        before = logits(tiny.lm)
        model = lora(tiny.lm)
        assert torch.equal(logits(model), before)
        assert all(("lora_" in n) == p.requires_grad for n, p in model.named_parameters())
        assert not torch.allclose(logits(train_adapter(model)), before)

    def test_parameter_count(self, tiny):
        model = lora(tiny.lm, target_modules=["q_proj", "up_proj"], r=3)
        wide = 64  # 8/3 * 16 = 42.7, up to the next multiple of 64
        expected = 2 * (3 * (16 + 16) + 3 * (16 + wide))  # layers * r * (in + out)
        assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected

    def test_seeded_without_touching_the_global_state(self):
        def matrices(seed):
            model = lora(load().lm, seed=seed)
            return torch.cat([p.flatten() for n, p in model.named_parameters() if "lora_A" in n])

        before = torch.get_rng_state()
        first = matrices(3)
        assert torch.equal(torch.get_rng_state(), before)
        torch.rand(1)
        assert torch.equal(matrices(3), first)
        assert not torch.equal(matrices(4), first)

    @pytest.mark.parametrize("targets", [["qproj"], "qproj", ["q_proj", "qproj"], []])
    def test_unknown_targets_are_answered_with_the_known_ones(self, tiny, targets):
        known = "all-linear, down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
        with pytest.raises(ConfigError, match=f"lora_target_modules=.*available: {known}"):
            lora(tiny.lm, target_modules=targets)

    @pytest.mark.parametrize("targets", ["q_proj", ["layers.0.self_attn.q_proj"], ["all-linear"]])
    def test_ways_to_name_targets(self, tiny, targets):
        assert isinstance(lora(tiny.lm, target_modules=targets), PeftModel)

    def test_a_tied_head_cannot_be_adapted_but_one_of_its_own_can(self, tiny):
        with pytest.raises(ConfigError, match="lm_head"):
            lora(tiny.lm, target_modules=["lm_head"])
        config = LlamaConfig(
            vocab_size=100,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            tie_word_embeddings=False,
        )
        llama = LlamaForCausalLM(config).eval()
        before = logits(llama)
        model = train_adapter(lora(llama, target_modules=["lm_head"]))
        adapted = logits(model)
        assert not torch.allclose(adapted, before)
        assert torch.allclose(logits(merge_lora(model)), adapted, atol=1e-6)

    def test_a_second_adapter_needs_a_merge(self, tiny):
        model = lora(tiny.lm)
        for adapted in (model, causal_lm(model)):
            with pytest.raises(ValueError, match="merge_lora"):
                lora(adapted)

    def test_no_warning_on_the_second_adapter_after_a_merge(self, tiny):
        merged = merge_lora(lora(tiny.lm))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            lora(merged)

    def test_causal_lm(self, tiny):
        lm = tiny.lm
        assert causal_lm(lm) is lm
        assert causal_lm(lora(lm)) is lm
        with pytest.raises(TypeError):
            causal_lm(torch.nn.Linear(1, 1))


class TestReference:
    def test_merged_adapter_is_the_reference_at_step_zero(self, tiny):
        base = logits(tiny.lm)
        fine_tuned = train_adapter(lora(tiny.lm))
        sft = logits(fine_tuned)
        with reference_context(fine_tuned):
            assert torch.equal(logits(fine_tuned), base)  # unmerged: the base, not the SFT model
        assert not torch.allclose(sft, base, atol=1e-2)

        policy = lora(merge_lora(fine_tuned), seed=7)
        with reference_context(policy):
            reference = logits(policy)
        assert torch.equal(logits(policy), reference)  # the log-ratio is exactly zero
        assert torch.allclose(reference, sft, atol=1e-5)
        assert not torch.allclose(reference, base, atol=1e-2)

        policy = train_adapter(policy, seed=8)
        with reference_context(policy):
            assert torch.equal(logits(policy), reference)  # stays put while the policy moves
        assert not torch.allclose(logits(policy), reference, atol=1e-2)

    def test_context_is_eval_without_gradient_and_restores(self, tiny):
        model = train_adapter(lora(tiny.lm, dropout=0.5)).train()
        assert not torch.equal(logits(model), logits(model))  # dropout is on
        with pytest.raises(KeyError), reference_context(model):
            assert not model.training and not model(TOKENS).logits.requires_grad
            raise KeyError
        assert model.training and model(TOKENS).logits.requires_grad
        assert all(p.requires_grad for n, p in model.named_parameters() if "lora_" in n)

    @pytest.mark.parametrize("checkpointing", [False, True])
    def test_reference_pass_leaves_the_policy_graph_alone(self, checkpointing):
        def gradients(with_reference):
            lm = load(gradient_checkpointing=checkpointing).lm
            model = train_adapter(lora(lm)).train()
            loss = model(TOKENS).logits.logsumexp(-1).sum()
            if with_reference:
                with reference_context(model):
                    model(TOKENS)
            loss.backward()
            return [p.grad for p in model.parameters() if p.requires_grad]

        for one, other in zip(gradients(True), gradients(False), strict=True):
            assert torch.equal(one, other)

    def test_frozen_copy_stays_while_the_model_trains(self, tiny):
        reference = frozen_copy(tiny.lm.train())
        before = logits(reference)
        assert not reference.training
        assert not any(p.requires_grad for p in reference.parameters())
        assert all(p.requires_grad for p in tiny.lm.parameters())
        assert reference.get_output_embeddings().weight is reference.get_input_embeddings().weight
        optimizer = torch.optim.SGD(tiny.lm.parameters(), lr=1.0)
        tiny.lm(TOKENS).logits.logsumexp(-1).sum().backward()
        optimizer.step()
        assert torch.equal(logits(reference), before)
        assert not torch.allclose(logits(tiny.lm.eval()), before, atol=1e-2)

    def test_each_kind_of_model_has_its_own_reference(self, tiny):
        with pytest.raises(TypeError, match="frozen_copy"), reference_context(tiny.lm):
            pass
        with pytest.raises(TypeError, match="no LoRA adapter"):
            merge_lora(tiny.lm)
        with pytest.raises(TypeError, match="reference_context"):
            frozen_copy(lora(tiny.lm))

    def test_merging_what_is_not_finite(self, tiny):
        model = train_adapter(lora(tiny.lm))
        with torch.no_grad():
            next(p for n, p in model.named_parameters() if "lora_B" in n)[0] = float("nan")
        with pytest.raises(TrainingError, match="cannot be merged"):
            merge_lora(model)


class TestGradientCheckpointing:
    @pytest.mark.parametrize("kind", ["lora", "second lora", "full"])
    def test_gradients_are_equal(self, kind):
        def run(checkpointing):
            model = load(gradient_checkpointing=checkpointing).lm
            if kind != "full":
                model = train_adapter(lora(model))
            if kind == "second lora":
                model = train_adapter(lora(merge_lora(model), seed=2), seed=3)
            calls = []
            layer = causal_lm(model).model.layers[0]
            layer.self_attn.register_forward_hook(lambda *_: calls.append(1))
            model.train()(TOKENS).logits.logsumexp(-1).sum().backward()
            return [p.grad for p in model.parameters() if p.requires_grad], len(calls)

        plain, once = run(False)
        checkpointed, twice = run(True)
        assert (once, twice) == (1, 2)  # recomputed in the backward pass
        assert all(grad.abs().sum() > 0 for grad in plain)
        for one, other in zip(plain, checkpointed, strict=True):
            torch.testing.assert_close(one, other)

    def test_no_hook_outlives_its_adapter(self):
        lm = load(gradient_checkpointing=True).lm
        embedding = lm.get_input_embeddings()
        assert not embedding._forward_hooks
        for _ in range(2):
            model = lora(lm)
            assert len(embedding._forward_hooks) == 1
            assert merge_lora(model) is lm
            assert not embedding._forward_hooks


class TestSaving:
    def test_model_and_readme(self, tiny, tmp_path):
        tiny.lm.generation_config = GenerationConfig(top_k=7, do_sample=True)
        save_backbone(tiny.lm, tiny.tokenizer, tmp_path / "a" / "model", readme="about")
        assert os.listdir(tmp_path / "a") == ["model"]  # nothing temporary is left
        assert (tmp_path / "a" / "model" / "README.md").read_text() == "about"
        assert "top_k" not in (tmp_path / "a" / "model" / "generation_config.json").read_text()
        assert torch.equal(logits(load(str(tmp_path / "a" / "model")).lm), logits(tiny.lm))

    def test_adapter_in_peft_format(self, tiny, tmp_path, offline):
        model = train_adapter(lora(tiny.lm))
        save_backbone(model, tiny.tokenizer, tmp_path / "adapter")
        assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()
        assert not (tmp_path / "adapter" / "model.safetensors").exists()
        loaded = PeftModel.from_pretrained(load().lm, tmp_path / "adapter")
        assert torch.equal(logits(loaded), logits(model))

    def test_replaces_an_existing_folder(self, tiny, folder):
        (folder / "stale").touch()
        save_backbone(load(tiny_kwargs={"seed": 1}).lm, tiny.tokenizer, folder)
        assert not (folder / "stale").exists() and os.listdir(folder.parent) == ["model"]
        assert not torch.equal(logits(load(str(folder)).lm), logits(tiny.lm))

    def test_a_failure_leaves_the_old_folder(self, tiny, folder, monkeypatch):
        monkeypatch.setattr(tiny.tokenizer, "save_pretrained", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            save_backbone(load(tiny_kwargs={"seed": 1}).lm, tiny.tokenizer, folder)
        assert os.listdir(folder.parent) == ["model"]
        assert torch.equal(logits(load(str(folder)).lm), logits(tiny.lm))
