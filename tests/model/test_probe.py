"""The probe passes what is exact and finds planted faults of hundredths of a nat."""

import copy
import json
import stat

import pytest
import torch
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.model import backbone_check, probe, probe_cache
from recbole_multdpo.model.backbone import add_lora
from recbole_multdpo.model.backbone_check import BackboneUse, check_backbone, scoring_methods
from recbole_multdpo.model.probe import CAUSALITY, OWN_FORWARD, Trial, faults
from recbole_multdpo.model.reduced import reduced_copy
from recbole_multdpo.scoring import packed as packed_module
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.parts import Parts, parts_of
from recbole_multdpo.scoring.windows import LayerKinds
from recbole_multdpo.settings.backbone_folder import CACHE_VARIABLE
from tests.scoring.architectures import ARCHITECTURES, EOS, VOCABULARY, Architecture

CPU = torch.device("cpu")
TRIAL = Trial(24, 6, range(3, VOCABULARY), EOS, scoring_methods("packed", "best_first"))
ROWS = {row.name: row for row in ARCHITECTURES}
MIXED = {"num_hidden_layers": 6, "layer_types": ["sliding_attention", "full_attention"] * 3}


def built(name, options=None):
    row = ROWS[name] if options is None else Architecture(name, name, options)
    return row.build(row.attention[0])


def use(lm, **changes):
    values = {
        "name": "folder",
        "trial": TRIAL,
        "shortest_prompt": 4,
        "settings": {"scorer": "packed", "ranker": "best_first"},
        "key": {"fingerprint": str(id(lm)), "dtype": "float32"},
    }
    return BackboneUse(**{**values, **changes})


def refusal(lm, **changes):
    with pytest.raises(ConfigError) as caught:
        check_backbone(lm, use(lm, **changes), CPU)
    return str(caught.value)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "probes"


@pytest.fixture
def only_parts(monkeypatch):
    """Every model counts as a large one, of which a part is tried."""
    monkeypatch.setattr(probe, "SMALL", 0)


# ------------------------------------------------------------------------------- planted faults


@pytest.mark.parametrize("size", ["whole", "part"])
@pytest.mark.parametrize("by", [0.02, -0.02])
def test_a_fiftieth_of_a_nat_is_found(monkeypatch, request, size, by):
    if size == "part":
        request.getfixturevalue("only_parts")
    right = probe.METHODS["packed"]

    def wrong(lm, inputs):
        scores = right(lm, inputs)
        scores[1, 3] += by
        return scores

    lm = built("qwen2")
    assert faults(lm, TRIAL, CPU) == {}
    monkeypatch.setitem(probe.METHODS, "packed", wrong)
    found = faults(lm, TRIAL, CPU)
    assert found.keys() == {"packed"} and found["packed"] == pytest.approx(0.02, abs=1e-4)


def test_a_softcap_that_scoring_leaves_out_is_found(monkeypatch):
    """Of 30: with logits of this size it takes hundredths of a nat."""
    lm = built("gemma3_text", {"sliding_window": 64, "final_logit_softcapping": 30.0})
    assert faults(lm, TRIAL, CPU) == {}

    def without_cap(model):
        return Parts(parts_of(model).body, model.get_output_embeddings())

    monkeypatch.setattr(packed_module, "parts_of", without_cap)
    found = faults(lm, TRIAL, CPU)
    assert found.keys() == {"packed"} and 1e-3 < found["packed"] < 0.1


@pytest.mark.parametrize("size", ["whole", "part"])
@pytest.mark.parametrize("kind", ["mistral", "gemma3_text"])
def test_a_window_that_is_off_by_one_is_found(monkeypatch, request, kind, size):
    if size == "part":
        request.getfixturevalue("only_parts")
    lm = built(kind)
    assert faults(lm, TRIAL, CPU) == {}
    right = LayerKinds.of

    def wider(config):
        kinds = right(config)
        return LayerKinds(kinds.kinds, kinds.window + 1, kinds.chunk)

    monkeypatch.setattr(LayerKinds, "of", wider)
    assert faults(lm, TRIAL, CPU).keys() == set(TRIAL.methods)


def test_a_fault_that_small_weights_hide_is_found():
    """As an initialiser leaves them, or an adapter whose second matrix is zero."""
    config = ROWS["lfm2"].config()
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.mul_(0.1 if parameter.ndim > 1 else 1)
    trial = Trial(24, 6, range(3, VOCABULARY), EOS, ("packed",))
    assert probe._differences(lm, trial) == {}
    assert faults(lm, trial, CPU)["packed"] > 0.1


def test_weights_that_are_no_numbers_are_found():
    lm = built("qwen2")
    with torch.no_grad():
        lm.model.norm.weight[0] = torch.nan
    assert faults(lm, TRIAL, CPU) == {OWN_FORWARD: "its log-probabilities are not finite"}


def test_an_encoder_is_no_causal_model():
    lm = built("bert", {"is_decoder": False})
    assert CAUSALITY in faults(lm, TRIAL, CPU)
    trial = Trial(24, 6, range(3, VOCABULARY), EOS, ("padded",))
    assert "decoder-only" in refusal(lm, trial=trial)


# -------------------------------------------------------------------------------- what is exact


@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss", "gemma3_text", "deepseek_v3"])
def test_an_exact_model_passes_in_bfloat16(name):
    lm = built(name).to(torch.bfloat16)
    before = {key: value.clone() for key, value in lm.state_dict().items()}
    assert faults(lm, TRIAL, CPU) == {}
    assert all(torch.equal(before[key], value) for key, value in lm.state_dict().items())
    assert lm.dtype == torch.bfloat16


def test_bfloat16_cannot_tell_right_from_wrong():
    """Scores of an exact model differ by more than many a fault: so float32."""
    found = probe._differences(built("qwen3_moe").to(torch.bfloat16), TRIAL)
    assert max(found.values()) > 0.01


def test_rounding_that_looks_like_a_fault_is_tried_in_float64(monkeypatch):
    """A token that another expert gets, here by an error that float32 alone has."""
    right = probe.METHODS["packed"]
    monkeypatch.setitem(
        probe.METHODS,
        "packed",
        lambda lm, inputs: right(lm, inputs) + (1.0 if lm.dtype == torch.float32 else 0.0),
    )
    assert faults(built("qwen3_moe"), TRIAL, CPU) == {}


def test_an_adapter_is_probed_as_if_it_were_trained():
    lm = add_lora(built("qwen2"), r=2, alpha=4, dropout=0.5, target_modules="all-linear", seed=0)
    lm.train()
    seen = []
    right = probe._strengthen

    def watched(copied):
        right(copied)
        seen.extend(p.abs().max() > 0 for n, p in copied.named_parameters() if "lora_B" in n)

    probe._strengthen = watched
    try:
        assert faults(causal_lm(lm), TRIAL, CPU) == {}
    finally:
        probe._strengthen = right
    assert seen and all(seen)
    assert all(not p.any() for n, p in lm.named_parameters() if "lora_B" in n)
    assert lm.training


# ------------------------------------------------------------------------------------- the copy


def test_the_copy_has_a_layer_of_each_kind_and_the_model_stays_as_it_is():
    lm = built("gemma3_text", MIXED)
    config, state = copy.deepcopy(lm.config.to_dict()), lm.state_dict()
    small = reduced_copy(lm, dtype=torch.float32, device=CPU)
    assert len(small.model.layers) == 2 and len(lm.model.layers) == 6
    assert small.config.layer_types == MIXED["layer_types"][:2]
    assert small.config.num_hidden_layers == 2
    assert [layer.self_attn.layer_idx for layer in small.model.layers] == [0, 1]
    assert lm.config.to_dict() == config
    assert lm.state_dict().keys() == state.keys()
    own = {p.data_ptr() for p in lm.parameters()}
    assert not own & {p.data_ptr() for p in small.parameters()}
    # and computes what a model of these two layers computes
    twin = Architecture("", "gemma3_text", {"layer_types": MIXED["layer_types"][:2]}).build("sdpa")
    twin.load_state_dict(small.state_dict())
    ids = torch.arange(3, 23)[None]
    with torch.no_grad():
        torch.testing.assert_close(small(ids).logits, twin(ids).logits)


@pytest.mark.parametrize(
    ("name", "options", "kept"),
    [
        ("qwen2", {"num_hidden_layers": 5}, 1),
        ("deepseek_v3", None, 2),  # the first layer is dense
        ("smollm3", None, 2),  # with positions and without
        ("lfm2", None, 2),
    ],
)
def test_kinds_of_layers(name, options, kept):
    lm = built(name, options)
    assert reduced_copy(lm, dtype=torch.float32, device=CPU).config.num_hidden_layers == kept


def test_a_model_whose_part_does_not_run_is_tried_whole(only_parts, monkeypatch):
    lm = built("qwen2")
    whole = []

    def copied(lm, *, whole, **rest):
        made.append(whole)
        if not whole:
            raise_in_forward = reduced_copy(lm, whole=False, **rest)
            raise_in_forward.forward = None
            return raise_in_forward
        return reduced_copy(lm, whole=True, **rest)

    made = whole
    monkeypatch.setattr(probe, "reduced_copy", copied)
    assert faults(lm, TRIAL, CPU) == {}
    assert made == [False, True]


# ---------------------------------------------------------------- the sentence and its remedies


def test_the_refusal_of_a_recurrent_model_names_what_helps():
    text = refusal(built("lfm2"))
    assert text.startswith("backbone='folder': packed scores differ from the model's own forward")
    assert "at prompts of 24 tokens. Set --scorer=padded --ranker=exhaustive (slower)." in text
    settings = {"scorer": "padded", "ranker": "exhaustive"}
    trial = Trial(24, 6, range(3, VOCABULARY), EOS, scoring_methods(**settings))
    check_backbone(lm := built("lfm2"), use(lm, settings=settings, trial=trial), CPU)


def test_only_what_is_not_set_already_is_proposed():
    settings = {"scorer": "padded", "ranker": "best_first"}
    trial = Trial(24, 6, range(3, VOCABULARY), EOS, scoring_methods(**settings))
    text = refusal(built("lfm2"), settings=settings, trial=trial)
    assert text.endswith("Set --ranker=exhaustive (slower).")


def test_the_longest_prompts_that_are_exact_are_proposed(monkeypatch):
    """As with a window that scoring does not know of."""
    right = probe.METHODS["packed"]

    def wrong_beyond_13(lm, inputs):
        return right(lm, inputs) + (1.0 if inputs.prompts.width > 13 else 0.0)

    monkeypatch.setitem(probe.METHODS, "packed", wrong_beyond_13)
    lm = built("qwen2")
    assert "Set --max_prompt_tokens=13, or --scorer=padded" in refusal(lm)
    # less than the template and one title take is no remedy
    assert "--max_prompt_tokens" not in refusal(lm, shortest_prompt=14)


def test_prompts_beyond_learned_positions_fail_in_words():
    lm = built("gpt2")
    trial = Trial(90, 6, range(3, VOCABULARY), EOS, TRIAL.methods)  # it has 64 positions
    text = refusal(lm, trial=trial)
    assert "its own forward pass fails at prompts of 90 tokens" in text
    assert text.endswith("Set --max_prompt_tokens=58.")


def test_lora_on_a_module_that_cannot_be_wrapped():
    """The router of Phi-MoE is a linear layer that returns more than one tensor."""
    lm = built("phimoe")
    lora = {"r": 2, "alpha": 4, "dropout": 0.0, "seed": 0}
    model = add_lora(lm, target_modules="all-linear", **lora)
    settings = {**use(lm).settings, "lora_target_modules": "all-linear"}
    text = refusal(model, settings=settings)
    assert "fails with LoRA on lora_target_modules=all-linear (AttributeError" in text
    assert text.endswith(
        "Set --lora_target_modules='[k_proj,o_proj,q_proj,v_proj]', or --finetune=full."
    )
    names = ["k_proj", "o_proj", "q_proj", "v_proj"]
    check_backbone(add_lora(built("phimoe"), target_modules=names, **lora), use(lm), CPU)


@pytest.mark.parametrize(
    "name", [name for name in ("mamba2", "falcon_h1", "nemotron_h") if name in CONFIG_MAPPING]
)
def test_lora_on_modules_that_peft_refuses(name):
    lora = {"r": 2, "alpha": 4, "dropout": 0.0, "seed": 0}
    with pytest.raises(ConfigError, match="PEFT cannot adapt.*--finetune=full") as caught:
        add_lora(built(name), target_modules="all-linear", **lora)
    proposed = str(caught.value).split("--lora_target_modules='[")[1].split("]'")[0].split(",")
    assert "out_proj" not in proposed
    add_lora(built(name), target_modules=proposed, **lora)


def test_another_attention_implementation_is_proposed_where_it_helps(monkeypatch):
    right = packed_module.block_mask

    def wrong_under_sdpa(segments, dtype):
        mask = right(segments, dtype)
        return mask if current[0] == "eager" else mask * 0

    current = ["sdpa"]
    set_attention = type(built("qwen2")).set_attn_implementation

    def watched(self, attn):
        current[0] = attn
        set_attention(self, attn)

    monkeypatch.setattr(packed_module, "block_mask", wrong_under_sdpa)
    lm = built("qwen2")
    monkeypatch.setattr(type(lm), "set_attn_implementation", watched)
    assert "Set --attn_implementation=eager, or" in refusal(lm)


def test_a_model_that_nothing_helps_is_refused(monkeypatch):
    for method in ("packed", "padded"):
        monkeypatch.setitem(probe.METHODS, method, lambda lm, inputs: torch.zeros(2, 5))
    assert refusal(built("qwen2")).endswith(
        "Choose another model, such as Qwen3, Llama, SmolLM2 or Mistral."
    )


# ------------------------------------------------------------------------------------ the cache


@pytest.fixture
def counted(monkeypatch):
    """Record of the probes, one entry each; every probe is worth keeping."""
    calls = []
    monkeypatch.setattr(probe_cache, "MIN_SECONDS", 0.0)
    forgetful = type("Forgetful", (set,), {"add": lambda self, file: None})
    monkeypatch.setattr(probe_cache, "_passed_here", forgetful())  # as a new process

    def watched(*arguments, **options):
        calls.append(1)
        return faults(*arguments, **options)

    monkeypatch.setattr(backbone_check, "faults", watched)
    return calls


def test_a_second_start_costs_nothing(counted, cache):
    lm = built("qwen2")
    for _ in range(3):
        check_backbone(lm, use(lm), CPU)
    assert len(counted) == 1 and len(list(cache.iterdir())) == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"key": {"fingerprint": "other weights", "dtype": "float32"}},
        {"key": {"fingerprint": "weights", "dtype": "bfloat16"}},
        {"trial": Trial(25, 6, TRIAL.tokens, EOS, TRIAL.methods)},
        {"settings": {"scorer": "packed", "ranker": "exhaustive"}},
    ],
    ids=["weights", "dtype", "length", "ranker"],
)
def test_what_differs_is_probed_again(counted, changes):
    lm = built("qwen2")
    key = {"fingerprint": "weights", "dtype": "float32"}
    check_backbone(lm, use(lm, key=key), CPU)
    check_backbone(lm, use(lm, **{"key": key, **changes}), CPU)
    assert len(counted) == 2


@pytest.mark.parametrize("what", ["attention", "versions", "code"])
def test_other_code_is_probed_again(counted, monkeypatch, what):
    lm = built("qwen2")
    check_backbone(lm, use(lm), CPU)
    if what == "attention":
        lm.set_attn_implementation("eager")
    if what == "versions":
        monkeypatch.setattr(probe_cache, "version", lambda library: "99")
    if what == "code":
        monkeypatch.setattr(probe_cache, "_code", lambda: "other")
    check_backbone(lm, use(lm), CPU)
    assert len(counted) == 2


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"passed": 1}', b"\xff", b'"x"' * 999])
def test_a_damaged_file_is_ignored_and_replaced(counted, cache, content):
    lm = built("qwen2")
    check_backbone(lm, use(lm), CPU)
    (file,) = cache.iterdir()
    file.write_bytes(content)
    check_backbone(lm, use(lm), CPU)
    assert len(counted) == 2
    assert json.loads(file.read_text())["passed"]["fingerprint"] == str(id(lm))


def test_a_cache_that_cannot_be_written_costs_the_probe_only(counted, cache):
    cache.parent.mkdir()
    cache.write_text("no folder")
    lm = built("qwen2")
    for _ in range(2):
        check_backbone(lm, use(lm), CPU)
    assert len(counted) == 2
    assert stat.S_ISREG(cache.stat().st_mode)


def test_what_failed_is_not_kept(counted, cache):
    lm = built("lfm2")
    for _ in range(2):
        refusal(lm)
    assert not cache.exists()


def test_a_quick_probe_leaves_no_file_and_holds_for_the_process(cache, monkeypatch):
    monkeypatch.setattr(probe_cache, "MIN_SECONDS", 1e9)
    monkeypatch.setattr(probe_cache, "_passed_here", set())
    lm = built("qwen2")
    check_backbone(lm, use(lm), CPU)
    assert not cache.exists()
    monkeypatch.setattr(backbone_check, "faults", None)
    check_backbone(lm, use(lm), CPU)
