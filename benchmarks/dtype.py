"""Train and rank in bfloat16 and in float32 side by side: seconds, losses, lists.

`python -m benchmarks.dtype --backbone=smollm2` makes the same steps on the same batches of ml-100k
with two copies of the model, in turn: supervised fine-tuning, then Mult-DPO. Both then rank the
same users; of some, every item is scored along the trie too, which says how far two exact ways of
computing are apart within a type. In a row bfloat16 is `ours` and float32 `other`.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from benchmarks.common import Row, Timer, arguments, faster, report
from recbole_multdpo import compat
from recbole_multdpo.data.batch import SetwiseBatch

BOTH = ("bfloat16", "float32")
STAGES = {"sft": "sft", "preference": "mult_dpo"}  # name to loss


class Side:
    """The model in one type, with its data, and what came of it."""

    def __init__(self, dtype: str, options: argparse.Namespace, folder: Path) -> None:
        from recbole_multdpo.data.dataset import LLMRecDataset
        from recbole_multdpo.model.llmrec import LLMRec
        from recbole_multdpo.ranking import make_ranker
        from recbole_multdpo.runs.load import load_dataset, split_dataset
        from recbole_multdpo.settings.config import load_config

        self.folder = folder / dtype
        self.config = load_config(
            [
                "--model=LLMRec",
                "--dataset=ml-100k",
                f"--backbone={options.backbone}",
                f"--dtype={dtype}",
                f"--device={options.device}",
                f"--sft_batch_size={options.batch}",
                f"--train_batch_size={options.batch}",
                f"--run_dir={self.folder}",
                "--show_progress=False",
                *options.settings,
            ]
        )
        self.parts = split_dataset(self.config, load_dataset(self.config, LLMRecDataset))
        self.model = LLMRec(self.config, self.parts[0]).to(self.config["device"])
        self.ranker = make_ranker(self.model, self.model.histories)

    def start(self, name: str) -> None:
        """Begin a stage."""
        from recbole_multdpo.training.step import Stage
        from recbole_multdpo.training.trainer import SetwiseTrainer

        if name == "preference":
            self.model.start_preference_stage(STAGES[name])
        rate = "sft_learning_rate" if name == "sft" else "learning_rate"
        stage = Stage(name, 1, self.config[rate], 0)
        self.trainer = SetwiseTrainer(self.config, self.model, stage, self.folder, self.ranker)

    def batches(self, name: str) -> Iterator[SetwiseBatch]:
        """The batches of a stage's first epoch, on the device."""
        from recbole_multdpo.training.stages import train_loader

        size = self.config["train_batch_size"]
        loader = train_loader(self.config, self.model, self.parts[0], STAGES[name], size)
        loader.set_epoch(0, 0)
        return (batch.to(self.model.device) for batch in loader)

    def excluded(self, users: Tensor) -> Tensor:
        """Training items of users [U]: bool [U, n_items]."""
        excluded = torch.zeros(len(users), self.model.n_items, dtype=torch.bool)
        for row, user in enumerate(users.tolist()):
            excluded[row, torch.from_numpy(self.model.histories.history(user))] = True
        return excluded.to(self.model.device)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = arguments(__doc__ or "")
    parser.add_argument("--backbone", default="smollm2", help="as the setting of this name")
    parser.add_argument("--steps", type=int, default=4, help="of each stage; the first warms up")
    parser.add_argument("--batch", type=int, default=4, help="examples per step")
    parser.add_argument("--users", type=int, default=32, help="that are ranked")
    parser.add_argument("--rank_batch", type=int, default=4, help="users ranked together")
    parser.add_argument("--whole_users", type=int, default=1, help="of these, along the trie too")
    parser.add_argument("--settings", nargs=argparse.REMAINDER, default=[])
    options = parser.parse_args(argv)
    compat.apply()
    timer = Timer(options.device, options.threads)
    with tempfile.TemporaryDirectory() as folder:
        sides = {dtype: Side(dtype, options, Path(folder)) for dtype in BOTH}
        rows = [row for name in STAGES for row in training(name, sides, timer, options)]
        rows += ranking(sides, timer, options)
    options.dtype = " against ".join(BOTH)
    report(rows, options)


def training(
    name: str, sides: dict[str, Side], timer: Timer, options: argparse.Namespace
) -> list[Row]:
    """Steps of a stage, each by both sides in turn."""
    made: dict[str, list[tuple[float, float]]] = {dtype: [] for dtype in BOTH}
    for side in sides.values():
        side.start(name)
        side.model.train()
    both = zip(*(sides[dtype].batches(name) for dtype in BOTH), strict=True)
    for number, batches in enumerate(islice(both, options.steps), start=1):
        for dtype, batch in zip(BOTH, batches, strict=True):
            metrics: dict[str, float] = {}
            step = partial(sides[dtype].trainer.step.run, batch, number)
            seconds = timer(lambda: metrics.update(step()))  # noqa: B023
            made[dtype].append((seconds, metrics["loss"]))
    for side in sides.values():
        side.trainer.engine.finish()
    ours, other = ([seconds for seconds, _ in made[dtype][1:]] for dtype in BOTH)
    rows = [faster(f"{STAGES[name]} step, {options.batch} examples", ours, other)]
    for number in (0, -1):
        losses = [made[dtype][number][1] for dtype in BOTH]
        which = "first" if number == 0 else "last"
        rows.append(beside(f"{STAGES[name]} loss, {which} step", losses, "nats"))
    return rows


def ranking(sides: dict[str, Side], timer: Timer, options: argparse.Namespace) -> list[Row]:
    """Lists of the same users by both sides, and two ways of scoring within each."""
    from recbole_multdpo.scoring.topk import TopK, stable_topk
    from recbole_multdpo.scoring.trie_scores import trie_scores

    test, k = sides["float32"].parts[2], max(sides["float32"].config["topk"])
    tested, items = (test.inter_feat[name] for name in (test.uid_field, test.iid_field))
    users = tested.unique()
    users = users[torch.randperm(len(users), generator=torch.Generator().manual_seed(0))]
    users = users[: options.users]
    answers = pad_sequence([items[tested == user] for user in users], batch_first=True)
    seconds: dict[str, list[float]] = {dtype: [] for dtype in BOTH}
    lists: dict[str, list[TopK]] = {dtype: [] for dtype in BOTH}
    for side in sides.values():
        side.model.merge_adapter()
        side.model.eval()
    for part in users.split(options.rank_batch):
        for dtype, side in sides.items():
            placed, excluded = part.to(side.model.device), side.excluded(part)
            rank = partial(side.ranker.topk, placed, excluded, k)
            spent = timer(lambda: lists[dtype].append(rank()))  # noqa: B023
            seconds[dtype].append(spent / len(part))
    name = f"ranking, K {k}:"
    rows = [faster(f"{name} a user", *(seconds[dtype] for dtype in BOTH))]
    found = {dtype: torch.cat([top.items for top in lists[dtype]]).cpu() for dtype in BOTH}
    nodes = [float(torch.cat([top.expanded for top in lists[t]]).double().mean()) for t in BOTH]
    gains = [ndcg(found[dtype], answers) for dtype in BOTH]
    rows += [
        beside(f"{name} expanded nodes", nodes, "nodes"),
        beside(f"{name} NDCG of {len(users)} users", gains, ""),
        shared(f"{name} both types", found["bfloat16"], found["float32"]),
    ]
    for dtype, side in sides.items():
        part = users[: options.whole_users]
        model = side.model
        with torch.no_grad():
            prompts = side.ranker.prompts(part)
            every = trie_scores(model.lm, model.catalogue, prompts)
        every = every.masked_fill(side.excluded(part), -torch.inf)
        listed = torch.cat([top.scores for top in lists[dtype]])[: len(part)]
        again = every.gather(1, found[dtype][: len(part)].to(every.device))
        apart = float((again - listed).abs().max())
        rows += [
            shared(
                f"{name} {dtype}, search and whole trie",
                found[dtype][: len(part)],
                stable_topk(every, k)[0].cpu(),
            ),
            Row(f"{name} {dtype}, scores of these two apart", apart, 0.0, "nats", float("nan")),
        ]
    return rows


def shared(name: str, ours: Tensor, other: Tensor) -> Row:
    """A row of the places [U, k] of `ours` whose item is in the other list of the user."""
    inside = (ours[:, :, None] == other[:, None]).any(-1).double().mean()
    return Row(f"{name}: items in both lists", float(inside), 1.0, "share", float(inside))


def ndcg(lists: Tensor, answers: Tensor) -> float:
    """Mean NDCG of lists [U, k] for answers [U, T], 0 being padding."""
    hits = ((lists[:, :, None] == answers[:, None]) & (lists[:, :, None] > 0)).any(-1)
    discounts = 1 / torch.arange(2, lists.shape[1] + 2).double().log2()
    n_answers = (answers > 0).sum(1).clamp(max=lists.shape[1])
    best = discounts.cumsum(0)[n_answers - 1]
    return float(((hits * discounts).sum(1) / best).mean())


def beside(name: str, values: list[float], unit: str) -> Row:
    """A row of bfloat16's value and float32's, and their quotient."""
    ours, other = values
    return Row(name, ours, other, unit, ours / other if other else float("nan"))


if __name__ == "__main__":
    main()
