"""Time the exact top-K of the catalogue: best-first, along the trie, by prompt cache, one by one.

`python -m benchmarks.ranking` trains the tiny model for a few epochs on ml-100k and on a generated
set, and ranks with it; `--run=FOLDER` takes the model of a finished run on ml-100k instead, and
`--titles=FILE` the titles of a MovieLens `movies.csv` for the generated set. All sides rank with
the same weights; their results are asserted to be equal.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks import generated
from benchmarks.common import DTYPES, Row, Timer, arguments, faster, report
from benchmarks.others import kv_scores, naive_logps
from recbole_multdpo import compat
from recbole_multdpo.data.batch import Prompts

N_NAIVE = 32  # items scored one by one; the time is scaled up to the catalogue
SEARCH_GOALS = {"ml-100k": 4.0, "generated": 10.0}  # best-first against trie
TRIE_GOAL = 1.1  # trie against prompt cache
# titles of several tokens, as every pretrained model has them, and short prompts
SHORT_TRAINING = [
    "--tiny_title_tokens=False",
    "--tiny_vocab_size=4000",
    "--max_history=24",
    "--rank_history=24",
    "--max_targets=16",
]


def main() -> None:
    """Run the command."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--run", type=Path, help="run folder of LLMRec on ml-100k")
    parser.add_argument("--titles", type=Path, help="MovieLens movies.csv, may be gzipped")
    parser.add_argument("--items", type=int, default=10_000, help="titles made up without --titles")
    parser.add_argument("--epochs", type=int, default=6, help="of the first stage before ranking")
    parser.add_argument("--users", type=int, default=32, help="ranked by the searches")
    parser.add_argument("--trie-users", type=int, default=4, help="of them, ranked by the trie too")
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--datasets", default="ml-100k,generated")
    options = parser.parse_args()
    options.trie_users = min(options.trie_users, 32)  # rank_batch_users: they are one batch
    timer = Timer(options.device, options.threads)
    rows = []
    compat.apply()
    with tempfile.TemporaryDirectory() as folder:
        for dataset in options.datasets.split(","):
            if dataset == "ml-100k":
                settings = ["--dataset=ml-100k"]
            else:
                titles = (
                    generated.real_titles(options.titles)
                    if options.titles
                    else generated.made_up_titles(options.items)
                )
                data_path = generated.write(Path(folder), titles, 1000, 100_000)
                settings = [*generated.SETTINGS, f"--data_path={data_path}"]
            run_dir = Path(folder) / "runs" / dataset
            run_dir.mkdir(parents=True)  # the trainer writes its logs there
            rows += compare(dataset, settings, run_dir, timer, options)
    report(rows, options)


def compare(
    dataset: str, settings: list[str], folder: Path, timer: Timer, options: argparse.Namespace
) -> list[Row]:
    """Rows of one data set: an untrained model, then a trained one."""
    from recbole_multdpo.data.dataset import LLMRecDataset
    from recbole_multdpo.model.llmrec import LLMRec
    from recbole_multdpo.ranking import make_ranker
    from recbole_multdpo.runs.load import load_dataset, split_dataset
    from recbole_multdpo.settings.config import load_config
    from recbole_multdpo.training.stages import fit_stage, train_loader
    from recbole_multdpo.training.step import Stage
    from recbole_multdpo.training.trainer import SetwiseTrainer

    if options.run and dataset == "ml-100k":
        settings = [
            f"--config_files={options.run / 'config.yaml'}",
            f"--backbone={options.run / 'model'}",
            "--finetune=full",
        ]
    else:
        settings = [*settings, *SHORT_TRAINING]
    config = load_config(
        [
            "--model=LLMRec",
            f"--device={options.device}",
            f"--run_dir={folder}",
            "--show_progress=False",
            "--normalize_over=vocabulary",  # what the other sides compute
            *settings,
        ]
    )
    parts = split_dataset(config, load_dataset(config, LLMRecDataset))
    model = LLMRec(config, parts[0]).to(config["device"])
    users = _users(model, parts, options)
    rows = []
    if not (options.run and dataset == "ml-100k"):
        rows = untrained(dataset, model, users, timer, options)
        stage = Stage("sft", options.epochs, model.settings.sft_learning_rate, 0)
        trainer = SetwiseTrainer(config, model, stage, folder, make_ranker(model, model.histories))
        loader = train_loader(config, model, parts[0], "sft", model.settings.sft_batch_size)
        torch.set_num_threads(os.cpu_count() or 1)  # --threads applies only to the timed part
        fit_stage(trainer, loader, None)
        torch.set_num_threads(options.threads)
    model.lm.to(DTYPES[options.dtype])
    return rows + trained(dataset, model.eval(), users, timer, options)


class Users:
    """Prompts, excluded and test items of some users, in batches of `rank_batch_users`."""

    def __init__(self, model, users: Tensor, test) -> None:  # type: ignore[no-untyped-def]
        self.prompts = model.user_prompts(users, model.histories)
        shape = (len(users), test.item_num)
        self.excluded = torch.zeros(shape, dtype=torch.bool, device=model.device)
        for row, user in enumerate(users.tolist()):
            self.excluded[row, torch.from_numpy(model.histories.history(user))] = True
        self.per_batch = model.settings.rank_batch_users
        tested, items = (test.inter_feat[name] for name in (test.uid_field, test.iid_field))
        self.targets = pad_sequence([items[tested == user] for user in users], batch_first=True)
        self.targets = self.targets.to(model.device)  # 0 is padding

    def batches(self, rows: Tensor) -> list[tuple[Prompts, Tensor, Tensor]]:
        """(prompts, excluded, targets) of the users `rows`, padded batch by batch."""
        return [
            (self.prompts.select(part).trimmed(), self.excluded[part], self.targets[part])
            for part in rows.split(self.per_batch)
        ]


def _users(model, parts, options: argparse.Namespace) -> Users:  # type: ignore[no-untyped-def]
    generator = torch.Generator().manual_seed(0)
    users = 1 + torch.randperm(parts[0].user_num - 1, generator=generator)
    users = users[torch.from_numpy(model.histories.counts)[users] > 0][: options.users]
    return Users(model, users, parts[2])


def untrained(dataset, model, users, timer, options) -> list[Row]:  # type: ignore[no-untyped-def]
    """Flat scores, one user: a search that gives up against a full one, once each."""
    batch = users.batches(users.prompts.lengths.argsort()[:1])
    found, seconds, expanded = [], [], []
    for max_expanded in (None, model.catalogue.trie.num_internal):

        def search(limit: int | None = max_expanded) -> None:
            items, nodes = best_first(model, batch, options.k, max_expanded=limit)
            found.append(items)
            expanded.append(int(nodes))

        seconds.append(timer(search))
    assert found[0].equal(found[1]), "giving up changes the ranking"
    share = expanded[1] / model.catalogue.trie.num_internal
    name = f"ranking {dataset}, untrained (expands {share:.0%}): giving up vs to the end"
    return [per_user(faster(name, seconds[:1], seconds[1:]))]


def trained(dataset, model, users, timer, options) -> list[Row]:  # type: ignore[no-untyped-def]
    """All sides with a trained model, seconds per user."""
    from recbole_multdpo.scoring.topk import stable_topk
    from recbole_multdpo.scoring.trie_scores import trie_scores

    k, catalogue = options.k, model.catalogue
    trie, items = catalogue.trie, catalogue.items
    by_length = users.prompts.lengths.argsort()
    middle = by_length[len(by_length) // 2]
    batches, shuffled = users.batches(by_length), users.batches(torch.arange(len(by_length)))
    first = max(len(by_length) - options.trie_users, 0) // 2
    one = users.batches(by_length[first:][: options.trie_users])  # prompts of medium length
    prompts, excluded, _ = one[0]
    prompt = users.prompts.select(middle[None]).trimmed()

    def along_trie() -> Tensor:
        return trie_scores(model.lm, catalogue, prompts)

    few = torch.randperm(len(items.lengths) - 1, generator=torch.Generator().manual_seed(0))
    few = 1 + few[:N_NAIVE].to(prompt.device)[None]

    @torch.no_grad()
    def naive() -> Tensor:
        return naive_logps(model.lm, prompt, few, catalogue, logits_everywhere=False)

    ranked, expanded = best_first(model, batches, k)
    scores = along_trie()
    expected, _ = stable_topk(scores.masked_fill(excluded, -torch.inf), k)
    assert ranked[first:][: len(expected)].equal(expected), "best-first and trie rank differently"
    to_metrics, fewer = best_first(model, batches, k, to_metrics=True)
    targets = users.targets[by_length]
    assert hits(to_metrics, targets).equal(hits(ranked, targets)), "the metrics would differ"
    by_cache = kv_scores(model.lm, prompt, items)
    alone = trie_scores(model.lm, catalogue, prompt)[0]
    assert (by_cache - alone)[1:].abs().max() < 1e-2, "prompt cache and trie score differently"
    assert (naive()[0] - alone[few[0]]).abs().max() < 1e-2, "naive and trie score differently"

    seconds = timer.alternate(
        {
            "best_first": lambda: best_first(model, batches, k),
            "shuffled": lambda: best_first(model, shuffled, k),
            "to metrics": lambda: best_first(model, batches, k, to_metrics=True),
            "one batch": lambda: best_first(model, one, k),
            "trie": along_trie,
            "kv": lambda: kv_scores(model.lm, prompt, items),
            "naive": naive,
        },
        options.repeats,
    )
    n_users, n_one = len(by_length), len(prompts)
    n_expanded = float(expanded[first:][:n_one].double().mean())
    n_items = len(items.lengths) - 1
    name = f"ranking {dataset}, K {k}:"
    scaled = [value * n_items / N_NAIVE for value in seconds["naive"]]
    n_prompt, n_fed = prompt.width, int((items.lengths[1:] - 1).sum())
    internal = trie.num_internal
    rows = [
        per_user(
            faster(
                f"{name} best_first vs trie",
                seconds["one batch"],
                seconds["trie"],
                floor_ratio=internal / n_expanded,
                goal=SEARCH_GOALS[dataset],
            ),
            n_one,
            n_one,
        ),
        per_user(
            faster(f"{name} best_first, users by length vs any order", *pair(seconds)),
            n_users,
            n_users,
        ),
        per_user(
            faster(
                f"{name} best_first, as far as the metrics need vs exact lists",
                seconds["to metrics"],
                seconds["best_first"],
                floor_ratio=float(expanded.sum() / fewer.sum().clamp(min=1)),
            ),
            n_users,
            n_users,
        ),
        per_user(
            faster(
                f"{name} trie vs kv, items by length",
                [value / n_one for value in seconds["trie"]],
                seconds["kv"],
                floor_ratio=(n_prompt + n_fed) / (n_prompt + internal),
                goal=TRIE_GOAL,
            )
        ),
        per_user(
            faster(
                f"{name} best_first vs naive ({N_NAIVE} of {n_items} items, scaled)",
                [value / n_users for value in seconds["best_first"]],
                scaled,
            )
        ),
    ]
    mean = float(expanded.double().mean())
    rate = rows[1]
    return [
        *rows,
        Row(f"{name} nodes expanded vs internal", mean, internal, "nodes", internal / mean),
        Row(f"{name} rate", 1 / rate.ours, 1 / rate.other, "users/s", rate.ratio),
    ]


def pair(seconds: dict[str, list[float]]) -> tuple[list[float], list[float]]:
    """Best-first over users by length, and over the same users in any order."""
    return seconds["best_first"], seconds["shuffled"]


def hits(items: Tensor, targets: Tensor) -> Tensor:
    """Mask of the places in the lists [U, k] with one of the user's targets [U, T]: bool [U, k]."""
    return (items[:, :, None] == targets[:, None]).any(2) & (items > 0)


def per_user(row: Row, n_ours: int = 1, n_other: int = 1) -> Row:
    """A row of seconds, each side divided by its number of users."""
    return Row(
        row.name,
        row.ours / n_ours,
        row.other / n_other,
        "s/user",
        row.ratio * n_ours / n_other,
        row.floor_ratio,
        row.goal,
    )


def best_first(  # type: ignore[no-untyped-def]
    model, batches, k: int, max_expanded: int | None = None, to_metrics: bool = False
) -> tuple[Tensor, Tensor]:
    """Items [U, k] and nodes expanded [U] of all batches."""
    from recbole_multdpo.scoring.best_first import TrieSearch

    found = []
    for prompts, excluded, targets in batches:
        search = TrieSearch(
            model.lm, model.catalogue, prompts, excluded, k, max_expanded=max_expanded
        )
        if to_metrics:
            search.set_targets(targets)
        found.append(search.run(expand_per_step=model.settings.expand_per_step))
    return torch.cat([f.items for f in found]), torch.cat([f.expanded for f in found])


if __name__ == "__main__":
    main()
