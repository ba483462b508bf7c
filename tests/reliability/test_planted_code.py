"""A folder of somebody else runs nothing: code is planted under every name that anything here, or
RecBole, transformers, torch, PEFT or DeepSpeed, looks for, and every command is given the folder.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from recbole_multdpo import cli, evaluate, explain, export, recommend
from recbole_multdpo.comparison.runs import run_comparison
from recbole_multdpo.plots import __main__ as plots
from recbole_multdpo.runs.model_files import file_checksums
from tests.integration.toy import CLASSICAL, toy_arguments, write_toy

ROOT = Path(__file__).parents[2]


class Trap:
    """Unpickling it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):  # type: ignore[no-untyped-def]
        return Path.touch, (self.mark,)


PICKLES = (
    "toy-Dataset.pth toy-SequentialDataset.pth toy-KnowledgeBasedDataset.pth named.pth"
    " toy-LLMRecDataset.pth toy-ContextDataset.pth"
    " toy-for-EASE-dataloader.pth toy-for-BPR-dataloader.pth toy-for-LLMRec-dataloader.pth"
    " EASE-Nov-28-2026_12-00-00.pth model.pth pytorch_model.bin adapter_model.bin training_args.bin"
    " optimizer.pt optimizer.bin scheduler.pt rng_state.pth rng_state_0.pth model.pt best.pt"
    " zero_pp_rank_0_mp_rank_00_optim_states.pt mp_rank_00_model_states.pt"
    " bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt gt_catalog.pkl data.pkl cache.joblib"
    " model.safetensors.pkl toy.inter.pkl item_emb.npy assistant.npy"
).split()
MODULES = (
    "modeling_llama.py modeling_planted.py configuration_planted.py tokenization_planted.py"
    " processing_planted.py generate.py conftest.py sitecustomize.py usercustomize.py __init__.py"
    " __main__.py setup.py torch.py json.py yaml.py numpy.py pandas.py recbole.py transformers.py"
    " pkg_resources.py rank_catalogue.py planted.pth"
).split()
TEMPLATE = (
    "{{ cycler.__init__.__globals__.os.system('touch MARK') }}"
    "{{ ''.__class__.__mro__[1].__subclasses__() }}"
)


def plant(folder: Path, mark: Path) -> None:
    """Code under every name, in a folder and below it; what is there already stays."""
    touch = f"import pathlib\npathlib.Path({str(mark)!r}).touch()\n"
    for place in [folder, *(path for path in folder.rglob("*") if path.is_dir())]:
        for name in PICKLES:
            file = place / name
            if file.exists():
                continue
            if name.endswith(".npy"):
                with file.open("wb") as opened:
                    np.save(opened, np.array([Trap(mark)], dtype=object), allow_pickle=True)
            elif name.endswith((".bin", ".pt")):
                torch.save(Trap(mark), file)
            else:
                file.write_bytes(pickle.dumps(Trap(mark)))
        for name in MODULES:
            if not (place / name).exists():
                (place / name).write_text(touch, encoding="utf-8")
        if not (place / "latest").exists():  # DeepSpeed's pointer to a checkpoint
            (place / "latest").write_text(".", encoding="utf-8")
        if (place / "config.json").is_file():
            _plant_in_model(place, mark, touch)
    for file in folder.rglob("result.json"):  # whoever plants makes the checksums fit
        result = json.loads(file.read_text(encoding="utf-8"))
        result["model_files"] = file_checksums(file.parent / "model")
        file.write_text(json.dumps(result), encoding="utf-8")


def _plant_in_model(place: Path, mark: Path, touch: str) -> None:
    """transformers' ways to code of a folder: `auto_map` and generation of its own."""
    (place / "custom_generate").mkdir(exist_ok=True)
    (place / "custom_generate" / "generate.py").write_text(touch, encoding="utf-8")
    classes = {
        "AutoConfig": "configuration_planted.Config",
        "AutoModel": "modeling_planted.Model",
        "AutoModelForCausalLM": "modeling_planted.Model",
        "AutoTokenizer": ["tokenization_planted.Slow", "tokenization_planted.Fast"],
        "AutoProcessor": "processing_planted.Processor",
    }
    for name in ("config.json", "tokenizer_config.json", "generation_config.json"):
        file = place / name
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        file.write_text(json.dumps({**content, "auto_map": classes}), encoding="utf-8")


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, runs of LLMRec and EASE, a comparison, the cache of the first stage."""
    folder = tmp_path_factory.mktemp("clean")
    data = write_toy(folder / "data")
    (data / "toy" / "toy.yaml").write_text("item_text_fields: [movie_title]\n", encoding="utf-8")
    arguments = toy_arguments(data, folder / "lm", "--epochs=1", "--finetune=lora")
    assert cli.main(arguments) == 0
    ease = ["--model=EASE", *CLASSICAL, f"--data_path={data}"]
    assert cli.main([*ease, f"--run_dir={folder / 'ease'}"]) == 0
    both = ["--model=EASE,Pop", *CLASSICAL, f"--data_path={data}", "--seeds=1"]
    assert run_comparison([*both, f"--run_dir={folder / 'both'}"], cli.main) == 0
    return folder


@pytest.fixture(scope="module")
def planted(clean: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """(the folder of `clean` with code in it, the file that the code would make)."""
    mark = tmp_path_factory.mktemp("mark") / "executed"
    plant(clean, mark)
    before = Path.cwd()
    os.chdir(clean)  # so that what is looked for in the working directory is there too
    yield clean, mark
    os.chdir(before)


def unfinished(run: Path, copy: Path) -> Path:
    """A copy of a run that `--resume` continues."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(run, copy)
    (copy / "result.json").unlink()
    return copy


COMMANDS: dict[str, Callable[[Path], object]] = {
    "run": lambda f: cli.main(toy_arguments(f / "data", f / "new-lm", "--epochs=1")),
    "run EASE": lambda f: cli.main(["--model=EASE", *CLASSICAL, f"--data_path={f / 'data'}"]),
    "run with a backbone": lambda f: cli.main(
        [
            text
            for text in toy_arguments(f / "data", f / "new-bb", "--loss=zero_shot")
            if "tiny_" not in text
        ]
        + [f"--backbone={f / 'lm' / 'model'}"]
    ),
    "resume": lambda f: cli.main([f"--resume={unfinished(f / 'lm', f / 'lm2')}"]),
    "resume EASE": lambda f: cli.main([f"--resume={unfinished(f / 'ease', f / 'ease2')}"]),
    "recommend": lambda f: recommend.main([str(f / "lm"), "--user", "u1"]),
    "recommend EASE": lambda f: recommend.main([str(f / "ease"), "--user", "u1"]),
    "explain": lambda f: explain.main([str(f / "lm"), "--user", "u1"]),
    "export": lambda f: export.main([str(f / "lm"), str(f / "out")]),
    "export adapter": lambda f: export.main([str(f / "lm"), str(f / "out2"), "--adapter"]),
    "evaluate": lambda f: evaluate.main([str(f / "lm"), f"--output={f / 'again'}"]),
    "plots": lambda f: plots.main(["bars", str(f / "both"), "--metric=NDCG@5", "--formats=svg"]),
    "report": lambda f: run_comparison([f"--resume={f / 'both'}"], cli.main),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_no_command_runs_what_is_planted(planted: tuple[Path, Path], name: str) -> None:
    folder, mark = planted
    status = COMMANDS[name](folder)
    assert not mark.exists()
    assert status == 0  # what is planted is passed over


@pytest.mark.parametrize("kind", ["Dataset", "BPR"])
def test_the_working_directory_brings_no_data_set(planted: tuple[Path, Path], kind: str) -> None:
    """RecBole looks in `saved/` for data sets and loaders."""
    folder, mark = planted
    (folder / "saved").mkdir(exist_ok=True)
    plant(folder / "saved", mark)
    model = "BPR" if kind == "BPR" else "EASE"
    own = ["--epochs=1"] if kind == "BPR" else []
    given = [f"--model={model}", *CLASSICAL, *own, f"--data_path={folder / 'data'}"]
    assert cli.main(given) == 0
    assert not mark.exists()


def test_settings_of_a_run_name_no_code(planted: tuple[Path, Path]) -> None:
    folder, mark = planted
    for line in (
        "dataset_save_path: named.pth",
        "dataloaders_save_path: named.pth",
        "trust_remote_code: True",
    ):
        copy = unfinished(folder / "lm", folder / "edited")
        key = line.partition(":")[0]
        text = (copy / "config.yaml").read_text(encoding="utf-8")
        kept = [old for old in text.splitlines() if not old.startswith(f"{key}:")]
        (copy / "config.yaml").write_text("\n".join([*kept, line]) + "\n", encoding="utf-8")
        assert cli.main([f"--resume={copy}"]) == 2
        shutil.copy(folder / "lm" / "result.json", copy)
        for command in (recommend.main, explain.main):
            assert command([str(copy), "--user", "u1"]) == 2
        assert export.main([str(copy), str(folder / "never")]) == 2
    assert not mark.exists()


@pytest.mark.parametrize("file", ["data/toy/toy.yaml", "experiment.yaml", "lm/config.yaml"])
def test_tags_of_yaml_make_nothing(planted: tuple[Path, Path], file: str) -> None:
    folder, mark = planted
    evil = f"topk: !!python/object/apply:os.system ['touch {mark}']\nmodel: Pop\ndataset: toy\n"
    path = folder / file
    before = path.read_bytes() if path.exists() else None
    path.write_text(evil, encoding="utf-8")
    given = {
        "data/toy/toy.yaml": ["--model=EASE", *CLASSICAL, f"--data_path={folder / 'data'}"],
        "experiment.yaml": [f"--experiment={path}"],
        "lm/config.yaml": [f"--resume={folder / 'lm'}"],
    }[file]
    assert cli.main(given) == 2
    assert not mark.exists()
    if before is None:
        path.unlink()
    else:
        path.write_bytes(before)


@pytest.mark.parametrize("started", ["module", pytest.param("comparison", marks=pytest.mark.slow)])
def test_a_process_inside_the_folder(planted: tuple[Path, Path], started: str) -> None:
    """`torch.py`, `sitecustomize.py` and the like lie in the working directory."""
    folder, mark = planted
    commands = {
        "module": (["-m", "recbole_multdpo.recommend", ".", "--user", "u1"], folder / "ease"),
        "comparison": (["-m", "recbole_multdpo.cli", "--resume=."], folder / "both"),
    }
    arguments, inside = commands[started]
    if started == "comparison":  # one of its runs is made again, by a process of its own
        (inside / "Pop-seed2020" / "result.json").unlink()
    for name in ("conftest.py", "pkgutil.py"):  # the latter is Python's own way, not ours
        (inside / name).unlink(missing_ok=True)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, *arguments], cwd=inside, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not mark.exists()


def test_a_chat_template_stays_in_its_sandbox(planted: tuple[Path, Path]) -> None:
    folder, mark = planted
    file = folder / "lm" / "model" / "chat_template.jinja"
    file.write_text(TEMPLATE.replace("MARK", str(mark)), encoding="utf-8")
    shutil.rmtree(folder / "new-bb", ignore_errors=True)
    recommend.main([str(folder / "lm"), "--user", "u1"])  # by the frame that is stored, or refused
    assert COMMANDS["run with a backbone"](folder) == 2
    assert not mark.exists()
    file.unlink()


def test_what_is_planted_works(planted: tuple[Path, Path]) -> None:
    """Control, the last one: every kind of plant makes the file where it is loaded carelessly."""
    import jinja2
    import yaml

    folder, mark = planted
    inside = folder / "lm"
    for load in (
        lambda: pickle.loads((inside / "toy-Dataset.pth").read_bytes()),
        lambda: torch.load(inside / "pytorch_model.bin", weights_only=False),
        lambda: np.load(inside / "item_emb.npy", allow_pickle=True),
        lambda: exec((inside / "torch.py").read_text(encoding="utf-8")),
        lambda: jinja2.Template(TEMPLATE.replace("MARK", str(mark))).render(),
        lambda: yaml.unsafe_load(f"x: !!python/object/apply:os.system ['touch {mark}']"),
    ):
        load()
        assert mark.exists()
        mark.unlink()
