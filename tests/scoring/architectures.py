"""Tiny random models of many architectures, and every scorer's error against their own forward.

The truth is one unpadded row per item through the model's own `forward`, without a cache, a mask or
our code. Prompts are longer than every window. The weights are large for the size, so that every
token's prediction depends visibly on all visible tokens: errors are of the order of nats.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.model.backbone import add_lora
from recbole_multdpo.scoring.beam import beam_topk
from recbole_multdpo.scoring.best_first import TrieSearch
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.packed import packed_logps, packed_logps_with_prompt
from recbole_multdpo.scoring.padded import padded_logps, padded_logps_with_prompt
from recbole_multdpo.scoring.trie_scores import trie_scores

WINDOW = 8
VOCABULARY = 100
EOS = 2
# distinct texts of three to six tokens, some with a common beginning
ITEMS = ItemTokens.from_lists(
    [
        [],
        [40, 41, 42, EOS],
        [7, 9, EOS],
        [7, 9, 30, 31, 32, EOS],
        [50, 51, EOS],
        [50, 52, 53, EOS],
        [7, 8, EOS],
    ]
)
CANDIDATES = torch.tensor([[3, 1, 2, 5], [4, 6, 0, 1], [5, 0, 3, 2]])
PROMPT_LENGTHS = torch.tensor([24, 11, 17])
PROMPT_IDS = torch.randint(
    3, VOCABULARY, (3, 24), generator=torch.Generator().manual_seed(5)
).masked_fill(torch.arange(24) >= PROMPT_LENGTHS[:, None], 0)
PROMPTS = Prompts(PROMPT_IDS, PROMPT_LENGTHS)
CATALOGUE = ItemCatalogue.build(ITEMS)

# A name counts where the architecture's configuration knows it.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    **dict.fromkeys(["hidden_size", "n_embd", "d_model"], 32),
    **dict.fromkeys(["intermediate_size", "ffn_dim", "n_inner"], 48),
    **dict.fromkeys(["num_hidden_layers", "n_layer", "n_layers", "num_layers"], 2),
    **dict.fromkeys(["num_attention_heads", "n_head", "n_heads", "num_heads"], 4),
    "num_key_value_heads": 2,
    "head_dim": 8,
    **dict.fromkeys(["max_position_embeddings", "n_positions", "max_seq_len"], 64),
    **dict.fromkeys(["sliding_window", "window_size", "attention_chunk_size"], WINDOW),
    **dict.fromkeys(["num_local_experts", "num_experts", "n_routed_experts"], 4),
    "num_experts_per_tok": 2,
    **dict.fromkeys(["moe_intermediate_size", "shared_expert_intermediate_size"], 16),
    "rotary_dim": 4,
    "is_decoder": True,
    "bos_token_id": 1,
    "eos_token_id": EOS,
    "pad_token_id": 0,
    **dict.fromkeys(
        [
            *["attention_dropout", "hidden_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop"],
            *["dropout", "activation_dropout", "residual_dropout", "layerdrop", "embed_dropout"],
            *["hidden_dropout_prob", "attention_probs_dropout_prob", "attn_dropout"],
        ],
        0.0,
    ),
}
MIXED = ["sliding_attention", "full_attention"] * 2
MIXED_LAYERS = {"num_hidden_layers": 4, "layer_types": MIXED}
LATENT = {
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "head_dim": 8,
    "num_key_value_heads": 4,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1}
LINEAR = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}
GEMMA4 = {
    **MIXED_LAYERS,
    "final_logit_softcapping": 2.0,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
}
HYBRID = {"num_hidden_layers": 4, "layer_types": ["linear_attention", "full_attention"] * 2}


@dataclass(frozen=True)
class Architecture:
    """One row of the sweep.

    Attributes:
        name: name of the row.
        kind: transformers' model type.
        options: configuration options that extend or override `SMALL`; `text_config` is nested.
        why_refused: the scorers' limitation; "" if all of them are exact.
        lowest_lacks: True if the lowest allowed version of transformers lacks the type.
        no_sdpa: True if it has no code for `attn_implementation=sdpa`.
        padded_too: True if right padding, which a causal model never attends to, is refused too.
        std: standard deviation of the weights.
        lora_targets: modules for the adapter; only some if PEFT breaks a router that is a linear
            layer with several outputs.
        in_lowest: attributes that differ in the lowest version of transformers.
    """

    name: str
    kind: str
    options: dict[str, Any] = field(default_factory=dict)
    why_refused: str = ""
    lowest_lacks: bool = False
    no_sdpa: bool = False
    padded_too: bool = False
    std: float = 0.2
    lora_targets: str | list[str] = "all-linear"
    in_lowest: dict[str, Any] = field(default_factory=dict)

    @property
    def attention(self) -> list[str]:
        """The attention implementations to try, the product's default first."""
        return ["eager"] if self.no_sdpa else ["sdpa", "eager"]

    def config(self) -> Any:
        """The configuration; ValueError if transformers does not know the type."""
        if self.kind not in CONFIG_MAPPING:
            raise ValueError(f"transformers lacks {self.kind}")
        make = CONFIG_MAPPING[self.kind]
        options = dict(self.options)
        if "text_config" in options:
            text = type(make().text_config)
            options["text_config"] = _small(text, options["text_config"]).to_dict()
            return make(**options)
        return _small(make, options)

    def build(self, attn: str, seed: int = 0) -> PreTrainedModel:
        """A float32 model in eval mode with random weights."""
        config = self.config()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            lm = AutoModelForCausalLM.from_config(
                config, attn_implementation=attn, dtype=torch.float32
            )
            for parameter in lm.parameters():
                noise = torch.randn_like(parameter) * self.std
                # norms and the like keep their scale, embeddings and matrices are all noise
                with torch.no_grad():
                    parameter.copy_(parameter + noise / 2 if parameter.ndim < 2 else noise)
        return lm.eval()


def _small(make: Any, options: dict[str, Any]) -> Any:
    known = make().to_dict()
    config = make(**{**{k: v for k, v in SMALL.items() if k in known}, **options})
    if not hasattr(config, "pad_token_id"):  # some of the lowest version, whose models read it
        config.pad_token_id = SMALL["pad_token_id"]
    return config


RECURRENT = "recurrent or convolutional layers: a candidate's state runs into the next"
ALIBI = "distances are counted in the packed row, not by positions"
NO_SDPA, SDPA = {"no_sdpa": True}, {"no_sdpa": False}
A = Architecture
ROWS = [
    # plain attention over everything
    A("qwen2", "qwen2"),
    A("qwen3", "qwen3"),
    A("qwen2_moe", "qwen2_moe"),
    A("qwen3_moe", "qwen3_moe"),
    A("llama", "llama"),
    A(
        "llama3-rope",
        "llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    A("gemma", "gemma"),
    A("phi", "phi"),
    A("gpt2", "gpt2"),
    A("gpt_neox", "gpt_neox"),
    A("gpt_neox_japanese", "gpt_neox_japanese", no_sdpa=True),
    A("gptj", "gptj", in_lowest=NO_SDPA),
    A("codegen", "codegen", in_lowest=NO_SDPA),
    A("gpt_bigcode", "gpt_bigcode"),
    A("olmo", "olmo"),
    A("olmo2", "olmo2"),
    A("falcon", "falcon", {"alibi": False}),
    A("opt", "opt"),
    A("granite", "granite"),
    A("stablelm", "stablelm"),
    A("biogpt", "biogpt"),
    A("xglm", "xglm", no_sdpa=True, in_lowest={"why_refused": "shifts the positions it is given"}),
    A("deepseek_v2", "deepseek_v2", LATENT),
    A("deepseek_v3", "deepseek_v3", LATENT, in_lowest={"lora_targets": ["q_a_proj", "o_proj"]}),
    A("glm", "glm"),
    A("glm4", "glm4"),
    A("ernie4_5", "ernie4_5"),
    A("hunyuan_v1_dense", "hunyuan_v1_dense"),
    A("arcee", "arcee"),
    A("apertus", "apertus"),
    A("helium", "helium"),
    A("diffllama", "diffllama"),
    A("nemotron", "nemotron"),
    A("persimmon", "persimmon"),
    A("bitnet", "bitnet"),
    A("seed_oss", "seed_oss"),
    A("jetmoe", "jetmoe", {"kv_channels": 8}),
    A("smollm3", "smollm3", {"num_hidden_layers": 4}),
    A("olmoe", "olmoe"),
    A("doge-short", "doge", {"keep_window_size": 64, "sliding_window": None}),
    # sliding windows
    A("mistral-no-window", "mistral", {"sliding_window": None}),
    A("mistral", "mistral"),
    A("ministral", "ministral"),
    A("ministral3", "ministral3"),
    A("mixtral", "mixtral"),
    A("phi3", "phi3"),
    A("phimoe", "phimoe", {"num_experts": None}, lora_targets=["q_proj", "v_proj"]),
    A("starcoder2", "starcoder2"),
    A(
        "qwen2-window",
        "qwen2",
        {"use_sliding_window": True, "max_window_layers": 0},
    ),
    A("qwen3-window", "qwen3", {"use_sliding_window": True, **MIXED_LAYERS}),
    A(
        "gemma2",
        "gemma2",
        {**MIXED_LAYERS, "final_logit_softcapping": None, "attn_logit_softcapping": 5.0},
        no_sdpa=True,
        in_lowest=SDPA,
    ),
    A("gemma3_text", "gemma3_text", MIXED_LAYERS),
    A("olmo3", "olmo3", MIXED_LAYERS),
    A("exaone4", "exaone4", MIXED_LAYERS),
    A("cohere2", "cohere2", {**MIXED_LAYERS, "logit_scale": 1.0}),
    A("gpt_oss", "gpt_oss", MIXED_LAYERS, no_sdpa=True),
    A("afmoe", "afmoe", MIXED_LAYERS),
    A(
        "smollm3-window",
        "smollm3",
        {"use_sliding_window": True, **MIXED_LAYERS},
    ),
    A(
        "gpt_neo",
        "gpt_neo",
        {"attention_types": [[["global", "local"], 1]]},
        why_refused="its window counts columns, not positions, whatever the mask",
        no_sdpa=True,
    ),
    A(
        "doge",
        "doge",
        {"keep_window_size": WINDOW, "sliding_window": None},
        why_refused="keeps the best keys, padding too",
        padded_too=True,
    ),
    # heads and logits
    A(
        "gemma2-softcap",
        "gemma2",
        {**MIXED_LAYERS, "final_logit_softcapping": 2.0},
        no_sdpa=True,
        in_lowest=SDPA,
    ),
    A("cohere", "cohere", {"logit_scale": 0.25}),
    A("granite-scaled", "granite", {"logits_scaling": 4.0}),
    A(
        "vaultgemma",
        "vaultgemma",
        {**MIXED_LAYERS, "final_logit_softcapping": 2.0},
        no_sdpa=True,
        in_lowest=SDPA,
    ),
    A("nanochat", "nanochat", {"final_logit_softcapping": 2.0}),
    A("modernbert-decoder", "modernbert-decoder", {"num_hidden_layers": 4}),
    A("bert", "bert"),
    A("roberta", "roberta", why_refused="counts positions from its padding token on"),
    A("electra", "electra", {"embedding_size": 16}),
    # settings nested in text_config
    A(
        "gemma3",
        "gemma3",
        {"text_config": MIXED_LAYERS, "vision_config": VISION},
    ),
    A(
        "gemma4",
        "gemma4",
        {"text_config": GEMMA4, "vision_config": VISION, "audio_config": None},
        lowest_lacks=True,
    ),
    A("llama4_text", "llama4_text", {"num_hidden_layers": 4}, lora_targets=["q_proj", "v_proj"]),
    # masks of other forms
    A("openai-gpt", "openai-gpt", why_refused="takes no 4-D mask", no_sdpa=True),
    # distances instead of positions
    A("mpt", "mpt", why_refused=ALIBI, no_sdpa=True),
    A("bloom", "bloom", why_refused=ALIBI, no_sdpa=True),
    A("falcon-alibi", "falcon", {"alibi": True}, why_refused=ALIBI),
    # recurrent, convolutional, hybrid
    A("qwen3_next", "qwen3_next", {**HYBRID, **LINEAR}, why_refused=RECURRENT),
    A(
        "qwen3_5_text",
        "qwen3_5_text",
        {**HYBRID, **LINEAR},
        why_refused=RECURRENT,
        lowest_lacks=True,
    ),
    A(
        "lfm2",
        "lfm2",
        {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
        why_refused=RECURRENT,
    ),
    A(
        "lfm2_moe",
        "lfm2_moe",
        {"num_hidden_layers": 4, "layer_types": ["conv", "full_attention"] * 2},
        why_refused=RECURRENT,
    ),
    A(
        "jamba",
        "jamba",
        {
            "num_hidden_layers": 4,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 8,
            "mamba_dt_rank": 4,
            "use_mamba_kernels": False,
        },
        why_refused=RECURRENT,
    ),
    A(
        "bamba",
        "bamba",
        {**MAMBA, "num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
        why_refused=RECURRENT,
    ),
    A("falcon_h1", "falcon_h1", {**MAMBA, "mamba_d_ssm": 64}, why_refused=RECURRENT),
    A(
        "nemotron_h",
        "nemotron_h",
        {
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention", "full_attention"] * 2,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
            "moe_latent_size": 16,
        },
        why_refused=RECURRENT,
        lowest_lacks=True,
    ),
    A(
        "granitemoehybrid",
        "granitemoehybrid",
        {**MAMBA, "num_hidden_layers": 4, "layer_types": ["mamba", "attention"] * 2},
        why_refused=RECURRENT,
    ),
    A("minimax", "minimax", HYBRID, why_refused=RECURRENT),
    A(
        "recurrent_gemma",
        "recurrent_gemma",
        {"num_hidden_layers": 3, "attention_window_size": 64, "lru_width": 32},
        why_refused=RECURRENT,
        in_lowest=NO_SDPA,
    ),
    A("mamba", "mamba", {"state_size": 8}, why_refused=RECURRENT, no_sdpa=True),
    A(
        "mamba2",
        "mamba2",
        {"num_heads": 4, "head_dim": 16, "state_size": 8, "n_groups": 1},
        why_refused=RECURRENT,
        no_sdpa=True,
    ),
    A("falcon_mamba", "falcon_mamba", {"state_size": 8}, why_refused=RECURRENT, no_sdpa=True),
    A("rwkv", "rwkv", why_refused=RECURRENT, no_sdpa=True),
    A("xlstm", "xlstm", why_refused=RECURRENT, no_sdpa=True),
    A("olmo_hybrid", "olmo_hybrid", HYBRID, why_refused=RECURRENT, lowest_lacks=True),
]
IS_LOWEST = transformers.__version__.startswith("5.0.")  # pyproject.toml
ARCHITECTURES = [
    replace(row, **row.in_lowest) if IS_LOWEST else row
    for row in ROWS
    # in the lowest version its sdpa code, not its eager code, sees later tokens
    if not (IS_LOWEST and row.name == "doge-short")
]


def direct_logps(lm: nn.Module, candidates: Tensor) -> Tensor:
    """The truth for candidates [B, C] of the three prompts: float32 [B, C], nats, with gradient."""
    rows = []
    for example, row in enumerate(candidates.tolist()):
        prompt = PROMPT_IDS[example, : PROMPT_LENGTHS[example]]
        for item in row:
            text = ITEMS.ids[item, : ITEMS.lengths[item]]
            ids = torch.cat([prompt, text])
            logits = lm(input_ids=ids[None], use_cache=False).logits[0].float()
            logps = logits[len(prompt) - 1 : -1].log_softmax(-1)
            rows.append(
                logps[torch.arange(len(text)), text].sum() if item else logits.new_zeros(())
            )
    return torch.stack(rows).view(candidates.shape)


def direct_prompt_logps(lm: nn.Module) -> Tensor:
    """The truth for the prompts without their first tokens: float32 [3], nats."""
    sums = []
    for prompt, length in zip(PROMPT_IDS, PROMPT_LENGTHS, strict=True):
        ids = prompt[None, :length]
        logps = lm(input_ids=ids, use_cache=False).logits[0, :-1].float().log_softmax(-1)
        sums.append(logps.gather(1, ids[0, 1:, None]).sum())
    return torch.stack(sums)


def ranked_logps(lm: nn.Module, rank: str) -> Tensor:
    """The rankers' scores of all items [3, n_items], 0 for item 0."""
    if rank == "trie_scores":
        scores = trie_scores(lm, CATALOGUE, PROMPTS, nodes_per_chunk=3)
    else:
        n_items = len(CATALOGUE) - 1
        if rank == "beam":
            top = beam_topk(lm, CATALOGUE, PROMPTS, None, n_items, beam_size=20)
        else:
            top = TrieSearch(lm, CATALOGUE, PROMPTS, None, n_items).run(expand_per_step=2)
        scores = torch.zeros(len(top.items), len(CATALOGUE)).scatter(1, top.items, top.scores)
    return scores.masked_fill(torch.arange(len(CATALOGUE)) == 0, 0.0)


def value_errors(lm: nn.Module, truth: nn.Module | None = None) -> dict[str, float | str]:
    """The largest error of every scorer in nats, or the exception that it raised.

    Args:
        lm: the model scored by our code.
        truth: the model scored by its own forward; None: `lm`.
    """
    everything = torch.arange(len(ITEMS.lengths)).expand(3, -1)
    scorers = {
        "packed": lambda: packed_logps(lm, PROMPTS, CANDIDATES, CATALOGUE),
        "padded": lambda: padded_logps(lm, PROMPTS, CANDIDATES, CATALOGUE),
        "best_first": lambda: ranked_logps(lm, "best_first"),
        "beam": lambda: ranked_logps(lm, "beam"),
        "trie_scores": lambda: ranked_logps(lm, "trie_scores"),
        "packed_prompt": lambda: packed_logps_with_prompt(lm, PROMPTS, CANDIDATES, ITEMS)[1],
        "padded_prompt": lambda: padded_logps_with_prompt(lm, PROMPTS, CANDIDATES, ITEMS)[1],
    }
    errors: dict[str, float | str] = {}
    with torch.no_grad():
        truth = lm if truth is None else truth
        all_items = direct_logps(truth, everything)
        expected = all_items.gather(1, CANDIDATES), all_items, direct_prompt_logps(truth)
        for name, score in scorers.items():
            try:
                values = score()
            except Exception as error:
                errors[name] = f"{type(error).__name__}: {error}"
                continue
            (wanted,) = (e for e in expected if e.shape == values.shape)
            errors[name] = float((values - wanted).abs().max())
    return errors


def gradient_errors(lm: nn.Module) -> dict[str, float | str]:
    """Relative distance of each training scorer's gradient from the truth's.

    The loss weights the candidates differently; the distance is over all trained parameters. A
    scorer that raises has its exception instead.
    """
    weights = torch.linspace(-1, 2, CANDIDATES.numel()).view(CANDIDATES.shape)
    trained = [p for p in lm.parameters() if p.requires_grad]

    def gradient(logps: Tensor) -> Tensor:
        given = torch.autograd.grad((weights * logps).sum(), trained, allow_unused=True)
        return torch.cat(
            [
                torch.zeros_like(p).flatten() if g is None else g.flatten()
                for p, g in zip(trained, given, strict=True)
            ]
        )

    expected = gradient(direct_logps(lm, CANDIDATES))
    errors: dict[str, float | str] = {}
    for name, score in {"packed": packed_logps, "padded": padded_logps}.items():
        try:
            found = gradient(score(lm, PROMPTS, CANDIDATES, CATALOGUE))
        except Exception as error:
            errors[name] = f"{type(error).__name__}: {error}"
            continue
        errors[name] = float((found - expected).norm() / expected.norm())
    return errors


def with_adapter(lm: PreTrainedModel, targets: str | list[str] = "all-linear") -> nn.Module:
    """Add a LoRA adapter with a nonzero update around every linear layer, or some of them."""
    model = add_lora(lm, r=2, alpha=4, dropout=0.0, target_modules=targets, seed=3)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.eval()
