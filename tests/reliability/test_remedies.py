"""Remedies of error messages are tried here, and must help.

Every case is a mistake, the words of its message, and the remedy that these words name.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recbole_multdpo.errors import MultDPOError
from recbole_multdpo.explain import main as explain
from recbole_multdpo.quick_start import run
from recbole_multdpo.settings.config import load_config
from tests.integration.toy import toy_arguments, write_toy

# -------------------------------------------------------------------------------------------------
# settings: the mistake, the message, the remedy; all on the command line

LLMREC = ["--model=LLMRec", "--dataset=ml-100k"]
TEMPORAL = "--eval_args={'order': 'TO'}"
BESIDE = ["--grounding_weight=assistant", "--assistant=EASE"]

SETTINGS: list[tuple[list[str], str, list[str]]] = [
    ([*LLMREC, "--lora_r=4"], "Add --finetune=lora", [*LLMREC, "--lora_r=4", "--finetune=lora"]),
    (
        [*LLMREC, "--backbone=org/name", "--tiny_num_layers=1"],
        "Use --backbone=tiny",
        [*LLMREC, "--backbone=tiny", "--tiny_num_layers=1"],
    ),
    (
        [*LLMREC, "--ranker=exhaustive", "--expand_per_step=4"],
        "--ranker=best_first",
        [*LLMREC, "--ranker=best_first", "--expand_per_step=4"],
    ),
    (
        [*LLMREC, "--assistant_weight=1"],
        "Add --assistant=EASE",
        [*LLMREC, "--assistant_weight=1", "--assistant=EASE"],
    ),
    (
        [*LLMREC, "--negative_pool=uniform"],
        "Add --negatives=dynamic",
        [*LLMREC, "--negative_pool=uniform", "--negatives=dynamic"],
    ),
    (
        [*LLMREC, "--negatives=dynamic", "--negative_pool_size=100"],
        "Add --negative_pool=uniform",
        [*LLMREC, "--negatives=dynamic", "--negative_pool_size=100", "--negative_pool=uniform"],
    ),
    (
        [*LLMREC, "--popularity_alpha=0.5"],
        "Add --negative_distribution=popularity",
        [*LLMREC, "--popularity_alpha=0.5", "--negative_distribution=popularity"],
    ),
    (
        [*LLMREC, "--lipo_pairs=mean"],
        "Use it with --loss=lipo_bt",
        [*LLMREC, "--lipo_pairs=mean", "--loss=lipo_bt"],
    ),
    (
        [*LLMREC, "--loss=dpo", "--num_negatives=8"],
        "Use --loss=s_dpo",
        [*LLMREC, "--loss=s_dpo", "--num_negatives=8"],
    ),
    (
        [*LLMREC, "--loss=sft", "--epochs=2"],
        "Use --sft_epochs",
        [*LLMREC, "--loss=sft", "--sft_epochs=2"],
    ),
    (
        [*LLMREC, "--stop_at_metrics=True", "--metrics=[NDCG, ItemCoverage]"],
        "--stop_at_metrics=False",
        [*LLMREC, "--stop_at_metrics=False", "--metrics=[NDCG, ItemCoverage]"],
    ),
    (
        ["--model=BIGRec", "--dataset=ml-100k", "--grounding_weight=assistant"],
        "Add --assistant=EASE",
        ["--model=BIGRec", "--dataset=ml-100k", *BESIDE],
    ),
    (
        ["--model=BIGRec", "--dataset=ml-100k", "--assistant=EASE"],
        "Add --grounding_weight=assistant",
        ["--model=BIGRec", "--dataset=ml-100k", *BESIDE],
    ),
    (
        ["--model=BIGRec", "--dataset=ml-100k", "--grounding_gamma=1"],
        "Add --grounding_weight=popularity",
        ["--model=BIGRec", "--dataset=ml-100k", "--grounding_gamma=1", *BESIDE],
    ),
    (["--model=SASRec", "--dataset=ml-100k"], "needs order TO", ["--model=SASRec", TEMPORAL]),
    (
        [*LLMREC, "--unused_col={'inter': ['item_id']}"],
        "Leave it out of the inter list",
        [*LLMREC, "--unused_col={'inter': ['rating']}"],
    ),
    (
        [*LLMREC, "--unused_col={'inter': ['timestamp']}", "--history_split=temporal"],
        "or use history_split=random",
        [*LLMREC, "--unused_col={'inter': ['timestamp']}", "--history_split=random"],
    ),
    ([*LLMREC, "--valid_metric=NDCG@7"], "or add 7 to topk", [*LLMREC, "--topk=[7,10]"]),
    ([*LLMREC, "--topk"], "write --topk=", [*LLMREC, "--topk=10"]),
    ([*LLMREC, "--beta=1", "--beta=2"], "Keep one of them", [*LLMREC, "--beta=2"]),
    ([*LLMREC, "--los=sft"], "did you mean loss", [*LLMREC, "--loss=sft"]),
    ([*LLMREC, "--loss=mult_dop"], "did you mean mult_dpo", [*LLMREC, "--loss=mult_dpo"]),
    ([*LLMREC, "--device=cuda"], "Use --device=cpu or auto", [*LLMREC, "--device=auto"]),
    (["--dataset=ml-100k"], "Add --model=NAME", LLMREC),
    (["--model=EASE", "--dataset=ml-100k", "--epochs=two"], "must be an integer", LLMREC),
]


@pytest.mark.parametrize(
    ("mistake", "words", "remedy"), SETTINGS, ids=lambda value: str(value)[:60]
)
def test_the_remedy_for_a_setting_is_accepted(
    mistake: list[str], words: str, remedy: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(MultDPOError) as error:
        load_config(mistake)
    assert words in str(error.value)
    if "--dataset=ml-100k" not in remedy:
        remedy = [*remedy, "--dataset=ml-100k"]
    if "--topk=[7,10]" in remedy:
        remedy = [*remedy, "--valid_metric=NDCG@7"]
    load_config(remedy)


# -------------------------------------------------------------------------------------------------
# data: a change of the files that makes the mistake, the message, the remedy by settings or files

Change = Callable[[Path], None]


def edit(name: str, old: str, new: str, *, encoding: str = "utf-8", count: int = 1) -> Change:
    """Replace the first `count` places of a text in toy.NAME and write it in an encoding."""

    def change(folder: Path) -> None:
        file = folder / "toy" / f"toy.{name}"
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new, count), encoding=encoding)

    return change


def rows_for_all_items(folder: Path) -> None:
    """One user who has chosen the whole catalogue."""
    with (folder / "toy" / "toy.inter").open("a") as file:
        file.writelines(f"all\ti{item}\t5\t{item}\n" for item in range(30))


def without_item_rows(folder: Path) -> None:
    """An .item file that ends after its first five items."""
    file = folder / "toy" / "toy.item"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:6]))


def marked_utf_16(folder: Path) -> None:
    """As Windows writes them."""
    for file in (folder / "toy").iterdir():
        file.write_text("\ufeff" + file.read_text(encoding="utf-8"), encoding="utf-16-le")


def moved(folder: Path) -> None:
    shutil.move(folder / "toy", folder / "elsewhere" / "toy")


def nothing(folder: Path) -> None:
    """The mistake is in the settings alone."""


DATA: dict[str, tuple[Change, list[str], str, Change | list[str]]] = {
    "encoding": (
        edit("item", "Red Night 0", "Amélie", encoding="latin-1"),
        [],
        r"Set --encoding to the file's own, such as --encoding=latin-1",
        ["--encoding=latin-1"],
    ),
    "byte-order mark": (
        edit("inter", "user_id", "\ufeffuser_id"),
        [],
        "set --encoding=utf-8-sig",
        ["--encoding=utf-8-sig"],
    ),
    "byte-order mark of utf-16": (
        marked_utf_16,
        ["--encoding=utf-16-le"],
        r"set --encoding=utf-16\.",
        ["--encoding=utf-16"],
    ),
    "id columns": (
        edit("inter", "user_id", "uid"),
        [],
        "set --USER_ID_FIELD",
        [
            "--USER_ID_FIELD=uid",
            "--load_col={'inter': ['uid', 'item_id'], 'item': ['item_id']}",
        ],
    ),
    "text columns": (
        nothing,
        ["--item_text_fields=[title]"],
        r"Set --item_text_fields and --item_year_field to columns of this file",
        ["--item_text_fields=[movie_title]"],
    ),
    "no text columns": (
        nothing,
        ["--item_text_fields=[]"],
        r'for example --item_text_fields="\[title\]"',
        ["--item_text_fields=[movie_title]"],
    ),
    "empty rating, left out": (
        edit("inter", "\t5\t0", "\t\t0"),
        [],
        "remove rating from --load_col",
        ["--load_col={'inter': ['user_id', 'item_id', 'timestamp'], 'item': ['item_id']}"],
    ),
    "empty rating, a number": (
        edit("inter", "\t5\t0", "\t\t0"),
        [],
        "Write a number",
        edit("inter", "\t\t0", "\t4\t0"),
    ),
    "text as a number": (
        edit("inter", "\t5\t0", "\tgood\t0"),
        [],
        "if rating is text, write rating:token in line 1",
        edit("inter", "rating:float", "rating:token"),
    ),
    "empty id": (
        edit("inter", "u1\t", "\t"),
        [],
        "Give it an id",
        edit("inter", "\n\ti", "\nu1\ti"),
    ),
    "item twice": (
        edit("item", "\ni1\t", "\ni0\t"),
        [],
        "duplicate item",
        edit("item", "\ni0\tBlue", "\ni1\tBlue"),
    ),
    "long title": (
        nothing,
        ["--tiny_title_tokens=False", "--max_item_tokens=2"],
        "Raise --max_item_tokens",
        ["--tiny_title_tokens=False", "--max_item_tokens=0"],
    ),
    "too many items": (nothing, ["--topk=[5, 40]"], "lower --topk", ["--topk=[5, 20]"]),
    "whole catalogue": (
        rows_for_all_items,
        [],
        r'Leave them out with --user_inter_num_interval="\[0,30\)"',
        ["--user_inter_num_interval=[0,30)"],
    ),
    "no test part": (
        nothing,
        ["--eval_args={'split': {'RS': [1, 0, 0]}}"],
        "other shares by --eval_args",
        ["--eval_args={'split': {'RS': [0.8, 0.1, 0.1]}}"],
    ),
    "assistant without validation": (
        nothing,
        ["--eval_args={'split': {'RS': [0.9, 0, 0.1]}}", "--assistant=EASE"],
        "Leave it out",
        ["--eval_args={'split': {'RS': [0.9, 0, 0.1]}}"],
    ),
    "D3 without validation": (
        nothing,
        ["--model=D3", "--eval_args={'split': {'RS': [0.9, 0, 0.1]}}"],
        "an assistant needs one. Use --model=LLMRec",
        ["--model=LLMRec", "--eval_args={'split': {'RS': [0.9, 0, 0.1]}}"],
    ),
    "moved data": (moved, [], "set --data_path to the folder that holds toy/", ["--data_path"]),
    "no data": (moved, [], "Put RecBole's atomic files there", write_toy),
}


@pytest.mark.parametrize("name", DATA)
def test_the_remedy_for_data_leads_to_a_result(tmp_path: Path, name: str) -> None:
    damage, settings, message, remedy = DATA[name]
    folder = write_toy(tmp_path)
    damage(folder)
    short = ["--loss=sft", "--sft_cache=False"]
    with pytest.raises(MultDPOError, match=f"(?s){message}"):
        run(toy_arguments(folder, tmp_path / "wrong", *short, *settings))
    if callable(remedy):
        remedy(folder)
    elif remedy == ["--data_path"]:
        folder, remedy = folder / "elsewhere", []
    else:
        settings = remedy
    result = run(toy_arguments(folder, tmp_path / "right", *short, *settings))
    assert result["test_result"]


def test_rows_that_an_item_file_lacks_are_kept_where_the_warning_says_how(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_toy(tmp_path)
    without_item_rows(folder)
    lost = run(toy_arguments(folder, tmp_path / "lost", "--loss=sft"))["rows"]
    assert lost["lost"]["no row in .item"]["rows"] > 100
    assert "--filter_inter_by_user_or_item=False keeps these" in (
        tmp_path / "lost" / "run.log"
    ).read_text(encoding="utf-8")
    kept = run(
        toy_arguments(
            folder, tmp_path / "kept", "--loss=sft", "--filter_inter_by_user_or_item=False"
        )
    )["rows"]
    assert kept["kept"] == kept["read"] == lost["read"] and not kept["lost"]


def test_repeated_pairs_are_counted_and_the_setting_that_the_warning_names_removes_them(
    tmp_path: Path,
) -> None:
    folder = write_toy(tmp_path)
    inter = folder / "toy" / "toy.inter"
    header, *rows = inter.read_text().splitlines()
    again = [row.rsplit("\t", 1)[0] + "\t99" for row in rows]
    inter.write_text("\n".join([header, *rows, *again]) + "\n")
    for model in ("EASE", "LLMRec"):
        own = ["--loss=sft"] if model == "LLMRec" else []
        repeated = run(toy_run(folder, tmp_path / f"{model}-twice", model, *own))
        assert 0 < repeated["test_answers_in_training"] <= len(rows)
        log = (tmp_path / f"{model}-twice" / "run.log").read_text()
        assert "test interactions repeat a training interaction" in log
        once = run(toy_run(folder, tmp_path / f"{model}-once", model, "--rm_dup_inter=first", *own))
        assert once["test_answers_in_training"] == 0
        assert once["rows"]["lost"]["rm_dup_inter=first"]["rows"] == len(again)


@pytest.mark.parametrize("remedy", ["column", "threshold"])
def test_labels_that_are_missing_can_be_had(tmp_path: Path, remedy: str) -> None:
    folder = write_toy(tmp_path)
    by_label = ["--metrics=[AUC]", "--valid_metric=AUC", "--eval_args={'mode': 'labeled'}"]
    model = "BPR" if remedy == "column" else "NeuMF"

    def go(name: str, *extra: str) -> dict[str, Any]:
        own = {text.split("=")[0] for text in (*by_label, *extra)}
        arguments = toy_run(folder, tmp_path / name, model, "--epochs=1")
        return run([a for a in arguments if a.split("=")[0] not in own] + [*by_label, *extra])

    with pytest.raises(MultDPOError, match="mode labeled needs a label of every row"):
        go("wrong")
    if remedy == "column":
        file = folder / "toy" / "toy.inter"
        header, *rows = file.read_text().splitlines()
        rows = [f"{row}\t{int(row.split()[2] == '5')}" for row in rows]
        file.write_text("\n".join([f"{header}\tlabel:float", *rows]) + "\n")
        result = go("right", "--load_col={'inter': ['user_id', 'item_id', 'label']}")
    else:
        result = go("right", "--threshold={'rating': 5}", "--train_neg_sample_args=~")
    assert 0 < result["test_result"]["auc"] < 1


def test_an_explanation_without_its_reference_can_be_had(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_toy(tmp_path)
    run(toy_arguments(folder, tmp_path / "first"))
    shutil.rmtree(tmp_path / "first" / "checkpoints")
    shutil.rmtree(tmp_path / "cache")
    assert explain([str(tmp_path / "first"), "--user=u1"]) == 2
    assert "--sft_cache=False and a new --run_dir" in capsys.readouterr().err
    run(toy_arguments(folder, tmp_path / "second", "--sft_cache=False"))
    assert explain([str(tmp_path / "second"), "--user=u1"]) == 0


def toy_run(folder: Path, run_dir: Path, model: str, *extra: str) -> list[str]:
    if model == "LLMRec":
        return toy_arguments(folder, run_dir, *extra)
    shared = ["--device=cpu", "--show_progress=False", "--topk=[5]", "--valid_metric=NDCG@5"]
    columns = "--load_col={'inter': ['user_id', 'item_id', 'rating', 'timestamp']}"
    where = ["--dataset=toy", f"--data_path={folder}", f"--run_dir={run_dir}"]
    return [f"--model={model}", *where, *shared, columns, *extra]
