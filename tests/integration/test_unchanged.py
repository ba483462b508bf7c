"""A run is what it was: changed data, backbones, prompts and files are noticed and named."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import chat_template_utils

from recbole_multdpo import Recommender, quick_start
from recbole_multdpo.classical.weights import save_weights
from recbole_multdpo.errors import CheckpointError, ConfigError, DataError, TrainingError
from recbole_multdpo.export import export
from recbole_multdpo.model import llmrec
from recbole_multdpo.model.backbone import save_backbone
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs.checkpoint import check_checkpoint, step_folders
from recbole_multdpo.runs.resume import may_change, resolve_resume
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.trained.explanation import Explainer
from recbole_multdpo.trained.run import load_run
from tests.data.test_chat_frame import LLAMA
from tests.integration.toy import classical_arguments, cut_short, toy_arguments, write_toy

pytestmark = pytest.mark.integration
PROPERTIES = "item_text_fields: [movie_title]\nitem_year_field: release_year\n"
TWO_EPOCHS = ["--epochs=2", "--sft_cache=False"]


@pytest.fixture(scope="module")
def data_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    data = write_toy(tmp_path_factory.mktemp("data"))
    (data / "toy" / "toy.yaml").write_text(PROPERTIES, encoding="utf-8")
    return data


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory, make_lm, make_tokenizer) -> Path:  # type: ignore[no-untyped-def]
    """A folder with a chat template that shows the date."""
    folder = tmp_path_factory.mktemp("backbone") / "lm"
    lm, tokenizer = make_lm(), make_tokenizer(LLAMA)
    lm.resize_token_embeddings(len(tokenizer))
    save_backbone(lm, tokenizer, folder)
    return folder


def pretrained_arguments(data: Path, folder: Path, backbone: Path, *extra: str) -> list[str]:
    given = toy_arguments(data, folder, f"--backbone={backbone}", "--lora_r=2", *extra)
    return [text for text in given if not text.startswith("--tiny_")]


@pytest.fixture(scope="module")
def runs(data_path: Path, backbone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny`, `lm` and `EASE`, `BPR` finished; `cut` and `cut_lm` under way."""
    folder = tmp_path_factory.mktemp("runs")
    run(toy_arguments(data_path, folder / "tiny", *TWO_EPOCHS))
    run(pretrained_arguments(data_path, folder / "lm", backbone, *TWO_EPOCHS))
    cut_short(toy_arguments(data_path, folder / "cut", *TWO_EPOCHS))
    cut_short(pretrained_arguments(data_path, folder / "cut_lm", backbone, *TWO_EPOCHS))
    run(classical_arguments("EASE", data_path, folder / "EASE"))
    run(classical_arguments("BPR", data_path, folder / "BPR", "--epochs=1"))
    return folder


@pytest.fixture
def copied(runs: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A run's folder that the test may spoil."""

    def copy(name: str) -> Path:
        return Path(shutil.copytree(runs / name, tmp_path / name))

    return copy


# what may happen to data: file, and what becomes of its lines after the first


def reversed_rows(lines: list[str]) -> list[str]:
    return lines[::-1]


def one_row_less(lines: list[str]) -> list[str]:
    return lines[:-1]


def another_time(lines: list[str]) -> list[str]:
    *columns, time = lines[0].split("\t")
    return ["\t".join([*columns, str(float(time) + 7)]), *lines[1:]]


def another_title(lines: list[str]) -> list[str]:
    return [lines[0].replace("Red", "Reddish"), *lines[1:]]


@pytest.fixture
def changed_data(data_path: Path, tmp_path: Path) -> Callable[..., Path]:
    def change(file: str, how: Callable[[list[str]], list[str]]) -> Path:
        folder = tmp_path / "changed"
        shutil.copytree(data_path, folder)
        path = folder / "toy" / file
        head, *lines = path.read_text(encoding="utf-8").splitlines()
        path.write_text("\n".join([head, *how(lines)]) + "\n", encoding="utf-8")
        return folder

    return change


CHANGES = [
    ("toy.inter", reversed_rows, "the split .*the order of the rows"),
    ("toy.inter", one_row_less, "the interactions .*the split"),
    ("toy.inter", another_time, "the interactions"),
    ("toy.item", another_title, "the item texts"),
]


# -------------------------------------------------------------------------------------------------
# what is written down


def test_results_and_checkpoints_hold_the_same_fingerprints(runs: Path) -> None:
    result = json.loads((runs / "tiny" / "result.json").read_text())
    assert {*result["fingerprints"]} == {
        "interactions",
        "split",
        "order",
        "item_texts",
        "backbone",
        "prompt",
    }
    for stage in ("sft", "preference"):
        for folder in step_folders(runs / "tiny" / "checkpoints" / stage):
            assert check_checkpoint(folder)["fingerprints"] == result["fingerprints"]
    classical = json.loads((runs / "BPR" / "result.json").read_text())["fingerprints"]
    for name in ("interactions", "split", "order"):  # the same split of the same data
        assert classical[name] == result["fingerprints"][name]
    written = {file.name for file in (runs / "lm" / "model").iterdir()}
    assert {*json.loads((runs / "lm" / "result.json").read_text())["model_files"]} == written


# -------------------------------------------------------------------------------------------------
# --resume


@pytest.mark.parametrize(("file", "how", "named"), CHANGES)
def test_resuming_on_other_data_is_refused_and_says_what_differs(
    copied, changed_data, file, how, named
) -> None:
    data = changed_data(file, how)
    with pytest.raises(CheckpointError, match=f"has changed: .*{named}.*--data_path"):
        run([f"--resume={copied('cut')}", f"--data_path={data}"])


def test_what_is_local_may_change_on_resume(copied, runs, data_path, tmp_path) -> None:
    """Data that have moved, another cache, no cache: the run ends as the undisturbed one."""
    moved = shutil.copytree(data_path, tmp_path / "moved")
    folder = copied("cut")
    result = run(
        [
            f"--resume={folder}",
            f"--data_path={moved}",
            "--sft_cache=True",
            f"--sft_cache_dir={tmp_path / 'other'}",
            "--worker=1",
            "--save_steps=1",
        ]
    )
    whole = json.loads((runs / "tiny" / "result.json").read_text())
    assert result["test_result"] == whole["test_result"]
    assert result["fingerprints"] == whole["fingerprints"]
    assert result["model_files"]["model.safetensors"] == whole["model_files"]["model.safetensors"]
    load_run(folder)  # the moved path is in config.yaml and contradicts nothing


LOCAL = {
    "data_path": "elsewhere",
    "sft_cache": "True",
    "sft_cache_dir": "elsewhere",
    "reference_cache": "True",
    "worker": "2",
    "num_threads": "2",
    "device": "cpu",
    "use_gpu": "False",
    "state": "WARNING",
    "show_progress": "True",
    "save_steps": "7",
    "save_total_limit": "5",
    "auto_batch": "True",
    "gradient_accumulation_steps": "2",
    "max_tokens_per_batch": "900",
    "gradient_checkpointing": "True",
    "score_batch_tokens": "999",
    "rank_batch_users": "3",
    "expand_per_step": "2",
    "log_wandb": "False",
}


@pytest.mark.parametrize("key", LOCAL)
def test_every_local_setting_is_accepted(runs, key) -> None:
    assert may_change(key, {"model": "LLMRec"})
    config = load_config([f"--resume={runs / 'cut'}", f"--{key}={LOCAL[key]}"])
    assert resolve_resume(config) == str(runs / "cut")


@pytest.mark.parametrize("change", ["--beta=9", "--max_history=4", "--use_chat_template=True"])
def test_other_settings_are_not(runs, change) -> None:
    with pytest.raises(ConfigError, match="settings differ"):
        resolve_resume(load_config([f"--resume={runs / 'cut'}", change]))


def test_a_setting_of_a_later_version_does_not_hinder(copied) -> None:
    folder = copied("cut")
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if "enable_thinking" not in line]
    lines = [line for line in lines if not line.startswith("chat_template_kwargs")]
    assert len(lines) < len(text.splitlines())
    (folder / "config.yaml").write_text("\n".join(lines), encoding="utf-8")
    assert resolve_resume(load_config([f"--resume={folder}"])) == str(folder)


def test_a_backbone_may_move_but_not_change(copied, runs, backbone, tmp_path) -> None:
    moved = Path(shutil.copytree(backbone, tmp_path / "moved"))
    result = run([f"--resume={copied('cut_lm')}", f"--backbone={moved}"])
    whole = json.loads((runs / "lm" / "result.json").read_text())
    assert result["test_result"] == whole["test_result"]
    weights = load_file(moved / "model.safetensors")
    first = next(iter(weights))
    save_file({**weights, first: weights[first] + 1}, moved / "model.safetensors", {"format": "pt"})
    shutil.rmtree(tmp_path / "cut_lm")
    with pytest.raises(CheckpointError, match="has changed: the backbone"):
        run([f"--resume={copied('cut_lm')}", f"--backbone={moved}"])


def test_resuming_a_finished_run_looks_at_its_model(copied) -> None:
    folder = copied("tiny")
    assert run([f"--resume={folder}"])["model"] == "LLMRec"
    (folder / "model" / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"model.config\.json is not what the run wrote"):
        run([f"--resume={folder}"])


# -------------------------------------------------------------------------------------------------
# prompts


@pytest.fixture
def another_day(monkeypatch):
    """The clock of templates, set to another day."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 3, 4)

    monkeypatch.setattr(chat_template_utils, "datetime", Clock)


@pytest.fixture
def another_version(monkeypatch):
    """Prompts are worded otherwise by now; a control that must differ."""
    render = llmrec.prompt_frame

    def reworded(*args, **kwargs):
        frame = render(*args, **kwargs)
        return type(frame)(frame.head + " (new)", *list(vars(frame).values())[1:])

    monkeypatch.setattr(llmrec, "prompt_frame", reworded)


def head_of(folder: Path) -> str:
    return json.loads((folder / "prompt.json").read_text(encoding="utf-8"))["text"]["head"]


@pytest.mark.parametrize("name", ["tiny", "lm"])
def test_the_prompt_of_a_run_serves_all_that_follows(
    runs, name, another_day, another_version, tmp_path
) -> None:
    folder = runs / name
    head = head_of(folder)
    assert "(new)" not in head and "2031" not in head
    assert ("Today Date: 26 Jul 2024" in head) == (name == "lm")
    loaded = load_run(folder)
    assert loaded.model.prompts.frame.head == head
    stored = json.loads((folder / "prompt.json").read_text(encoding="utf-8"))["tokens"]
    explainer = Explainer.load(folder)
    assert explainer._reference.prompts.frame_ids() == stored
    export(folder, tmp_path / "exported")
    exported = json.loads((tmp_path / "exported" / "catalogue.json").read_text(encoding="utf-8"))
    assert {key: exported["prompt"][key] for key in stored} == stored


def test_a_resumed_run_keeps_its_prompt(copied, runs, another_day, another_version) -> None:
    folder = copied("cut_lm")
    result = run([f"--resume={folder}"])
    whole = json.loads((runs / "lm" / "result.json").read_text())
    assert result["fingerprints"] == whole["fingerprints"]
    assert result["test_result"] == whole["test_result"]
    assert head_of(folder) == head_of(runs / "lm")


def test_a_first_stage_is_shared_on_another_day(
    data_path, backbone, tmp_path, monkeypatch, another_day
) -> None:
    """The day after, the second loss of a comparison starts from the first stage of the first."""
    later = chat_template_utils.datetime
    monkeypatch.undo()
    arguments = pretrained_arguments(data_path, tmp_path / "one", backbone, "--epochs=1")
    first = run(arguments)
    monkeypatch.setattr(chat_template_utils, "datetime", later)
    changed = {"--loss=": "--loss=s_dpo", "--run_dir=": f"--run_dir={tmp_path / 'two'}"}
    second = run([next((b for a, b in changed.items() if t.startswith(a)), t) for t in arguments])
    assert first["fingerprints"] == second["fingerprints"]
    assert len(list((tmp_path / "cache").glob("sft-*"))) == 1


def test_a_checkpoint_of_before_is_resumed_with_a_warning(copied, data_path) -> None:
    folder = copied("cut")
    for state_file in folder.glob("checkpoints/*/*/state.json"):
        state = json.loads(state_file.read_text())
        del state["fingerprints"], state["checksum"]
        state["checksum"] = zlib.crc32(json.dumps(state).encode())
        state_file.write_text(json.dumps(state))
    (folder / "prompt.json").unlink()
    run([f"--resume={folder}"])
    log = (folder / "run.log").read_text(encoding="utf-8")
    assert "kept no fingerprints" in log and "keeps no prompt" in log


def test_a_run_without_a_prompt_is_rendered_with_a_warning(copied, caplog) -> None:
    folder = copied("lm")
    (folder / "prompt.json").unlink()
    load_run(folder)
    assert "keeps no prompt" in caplog.text


def test_a_prompt_that_is_not_the_runs_is_refused(copied, runs, another_version) -> None:
    folder = copied("lm")
    (folder / "prompt.json").unlink()
    with pytest.raises(CheckpointError, match="prompt.*is of another run, or was removed"):
        load_run(folder)
    shutil.copy(runs / "tiny" / "prompt.json", folder)
    with pytest.raises(CheckpointError, match="prompt"):
        load_run(folder)
    cut = copied("cut_lm")
    (cut / "prompt.json").unlink()
    with pytest.raises(CheckpointError, match="has changed: the fixed text of the prompt"):
        run([f"--resume={cut}"])


@pytest.mark.parametrize("name", ["lm", "cut_lm"])
def test_an_edited_prompt_is_refused(copied, name) -> None:
    folder = copied(name)
    file = folder / "prompt.json"
    text = file.read_text(encoding="utf-8")
    file.write_text(text.replace("A user liked", "A user loved", 1), encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"prompt\.json.*its checksum does not match"):
        load_run(folder) if name == "lm" else run([f"--resume={folder}"])


# -------------------------------------------------------------------------------------------------
# finished runs on changed data


@pytest.mark.parametrize(("file", "how", "named"), CHANGES)
def test_a_finished_run_says_that_its_data_have_changed(
    runs, changed_data, caplog, file, how, named
) -> None:
    recommender = Recommender.load(runs / "lm", data_path=str(changed_data(file, how)))
    warned = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == 1 and "its data have changed" in warned[0]
    assert recommender.for_titles([recommender.run.titles[1]], k=2).recommendations
    if "split" in recommender.run.changed:
        with pytest.raises(DataError, match="split of the data is not that of the run.*--liked"):
            list(recommender.for_users(["u1"], k=2))
    else:
        assert list(recommender.for_users(["u1"], k=2))


def test_a_finished_run_on_its_own_data_is_silent(runs, caplog) -> None:
    for name in ("tiny", "lm", "EASE", "BPR"):
        assert load_run(runs / name).changed == ()
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


@pytest.mark.parametrize("model", ["EASE", "BPR"])
def test_models_that_know_numbers_are_refused_on_reordered_data(runs, changed_data, model) -> None:
    data = str(changed_data("toy.inter", reversed_rows))
    with pytest.raises(DataError, match="on the numbering of users and items.*--data_path"):
        load_run(runs / model, data_path=data)


def test_the_reference_of_another_backbone_is_refused(runs, changed_data) -> None:
    """The backbone `tiny` is made from the item texts."""
    data = str(changed_data("toy.item", another_title))
    with pytest.raises(CheckpointError, match="before preference training cannot be made again"):
        Explainer.load(runs / "tiny", data_path=data)


# -------------------------------------------------------------------------------------------------
# the files of a finished run


@pytest.mark.parametrize("file", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_damaged_file_of_the_model_is_named(copied, tmp_path, file) -> None:
    folder = copied("tiny")
    path = folder / "model" / file
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    for use in (load_run, Explainer.load, lambda f: export(f, tmp_path / "exported")):
        with pytest.raises(CheckpointError, match=f"{file} is not what the run wrote"):
            use(folder)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"{file} is missing"):
        load_run(folder)


def test_exchanged_and_added_files_of_the_model_are_named(copied, runs) -> None:
    folder = copied("tiny")
    (folder / "model" / "notes.md").write_text("mine")
    load_run(folder)
    (folder / "model" / "added_tokens.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"added_tokens\.json is not of this run"):
        load_run(folder)
    shutil.rmtree(folder / "model")
    shutil.copytree(runs / "lm" / "model", folder / "model")
    with pytest.raises(CheckpointError, match="is not what the run wrote"):
        load_run(folder)
    ease = copied("EASE")
    shutil.copy(runs / "BPR" / "model" / "weights.safetensors", ease / "model")
    with pytest.raises(CheckpointError, match=r"weights\.safetensors is not what the run wrote"):
        load_run(ease)


def without_checksums(folder: Path) -> Path:
    """As a version before wrote it."""
    result = json.loads((folder / "result.json").read_text())
    for key in ("model_files", "fingerprints", "settings_hash"):
        del result[key]
    (folder / "result.json").write_text(json.dumps(result))
    return folder


@pytest.mark.parametrize("name", ["tiny", "EASE"])
def test_runs_of_before_load_with_a_note(copied, caplog, name) -> None:
    load_run(without_checksums(copied(name)))
    warned = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warned) == 1 and "without checksums and fingerprints" in warned[0]


def test_runs_of_before_notice_another_test_part(copied, changed_data) -> None:
    data = str(changed_data("toy.inter", reversed_rows))
    recommender = Recommender.load(without_checksums(copied("lm")), data_path=data)
    with pytest.raises(DataError, match="split of the data is not that of the run"):
        list(recommender.for_users(["u1"], k=2))
    with pytest.raises(DataError, match="on the numbering of users and items"):
        load_run(without_checksums(copied("BPR")), data_path=data)


@pytest.mark.parametrize(
    ("name", "dtype", "value"),
    [
        ("tiny", torch.float32, torch.nan),
        ("lm", torch.bfloat16, torch.inf),
        ("BPR", None, -torch.inf),
    ],
)
def test_weights_that_are_no_numbers_are_not_served(copied, tmp_path, name, dtype, value) -> None:
    folder = without_checksums(copied(name))
    file = next((folder / "model").glob("*.safetensors"))
    weights = load_file(file)
    first = next(iter(weights))
    weights[first].view(-1)[3] = value
    save_file({k: v.to(dtype or v.dtype) for k, v in weights.items()}, file, {"format": "pt"})
    with pytest.raises((ConfigError, CheckpointError), match="holds NaN or an infinity"):
        load_run(folder)
    if name != "BPR":
        with pytest.raises(ConfigError, match="holds NaN or an infinity"):
            export(folder, tmp_path / "exported")


def test_weights_that_are_no_numbers_are_not_saved(data_path, tmp_path, monkeypatch) -> None:
    """Also where ranking by them went through, as by a row that no title uses."""
    validate, write = quick_start._validate, quick_start.write_per_user
    models = []

    def keeping(trainer, ranker, valid):
        models.append(trainer.model)
        return validate(trainer, ranker, valid)

    def spoiling(*arguments):
        write(*arguments)
        next(models[0].lm.parameters()).data[0, 0] = torch.nan

    monkeypatch.setattr(quick_start, "_validate", keeping)
    monkeypatch.setattr(quick_start, "write_per_user", spoiling)
    with pytest.raises(TrainingError, match="holds NaN or an infinity, and is not saved"):
        run(toy_arguments(data_path, tmp_path / "run", "--loss=sft", "--sft_cache=False"))
    assert not (tmp_path / "run" / "model").exists()
    assert not (tmp_path / "run" / "result.json").exists()


def test_weights_of_recboles_models_that_are_no_numbers_are_not_saved(runs, tmp_path) -> None:
    model = load_run(runs / "BPR").model
    save_weights(model, tmp_path / "model")
    next(model.parameters()).data[0, 0] = torch.inf
    with pytest.raises(TrainingError, match="holds NaN or an infinity, and is not saved"):
        save_weights(model, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_first_stages_of_other_runs_are_not_gone_on_from(copied, runs) -> None:
    folder = copied("cut_lm")
    best = folder / "checkpoints" / "sft" / "best"
    shutil.rmtree(best)
    shutil.copytree(runs / "cut" / "checkpoints/sft/best", best)
    with pytest.raises(CheckpointError, match="has changed: the backbone"):
        run([f"--resume={folder}"])


def test_auto_takes_no_run_of_other_data_of_the_same_name(runs, data_path, tmp_path) -> None:
    saved = tmp_path / "saved"
    shutil.copytree(runs / "cut", saved / "cut")
    again = [f"--config_files={runs / 'cut' / 'config.yaml'}", "--resume=auto"]
    again.append(f"--checkpoint_dir={saved}")
    assert resolve_resume(load_config(again)) == str(saved / "cut")
    moved = Path(shutil.copytree(data_path, tmp_path / "moved"))
    assert resolve_resume(load_config([*again, f"--data_path={moved}"])) is None


@pytest.mark.parametrize(
    ("name", "file", "old", "new", "named"),
    [
        ("tiny", "config.yaml", "loss: mult_dpo", "loss: s_dpo", "loss='s_dpo' there, 'mult_dpo'"),
        ("EASE", "config.yaml", "model: EASE", "model: ItemKNN", "model='ItemKNN' there, 'EASE'"),
        ("tiny", "config.yaml", "seed: 2020", "seed: 7", "seed=7 there, 2020 here"),
        ("tiny", "config.yaml", "max_history: 6", "max_history: 5", "a setting was changed"),
        ("EASE", "config.yaml", "reg_weight: 250", "reg_weight: 25", "a setting was changed"),
        ("tiny", "result.json", '"loss": "mult_dpo"', '"loss": "dpo"', "of different runs: loss"),
        ("EASE", "result.json", '"dataset": "toy"', '"dataset": "ml-100k"', "runs: dataset="),
    ],
)
def test_files_that_disagree_are_refused(copied, name, file, old, new, named) -> None:
    folder = copied(name)
    text = (folder / file).read_text(encoding="utf-8")
    assert old in text
    (folder / file).write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises((CheckpointError, ConfigError), match=named):
        load_run(folder)
    if file == "result.json":
        with pytest.raises(CheckpointError, match=named):
            run([f"--resume={folder}"])


def test_local_settings_of_a_finished_run_may_be_edited(copied) -> None:
    folder = copied("tiny")
    text = (folder / "config.yaml").read_text(encoding="utf-8")
    assert "rank_batch_users: 32" in text
    changed = text.replace("rank_batch_users: 32", "rank_batch_users: 2")
    (folder / "config.yaml").write_text(changed, encoding="utf-8")
    load_run(folder)


def test_checkpoints_of_another_run_are_no_reference(copied, runs) -> None:
    folder = copied("tiny")
    shutil.rmtree(folder / "checkpoints" / "sft" / "best")
    shutil.copytree(runs / "lm" / "checkpoints/sft/best", folder / "checkpoints/sft/best")
    with pytest.raises(CheckpointError, match="are of different runs: they disagree about"):
        Explainer.load(folder)
