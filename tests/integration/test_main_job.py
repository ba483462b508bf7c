"""The real command on a small data set: results, caches, resuming, and what users get wrong."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from recbole_multdpo.errors import ConfigError, DataError, MultDPOError, TrainingError
from recbole_multdpo.model.llmrec import LLMRec
from recbole_multdpo.quick_start import run
from recbole_multdpo.ranking.exact import ExactRanker
from recbole_multdpo.runs.checkpoint import check_checkpoint, step_folders
from recbole_multdpo.settings import by_size
from recbole_multdpo.trained.run import load_run
from recbole_multdpo.training.trainer import SetwiseTrainer
from tests.integration.toy import (
    N_ITEMS,
    N_USERS,
    classical_arguments,
    cut_short,
    toy_arguments,
    without_price,
    write_toy,
)

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(data_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished mult_dpo run."""
    folder = tmp_path_factory.mktemp("runs") / "finished"
    run(toy_arguments(data_path, folder))
    return folder


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    for name in first:
        assert torch.equal(first[name], second[name]), name


def test_command_writes_one_folder(data_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_recbole_multdpo.py"), *toy_arguments(data_path, folder)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((folder / "result.json").read_text())
    assert result["loss"] == "mult_dpo"
    assert set(result["test_result"]) >= {"ndcg@2", "ndcg@5"}
    assert 0 <= result["test_result"]["ndcg@5"] <= 1
    assert result["num_users_evaluated"] == N_USERS and result["num_items"] == N_ITEMS
    assert result["seconds"].keys() >= {"sft", "preference", "valid", "test"}
    assert {p.name for p in tmp_path.iterdir()} == {"run", "cache"}  # nothing else in the folder
    model = AutoModelForCausalLM.from_pretrained(folder / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert model.get_input_embeddings().weight.shape[0] >= len(tokenizer)


def test_same_seed_same_weights_and_other_seed_other_weights(
    data_path: Path, tmp_path: Path, finished: Path
) -> None:
    run(toy_arguments(data_path, tmp_path / "again", "--sft_cache=False"))
    assert_same_weights(finished, tmp_path / "again")
    run(toy_arguments(data_path, tmp_path / "other", "--seed=7"))
    assert not torch.equal(
        *(weights(f)["model.layers.0.mlp.up_proj.weight"] for f in (finished, tmp_path / "other"))
    )


def logged_steps(run_dir: Path) -> list[list[str]]:
    """The rows of `steps.csv` without the time."""
    lines = (run_dir / "steps.csv").read_text().splitlines()[1:]
    return [[*line.split(",")[:3], *line.split(",")[4:]] for line in lines]


@pytest.mark.parametrize(
    ("stage", "extra"),
    [
        ("sft", []),
        ("preference", []),
        ("preference", ["--negatives=dynamic", "--learning_rate=3e-3"]),
    ],
)
def test_interrupted_run_resumes_to_the_same_weights(
    data_path: Path,
    tmp_path: Path,
    stage: str,
    extra: list[str],
) -> None:
    reference = tmp_path / "whole"
    longer = ["--sft_epochs=3", "--epochs=3", "--sft_cache=False", *extra]
    run(toy_arguments(data_path, reference, *longer))
    folder = tmp_path / "cut"
    cut_short(toy_arguments(data_path, folder, *longer), stage, epoch=2)
    assert not (folder / "result.json").exists()
    result = run([f"--resume={folder}"])
    assert_same_weights(reference, folder)
    whole = json.loads((reference / "result.json").read_text())
    assert result["test_result"] == whole["test_result"]
    assert result["valid_result"] == whole["valid_result"]
    assert logged_steps(folder) == logged_steps(reference)
    assert len(logged_steps(folder)) == 2 * 3 * math.ceil(N_USERS / 8)
    logs = [(run_dir / "validations.csv").read_text() for run_dir in (folder, reference)]
    assert logs[0] == logs[1] and logs[0].startswith("stage,step,metric,value\npreference,3,")


def test_dynamic_negatives_train_another_model_and_say_what_they_cost(
    data_path: Path, tmp_path: Path, finished: Path
) -> None:
    run(toy_arguments(data_path, tmp_path / "run", "--negatives=dynamic"))
    log = (tmp_path / "run" / "run.log").read_text()
    drawn = re.findall(rf"negatives of {N_USERS} examples drawn by the policy; \d+:\d\d", log)
    assert len(drawn) == 2  # preference epochs; the first stage was cached
    assert not torch.equal(
        *(weights(f)["model.layers.0.mlp.up_proj.weight"] for f in (finished, tmp_path / "run"))
    )


def test_bounds_of_every_context_survive_an_interruption(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = ["--track_bounds=True", "--level_thresholds=[5, 4]", "--loss=pl2_dpo", "--epochs=3"]
    run(toy_arguments(data_path, tmp_path / "whole", *tracking))
    train_step, calls = SetwiseTrainer._train_step, 0

    def interrupting(trainer: SetwiseTrainer, batch):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += trainer.stage.name == "preference"
        if calls == 5:  # inside the second epoch of three batches, after its first step
            raise KeyboardInterrupt
        return train_step(trainer, batch)

    folder = tmp_path / "cut"
    with monkeypatch.context() as patch:
        patch.setattr(SetwiseTrainer, "_train_step", interrupting)
        with pytest.raises(KeyboardInterrupt):
            run(toy_arguments(data_path, folder, *tracking))
    assert (folder / "bounds.csv").read_text().splitlines()[-1].startswith("4,")
    run([f"--resume={folder}"])
    lines = (folder / "bounds.csv").read_text().splitlines()
    assert lines == (tmp_path / "whole" / "bounds.csv").read_text().splitlines()
    # each epoch has every user twice: for the two sets, and for the levels
    assert len(lines) == 1 + 3 * 2 * N_USERS
    assert [lines[1].split(",")[i] for i in (0, 2)] == ["1", "sets"]


def test_resume_refuses_a_changed_setting(data_path: Path, tmp_path: Path, finished: Path) -> None:
    with pytest.raises(ConfigError, match="beta"):
        run([f"--resume={finished}", "--beta=0.5"])


def test_sft_stage_is_shared_and_never_with_other_settings(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    fit = SetwiseTrainer.fit

    def counting(trainer: SetwiseTrainer, *args, **kwargs):  # type: ignore[no-untyped-def]
        trained.append(trainer.stage.name)
        return fit(trainer, *args, **kwargs)

    monkeypatch.setattr(SetwiseTrainer, "fit", counting)
    for name, extra in {
        "first": ["--loss=mult_dpo"],
        "other_loss": ["--loss=s_dpo", "--beta=0.5", "--num_negatives=3"],
        "other_sft": ["--loss=dpo", "--sft_learning_rate=1e-3"],
        "other_seed": ["--loss=dpo", "--seed=5"],
        "only_sft": ["--loss=sft"],
    }.items():
        run(toy_arguments(data_path, tmp_path / name, *extra))
    assert trained == [
        *("sft", "preference"),
        "preference",
        *("sft", "preference"),
        *("sft", "preference"),
    ]


def test_epochs_by_the_number_of_users_are_those_epochs(
    data_path: Path, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A quarter of the toy's users has twice its epochs; the first stage is that of `finished`."""
    monkeypatch.setattr(by_size, "TUNED_EXAMPLES", N_USERS // 4)
    monkeypatch.setattr(by_size, "TUNED_EPOCHS", {"sft": 2, "preference": 4})
    folder = tmp_path / "run"
    cache = f"--sft_cache_dir={finished.parent / 'cache'}"
    result = run(toy_arguments(data_path, folder, "--sft_epochs=auto", "--epochs=auto", cache))
    numbers = json.loads((finished / "result.json").read_text())
    assert result["best_epochs"]["preference"]["of"] == 2
    assert result["test_result"] == numbers["test_result"]
    assert_same_weights(folder, finished)
    assert not (folder / "checkpoints" / "sft").exists()  # from the cache, under the same key
    assert load_run(folder).config["epochs"] == "auto"
    again = run([f"--resume={folder}"])
    assert again["test_result"] == result["test_result"]


def test_zero_shot_is_the_untrained_backbone(data_path: Path, tmp_path: Path) -> None:
    result = run(toy_arguments(data_path, tmp_path / "run", "--loss=zero_shot"))
    assert result["loss"] == "zero_shot"
    assert "preference" not in result["seconds"]
    assert not (tmp_path / "run" / "checkpoints" / "sft").exists()
    spelt_out = run(toy_arguments(data_path, tmp_path / "other", "--loss=sft", "--sft_epochs=0"))
    assert spelt_out["test_result"] == result["test_result"]


def test_fast_paths_give_the_metrics_of_their_slow_twins(
    data_path: Path, tmp_path: Path, finished: Path
) -> None:
    fast = json.loads((finished / "result.json").read_text())
    slow = run(
        toy_arguments(data_path, tmp_path / "slow", "--ranker=exhaustive", "--scorer=padded")
    )
    assert slow["valid_result"] == pytest.approx(fast["valid_result"], abs=2e-3)
    assert slow["test_result"] == pytest.approx(fast["test_result"], abs=2e-3)


def test_a_search_that_stops_at_the_metrics_gives_the_same_ones(
    data_path: Path, tmp_path: Path, finished: Path
) -> None:
    run(toy_arguments(data_path, tmp_path / "stops", "--stop_at_metrics=True"))
    for name in ("valid_result", "test_result"):
        one, other = (
            json.loads((folder / "result.json").read_text())[name]
            for folder in (finished, tmp_path / "stops")
        )
        assert one == other


@pytest.mark.parametrize("parts", ["--gradient_accumulation_steps=3", "--max_tokens_per_batch=130"])
def test_computing_in_parts_does_not_change_the_result(
    data_path: Path, tmp_path: Path, finished: Path, parts: str
) -> None:
    run(toy_arguments(data_path, tmp_path / "parts", parts, "--sft_cache=False"))
    one, other = weights(finished), weights(tmp_path / "parts")
    for name in one:
        torch.testing.assert_close(one[name], other[name], atol=2e-4, rtol=1e-3)


def test_lora_on_a_local_folder_saves_a_whole_model(
    data_path: Path, tmp_path: Path, finished: Path
) -> None:
    folder = tmp_path / "lora"
    arguments = toy_arguments(
        data_path, folder, f"--backbone={finished / 'model'}", "--lora_r=2", "--loss=s_dpo"
    )
    run([a for a in arguments if not a.startswith("--tiny_")])
    before, after = weights(finished), weights(folder)
    assert before.keys() == after.keys()  # merged: plain transformers loads it
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all("proj" in name for name in changed)


def test_validation_items_join_the_prompt_for_the_test_only(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known: list[int] = []
    topk = ExactRanker.topk

    def recording(ranker: ExactRanker, *args):  # type: ignore[no-untyped-def]
        known.append(len(ranker.histories.items))
        return topk(ranker, *args)

    monkeypatch.setattr(ExactRanker, "topk", recording)
    without_price(monkeypatch)
    for information in ("train", "train_valid"):
        extra = ["--loss=sft", f"--test_information={information}"]
        result = run(toy_arguments(data_path, tmp_path / information, *extra))
        assert result["test_information"] == information
    # of each user's 11 items, 9 train, 1 validates and 1 tests
    assert known == [9 * N_USERS] * 3 + [10 * N_USERS]


def test_sampled_validation(data_path: Path, tmp_path: Path) -> None:
    result = run(
        toy_arguments(
            data_path, tmp_path / "run", "--eval_args={'mode': {'valid': 'uni5', 'test': 'full'}}"
        )
    )
    # with five sampled negatives per positive the right item is far easier to find
    assert result["valid_result"]["ndcg@5"] > result["test_result"]["ndcg@5"]


NO_VALIDATION = "--eval_args={'split': {'RS': [0.8, 0.0, 0.2]}}"


def test_a_split_without_a_validation_part_is_trained_to_the_end(
    data_path: Path, tmp_path: Path
) -> None:
    result = run(toy_arguments(data_path, tmp_path / "lm", NO_VALIDATION))
    common = ["--dataset=toy", f"--data_path={data_path}", "--topk=[2, 5]", NO_VALIDATION]
    classical = run(
        ["--model=EASE", *common, "--valid_metric=NDCG@5", f"--run_dir={tmp_path / 'c'}"]
    )
    for each in (result, classical):
        assert each["valid_result"] == {} and each["test_result"]["ndcg@5"] > 0
    assert result["test_set"] == classical["test_set"]


@pytest.mark.parametrize("model", [[], ["--model=BIGRec", "--grounding_weight=assistant"]])
def test_what_only_a_validation_part_can_decide_asks_for_one(
    data_path: Path, tmp_path: Path, model: list[str]
) -> None:
    chosen = [*model, "--assistant=EASE"]
    with pytest.raises(DataError, match="validation part of the split is empty, and an assistant"):
        run(toy_arguments(data_path, tmp_path / "run", NO_VALIDATION, *chosen))


def test_popularity_metrics_work_with_topk_rankings(data_path: Path, tmp_path: Path) -> None:
    result = run(
        toy_arguments(
            data_path, tmp_path / "run", "--metrics=['NDCG', 'ItemCoverage', 'AveragePopularity']"
        )
    )
    assert 0 < result["test_result"]["itemcoverage@5"] <= 1


def test_nan_loss_names_the_users_and_keeps_the_last_checkpoint(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = LLMRec.step
    calls = 0

    def breaking(model: LLMRec, batch, kl=None):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        output = step(model, batch, kl)
        if calls == 8:  # the second batch of the second preference epoch: 3 batches per epoch
            losses = output.losses.clone()
            losses[0] = float("nan")
            return type(output)(losses, output.policy_logps, output.reference_logps)
        return output

    monkeypatch.setattr(LLMRec, "step", breaking)
    without_price(monkeypatch)
    with pytest.raises(TrainingError, match=r"not finite.*u\d+.*learning_rate"):
        run(toy_arguments(data_path, tmp_path / "run"))
    (last,) = step_folders(tmp_path / "run" / "checkpoints" / "preference")
    assert check_checkpoint(last)["position"]["epoch"] == 1


def test_classical_model_has_the_same_split(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recbole_multdpo.runs import load

    parts: dict[str, list[set[tuple[int, int]]]] = {}
    split = load.split_dataset

    def recording(config, dataset):  # type: ignore[no-untyped-def]
        built = split(config, dataset)
        parts[config["model"]] = [
            set(
                zip(p.inter_feat["user_id"].tolist(), p.inter_feat["item_id"].tolist(), strict=True)
            )
            for p in built
        ]
        return built

    monkeypatch.setattr(load, "split_dataset", recording)
    run(toy_arguments(data_path, tmp_path / "llm", "--loss=sft"))
    run(classical_arguments("EASE", data_path, tmp_path / "ease"))
    assert parts["LLMRec"] == parts["EASE"]


@pytest.mark.parametrize(
    ("break_it", "error", "message"),
    [
        (lambda folder: (folder / "toy.item").unlink(), MultDPOError, "toy.item"),
        (
            lambda folder: (folder / "toy.item").write_text("item_id:token\ttitle:token\ni1\tA\n"),
            DataError,
            "movie_title",
        ),
        (
            lambda folder: (folder / "toy.inter").write_text(
                "user_id:token\titem_id:token\trating:float\ttimestamp:float\n"
            ),
            DataError,
            "no interaction|empty",
        ),
    ],
)
def test_broken_data_is_named(tmp_path: Path, break_it, error, message: str) -> None:  # type: ignore[no-untyped-def]
    data_path = write_toy(tmp_path / "data")
    break_it(data_path / "toy")
    with pytest.raises(error, match=message):
        run(toy_arguments(data_path, tmp_path / "run"))


def test_missing_empty_and_repeated_titles_are_counted(tmp_path: Path) -> None:
    data_path = write_toy(tmp_path / "data")
    file = data_path / "toy" / "toy.item"
    lines = file.read_text().split("\n")
    lines[1] = lines[1].split("\t")[0] + "\t\t1990"  # an empty title
    lines[3] = lines[3].replace("Green", "Red")
    file.write_text("\n".join(lines[:-2]) + "\n")  # one item less than the interactions know
    result = run(
        toy_arguments(
            data_path, tmp_path / "run", "--load_col={'inter': ['user_id', 'item_id', 'timestamp']}"
        )
    )
    assert result["item_texts"]["n_missing"] == 1 and result["item_texts"]["n_empty"] == 1
