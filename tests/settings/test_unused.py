"""Every setting of RecBole is read by a run, refused, or listed here with the reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import recbole

from recbole_multdpo.classical.run import prepare_classical
from recbole_multdpo.comparison.command import read_request
from recbole_multdpo.comparison.plan import make_plan
from recbole_multdpo.errors import ConfigError
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.load import load_parts
from recbole_multdpo.settings.conditions import FEATURES, KNOWLEDGE, SEQUENCES
from recbole_multdpo.settings.config import Config, load_config, settings_of
from recbole_multdpo.settings.effects import declared
from recbole_multdpo.settings.recbole import RecBoleSettings
from recbole_multdpo.settings.text import read_settings_file
from tests.data.test_times import arguments, pairs, shuffled_rows, write
from tests.integration.toy import toy_arguments, write_toy

IN_TIME = "--eval_args={'order': 'TO'}"
LABELLED = [
    "--metrics=[AUC]",
    "--valid_metric=AUC",
    "--eval_args={'mode': 'labeled'}",
    "--train_neg_sample_args=~",
]
# read by code that the runs below do not reach, or before a run begins
ELSEWHERE = {
    "gpu_id": "by Config, which chooses the device",
    "config_files": "by Config",
    "use_gpu": "by Config",
    "tail_ratio": "by RecBole's TailPercentage",
    "wandb_project": "by RecBole where log_wandb is on",
    "enable_scaler": "by RecBole's trainer on a GPU",
    "seq_len": "where columns of sequences are loaded",
    "RATING_FIELD": "by language models with levels, by DMF and others",
    "mentioned_items": "on conversations",
    "linked_users": "where a check finds rows of one person",
    "require_pow": "by LightGCN and SimpleX",
    "dataset_save_path": "refused with all pickles (tests/test_security.py)",
    "dataloaders_save_path": "refused with all pickles",
    "save_dataset": "ignored with a sentence, with all pickles",
    "save_dataloaders": "ignored with a sentence, with all pickles",
}
FEATURE_KEYS, KNOWLEDGE_KEYS, SEQUENCE_KEYS = (
    {key for key, acting in declared().items() if acting.when == kind}
    for kind in (FEATURES, KNOWLEDGE, SEQUENCES)
)
# what does nothing for any model but those named, and is refused
BY_KIND = KNOWLEDGE_KEYS | {"POSITION_FIELD", "valid_metric_bigger"}

REFUSED: list[tuple[str, str, Sequence[str], str]] = [
    ("LLMRec", "threshold", ["--threshold={'rating': 4}"], r"--val_interval=.*'\[4,inf\)'"),
    ("EASE", "threshold", ["--threshold={'rating': 4}"], "--val_interval"),
    ("FM", "threshold", ["--threshold={'rating': 4}"], "--val_interval"),
    ("NeuMF", "threshold", ["--threshold={'rating': 4}", *LABELLED[:3]], "train_neg_sample_args"),
    # not trained on labels: rows below would be trained on as positives
    ("EASE", "threshold", ["--threshold={'rating': 4}", *LABELLED], "--val_interval.*NeuMF"),
    ("MultiVAE", "threshold", ["--threshold={'rating': 4}", *LABELLED], "--val_interval.*NeuMF"),
    ("LLMRec", "shuffle", ["--shuffle=False"], "--seed"),
    ("CKE", "shuffle", ["--shuffle=False"], "--seed"),
    ("LLMRec", "transform", ["--transform=mask_itemseq"], "--model=SASRec"),
    ("BPR", "transform", ["--transform=mask_itemseq"], "--model=SASRec"),
    ("LLMRec", "require_pow", ["--require_pow=True"], "LightGCN and SimpleX"),
    ("BPR", "require_pow", ["--require_pow=True"], "--weight_decay"),
    ("EASE", "preload_weight", ["--preload_weight={'a': 'b'}"], "GRU4RecKG and KSR"),
    ("LLMRec", "additional_feat_suffix", ["--additional_feat_suffix=[emb]"], "GRU4RecKG"),
    ("LLMRec", "MAX_ITEM_LIST_LENGTH", ["--MAX_ITEM_LIST_LENGTH=9"], "--max_history"),
    ("BPR", "MAX_ITEM_LIST_LENGTH", ["--MAX_ITEM_LIST_LENGTH=9"], "no effect with model=BPR"),
    ("LLMRec", "seq_len", ["--seq_len={'title': 3}"], "--max_item_tokens"),
    ("LLMRec", "numerical_features", ["--numerical_features=[rating]"], "no effect"),
    ("BPR", "discretization", ["--discretization={'rating': {'method': 'LD'}}"], "no effect"),
    ("LLMRec", "eval_batch_size", ["--eval_batch_size=64"], "--rank_batch_users"),
    ("BPR", "valid_metric_bigger", ["--valid_metric_bigger=False"], "follows from valid_metric"),
    ("BPR", "kg_reverse_r", ["--kg_reverse_r=True"], "no effect with model=BPR"),
    ("SASRec", "repeatable", ["--repeatable=True", IN_TIME], "--test_information=rolling"),
    ("BPR", "wandb_project", ["--wandb_project=mine"], "--log_wandb=True"),
    ("LLMRec", "mentioned_items", ["--mentioned_items=keep"], "context=history"),
    (
        "BPR",
        "eval_args",
        ["--eval_args={'split': {'LS': 'valid_and_test'}, 'group_by': 'none'}"],
        "Use group_by user, or split RS",
    ),
    (
        "EASE",
        "eval_args",
        ["--benchmark_filename=[train, test]", "--eval_args={'split': {'LS': 'test_only'}}"],
        "whose files are the parts",
    ),
    *(
        ("LLMRec", key, ["--benchmark_filename=[train, test]", f"--{key}={value}"], f"--{key}=~")
        for key, value in {
            "val_interval": "{'rating': '[4,inf)'}",
            "rm_dup_inter": "first",
            "user_inter_num_interval": "[5,inf)",
            "item_inter_num_interval": "[5,inf)",
        }.items()
    ),
]  # fmt: skip


def all_settings() -> set[str]:
    folder = Path(recbole.__file__).parent / "properties"
    files = [folder / "overall.yaml", folder / "dataset/sample.yaml"]
    listed = {key for file in files for key in read_settings_file(file)}
    return listed | set(RecBoleSettings.__annotations__)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """Keys that are asked for after the configuration was made."""
    keys: set[str] = set()
    by_item, by_name = Config.__getitem__, Config.__getattr__

    def item(self: Config, key: str) -> Any:
        keys.add(key)
        return by_item(self, key)

    def name(self: Config, key: str) -> Any:
        keys.add(key)
        return by_name(self, key)

    monkeypatch.setattr(Config, "__getitem__", item)
    monkeypatch.setattr(Config, "__getattr__", name)
    yield keys


def test_every_setting_is_read_or_refused_or_explained(tmp_path: Path, read: set[str]) -> None:
    data = write_toy(tmp_path / "data")
    runs = {
        "LLMRec": toy_arguments(data, tmp_path / "LLMRec", "--loss=sft", "--sft_teacher=~"),
        **{
            model: [
                *toy_classical(data, tmp_path / model, model),
                *([IN_TIME] if model == "SASRec" else []),
            ]
            for model in ("BPR", "SASRec", "FM")
        },
    }
    by_model: dict[str, set[str]] = {}
    for model, argv in runs.items():
        read.clear()
        run(argv)
        by_model[model] = set(read)
    refused = {key for _, key, _, _ in REFUSED}
    unexplained = all_settings() - set().union(*by_model.values()) - refused
    assert unexplained - ELSEWHERE.keys() - BY_KIND == set()
    # what a kind of model does not read is refused for it
    assert not SEQUENCE_KEYS & by_model["LLMRec"] and SEQUENCE_KEYS <= by_model["SASRec"]
    assert "shuffle" not in by_model["LLMRec"] and "shuffle" in by_model["BPR"]
    assert not KNOWLEDGE_KEYS & set().union(*by_model.values())


def toy_classical(data: Path, folder: Path, model: str) -> list[str]:
    small = ["--device=cpu", "--show_progress=False", "--topk=[2]", "--valid_metric=NDCG@2"]
    columns = "--load_col={'inter': ['user_id', 'item_id', 'rating', 'timestamp']}"
    where = ["--dataset=toy", f"--data_path={data}", f"--run_dir={folder}", f"--model={model}"]
    return [*where, *small, columns, "--epochs=1"]


@pytest.mark.parametrize(("model", "key", "argv", "remedy"), REFUSED)
def test_what_would_not_be_used_is_refused(
    tmp_path: Path, model: str, key: str, argv: Sequence[str], remedy: str
) -> None:
    given = arguments(tmp_path, model) if model != "LLMRec" else toy_arguments(tmp_path, tmp_path)
    by_key = {text.split("=")[0]: text for text in [*given, *argv]}
    with pytest.raises(ConfigError, match=f"(?s){key}.*{remedy}"):
        load_config(list(by_key.values()))


@pytest.mark.parametrize(
    ("model", "argv"),
    [
        ("FM", ["--threshold={'rating': 4}", *LABELLED]),
        ("NeuMF", ["--threshold={'rating': 4}", *LABELLED]),
        ("MKR", ["--threshold={'rating': 4}", *LABELLED]),
        ("BPR", ["--shuffle=False"]),
        ("SASRec", ["--transform=mask_itemseq", "--mask_ratio=0.2", IN_TIME]),
        ("LightGCN", ["--require_pow=True"]),
        ("SASRec", ["--repeatable=True", "--test_information=rolling", IN_TIME]),
        ("SASRec", ["--MAX_ITEM_LIST_LENGTH=9", IN_TIME]),
        ("FM", ["--numerical_features=[timestamp]"]),
        ("EASE", ["--eval_batch_size=64", "--eval_args={'mode': 'uni50'}"]),
        ("LLMRec", ["--rank_batch_users=64", "--eval_args={'mode': 'uni50'}"]),
        ("CKE", ["--kg_reverse_r=True"]),
    ],
)
def test_where_it_is_used_it_is_allowed(tmp_path: Path, model: str, argv: list[str]) -> None:
    load_config(
        [f"--model={model}", "--dataset=ml-100k", f"--run_dir={tmp_path}", "--device=cpu", *argv]
    )


def test_the_remedy_for_a_threshold_keeps_what_reaches_it(tmp_path: Path) -> None:
    data = write_toy(tmp_path)
    with pytest.raises(ConfigError) as found:
        load_config(toy_arguments(data, tmp_path / "run", "--threshold={'rating': 5}"))
    remedy = "--val_interval={'rating': '[5,inf)'}"
    assert remedy in str(found.value).replace('"', "")
    _, parts = load_parts(load_config(toy_arguments(data, tmp_path / "run", remedy)))
    rows = [line.split("\t") for line in (data / "toy/toy.inter").read_text().splitlines()[1:]]
    assert set().union(*map(pairs, parts)) == {(u, i) for u, i, rating, _ in rows if rating == "5"}


def test_labels_by_a_threshold_are_trained_and_tested_where_that_is_possible(
    tmp_path: Path,
) -> None:
    data = write_toy(tmp_path / "data")
    argv = toy_classical(data, tmp_path / "run", "NeuMF")
    argv = [text for text in argv if text.split("=")[0] not in ("--valid_metric", "--epochs")]
    config = load_config([*argv, *LABELLED, "--threshold={'rating': 5}"])
    classical = prepare_classical(config, *load_parts(config))
    rows = [line.split("\t") for line in (data / "toy/toy.inter").read_text().splitlines()[1:]]
    fives = {(user, item) for user, item, rating, _ in rows if rating == "5"}
    tested = [batch for batch, *_ in classical.test_data]
    for batch in (*classical.train_data, *tested):
        users, items = (
            classical.train_data._dataset.id2token(field, batch[field].numpy())
            for field in ("user_id", "item_id")
        )
        labels = [pair in fives for pair in zip(users, items, strict=True)]
        assert batch["label"].tolist() == labels and len(set(labels)) == 2


def test_a_comparison_gives_a_setting_to_those_that_use_it(tmp_path: Path) -> None:
    write(tmp_path, shuffled_rows())
    argv = [text for text in arguments(tmp_path, "SASRec", IN_TIME) if "--model" not in text]
    argv = [text for text in argv if "--epochs" not in text]
    plan = make_plan(
        read_request([*argv, "--model=SASRec,BPR", "--MAX_ITEM_LIST_LENGTH=9", "--seeds=2"])
    )
    given = {system.model: settings for system, settings in plan.settings.items()}
    assert given["SASRec"]["MAX_ITEM_LIST_LENGTH"] == "9"
    assert "MAX_ITEM_LIST_LENGTH" not in given["BPR"]
    assert FEATURE_KEYS.isdisjoint(settings_of("BPR")) and settings_of("FM") >= FEATURE_KEYS
