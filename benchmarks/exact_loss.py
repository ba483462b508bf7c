"""Measure the error of the exact Plackett-Luce loss, and its share of a training step.

    python -m benchmarks.exact_loss [--json FILE] [--contexts 100] [--repeats 7]

Error: positives' and negatives' log-ratios uniform on ±spread, 50 negatives, against the same
integral in float64 with 512 nodes, which tests/losses/test_plackett_luce.py compares with exact
arithmetic. Values relative to max(1, |log P|), gradients to max(1, largest entry), the worst of all
examples.

Share: one training step of the tiny backbone (1 million parameters, 8 examples, prompts of 128
tokens, candidates of 6) with Mult-DPO and with PL-DPO in turn, and both losses alone, forward and
backward; medians.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from recbole_multdpo.data.batch import Prompts
from recbole_multdpo.data.item_tokens import ItemTokens
from recbole_multdpo.losses import preference_loss
from recbole_multdpo.losses.plackett_luce import set_preference_logp
from recbole_multdpo.model.tiny import make_tiny_backbone
from recbole_multdpo.runs.folder import hardware
from recbole_multdpo.runtime.durable_files import write_atomically
from recbole_multdpo.scoring.catalogue import ItemCatalogue
from recbole_multdpo.scoring.packed import packed_logps

N_NEGATIVES = 50
SIZES = (2, 5, 20, 50, 100, 200)
SPREADS = (3.0, 80.0)
NODES = (16, 24, 32, 48, 64, 96)
STEP_SIZES = (5, 20, 100)
N_EXAMPLES, PROMPT_TOKENS, ITEM_TOKENS, VOCABULARY = 8, 128, 6, 4000


def error_rows(n_examples: int) -> list[dict[str, Any]]:
    """Worst error of value and gradient by N, spread, K and dtype."""
    generator = torch.Generator().manual_seed(0)
    rows = []
    for n in SIZES:
        for spread in SPREADS:
            s = (2 * torch.rand(n_examples, n + N_NEGATIVES, generator=generator) - 1) * spread
            exact, exact_gradient = logp_and_gradient(s.double(), n, 512)
            for dtype in (torch.float32, torch.float64):
                for nodes in NODES:
                    logp, gradient = logp_and_gradient(s.to(dtype), n, nodes)
                    value_error = (logp - exact).abs() / exact.abs().clamp(min=1)
                    largest = exact_gradient.abs().amax(-1, keepdim=True).clamp(min=1)
                    rows.append(
                        {
                            "measurement": "error",
                            "n_positives": n,
                            "spread": spread,
                            "dtype": str(dtype).removeprefix("torch."),
                            "nodes": nodes,
                            "value_error": float(value_error.max()),
                            "gradient_error": float(
                                ((gradient - exact_gradient).abs() / largest).max()
                            ),
                        }
                    )
    return rows


def logp_and_gradient(s: Tensor, n_positives: int, nodes: int) -> tuple[Tensor, Tensor]:
    """log P_PL [B] and its gradient [B, C], the first columns being positive; float64."""
    s = s.detach().requires_grad_()
    positives = (torch.arange(s.shape[1]) < n_positives).expand_as(s)
    logp = set_preference_logp(s, positives, ~positives, nodes)
    (gradient,) = torch.autograd.grad(logp.sum(), s)
    return logp.detach().double(), gradient.double()


def step_rows(repeats: int) -> list[dict[str, Any]]:
    """Seconds of a training step and of the loss in it, by N."""
    torch.manual_seed(0)
    texts = [f" {hash_}" for hash_ in torch.randint(10**9, (4 * VOCABULARY,)).tolist()]
    lm, tokenizer = make_tiny_backbone(texts, num_layers=2, vocab_size=VOCABULARY, seed=0)
    return [step_row(lm, len(tokenizer), n, repeats) for n in STEP_SIZES]


def step_row(lm: nn.Module, vocabulary: int, n: int, repeats: int) -> dict[str, Any]:
    """Seconds with N = n positives."""
    n_candidates = n + N_NEGATIVES
    ids = torch.randint(3, vocabulary, (n_candidates + 1, ITEM_TOKENS)).tolist()
    catalogue = ItemCatalogue.build(ItemTokens.from_lists([[], *ids[1:]]))
    prompt_ids = torch.randint(3, vocabulary, (N_EXAMPLES, PROMPT_TOKENS))
    prompts = Prompts(prompt_ids, torch.full((N_EXAMPLES,), PROMPT_TOKENS))
    candidates = torch.arange(1, n_candidates + 1).expand(N_EXAMPLES, -1)
    levels = (torch.arange(n_candidates) < n).long().expand(N_EXAMPLES, -1)
    with torch.no_grad():
        reference = packed_logps(lm, prompts, candidates, catalogue)
    leaf = reference.clone().requires_grad_()

    def loss(name: str, logps: Tensor) -> None:
        preference_loss(name, logps, reference, levels, 1.0).mean().backward()

    def step(name: str) -> None:
        lm.zero_grad()
        loss(name, packed_logps(lm, prompts, candidates, catalogue))

    tasks: dict[str, Callable[[], None]] = {}
    for name in ("mult_dpo", "pl_dpo"):
        tasks[f"step_{name}"] = partial(step, name)
        tasks[f"loss_{name}"] = partial(loss, name, leaf)
    seconds = alternating_medians(tasks, repeats)
    return {
        "measurement": "step",
        "n_positives": n,
        **{f"{name}_seconds": value for name, value in seconds.items()},
        "pl_dpo_share": seconds["loss_pl_dpo"] / seconds["step_pl_dpo"],
    }


def alternating_medians(tasks: dict[str, Callable[[], None]], repeats: int) -> dict[str, float]:
    """Median seconds of each task; they take turns, after one unmeasured round."""
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    for repeat in range(repeats + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if repeat:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def error_table(rows: list[dict[str, Any]]) -> str:
    """Rows of `error_rows` as a Markdown table: value error / gradient error by K."""
    lines = [
        "| N | log-ratios | dtype | " + " | ".join(f"K = {nodes}" for nodes in NODES) + " |",
        "|---|---|---|" + "---|" * len(NODES),
    ]
    cells: dict[tuple[Any, ...], list[str]] = {}
    for row in rows:
        key = (row["n_positives"], f"±{row['spread']:g}", row["dtype"])
        cells.setdefault(key, []).append(f"{row['value_error']:.0e} / {row['gradient_error']:.0e}")
    lines += [f"| {' | '.join(map(str, key))} | {' | '.join(c)} |" for key, c in cells.items()]
    return "\n".join(lines)


def step_table(rows: list[dict[str, Any]]) -> str:
    """Rows of `step_rows` as a Markdown table, times in milliseconds."""
    columns = ("step_mult_dpo", "step_pl_dpo", "loss_mult_dpo", "loss_pl_dpo")
    lines = [
        "| N | step, mult_dpo | step, pl_dpo | mult_dpo alone | pl_dpo alone | share of pl_dpo |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        times = [f"{1000 * row[f'{name}_seconds']:.1f} ms" for name in columns]
        lines.append(f"| {row['n_positives']} | {' | '.join(times)} | {row['pl_dpo_share']:.2%} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the rows where asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="file for the rows and the hardware")
    parser.add_argument("--contexts", type=int, default=100, help="examples per error")
    parser.add_argument("--repeats", type=int, default=7, help="measured rounds per time")
    arguments = parser.parse_args()
    errors = error_rows(arguments.contexts)
    print(f"Error of value / of gradient, {N_NEGATIVES} negatives\n\n{error_table(errors)}\n")
    steps = step_rows(arguments.repeats)
    print(f"Training step, {N_NEGATIVES} negatives, {torch.get_num_threads()} threads\n")
    print(step_table(steps))
    if arguments.json:
        found = {"rows": errors + steps, "hardware": hardware()}
        write_atomically(arguments.json, json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()
