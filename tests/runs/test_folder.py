"""The run's folder: names, contents, logging, TensorBoard, results, failures."""

import json
import logging
import math
import os
import shlex
import sys
import tempfile
import threading
import types
from pathlib import Path

import numpy as np
import pytest
import recbole.trainer.trainer as recbole_trainer
import torch
from recbole.data import create_dataset, data_preparation
from recbole.model.abstract_recommender import GeneralRecommender
from recbole.utils import InputType, get_tensorboard, get_trainer, set_color

from recbole_multdpo import __version__
from recbole_multdpo.errors import ConfigError, MultDPOError
from recbole_multdpo.runs import folder as run_folder
from recbole_multdpo.runs.folder import create_run_folder
from recbole_multdpo.settings.config import load_config

RESULT = {
    "valid_result": {"ndcg@10": np.float64(0.25)},
    "test_result": {"ndcg@10": 0.125, "recall@10": float("nan")},
    "num_users_evaluated": np.int64(943),
    "num_items": 1682,
    "seconds": {"data": 1.5, "sft": torch.tensor(2.0)},
}


class LLMRec(GeneralRecommender):
    """Stands for the model, which takes seconds to import."""

    input_type = InputType.POINTWISE


@pytest.fixture(autouse=True)
def process(monkeypatch, tmp_path):
    """The stand-in model and an empty working directory; logging must be as before afterwards."""
    module = types.ModuleType("recbole_multdpo.model.llmrec")
    module.LLMRec = LLMRec
    monkeypatch.setitem(sys.modules, "recbole_multdpo.model.llmrec", module)
    monkeypatch.chdir(tmp_path)
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield
    assert root.handlers == handlers
    assert root.level == level
    assert recbole_trainer.get_tensorboard is get_tensorboard


def load(*argv, model="BPR"):
    return load_config([f"--model={model}", "--dataset=ml-100k", "--device=cpu", *argv])


def files(folder="."):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*"))


# The folder


def test_what_is_in_it_and_what_is_not_beside_it():
    config = load("--run_dir=runs/a")
    with create_run_folder(config) as folder:
        folder.tensorboard().add_scalar("loss", 1.0, 0)
        folder.write_result(RESULT)
    assert os.listdir() == ["runs"] and os.listdir("runs") == ["a"]
    events = [name for name in files("runs/a") if name.startswith("tensorboard/events")]
    assert len(events) == 1
    others = [name for name in files("runs/a") if name not in events]
    assert others == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "result.json",
        "run.log",
        "tensorboard",
    ]
    assert config["checkpoint_dir"] == str(Path("runs/a/checkpoints"))


@pytest.mark.parametrize(
    ("model", "name"), [("BPR", "BPR-ml-100k"), ("LLMRec", "LLMRec-ml-100k-dpo")]
)
def test_the_default_name(model, name):
    config = load(*(["--loss=dpo"] if model == "LLMRec" else []), model=model)
    with create_run_folder(config) as folder:
        assert folder.path.parent == Path("saved")
        stem, date, time = folder.path.name.rsplit("-", 2)
        assert stem == name
        assert len(date) == 8 and len(time) == 6 and (date + time).isdecimal()


def test_checkpoint_dir_is_where_default_folders_go():
    with create_run_folder(load("--checkpoint_dir=elsewhere")) as folder:
        assert folder.path.parent == Path("elsewhere")


def test_runs_that_start_in_the_same_second_have_different_folders(monkeypatch):
    monkeypatch.setattr(run_folder, "_run_name", lambda config: "same")
    config = load()
    made = []
    threads = [
        threading.Thread(target=lambda: made.append(run_folder._make_folder(config)[0]))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(path.name for path in made) == ["same", *(f"same-{i}" for i in range(2, 9))]


def test_an_empty_folder_may_be_used_and_a_full_one_not():
    Path("mine").mkdir()
    create_run_folder(load("--run_dir=mine")).close()
    with pytest.raises(ConfigError, match="run_dir=mine is not empty.*--resume=mine"):
        create_run_folder(load("--run_dir=mine"))


def test_a_run_is_continued_in_its_folder():
    create_run_folder(load("--run_dir=mine", "--epochs=3")).close()
    first = Path("mine/run.log").read_text()
    with create_run_folder(load_config(["--resume=mine", "--epochs=5"])) as folder:
        assert folder.path == Path("mine")
    assert Path("mine/run.log").read_text().startswith(first)  # appended
    assert "epochs: 5" in Path("mine/config.yaml").read_text()
    create_run_folder(load_config(["--resume=mine", "--run_dir=./mine"])).close()
    with pytest.raises(ConfigError, match="run_dir=other and resume=mine differ"):
        create_run_folder(load_config(["--resume=mine", "--run_dir=other"]))


def test_a_folder_that_cannot_be_made():
    Path("file").write_text("")
    for run_dir in ("file", "file/below"):
        with pytest.raises(ConfigError, match=f"run_dir={run_dir} cannot be made"):
            create_run_folder(load(f"--run_dir={run_dir}"))
    with pytest.raises(ConfigError, match="the run folder cannot be made.*--run_dir=PATH"):
        create_run_folder(load("--checkpoint_dir=file"))


def test_the_saved_settings_give_the_same_run():
    config = load("--run_dir=mine", "--learning_rate=1e-5")
    create_run_folder(config).close()
    assert load_config(["--config_files=mine/config.yaml"]).to_dict() == config.to_dict()


# Logging


def test_the_log_has_no_colours_and_all_messages(capsys):
    with create_run_folder(load("--run_dir=mine")) as folder:
        logging.getLogger().info(set_color("training", "blue") + ": epoch 1")
        logging.getLogger("recbole").warning("from a library")
        logging.getLogger().debug("hidden")
        assert "training: epoch 1" in folder.log_file.read_text()
    logging.getLogger().warning("after the run")
    text = folder.log_file.read_text()
    assert "INFO  training: epoch 1" in text
    assert "WARNING  from a library" in text
    assert "\x1b" not in text and "hidden" not in text and "after the run" not in text
    assert "training: epoch 1" in capsys.readouterr().err


def test_the_level_is_the_consoles_and_the_file_has_everything(capsys):
    with create_run_folder(load("--run_dir=mine", "--state=WARNING")) as folder:
        logging.getLogger().info("hidden")
        logging.getLogger().warning("shown")
    console = capsys.readouterr().err
    assert "shown" in console and "hidden" not in console
    assert "shown" in folder.log_file.read_text() and "hidden" in folder.log_file.read_text()


def test_colours_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with create_run_folder(load("--run_dir=mine")) as folder:
        logging.getLogger().warning("attention")
    assert "\x1b[33m" in capsys.readouterr().err
    assert "\x1b" not in folder.log_file.read_text()


def test_warnings_about_settings_are_logged():
    Path("a.yaml").write_text("beta: 0.5\n")
    with create_run_folder(load("--run_dir=mine", "--config_files=a.yaml")) as folder:
        pass
    assert "WARNING  a.yaml: beta are LLMRec's settings" in folder.log_file.read_text()


def test_why_a_run_stopped_is_in_its_log(capsys):
    for number, error in enumerate(
        (MultDPOError("no data"), KeyboardInterrupt(), ZeroDivisionError("bug"))
    ):
        with pytest.raises(type(error)), create_run_folder(load(f"--run_dir=r{number}")):
            raise error
    logs = [Path(f"r{number}/run.log").read_text() for number in range(3)]
    assert "ERROR  the run stopped: no data" in logs[0]
    assert "ERROR  the run stopped: KeyboardInterrupt" in logs[1]
    assert "ERROR  the run stopped: bug" in logs[2]
    assert ["Traceback" in log for log in logs] == [False, False, True]
    assert "the run stopped" not in capsys.readouterr().err  # the caller shows it


# TensorBoard


def test_recboles_tensorboard_goes_into_the_folder_and_is_closed():
    with create_run_folder(load("--run_dir=mine")) as folder:
        writer = recbole_trainer.get_tensorboard(logging.getLogger())
        assert writer is folder.tensorboard() is recbole_trainer.get_tensorboard(None)
        writer.add_scalar("loss", 1.0, 0)
        assert writer.file_writer is not None
    assert writer.file_writer is None  # closed
    assert os.listdir() == ["mine"]
    folder.close()  # once more is harmless


def test_a_run_inside_a_run():
    with create_run_folder(load("--run_dir=outer")) as outer:
        with create_run_folder(load("--run_dir=inner")) as inner:
            assert recbole_trainer.get_tensorboard == inner.tensorboard
        assert recbole_trainer.get_tensorboard == outer.tensorboard
        logging.getLogger().info("only outer")
    assert "only outer" in outer.log_file.read_text()
    assert "only outer" not in inner.log_file.read_text()


# Results


def test_the_result():
    config = load("--run_dir=mine", "--seed=7", "--loss=s_dpo", model="LLMRec")
    with create_run_folder(config) as folder:
        written = folder.write_result(RESULT)
    result = json.loads(folder.result_file.read_text())
    assert result == written
    assert (result["model"], result["dataset"], result["loss"], result["seed"]) == (
        "LLMRec",
        "ml-100k",
        "s_dpo",
        7,
    )
    assert result["valid_result"] == {"ndcg@10": 0.25}
    assert result["test_result"] == {"ndcg@10": 0.125, "recall@10": None}  # JSON has no NaN
    assert result["num_users_evaluated"] == 943
    assert result["seconds"] == {"data": 1.5, "sft": 2.0}
    assert 50 < result["peak_memory_mb"]["rss"] < 1e6
    assert "cuda" not in result["peak_memory_mb"]
    assert result["versions"]["recbole_multdpo"] == __version__
    assert result["versions"]["numpy"] == np.__version__
    for package in ("python", "transformers", "peft", "recbole", "numpy", "pandas", "scipy"):
        assert result["versions"][package][0].isdecimal()
    hardware = result["hardware"]
    assert hardware["cpu"] and hardware["cores"] >= 1 and hardware["memory_mb"] > 100
    assert hardware["gpus"] == []
    assert shlex.split(result["command"])[-2:] == config.argv[-2:]


def test_the_result_of_a_recbole_model_has_no_loss():
    with create_run_folder(load("--run_dir=mine")) as folder:
        assert folder.write_result({})["loss"] is None


def test_the_command(monkeypatch):
    argv = ["--model=BPR", "--eval_args={'order': 'TO'}", "--run_dir=a b"]
    monkeypatch.setattr(sys, "argv", ["run.py", *argv])
    monkeypatch.setattr(sys, "orig_argv", ["python3", "-X", "dev", "run.py", *argv])
    assert shlex.split(run_folder.command(argv)) == ["python3", "-X", "dev", "run.py", *argv]
    other = ["--model=EASE"]
    assert run_folder.command(other) == "python -m recbole_multdpo --model=EASE"


def test_gpus_are_listed_when_there_are_any(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 3 * 2**20)
    assert run_folder.hardware()["gpus"] == ["GPU 0", "GPU 1"]
    assert run_folder.peak_memory_mb()["cuda"] == 3.0


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (np.float32(0.5), 0.5),
        (np.bool_(True), True),
        (torch.tensor(3), 3),
        (math.inf, None),
        ((1, [2.0, None]), [1, [2.0, None]]),
        ({5: Path("a")}, {"5": "a"}),
    ],
)
def test_plain_values(value, plain):
    assert run_folder.plain_json(value) == plain


# Failures


@pytest.mark.parametrize("problem", [OSError(28, "No space left"), OSError(30, "Read-only")])
def test_a_disk_that_cannot_be_written_is_a_clear_error(monkeypatch, problem):
    with create_run_folder(load("--run_dir=mine")) as folder:

        def fail(*args, **kwargs):
            raise problem

        monkeypatch.setattr(tempfile, "mkstemp", fail)
        expected = f"cannot write .*result.json: {problem.strerror}.*--run_dir=PATH"
        with pytest.raises(MultDPOError, match=expected):
            folder.write_result(RESULT)
        assert not folder.result_file.exists()
        with pytest.raises(MultDPOError, match=f"cannot write other: {problem.strerror}"):
            create_run_folder(load("--run_dir=other"))


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_read_only_folder_is_a_clear_error():
    Path("locked").mkdir(mode=0o555)
    with pytest.raises(ConfigError, match="run_dir=locked/run cannot be made: Permission denied"):
        create_run_folder(load("--run_dir=locked/run"))
    with pytest.raises(MultDPOError, match="cannot write locked: Permission denied"):
        create_run_folder(load("--run_dir=locked"))


# With RecBole


def test_a_recbole_model_writes_into_the_folder_only():
    """BPR on a small checkerboard: 20 users, 10 items, each user likes the items of one colour."""
    Path("data/board").mkdir(parents=True)
    rows = [f"u{user}\ti{item}" for user in range(20) for item in range(10) if (user + item) % 2]
    Path("data/board/board.inter").write_text("\n".join(["user_id:token\titem_id:token", *rows]))
    before = files()
    argv = ["--model=BPR", "--dataset=board", "--data_path=data", "--run_dir=mine", "--epochs=2"]
    argv += ["--topk=[2]", "--valid_metric=NDCG@2", "--device=cpu", "--show_progress=False"]
    config = load_config(argv)
    with create_run_folder(config) as folder:
        dataset = create_dataset(config)
        train, valid, test = data_preparation(config, dataset)
        model = config.model_class(config, train._dataset).to(config["device"])
        trainer = get_trainer(config["MODEL_TYPE"], config["model"])(config, model)
        _, valid_result = trainer.fit(train, valid, show_progress=config["show_progress"])
        test_result = trainer.evaluate(test, show_progress=False)
        folder.write_result({"valid_result": valid_result, "test_result": test_result})
    assert [name for name in files() if not name.startswith("mine")] == before
    assert [name for name in files("mine/checkpoints") if name.endswith(".pth")]
    assert any("events" in name for name in files("mine/tensorboard"))
    assert "epoch 1 training" in folder.log_file.read_text()
    result = json.loads(folder.result_file.read_text())
    assert set(result["test_result"]) == {
        f"{m}@2" for m in ("ndcg", "recall", "mrr", "hit", "precision")
    }
    assert all(0 <= value <= 1 for value in result["test_result"].values())
