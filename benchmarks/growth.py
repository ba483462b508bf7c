"""Measure the growth of costs: a training step with P and C, ranking with the catalogue.

`python -m benchmarks.growth` measures the step; with `--run=FOLDER --titles=FILE`, a finished run
of LLMRec on titles of several tokens and a MovieLens `movies.csv`, also the ranking of the first
titles of the file by that run's model. A row has the seconds of a size and of the smallest size,
their ratio, and as the floor the ratio of the operations.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks import generated
from benchmarks.common import DTYPES, Row, Timer, arguments, report
from benchmarks.training_step import MODELS, Examples, logps_of, loss_of, make_lm
from recbole_multdpo import compat
from recbole_multdpo.scoring.packed import packed_logps

PROMPTS = (64, 128, 256, 512)  # at 16 candidates
CANDIDATES = (8, 16, 32, 64)  # at a prompt of 128
CATALOGUES = (1000, 2500, 5000, 9742)
N_USERS = 16


def main() -> None:
    """Run the command."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--run", type=Path, help="run folder of LLMRec on ml-100k")
    parser.add_argument("--titles", type=Path, help="MovieLens movies.csv, may be gzipped")
    options = parser.parse_args()
    timer = Timer(options.device, options.threads)
    rows = steps([(p, 16) for p in PROMPTS], timer, options)
    rows += steps([(128, c) for c in CANDIDATES], timer, options)
    if options.run and options.titles:
        rows += rankings(timer, options)
    report(rows, options)


def steps(shapes: list[tuple[int, int]], timer: Timer, options: argparse.Namespace) -> list[Row]:
    """Forward and backward of one packed example of each shape (P, C)."""
    hidden, _, vocabulary = MODELS["slim"]
    lm = make_lm("slim", options.device, DTYPES[options.dtype])
    examples = [Examples.draw(*shape, 1, vocabulary).to(options.device) for shape in shapes]

    def step(example: Examples) -> None:
        lm.zero_grad()
        loss_of(logps_of(packed_logps, lm, example)).backward()

    layers = [p for name, p in lm.named_parameters() if ".layers." in name and "lora" not in name]
    body, head = float(sum(p.numel() for p in layers)), float(hidden * vocabulary)
    costs = []
    for example in examples:
        fed = float((example.catalogue.items.lengths[example.candidates] - 1).sum())
        costs.append((example.prompts.width + fed) * body + (1 + fed) * head)
    names = [f"train step, P {p} C {c}" for p, c in shapes]
    functions = {
        name: (lambda example=example: step(example))
        for name, example in zip(names, examples, strict=True)
    }
    return grown(timer.alternate(functions, options.repeats), dict(zip(names, costs, strict=True)))


def rankings(timer: Timer, options: argparse.Namespace) -> list[Row]:
    """Rank the first titles of the file best-first and along the trie; seconds per user."""
    compat.apply()
    from recbole_multdpo.data.dataset import LLMRecDataset
    from recbole_multdpo.data.item_tokens import encode_items
    from recbole_multdpo.model.llmrec import LLMRec
    from recbole_multdpo.runs.load import load_dataset, split_dataset
    from recbole_multdpo.scoring.best_first import TrieSearch
    from recbole_multdpo.scoring.catalogue import ItemCatalogue
    from recbole_multdpo.scoring.trie_scores import trie_scores
    from recbole_multdpo.settings.config import load_config

    with tempfile.TemporaryDirectory() as folder:
        config = load_config(
            [
                "--model=LLMRec",
                f"--device={options.device}",
                f"--run_dir={folder}/run",
                f"--config_files={options.run / 'config.yaml'}",
                f"--backbone={options.run / 'model'}",
                "--finetune=full",
            ]
        )
        model = LLMRec(config, split_dataset(config, load_dataset(config, LLMRecDataset))[0])
    model = model.to(options.device).eval()
    users = torch.from_numpy(model.histories.counts).nonzero()[:, 0]
    users = users[torch.randperm(len(users), generator=torch.Generator().manual_seed(0))[:N_USERS]]
    prompts = model.user_prompts(users, model.histories)
    titles = [generated.split_year(title)[0] for title in generated.real_titles(options.titles)]
    prefix = model.prompts.frame.item_prefix
    searches, costs, tries = {}, {}, {}
    for n_items in CATALOGUES:
        texts = ["", *titles[:n_items]]
        items = encode_items(model.tokenizer, texts, prefix=prefix, max_item_tokens=0)
        catalogue = ItemCatalogue.build(items).to(model.device)

        def best_first(catalogue: ItemCatalogue = catalogue) -> torch.Tensor:
            search = TrieSearch(model.lm, catalogue, prompts, None, 20)
            return search.run(expand_per_step=16).expanded.double().mean()

        def along(catalogue: ItemCatalogue = catalogue) -> None:
            trie_scores(model.lm, catalogue, prompts.split(1)[0].trimmed())

        internal = catalogue.trie.num_internal
        name = f"{n_items} titles, {internal} inner nodes"
        expanded = float(best_first())
        print(f"{name}: {expanded:.0f} expanded per user")
        searches[f"best_first, {name}"], costs[f"best_first, {name}"] = best_first, expanded
        tries[f"along the trie, {name}"] = along
        costs[f"along the trie, {name}"] = internal
    searched = timer.alternate(searches, options.repeats)
    searched = {name: [s / N_USERS for s in seconds] for name, seconds in searched.items()}
    return grown(searched, costs) + grown(timer.alternate(tries, 1), costs)


def grown(seconds: dict[str, list[float]], costs: dict[str, float]) -> list[Row]:
    """Compare increasing sizes with the first one, by medians."""
    medians = {name: sorted(values)[len(values) // 2] for name, values in seconds.items()}
    first = next(iter(medians))
    return [
        Row(name, value, medians[first], "s", value / medians[first], costs[name] / costs[first])
        for name, value in medians.items()
    ]


if __name__ == "__main__":
    main()
