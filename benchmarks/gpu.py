"""All that is worth measuring on a GPU, in one command of ten minutes.

`python -m benchmarks.gpu --minutes=10 --json=gpu.json` on a machine with a GPU. Nothing is
downloaded; weights are random, of the shapes of Qwen2.5, in bfloat16 with LoRA unless a row says
otherwise. Rows are independent and in order of value: what one needs and does not have, a failure
or a lack of memory is recorded, and the next row follows. The file is written after every row.
`--list` names the rows, `--only=equal,step-0.5B` runs those whose names begin so.
`--device=cpu --tiny` tries the command out.

A step is a forward pass of the reference, one of the policy with its backward pass, and AdamW. Its
operations are three forward passes (LoRA needs no gradient of the frozen weights), counted over the
layers' linears, the attention to visible keys and the head's scored rows. MFU is their rate over
that of the card's data sheet, or of one large matrix product where the card is unknown.
"""

from __future__ import annotations

import argparse
import copy
import gc
import importlib.util
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import Qwen2ForCausalLM

from benchmarks import generated
from benchmarks.common import hardware, versions
from benchmarks.others import kv_logps, naive_logps
from benchmarks.training_memory import SHAPES, Shape
from benchmarks.training_step import Examples, loss_of
from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.model.backbone import add_lora, merge_lora, reference_context
from recbole_multdpo.model.liger import use_liger_kernels
from recbole_multdpo.model.tiny import fit_tokenizer
from recbole_multdpo.runtime.out_of_memory import is_out_of_memory
from recbole_multdpo.scoring.best_first import TrieSearch
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.exhaustive import exhaustive_topk
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.packed import PackedExamples, packed_logps
from recbole_multdpo.scoring.padded import padded_logps
from recbole_multdpo.scoring.trie_scores import trie_scores
from recbole_multdpo.settings.backbone_folder import smollm2_folder
from recbole_multdpo.training.master_weights import MasterWeights

ROOT = Path(__file__).parents[1]
SEED = 0
# dense bfloat16 products on tensor cores, FLOP/s, from the data sheets
PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "GH200": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A6000": 155e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "4090": 165e12,
    "3090": 71e12,
}
TINY = Shape("tiny", 32, 2, 64, 4, 2, 500, True)
MFU_GOAL, TRL_GOAL = 0.40, 2.5
N_TITLES = 10_681  # of MovieLens-10M
K = 20


Found = dict[str, Any]


class Skipped(Exception):
    """A row cannot run here; the message says why."""


@dataclass(frozen=True)
class Setting:
    """The machine and the sizes of a run of this command.

    Attributes:
        device: `cuda` or `cpu`.
        tiny: small sizes, to try the command out.
        titles: a MovieLens `movies.csv`; None for made-up titles.
        measured: what earlier rows left for later ones, by name.
    """

    device: str
    tiny: bool
    titles: Path | None
    measured: dict[str, float] = field(default_factory=dict)

    def shape(self, name: str) -> Shape:
        """A shape of Qwen2.5 by name."""
        return TINY if self.tiny else next(shape for shape in SHAPES if shape.name == name)

    @property
    def dtype(self) -> torch.dtype:
        """The type that speed is measured in."""
        return torch.float32 if self.tiny else torch.bfloat16

    def seconds(self, call: Callable[[], Any], repeats: int = 3) -> float:
        """Median seconds of a call, after one to warm up."""
        call()
        return statistics.median(self._once(call) for _ in range(1 if self.tiny else repeats))

    def _once(self, call: Callable[[], Any]) -> float:
        self.wait()
        start = time.perf_counter()
        call()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Wait for the device."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def peak(self, call: Callable[[], Any]) -> Found:
        """Peak of the allocated memory during a call, GiB; nothing on a CPU."""
        if self.device == "cpu":
            return {}
        torch.cuda.reset_peak_memory_stats()
        call()
        self.wait()
        return {"GiB": torch.cuda.max_memory_allocated() / 2**30}


Run = Callable[[Setting], Found]


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: for `--only`.
        run: makes its figures.
        limit: seconds after which it is given up; also what must be left to begin it, by half.
    """

    name: str
    run: Run
    limit: int


# ---- models and examples ----------------------------------------------------------------------


def make_lm(
    shape: Shape, device: str, dtype: torch.dtype, *, lora: str = "ours", liger: bool = False
) -> nn.Module:
    """A Qwen2 model of a shape with random weights, made on the device, with a LoRA adapter.

    Args:
        shape: the model's sizes.
        device: where it is made.
        dtype: of its weights.
        lora: `ours`, or `PEFT`: its layers, with an adapter in float32.
        liger: with Liger's kernels (`use_liger_kernel`).
    """
    torch.manual_seed(SEED)
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.device(device):
            lm: Any = Qwen2ForCausalLM(shape.config())
    finally:
        torch.set_default_dtype(default)
    if liger:
        use_liger_kernels(shape.name, lm.eval())
    if lora == "PEFT":
        linears = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
        lm = get_peft_model(lm, LoraConfig(r=8, lora_alpha=16, target_modules=linears))
    else:
        lm = add_lora(lm, r=8, alpha=16, dropout=0.0, target_modules="all-linear", seed=SEED)
    generator = torch.Generator().manual_seed(SEED)
    for name, parameter in lm.named_parameters():
        if "lora_B" in name:  # zero at first: the adapter would do nothing
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return lm.train()


Score = Callable[[nn.Module], Tensor]


def packed_once(examples: Examples) -> Score:
    """Log-probabilities [B, C] by a model, all of them from one packing."""
    catalogue = examples.catalogue
    return PackedExamples.of(examples.prompts, examples.candidates, catalogue.items).logps


def each_time(score: Callable[..., Tensor], examples: Examples) -> Score:
    """Log-probabilities [B, C] by a model with a scorer that begins with the examples."""
    return lambda lm: score(lm, examples.prompts, examples.candidates, examples.catalogue)


SCORERS: dict[str, Callable[[Examples], Score]] = {
    "packed": packed_once,
    "packed twice": partial(each_time, packed_logps),
    "prompt cache": partial(each_time, kv_logps),
    "candidate logits": partial(each_time, partial(naive_logps, logits_everywhere=False)),
    "naive": partial(each_time, partial(naive_logps, logits_everywhere=True)),
}


def forward_operations(shape: Shape, examples: Examples) -> float:
    """Operations of one packed forward pass; a multiplication and an addition are two."""
    lengths = examples.catalogue.items.lengths[examples.candidates].double()  # [B, C]
    n_prompt, fed = float(examples.prompts.width), lengths - 1
    n_rows = len(lengths)
    n_tokens = n_rows * n_prompt + float(fed.sum())
    # keys that a token sees: itself and those before it in the prompt and its own candidate
    pairs = n_rows * n_prompt * (n_prompt + 1) / 2
    pairs += float((fed * n_prompt + fed * (fed + 1) / 2).sum())
    per_token = 2 * shape.layers * sum(a * b for a, b in shape.linears())
    scored = n_rows + float(fed.sum())
    return (
        n_tokens * per_token
        + pairs * 4 * shape.layers * shape.hidden
        + scored * 2 * shape.hidden * shape.vocabulary
    )


class Trainer:
    """Steps of Mult-DPO; the reference is the model without its adapter."""

    def __init__(self, lm: nn.Module) -> None:
        self.lm = lm
        trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-6)
        self.masters = MasterWeights(self.optimizer)

    def step(self, examples: Examples, scorer: str) -> None:
        """Make a step."""
        self.optimizer.zero_grad(set_to_none=True)
        score = SCORERS[scorer](examples)
        with torch.no_grad(), reference_context(self.lm):
            reference = score(self.lm)
        loss_of(score(self.lm) - reference).backward()
        self.masters.move_gradients()
        self.optimizer.step()
        self.masters.write_back()


def fitting(call: Callable[[int], Found], largest: int) -> Found:
    """The figures of a call with as many examples as fit: `largest`, its half, and so on."""
    n_examples = largest
    while True:
        try:
            return {"batch": n_examples, **call(n_examples)}
        except RuntimeError as error:
            if n_examples == 1 or not is_out_of_memory(error):
                raise
        n_examples //= 2
        release()


def release() -> None:
    """Give the memory of finished rows back."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# ---- rows: equality ----------------------------------------------------------------------------


def values_and_gradients(
    lm: nn.Module, examples: Examples, scorer: Callable[..., Tensor]
) -> list[Tensor]:
    """Log-probabilities and the gradient of every trained weight, on the CPU in float32."""
    trained = [parameter for parameter in lm.parameters() if parameter.requires_grad]
    logps = each_time(scorer, examples)(lm)
    found = [logps.detach(), *torch.autograd.grad(loss_of(logps), trained)]
    return [tensor.float().cpu() for tensor in found]


def differences(ours: list[Tensor], other: list[Tensor], tolerance: float) -> Found:
    """Largest difference of a log-probability, and of a gradient relative to its norm."""
    logp = float((ours[0] - other[0]).abs().max())
    whole = torch.stack([tensor.norm() for tensor in other[1:]]).norm()
    apart = torch.stack([(a - b).norm() for a, b in zip(ours[1:], other[1:], strict=True)]).norm()
    gradient = float(apart / whole)
    equal = logp < tolerance * 10 and gradient < tolerance
    return {"logp": logp, "gradient": gradient, "tolerance": tolerance, "goal met": equal}


def equal_devices(name: str, dtype: torch.dtype, setting: Setting) -> Found:
    """The device against the CPU in float32: log-probabilities and gradients of one batch."""
    shape = TINY if name == "tiny" else setting.shape(name)
    lm = make_lm(shape, "cpu", torch.float32)
    examples = Examples.draw(64, 4, 2, shape.vocabulary)
    expected = values_and_gradients(lm, examples, packed_logps)
    on_device = copy.deepcopy(lm).to(setting.device)
    if dtype == torch.bfloat16:
        for parameter in on_device.parameters():
            if not parameter.requires_grad:
                parameter.data = parameter.data.to(dtype)
        on_device.config.dtype = dtype
    found = values_and_gradients(on_device, examples.to(setting.device), packed_logps)
    return differences(found, expected, 1e-3 if dtype == torch.float32 else 5e-2)


def equal_scorers(setting: Setting) -> Found:
    """Packed against padded on the device, in float32."""
    shape = setting.shape("0.5B")
    lm = make_lm(shape, setting.device, torch.float32)
    examples = Examples.draw(128, 8, 4, shape.vocabulary).to(setting.device)
    ours, other = (values_and_gradients(lm, examples, s) for s in (packed_logps, padded_logps))
    return differences(ours, other, 1e-3)


def equal_liger(dtype: torch.dtype, setting: Setting) -> Found:
    """Liger's kernels against transformers' on the device."""
    require_liger(setting)
    shape = setting.shape("0.5B")
    examples = Examples.draw(128, 8, 4, shape.vocabulary).to(setting.device)
    ours, other = (
        values_and_gradients(
            make_lm(shape, setting.device, dtype, liger=liger), examples, packed_logps
        )
        for liger in (True, False)
    )
    return differences(ours, other, 1e-3 if dtype == torch.float32 else 5e-2)


def require_liger(setting: Setting) -> None:
    """Skip a row without a GPU or the package."""
    if setting.device != "cuda":
        raise Skipped("Liger's kernels need a GPU")
    if importlib.util.find_spec("liger_kernel") is None:
        raise Skipped("liger-kernel is not installed: pip install liger-kernel")


def equal_rankings(setting: Setting) -> Found:
    """Best-first search against scoring every item, on the device, in float32."""
    n_items = 60 if setting.tiny else 300
    lm, catalogue, prompts = ranking_inputs(setting, n_items, 4, dtype=torch.float32)
    found = TrieSearch(lm, catalogue, prompts, None, K).run(expand_per_step=32)

    def score(prompts: Prompts, candidates: Tensor) -> Tensor:
        with torch.no_grad():
            return packed_logps(lm, prompts, candidates, catalogue)

    expected = exhaustive_topk(score, prompts, None, K, n_items=n_items + 1)
    apart = float((found.scores - expected.scores).abs().max())
    same = float((found.items == expected.items).float().mean())
    return {"same places": same, "score": apart, "goal met": apart < 1e-2 and same > 0.99}


# ---- rows: training ----------------------------------------------------------------------------


def matrix_product(setting: Setting) -> Found:
    """The rate of one large matrix product, and the peak that MFU is taken of."""
    n = 256 if setting.tiny else 8192
    a, b = (torch.randn(n, n, device=setting.device, dtype=setting.dtype) for _ in range(2))
    rate = 2 * n**3 / setting.seconds(lambda: a @ b, 10)
    card = torch.cuda.get_device_name() if setting.device == "cuda" else "CPU"
    # longer names first: "H100 PCIe" before "H100"
    known = next((PEAKS[key] for key in sorted(PEAKS, key=len)[::-1] if key in card), None)
    setting.measured["peak"] = known or rate
    return {"TFLOP/s": rate / 1e12, "peak TFLOP/s": (known or rate) / 1e12}


def training_step(
    name: str,
    n_prompt: int,
    n_candidates: int,
    scorer: str,
    setting: Setting,
    lora: str = "ours",
    liger: bool = False,
) -> Found:
    """Time, MFU and peak memory of an optimizer step with one of the scorers."""
    if liger:
        require_liger(setting)
    shape, is_ours = setting.shape(name), scorer == "packed" and lora == "ours"
    if setting.tiny:
        n_prompt, n_candidates = 16, 4
    if "peak" not in setting.measured:
        matrix_product(setting)
    lm = make_lm(shape, setting.device, setting.dtype, lora=lora, liger=liger)
    trainer = Trainer(lm)

    def measured(n_examples: int) -> Found:
        examples = Examples.draw(n_prompt, n_candidates, n_examples, shape.vocabulary)
        examples = examples.to(setting.device)
        step = partial(trainer.step, examples, scorer)
        seconds = setting.seconds(step)
        # of the packed pass for every scorer: what the step is about, not what it wastes
        mfu = 3 * forward_operations(shape, examples) / seconds / setting.measured["peak"]
        found: Found = {
            "ms": seconds * 1e3,
            "contexts/s": n_examples / seconds,
            "MFU": mfu,
            **setting.peak(step),
        }
        if is_ours and name == "0.5B":
            found["goal met"] = mfu >= MFU_GOAL
        return found

    found = fitting(measured, 2 if setting.tiny else 16 if scorer.startswith("packed") else 4)
    key = f"{name} {n_prompt} {n_candidates}"
    if is_ours:
        setting.measured[key] = found["contexts/s"]
    elif key in setting.measured:
        found["ours is faster by"] = setting.measured[key] / found["contexts/s"]
    return found


def against_trl(setting: Setting) -> Found:
    """A DPO step with one positive and 15 negatives against TRL's trainer."""
    for package in ("trl", "datasets"):
        if importlib.util.find_spec(package) is None:
            raise Skipped(f"{package} is not installed")
    from benchmarks import trl_dpo

    options = trl_dpo.parser().parse_args([])
    options.device, options.dtype = setting.device, "fp32" if setting.tiny else "bf16"
    options.model, options.prompts = ("slim", 1) if setting.tiny else ("0.5b", 2)
    options.titles, options.repeats = (4, 1) if setting.tiny else (20, 3)
    options.padding_free = True  # TRL 1.16 warns that it has none at present, and pads
    timer = trl_dpo.Timer(setting.device, torch.get_num_threads())
    rows = trl_dpo.compare(3 if setting.tiny else 15, timer, options)
    return {
        "ms": rows[0].ours * 1e3,
        "TRL ms": rows[0].other * 1e3,
        "ratio": rows[0].ratio,
        "MiB": rows[-1].ours,
        "TRL MiB": rows[-1].other,
        "TRL pads": "padding-free" not in rows[0].name,
        "goal met": rows[0].ratio >= TRL_GOAL,
    }


# ---- rows: ranking -----------------------------------------------------------------------------


def ranking_inputs(
    setting: Setting, n_items: int, n_users: int, *, dtype: torch.dtype | None = None
) -> tuple[nn.Module, ItemCatalogue, Prompts]:
    """A model with LoRA in eval mode, the catalogue of titles, prompts of 24 titles each.

    Random weights score all titles alike, and no search could leave any out. So the last norm is
    scaled until a search opens about as many nodes as with a trained model, 1,000 of 48,000.
    """
    titles = (
        generated.real_titles(setting.titles)[:n_items]
        if setting.titles
        else generated.made_up_titles(n_items)
    )
    tokenizer = fit_tokenizer(titles, vocab_size=8000, max_positions=4096)
    shape = setting.shape("0.5B")
    texts: list[list[int]] = [[]]
    for title in titles:
        ids = tokenizer(f" {title}", add_special_tokens=False)["input_ids"]
        texts.append([token % (shape.vocabulary - 1) + 1 for token in ids] + [0])
    distinct = {tuple(text): text for text in texts}
    catalogue = ItemCatalogue.build(ItemTokens.from_lists(list(distinct.values())))
    generator = torch.Generator().manual_seed(SEED)
    widths = torch.randint(80, 201, (n_users,), generator=generator)
    ids = torch.randint(1, 500, (n_users, int(widths.max())), generator=generator)
    prompts = Prompts(ids, widths).to(setting.device)
    lm = make_lm(shape, setting.device, dtype or setting.dtype).eval()
    catalogue = catalogue.to(setting.device)
    sharpen(lm, catalogue, prompts)
    return lm, catalogue, prompts


def sharpen(lm: nn.Module, catalogue: ItemCatalogue, prompts: Prompts) -> None:
    """Scale the last norm until a search of the first users opens at most 1,500 nodes."""
    norm: Any = causal_lm(lm).base_model.norm
    few = prompts.select(torch.arange(2, device=prompts.device)).trimmed()
    for _ in range(12):
        found = TrieSearch(lm, catalogue, few, None, K, max_expanded=3000).run(expand_per_step=64)
        if float(found.expanded.float().mean()) <= min(1500, catalogue.trie.num_internal // 4):
            return
        norm.weight.data *= 1.5


def rank(lm: nn.Module, catalogue: ItemCatalogue, prompts: Prompts) -> tuple[Tensor, Tensor]:
    """Items [U, K] and opened nodes [U] of all users, 32 at a time."""
    found = [
        TrieSearch(lm, catalogue, part.trimmed(), None, K).run(expand_per_step=64)
        for part in prompts.split(32)
    ]
    return torch.cat([f.items for f in found]), torch.cat([f.expanded for f in found])


def users_per_second(setting: Setting) -> Found:
    """Ranked users per second: the adapter merged, unmerged, and every item scored."""
    n_items, n_users = (60, 2) if setting.tiny else (N_TITLES, 128)
    lm, catalogue, prompts = ranking_inputs(setting, n_items, n_users)
    by_length = prompts.select(prompts.lengths.argsort())
    unmerged = setting.seconds(lambda: rank(lm, catalogue, by_length), 2) / n_users
    apart = rank(lm, catalogue, by_length)[0]
    merged_lm = merge_lora(lm).eval()
    merged = setting.seconds(lambda: rank(merged_lm, catalogue, by_length), 2) / n_users
    items, opened = rank(merged_lm, catalogue, by_length)
    few = by_length.select(torch.arange(min(n_users, 8), device=prompts.device)).trimmed()
    every = setting.seconds(lambda: trie_scores(merged_lm, catalogue, few), 1) / len(few)
    return {
        "users/s": 1 / merged,
        "unmerged users/s": 1 / unmerged,
        "merged is faster by": unmerged / merged,
        "every item, users/s": 1 / every,
        "search is faster by": every / merged,
        "opened nodes": float(opened.float().mean()),
        "inner nodes": catalogue.trie.num_internal,
        "lists equal to unmerged": float((items == apart).all(1).float().mean()),
    }


# ---- rows: the command -------------------------------------------------------------------------


def command(setting: Setting, *arguments: str) -> Found:
    """Run the program in a process of its own; seconds of its parts and its first metric."""
    folder = Path(tempfile.mkdtemp(prefix="gpu-benchmark-"))
    try:
        own = [f"--device={setting.device}", f"--run_dir={folder / 'run'}", "--sft_cache=False"]
        if setting.tiny:
            with redirected_to_stderr():
                data = generated.write(folder / "data", generated.made_up_titles(300), 40, 1000)
            own += [*generated.SETTINGS, f"--data_path={data}", "--valid_metric=NDCG@10"]
            own += ["--tiny_hidden_size=16", "--sft_epochs=1", "--epochs=1", "--num_negatives=8"]
        else:
            own += ["--dataset=ml-100k"]
        program = [sys.executable, str(ROOT / "run_recbole_multdpo.py"), "--model=LLMRec"]
        done = subprocess.run(
            [*program, "--show_progress=False", *own, *arguments],
            cwd=ROOT,
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        )
        if done.returncode:
            raise RuntimeError(" | ".join(done.stderr.strip().splitlines()[-3:]))
        result = json.loads((folder / "run" / "result.json").read_text(encoding="utf-8"))
        seconds = {f"{part} s": value for part, value in result["seconds"].items()}
        peak = result.get("peak_memory_mb", {}).get("cuda")
        metric = result["test_result"]["ndcg@10"]
        return {"ndcg@10": metric, **seconds, **({"MiB": peak} if peak else {})}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def redirected_to_stderr() -> Iterator[None]:
    """Print to stderr in the block."""
    out, sys.stdout = sys.stdout, sys.stderr
    try:
        yield
    finally:
        sys.stdout = out


def zero2(setting: Setting) -> Found:
    """Some steps with DeepSpeed's ZeRO-2 on one GPU, without a launcher."""
    if importlib.util.find_spec("deepspeed") is None:
        raise Skipped("deepspeed is not installed")
    return command(setting, "--deepspeed=zero2", "--max_steps=50")


def smollm2(setting: Setting) -> Found:
    """The command with SmolLM2-135M-Instruct, if it was unpacked."""
    folder = smollm2_folder()
    if setting.tiny or not folder.exists():
        raise Skipped("tiny" if setting.tiny else "no SmolLM2: python -m recbole_multdpo.backbones")
    return command(setting, "--backbone=smollm2", "--max_steps=60")


def rows() -> list[Row]:
    """All rows, the most valuable first."""
    large, small = (256, 32), (512, 16)

    def step(name: str, size: tuple[int, int], scorer: str = "packed", **options: Any) -> Run:
        return partial(training_step, name, *size, scorer, **options)

    others = ("prompt cache", "candidate logits", "naive")
    return [
        Row("product", matrix_product, 20),
        Row("equal-tiny", partial(equal_devices, "tiny", torch.float32), 20),
        Row("step-0.5B-P256-C32", step("0.5B", large), 40),
        Row("ranking", users_per_second, 120),
        Row("equal-0.5B", partial(equal_devices, "0.5B", torch.float32), 60),
        Row("equal-scorers", equal_scorers, 30),
        Row("equal-rankings", equal_rankings, 40),
        Row("trl", against_trl, 60),
        Row("liger-equal-0.5B", partial(equal_liger, torch.float32), 30),
        Row("liger-step-0.5B-P256-C32", step("0.5B", large, liger=True), 40),
        Row("step-7B-P256-C32", step("7B", large), 60),
        Row("main-command", partial(command), 180),
        Row("step-0.5B-P256-C32 PEFT's LoRA", step("0.5B", large, lora="PEFT"), 30),
        *[Row(f"step-0.5B-P256-C32 {o}", step("0.5B", large, o), 30) for o in others],
        Row("step-0.5B-P256-C32 packed twice", step("0.5B", large, "packed twice"), 30),
        Row("step-1.5B-P256-C32", step("1.5B", large), 30),
        Row("step-3B-P256-C32", step("3B", large), 40),
        Row("step-0.5B-P512-C16", step("0.5B", small), 30),
        Row("zero2", zero2, 120),
        Row("equal-0.5B-bf16", partial(equal_devices, "0.5B", torch.bfloat16), 60),
        Row("liger-equal-0.5B-bf16", partial(equal_liger, torch.bfloat16), 30),
        Row("liger-step-7B-P256-C32", step("7B", large, liger=True), 60),
        Row("step-1.5B-P512-C16", step("1.5B", small), 30),
        Row("step-3B-P512-C16", step("3B", small), 40),
        Row("step-7B-P512-C16", step("7B", small), 60),
        Row("smollm2", smollm2, 180),
        *[Row(f"step-0.5B-P512-C16 {o}", step("0.5B", small, o), 30) for o in others],
        *[Row(f"step-1.5B-P256-C32 {o}", step("1.5B", large, o), 30) for o in others],
    ]


# ---- running them ------------------------------------------------------------------------------


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block after some seconds."""

    def stop(*_: Any) -> None:
        raise TimeoutError(f"not finished within {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def outcome(row: Row, setting: Setting, seconds_left: float) -> Found:
    """Run a row: its figures, or why there are none."""
    if seconds_left < row.limit / 2:
        return {"row": row.name, "skipped": f"{seconds_left:.0f} s are left"}
    start = time.perf_counter()
    found: Found = {"row": row.name, "dtype": str(setting.dtype).removeprefix("torch.")}
    try:
        with time_limit(min(row.limit, seconds_left)):
            found |= row.run(setting)
    except Skipped as reason:
        found["skipped"] = str(reason)
    except Exception as error:  # a row may fail in any way; the next one goes on
        short = isinstance(error, RuntimeError) and is_out_of_memory(error)
        text = (str(error).splitlines() or [""])[0][:300]
        found["out of memory" if short else "failed"] = f"{type(error).__name__}: {text}"
    found["seconds"] = time.perf_counter() - start
    return found


def machine(setting: Setting) -> Found:
    """Card, driver, versions, commit and seed."""

    def said(*words: str) -> str | None:
        try:
            done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() or None

    query = ("nvidia-smi", "--query-gpu=driver_version,memory.total", "--format=csv,noheader")
    return {
        **hardware(),
        "driver, memory": said(*query) if setting.device == "cuda" else None,
        "cuda": torch.version.cuda,
        "commit": said("git", "rev-parse", "HEAD"),
        "changed files": bool(said("git", "status", "--porcelain")),
        "versions": versions(),
        "seed": SEED,
    }


def shown(found: Mapping[str, Any]) -> str:
    """A row's figures in a line."""
    parts = []
    for name, value in found.items():
        if name not in ("row", "dtype"):
            parts.append(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}")
    return f"{found['row']:34} {', '.join(parts)}"


def write(file: Path, content: Found) -> None:
    """Write machine and rows as JSON."""
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def parser() -> argparse.ArgumentParser:
    """The options of the command."""
    made = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    made.add_argument("--minutes", type=float, default=10, help="time for all rows together")
    made.add_argument("--json", type=Path, default=Path("gpu.json"), metavar="FILE")
    made.add_argument("--device", default="cuda", choices=("cpu", "cuda"))
    made.add_argument("--tiny", action="store_true", help="small sizes, to try the command out")
    made.add_argument("--titles", type=Path, help="a MovieLens movies.csv; else made-up titles")
    made.add_argument("--only", default="", help="beginnings of names of rows, with commas")
    made.add_argument("--list", action="store_true", help="name the rows")
    made.add_argument("--go-on", action="store_true", help="keep the rows that FILE has already")
    return made


def main(argv: list[str] | None = None) -> None:
    """Run the command."""
    start = time.perf_counter()
    options = parser().parse_args(argv)
    chosen = [row for row in rows() if row.name.startswith(tuple(options.only.split(",")))]
    if not chosen:
        raise SystemExit(f"no row's name begins with {options.only}; --list names the rows")
    if options.list:
        print("\n".join(row.name for row in chosen))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no GPU is there; --device=cpu --tiny tries the command out")
    setting = Setting(options.device, options.tiny, options.titles)
    try:
        if options.go_on:
            content: Found = json.loads(options.json.read_text(encoding="utf-8"))
        else:
            content = {"machine": machine(setting), "rows": []}
            write(options.json, content)
    except OSError as error:
        raise SystemExit(f"--json={options.json}: {error.strerror}") from None
    done = {found["row"] for found in content["rows"]}
    print({name: value for name, value in content["machine"].items() if name != "versions"})
    for row in chosen:
        if row.name in done:
            continue
        try:
            found = outcome(row, setting, options.minutes * 60 - (time.perf_counter() - start))
        except KeyboardInterrupt:
            print(
                f"stopped in {row.name}; {options.json} has the rows before; --go-on does the rest"
            )
            raise SystemExit(130) from None
        release()
        print(shown(found), flush=True)
        content["rows"].append(found)
        write(options.json, content)
        if "CUDA error" in found.get("failed", ""):  # nothing works in this process any more
            left = options.minutes - (time.perf_counter() - start) / 60
            again = [f"--minutes={left}", "--go-on", f"--json={options.json}"]
            again += [f"--only={options.only}"] if options.only else []
            again += [f"--titles={options.titles}"] if options.titles else []
            os.execv(sys.executable, [sys.executable, "-m", "benchmarks.gpu", *again])


if __name__ == "__main__":
    main()
