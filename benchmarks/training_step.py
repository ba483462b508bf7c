"""Time a training step of the packed scorer against one row per candidate and prompt caching.

`python -m benchmarks.training_step` (two minutes on two cores), or with
`--device=cuda --dtype=bf16 --model=0.5b --shapes=256x32x4,512x64x2` on a GPU. All sides score the
same examples with the same weights; log-probabilities and gradients are asserted to be equal.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Qwen2Config, Qwen2ForCausalLM

from benchmarks.common import DTYPES, Row, Timer, arguments, faster, peak_mebibytes, report
from benchmarks.others import kv_logps, naive_logps
from recbole_multdpo.data.batch import Prompts, length_buckets
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.losses import preference_loss
from recbole_multdpo.model.backbone import add_lora, reference_context
from recbole_multdpo.model.tiny import make_tiny_backbone
from recbole_multdpo.scoring import packed
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.head import head_logps
from recbole_multdpo.scoring.one_token import OneTokenExamples
from recbole_multdpo.scoring.packed import packed_lengths, packed_logps, split_candidates
from recbole_multdpo.scoring.parts import parts_of
from recbole_multdpo.training.step import PART_COST, PART_COST_CPU

BIG_VOCABULARY = 151_936  # Qwen2.5's
BIG_HIDDEN = 896
# Hidden size, layers, vocabulary: Qwen2.5-0.5B, and one for a CPU, half as wide and two layers
# deep, with a vocabulary reduced in proportion, so that the floors equal those of the whole model.
MODELS = {
    "0.5b": (BIG_HIDDEN, 24, BIG_VOCABULARY),
    "slim": (BIG_HIDDEN // 2, 2, BIG_VOCABULARY // 24),
}
TOLERANCE = {"fp32": 1e-3, "bf16": 5e-2}
GOALS = {  # on one CPU shape and one GPU shape, see docs/performance.md
    "cpu": {"P 128 C 16": {"naive": 7.0, "naive, candidate logits": 5.5, "kv": 1.6}},
    "cuda": {"P 256 C 32": {"naive": 8.0, "naive, candidate logits": 6.0, "kv": 1.5}},
}


@dataclass(frozen=True)
class Examples:
    """B examples with prompts of P tokens and C candidates, all tokens at random.

    Candidates have the lengths of ML-10M's titles with years in Qwen's tokens: 8 to 32, 12 on
    average, terminator included.
    """

    prompts: Prompts
    candidates: Tensor
    catalogue: ItemCatalogue

    @classmethod
    def draw(cls, n_prompt: int, n_candidates: int, n_examples: int, vocabulary: int) -> Examples:
        """Draw examples; the same arguments give the same examples."""
        generator = torch.Generator().manual_seed(0)
        n_items = n_examples * n_candidates
        above_least = torch.empty(n_items).exponential_(1 / 4, generator=generator)
        lengths = (8 + above_least.long()).clamp(max=32)
        tokens = torch.randint(0, vocabulary, (n_items, 32), generator=generator)
        texts = [row[:length].tolist() for row, length in zip(tokens, lengths, strict=True)]
        return cls(
            Prompts(
                torch.randint(0, vocabulary, (n_examples, n_prompt), generator=generator),
                torch.full((n_examples,), n_prompt),
            ),
            1 + torch.arange(n_items).view(n_examples, n_candidates),
            ItemCatalogue.build(ItemTokens.from_lists([[], *texts])),
        )

    def to(self, device: str) -> Examples:
        """Move the examples to `device`."""
        return Examples(
            self.prompts.to(device), self.candidates.to(device), self.catalogue.to(device)
        )

    def floor_ratios(self, body: float, head: float) -> dict[str, float]:
        """Operations of each side over those of the packed one.

        Args:
            body: operations per token through the layers.
            head: operations per scored position.
        """
        lengths = self.catalogue.items.lengths[self.candidates].double()  # [B, C]
        n_prompt, n_candidates = float(self.prompts.width), lengths.shape[1]
        rows, fed = (n_prompt + lengths).sum(), (lengths - 1).sum()
        padded = len(lengths) * n_candidates * (lengths.max() - 1)
        prompts = len(lengths) * n_prompt
        packed = (prompts + fed) * body + (len(lengths) + fed) * head
        costs = {
            "naive": rows * (body + head),
            "naive, candidate logits": rows * body + lengths.sum() * head,
            "kv": (prompts + padded) * body + (len(lengths) + padded) * head,
        }
        return {name: float(cost / packed) for name, cost in costs.items()}


def make_lm(name: str, device: str, dtype: torch.dtype) -> nn.Module:
    """A Qwen2.5-0.5B-shaped model with random weights and a LoRA adapter that is not zero."""
    hidden, layers, vocabulary = MODELS[name]
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=hidden * 38 // 7,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 448,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    lm: nn.Module = Qwen2ForCausalLM(config)
    lm.to(device, dtype)
    wrapped = add_lora(lm, r=8, alpha=16, dropout=0.0, target_modules="all-linear", seed=0)
    generator = torch.Generator().manual_seed(0)
    for parameter_name, parameter in wrapped.named_parameters():
        if "lora_B" in parameter_name:
            parameter.data = 0.02 * torch.randn(parameter.shape, generator=generator).to(parameter)
    return wrapped.train()


def main() -> None:
    """Run the command."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--model", default="slim", choices=tuple(MODELS))
    parser.add_argument(
        "--shapes",
        default="128x16x1,128x16x2,256x8x1",
        help="PxCxB, separated by commas: prompt tokens, candidates, examples",
    )
    options = parser.parse_args()
    timer = Timer(options.device, options.threads)
    dtype = DTYPES[options.dtype]
    lm = make_lm(options.model, options.device, dtype)
    rows = []
    for shape in options.shapes.split(","):
        n_prompt, n_candidates, n_examples = map(int, shape.split("x"))
        vocabulary = MODELS[options.model][2]
        examples = Examples.draw(n_prompt, n_candidates, n_examples, vocabulary).to(options.device)
        rows += compare(lm, examples, timer, options)
    longest = Examples.draw(128, 64, 1, MODELS[options.model][2]).to(options.device)
    rows += compare_references(lm, longest, timer, options)
    rows += compare_parts(lm, longest, timer, options)
    del lm
    rows += compare_lengths(timer, options)
    rows += compare_heads(timer, options)
    report(rows, options)


def compare(
    lm: nn.Module, examples: Examples, timer: Timer, options: argparse.Namespace
) -> list[Row]:
    """Rows of one shape: forward, forward and backward, and the latter's peak memory."""
    scorers: dict[str, Callable[..., Tensor]] = {
        "packed": packed_logps,
        "naive": partial(naive_logps, logits_everywhere=True),
        "naive, candidate logits": partial(naive_logps, logits_everywhere=False),
        "kv": kv_logps,
    }
    sizes = (examples.prompts.width, *examples.candidates.shape[::-1])
    size = "P {} C {}".format(*sizes[:2])
    assert_equal(lm, examples, scorers, TOLERANCE[options.dtype])

    def forward(score: Callable[..., Tensor]) -> None:
        with torch.no_grad():
            logps_of(score, lm, examples)

    def step(score: Callable[..., Tensor]) -> None:
        lm.zero_grad()
        loss_of(logps_of(score, lm, examples)).backward()

    hidden, _, vocabulary = MODELS[options.model]
    layers = [p for name, p in lm.named_parameters() if ".layers." in name and "lora" not in name]
    body = 2.0 * sum(p.numel() for p in layers)
    floors = examples.floor_ratios(body, 2.0 * hidden * vocabulary)
    goals = GOALS[options.device].get(size, {})
    others = list(scorers)[1:]
    rows = []
    for label, run in (("forward", forward), ("train step", step)):
        seconds = timer.alternate(
            {name: partial(run, score) for name, score in scorers.items()}, options.repeats
        )
        rows += [
            faster(
                f"{label}, {size} B {sizes[2]}: packed vs {other}",
                seconds["packed"],
                seconds[other],
                floor_ratio=floors[other],
                goal=goals.get(other) if run is step else None,
            )
            for other in others
        ]
    memory = {
        name: peak_mebibytes(partial(step, score), options.device)
        for name, score in scorers.items()
    }
    return rows + [
        less_memory(
            f"memory, {size} B {sizes[2]}: packed vs {other}", memory["packed"], memory[other]
        )
        for other in others
    ]


def compare_references(
    lm: nn.Module, examples: Examples, timer: Timer, options: argparse.Namespace
) -> list[Row]:
    """Compare a step with cached reference log-probabilities with one that computes them."""
    reference = examples.candidates * 0.0

    def step(computed: bool) -> None:
        lm.zero_grad()
        known = reference
        if computed:
            with torch.no_grad(), reference_context(lm):
                known = logps_of(packed_logps, lm, examples)
        loss_of(logps_of(packed_logps, lm, examples) - known).backward()

    seconds = timer.alternate(
        {"cached": partial(step, False), "computed": partial(step, True)}, options.repeats
    )
    name = "train step, P 128 C 64: reference from the cache vs by disabling the adapter"
    return [faster(name, seconds["cached"], seconds["computed"])]


def compare_parts(
    lm: nn.Module, examples: Examples, timer: Timer, options: argparse.Namespace
) -> list[Row]:
    """Compare one long example in parts of its candidates with all at once: time and memory."""
    packed = examples.prompts.lengths, examples.candidates, examples.catalogue.items
    budget = int(packed_lengths(*packed).max()) // 2
    parts = split_candidates(*packed, budget)

    def whole() -> Tensor:
        return logps_of(packed_logps, lm, examples)

    def in_parts() -> Tensor:
        prompts, catalogue = examples.prompts, examples.catalogue
        scored = [
            checkpoint(packed_logps, lm, prompts, part, catalogue, use_reentrant=False)
            for part in parts
        ]
        return torch.cat(scored, 1)

    def step(score: Callable[[], Tensor]) -> None:
        lm.zero_grad()
        loss_of(score()).backward()

    gradients = []
    trained = [p for p in lm.parameters() if p.requires_grad]
    for score in (in_parts, whole):
        gradients.append(torch.autograd.grad(loss_of(score()), trained))
    for ours, other in zip(*gradients, strict=True):
        error = (ours - other).norm() / other.norm().clamp(min=1e-6)
        assert error < TOLERANCE[options.dtype], f"parts differ from the whole by {error:.1e}"
    seconds = timer.alternate(
        {"parts": partial(step, in_parts), "whole": partial(step, whole)}, options.repeats
    )
    name = f"P 128 C 64: in {len(parts)} parts of {budget} tokens vs at once"
    return [
        faster(f"train step, {name}", seconds["parts"], seconds["whole"]),
        less_memory(
            f"memory, {name}",
            peak_mebibytes(partial(step, in_parts), options.device),
            peak_mebibytes(partial(step, whole), options.device),
        ),
    ]


def compare_lengths(timer: Timer, options: argparse.Namespace) -> list[Row]:
    """A supervised step of `tiny` as it is against one padded batch through all of its layer.

    The default shape: one layer of 256, 64 examples, titles as tokens, prompts of titles alone with
    lengths like those on ml-100k, and a teacher's target over the catalogue. The operations allow a
    ratio to which neither padding, nor hidden attention, nor a position that nothing reads
    contributes: that figure over the measured ratio is the step's time over its floor.
    """
    n, hidden, vocabulary, n_titles, longest = 64, 256, 3663, 1664, 104
    lm, _ = make_tiny_backbone(["a"], hidden_size=hidden, num_layers=1, num_heads=4, seed=0)
    lm.resize_token_embeddings(vocabulary, mean_resizing=False)
    lm = lm.to(options.device, DTYPES[options.dtype]).train()
    generator = torch.Generator().manual_seed(0)
    n_shown = torch.empty(n).log_normal_(3.1, 0.9, generator=generator).long().clamp(1, 96)
    n_prompt = 8 + n_shown
    examples = Examples(
        Prompts(torch.randint(0, n_titles, (n, longest), generator=generator), n_prompt),
        torch.arange(n_titles + 1).expand(n, -1),
        ItemCatalogue.build(ItemTokens.from_lists([[], *([token] for token in range(n_titles))])),
    ).to(options.device)
    scores = torch.randn(n, n_titles + 1, generator=generator).index_fill_(
        1, torch.tensor([0]), -torch.inf
    )
    target = scores.softmax(1).to(options.device)
    part_cost = PART_COST_CPU if options.device == "cpu" else PART_COST
    groups = length_buckets(n_prompt, max_rows=n, max_tokens=0, part_tokens=part_cost / hidden**2)

    def gradient(groups: list[Tensor], can_skip: bool) -> Tensor:
        lm.zero_grad()
        parts = parts_of(lm)
        with mock.patch.object(packed, "parts_of", lambda _: replace(parts, can_skip=can_skip)):
            for rows in (group.to(options.device) for group in groups):
                prompts, candidates = examples.prompts.select(rows), examples.candidates[rows]
                scored = OneTokenExamples.of(prompts, candidates, examples.catalogue)
                (-(target[rows] * scored.logps(lm)).sum() / n).backward()
        return torch.cat([p.grad.flatten() for p in lm.parameters() if p.grad is not None])

    ours = partial(gradient, groups, parts_of(lm).can_skip)
    whole = partial(gradient, [torch.arange(n)], False)
    expected = whole()
    error = (ours() - expected).norm() / expected.norm()
    assert error < TOLERANCE[options.dtype], f"parts differ from the whole by {error:.1e}"
    seconds = timer.alternate({"ours": ours, "whole": whole}, options.repeats)
    # multiplications of the forward pass: keys and values of a token, the rest of its layer, and
    # two products of attention per pair of a query and a key
    lengths, width = n_prompt.double(), lm.config.intermediate_size
    keys, rest = 2 * hidden**2, 2 * hidden**2 + 3 * hidden * width
    padded = n * (longest * (keys + rest) + 2 * hidden * longest**2 + vocabulary * hidden)
    floor = float(lengths.sum()) * (keys + 2 * hidden) + n * (rest + n_titles * hidden)
    return [
        faster(
            f"train step of tiny, {n} examples: parts, its layer at read positions vs whole",
            seconds["ours"],
            seconds["whole"],
            floor_ratio=padded / floor,
        )
    ]


def less_memory(name: str, ours: float, other: float) -> Row:
    """Make a row of peak memory."""
    return Row(name, ours, other, "MiB", other / ours)


def logps_of(score: Callable[..., Tensor], lm: nn.Module, examples: Examples) -> Tensor:
    """Log-probabilities [B, C] by one scorer."""
    return score(lm, examples.prompts, examples.candidates, examples.catalogue)


def loss_of(logps: Tensor) -> Tensor:
    """Mult-DPO of the first quarter of the candidates over the others.

    The reference is a constant, so that its forward pass, equal on all sides, is not timed.
    """
    n_positives = max(logps.shape[1] // 4, 1)
    levels = torch.zeros_like(logps, dtype=torch.long)
    levels[:, :n_positives] = 1
    reference = logps.detach() - 0.1
    return preference_loss("mult_dpo", logps, reference, levels, 0.1).mean()


def assert_equal(
    lm: nn.Module,
    examples: Examples,
    scorers: dict[str, Callable[..., Tensor]],
    tolerance: float,
) -> None:
    """Check that all scorers give the log-probabilities and the gradient of the first one."""
    trained = [p for p in lm.parameters() if p.requires_grad]
    expected: list[Tensor] = []
    for name, score in scorers.items():
        logps = logps_of(score, lm, examples)
        found = [logps.detach(), *torch.autograd.grad(loss_of(logps), trained)]
        expected = expected or found
        for ours, other in zip(expected, found, strict=True):
            error = (ours - other).norm() / ours.norm().clamp(min=1e-6)
            assert error < tolerance, f"{name} differs from the packed scorer by {error:.1e}"


def compare_heads(timer: Timer, options: argparse.Namespace) -> list[Row]:
    """The frozen LM head at Qwen's vocabulary: recomputed chunks against plain logits."""
    n_rows = 4096 if options.device == "cuda" else 384
    generator = torch.Generator().manual_seed(0)
    dtype = DTYPES[options.dtype]
    head = nn.Linear(BIG_HIDDEN, BIG_VOCABULARY, bias=False, device=options.device, dtype=dtype)
    head.requires_grad_(False)
    hidden = torch.randn(n_rows, BIG_HIDDEN, generator=generator).to(options.device, dtype)
    hidden.requires_grad_()
    tokens = torch.randint(0, BIG_VOCABULARY, (n_rows,), generator=generator).to(options.device)
    row_of = torch.arange(n_rows, device=options.device)

    def chunked() -> Tensor:
        logps = head_logps(hidden, head, row_of, tokens)
        return torch.autograd.grad(logps.sum(), hidden)[0]

    def plain() -> Tensor:
        logits = head(hidden).float()
        logps = logits.gather(1, tokens[:, None])[:, 0] - logits.logsumexp(1)
        return torch.autograd.grad(logps.sum(), hidden)[0]

    expected = plain()
    error = (chunked() - expected).norm() / expected.norm()
    assert error < TOLERANCE[options.dtype], f"the heads' gradients differ by {error:.1e}"
    seconds = timer.alternate({"chunked": chunked, "plain": plain}, options.repeats)
    name = f"head, {n_rows} rows, vocabulary {BIG_VOCABULARY}: chunked vs plain logits"
    return [
        faster(f"train step of the {name}", seconds["chunked"], seconds["plain"]),
        less_memory(
            f"memory of the {name}",
            peak_mebibytes(chunked, options.device),
            peak_mebibytes(plain, options.device),
        ),
    ]


if __name__ == "__main__":
    main()
