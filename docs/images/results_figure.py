"""Draw test NDCG@k of finished runs: `python docs/images/results_figure.py OUT.png RUN_FOLDER ...`.

Runs of the same model and loss are averaged over their seeds. Needs matplotlib.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

MARKERS = "osD^vP*Xhd"


def label(result: dict) -> str:
    """'EASE', or 'LLMRec mult_dpo'; zero-shot is SFT without an epoch."""
    if result["model"] != "LLMRec":
        return result["model"]
    zero_shot = "--sft_epochs=0" in result["command"]
    return "LLMRec zero-shot" if zero_shot else f"LLMRec {result['loss']}"


def main(output: str, folders: list[str]) -> None:
    """Read `result.json` of every folder and draw one line per model."""
    curves: dict[str, list[list[float]]] = defaultdict(list)
    cutoffs: list[int] = []
    for folder in folders:
        result = json.loads((Path(folder) / "result.json").read_text())
        test = {k: v for k, v in result["test_result"].items() if k.startswith("ndcg@")}
        cutoffs = [int(name.split("@")[1]) for name in test]
        curves[label(result)].append(list(test.values()))
    figure, axes = plt.subplots(figsize=(7, 4.2))
    ordered = sorted(curves.items(), key=lambda item: -np.mean(item[1]))
    for (name, runs), marker in zip(ordered, MARKERS, strict=False):
        ours = name.startswith("LLMRec")
        axes.plot(
            cutoffs,
            np.mean(runs, axis=0),
            marker=marker,
            linestyle="-" if ours else "--",
            color="black" if ours else "0.55",
            label=f"{name} ({len(runs)} seed{'s' if len(runs) > 1 else ''})",
        )
    axes.set(xlabel="k", ylabel="NDCG@k on test, full catalogue", xticks=cutoffs, ylim=(0, None))
    axes.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    figure.savefig(output, dpi=130, bbox_inches="tight")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
