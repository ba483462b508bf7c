"""A small data set with a known structure: users like the films of one genre."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from recbole_multdpo.errors import ConfigError
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.settings.effects import idle, in_run
from recbole_multdpo.settings.language_models import LANGUAGE_MODELS
from recbole_multdpo.training.price import Pricing

N_USERS, N_ITEMS = 24, 30
WORDS = ("Night", "River", "Moon", "Stone", "Winter")

COMPARISON = ("seeds", "vary", "tune", "trials", "jobs", "baseline", "resume")

# a model small enough that a run takes seconds
SMALL = [
    "--model=LLMRec",
    "--dataset=toy",
    "--device=cpu",
    "--num_threads=1",
    "--show_progress=False",
    "--dtype=float32",  # of pretrained backbones too, on any machine
    "--tiny_hidden_size=32",
    "--tiny_num_layers=1",
    "--tiny_num_heads=2",
    "--tiny_vocab_size=300",
    "--max_targets=3",
    "--num_negatives=5",
    "--sft_epochs=1",
    "--epochs=2",
    "--train_batch_size=8",
    "--sft_batch_size=8",
    "--valid_users=0",
    "--eval_on_start=False",  # what is compared shall be trained, even where it is not better
    "--topk=[2, 5]",
    "--valid_metric=NDCG@5",
]


# what all small runs of RecBole's models have in common
CLASSICAL = [
    "--dataset=toy",
    "--device=cpu",
    "--show_progress=False",
    "--topk=[2, 5]",
    "--valid_metric=NDCG@5",
]
COLUMNS = "--load_col={'inter': ['user_id', 'item_id', 'rating', 'timestamp'], 'item': ['item_id']}"


def write_toy(parent: Path) -> Path:
    """Write `toy/toy.inter` and `toy/toy.item` below `parent`; returns `parent` for --data_path."""
    rng = np.random.default_rng(0)
    folder = parent / "toy"
    folder.mkdir(parents=True)
    items = ["item_id:token\tmovie_title:token_seq\trelease_year:token"]
    for item in range(N_ITEMS):
        genre = ("Red", "Blue", "Green")[item % 3]
        items.append(f"i{item}\t{genre} {WORDS[item % 5]} {item // 15}\t{1990 + item}")
    (folder / "toy.item").write_text("\n".join(items) + "\n", encoding="utf-8")
    rows = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for user in range(N_USERS):
        liked = rng.choice(np.arange(user % 3, N_ITEMS, 3), size=8, replace=False)
        others = rng.choice(np.arange((user + 1) % 3, N_ITEMS, 3), size=3, replace=False)
        for time, item in enumerate([*liked, *others]):
            rows.append(f"u{user}\ti{item}\t{5 if item in liked else 4}\t{time}")
    (folder / "toy.inter").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return parent


def toy_arguments(data_path: Path, run_dir: Path, *extra: str) -> list[str]:
    """The arguments of a small run; a later argument replaces an earlier one of the same key."""
    arguments = [
        *SMALL,
        *([] if "--context=conversation" in extra else ["--max_history=6"]),
        "--item_text_fields=[movie_title]",
        "--item_year_field=release_year",
        COLUMNS,
        f"--data_path={data_path}",
        f"--run_dir={run_dir}",
        f"--sft_cache_dir={run_dir.parent / 'cache'}",
        *extra,
    ]
    by_key = {argument.split("=", 1)[0]: argument for argument in arguments}
    return acting(list(by_key.values()), extra)


def acting(arguments: Sequence[str], extra: Sequence[str] = ()) -> list[str]:
    """The arguments without those, `extra` apart, that have no effect: they would be refused."""
    by_key = {argument.split("=", 1)[0]: argument for argument in arguments}
    models, losses = (by_key.get(f"--{key}", "").split("=", 1)[-1] for key in ("model", "loss"))
    systems = [(model, loss) for model in models.split(",") for loss in losses.split(",")]
    small = {key: text for key, text in by_key.items() if text not in extra}
    unused = set.intersection(
        *(_without_effect(by_key, *system) or _without_effect(small, *system) for system in systems)
    )  # of what is wrong on purpose the rest counts
    unused -= set(COMPARISON)
    return [text for key, text in by_key.items() if text in extra or key[2:] not in unused]


def _without_effect(by_key: Mapping[str, str], model: str, loss: str) -> set[str]:
    settings = {key[2:]: text.split("=", 1)[1] for key, text in by_key.items()}
    settings |= {"model": model, **({"loss": loss} if loss else {})}
    foreign = set(COMPARISON)
    if model not in LANGUAGE_MODELS:
        foreign |= {key for kind in LANGUAGE_MODELS.values() for key in kind.model_fields}
    known = {key: text for key, text in settings.items() if key not in foreign and "." not in key}
    try:
        config = load_config([], config_dict=known)
    except ConfigError:
        return set()
    return foreign | idle(in_run(config.final_config_dict, config.settings), known, model)


def classical_arguments(model: str, data_path: Path, run_dir: Path, *extra: str) -> list[str]:
    """The arguments of a small run of one of RecBole's models; later arguments replace earlier."""
    where = [f"--data_path={data_path}", f"--run_dir={run_dir}"]
    arguments = [f"--model={model}", *CLASSICAL, COLUMNS, *where, *extra]
    return list({argument.split("=", 1)[0]: argument for argument in arguments}.values())


def cut_short(arguments: list[str], stage: str = "preference", epoch: int | None = None) -> None:
    """A run that is interrupted after an epoch of a stage; None for the first one."""
    from recbole_multdpo.quick_start import run
    from recbole_multdpo.training.trainer import SetwiseTrainer

    save_epoch = SetwiseTrainer._save_epoch

    def interrupting(trainer: SetwiseTrainer) -> None:
        save_epoch(trainer)
        if trainer.stage.name == stage and epoch in (None, trainer.position.epoch):
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SetwiseTrainer, "_save_epoch", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(arguments)


def toy_runs(folder: Path, named: Mapping[str, Sequence[str]]) -> Path:
    """Run the command on the toy data once per name with its arguments; `folder` holds the runs."""
    from recbole_multdpo.quick_start import run

    data = write_toy(folder / "data")
    for name, extra in named.items():
        run(toy_arguments(data, folder / name, *extra))
    return folder


def toy_model(data_path: Path, tmp_path: Path, *extra: str):  # type: ignore[no-untyped-def]
    """(config, parts, model) of the toy data set, untrained."""
    from recbole_multdpo.data.dataset import LLMRecDataset
    from recbole_multdpo.runs.load import load_dataset, split_dataset
    from recbole_multdpo.settings.config import load_config

    config = load_config(toy_arguments(data_path, tmp_path / "run", *extra))
    parts = split_dataset(config, load_dataset(config, LLMRecDataset))
    return config, parts, config.model_class(config, parts[0])


def without_price(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs skip the expected time, for tests that count steps or rankings."""
    monkeypatch.setattr(Pricing, "price", lambda *_: None)
