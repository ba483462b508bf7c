"""Every path of the command on a virtual GPU: no tensor meets one of another device."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from recbole_multdpo import evaluate, explain, export, recommend
from recbole_multdpo.losses import LOSSES
from recbole_multdpo.quick_start import run
from recbole_multdpo.scoring import best_first, packed
from recbole_multdpo.training import step
from recbole_multdpo.training.trainer import SetwiseTrainer
from tests.counts import write_backbone
from tests.integration.test_conversations import DATA, write_conversations
from tests.integration.toy import classical_arguments, toy_arguments
from tests.several_processes import run_processes
from tests.virtual_cuda import VirtualCuda

pytestmark = pytest.mark.integration
LORA = ["--finetune=lora", "--lora_r=2", "--tiny_title_tokens=False"]
EASE = ["--assistant=EASE", "--EASE.reg_weight=10"]
DYNAMIC = ["--negatives=dynamic", "--num_negatives=5"]
POOL = [*DYNAMIC, "--negative_pool_size=12"]
LEVELS = {"mult2_dpo": ["--level_thresholds=[5, 4]"], "pl2_dpo": ["--level_thresholds=[5, 4]"]}
# settings of runs of both stages
BOTH = {
    **{
        f"loss {name}": [f"--loss={name}", *LEVELS.get(name, [])]
        for name in LOSSES
        if name != "sft"
    },
    "positives": ["--loss=mult2_dpo", *LEVELS["mult2_dpo"], "--loss_average=positive"],
    "low ratings": ["--low_ratings=below_unrated", "--val_interval={'rating': '[5,inf)'}"],
    "adapter": [
        *LORA,
        "--gradient_checkpointing=True",
        "--max_tokens_per_batch=120",
        "--auto_batch=True",
        "--lora_dropout=0.1",
    ],
    "bfloat16": ["--dtype=bfloat16"],
    "adapter in bfloat16": [*LORA, "--dtype=bfloat16", "--loss=pl_dpo"],
    "catalogue": DYNAMIC,
    "uniform pool": [*POOL, "--negative_pool=uniform"],
    "ranker's pool": [*POOL, "--negative_pool=ranker"],
    "by policy": [*DYNAMIC, "--dynamic_weights=policy", *LORA],
    "popularity": ["--negative_distribution=popularity"],
    "bounds": ["--track_bounds=True", "--reference_cache=True"],
    "padded": ["--scorer=padded", "--ranker=exhaustive", "--loss=dpo"],
    "metrics": ["--stop_at_metrics=True"],
    "temporal": ["--eval_args={'order': 'TO'}", "--history_split=temporal"],
    "refit": ["--test_information=refit"],
    "assistant": EASE,
    "without reference": ["--reference=none", "--beta=0.1"],
}
RUNS = {
    **{name: ["--epochs=1", *settings] for name, settings in BOTH.items()},
    "zero shot": ["--loss=zero_shot"],
    "sampled": ["--eval_args={'mode': {'valid': 'uni6', 'test': 'uni6'}}", "--loss=sft"],
    "sampled with an assistant": ["--eval_args={'mode': 'uni6'}", "--loss=sft", *EASE],
    "prompt too": ["--sft_on_prompt=True", "--loss=sft", "--normalize_over=vocabulary"],
    "D3": ["--model=D3", *EASE],
    "BIGRec": ["--model=BIGRec", "--generation_tokens=6", "--grounding_weight=popularity"],
}


@contextmanager
def on_cuda() -> Iterator[VirtualCuda]:
    """A virtual GPU on which something must happen, and no devices may be mixed."""
    with VirtualCuda() as cuda:
        yield cuda
    assert cuda.copies
    assert not cuda.mixes, cuda.mixes


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose runs share the cache of their first stages."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("name", RUNS)
def test_a_run_stays_on_its_device(data_path: Path, shared: Path, name: str) -> None:
    arguments = toy_arguments(
        data_path, shared / name.replace(" ", "-"), "--device=cuda", *RUNS[name]
    )
    with on_cuda() as cuda:
        run(arguments)
    assert sum(cuda.waits.values()) > 10


def test_a_classical_model_stays_on_its_device(data_path: Path, tmp_path: Path) -> None:
    with on_cuda():
        run(classical_arguments("BPR", data_path, tmp_path / "run", "--device=cuda", "--epochs=1"))


def test_the_virtual_device_changes_no_result(data_path: Path, tmp_path: Path) -> None:
    one = run(toy_arguments(data_path, tmp_path / "cpu", "--sft_cache=False"))
    with on_cuda():
        other = run(toy_arguments(data_path, tmp_path / "cuda", "--device=cuda"))
    for part in ("valid_result", "test_result"):
        assert other[part] == one[part]


def test_a_pretrained_backbone_with_conversations(tmp_path: Path) -> None:
    backbone = write_backbone(tmp_path / "backbone", 2)
    own = [
        *DATA,
        "--device=cuda",
        f"--backbone={backbone}",
        "--lora_r=2",
        "--max_prompt_tokens=400",
    ]
    arguments = toy_arguments(write_conversations(tmp_path / "data"), tmp_path / "run", *own)
    with on_cuda():
        run([text for text in arguments if not text.startswith("--tiny_")])


@pytest.mark.parametrize("extra", [[], [*LORA, "--dtype=bfloat16"]], ids=["tiny", "bfloat16"])
def test_resuming_in_the_middle_of_an_epoch(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extra: list[str]
) -> None:
    train_step = SetwiseTrainer._train_step

    def interrupted(trainer: SetwiseTrainer, batch: Any) -> dict[str, float]:
        if trainer.stage.name == "preference" and trainer.global_step == 2:
            raise KeyboardInterrupt
        return train_step(trainer, batch)

    folder = tmp_path / "run"
    with on_cuda(), monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(SetwiseTrainer, "_train_step", interrupted)
        run(toy_arguments(data_path, folder, "--device=cuda", "--save_steps=2", *extra))
    with on_cuda():
        run([f"--resume={folder}"])
    assert json.loads((folder / "result.json").read_text())["test_result"]


def test_what_uses_a_finished_run(data_path: Path, tmp_path: Path, capsys: Any) -> None:
    folder = tmp_path / "run"
    with on_cuda():
        run(toy_arguments(data_path, folder, "--device=cuda", *LORA, "--loss=dpo"))
    commands = {
        recommend: ["--users=u3,u4", "--k=4"],
        evaluate: ["--eval_args={'mode': 'uni5'}"],
        explain: ["--user=u3", "--k=4"],
        export: [str(tmp_path / "export")],
    }
    for module, options in commands.items():
        with on_cuda():
            assert module.main([str(folder), *options]) == 0, capsys.readouterr().err
    with on_cuda():
        assert recommend.main([str(folder), "--liked", "Red Night 0", "--k=4"]) == 0


@contextmanager
def gloo_as_nccl() -> Iterator[VirtualCuda]:
    """A virtual GPU of two; gloo plays NCCL, and a collective on the wrong device is a mix."""
    cuda, cpu_groups = VirtualCuda(2), []
    init, new_group = dist.init_process_group, dist.new_group

    def as_gloo(backend: str, **options: Any) -> Any:
        return init("gloo", **options)

    def noting(*args: Any, backend: str | None = None, **options: Any) -> Any:
        group = new_group(*args, backend="gloo", **options)
        if backend == "gloo":
            cpu_groups.append(group)
        return group

    def checked(name: str) -> Any:
        real = getattr(dist, name)

        def call(*args: Any, **options: Any) -> Any:
            on_cpu = any(options.get("group") is group for group in cpu_groups)
            is_tensor = bool(args) and isinstance(args[0], torch.Tensor)
            if on_cpu == (is_tensor and args[0].is_cuda):
                cuda.mixes[f"{name} in the group of another device"] += 1
            return real(*args, **options)

        return call

    collectives = ("all_reduce", "broadcast_object_list", "all_gather_object", "barrier")
    replaced = {name: checked(name) for name in collectives}
    replaced |= {"init_process_group": as_gloo, "new_group": noting}
    with ExitStack() as stack:
        for name, function in replaced.items():
            stack.enter_context(mock.patch.object(dist, name, function))
        yield stack.enter_context(cuda)


def run_beside_another(arguments: list[str]) -> tuple[dict[str, float], dict[str, int], int]:
    """Metrics, mixes and the device's index of one of two processes on virtual GPUs."""
    with gloo_as_nccl() as cuda:
        found = run(arguments)
        index = torch.cuda.current_device()
    return found["test_result"], dict(cuda.mixes), index


@pytest.mark.parametrize("extra", [["--loss=kto"], [*LORA, "--max_tokens_per_batch=300"]])
def test_two_processes_on_two_gpus(data_path: Path, tmp_path: Path, extra: list[str]) -> None:
    arguments = toy_arguments(data_path, tmp_path / "run", "--device=cuda", *extra)
    one, other = run_processes(2, run_beside_another, arguments, has_group=False)
    assert one[0] == other[0]
    assert (one[2], other[2]) == (0, 1)
    assert not one[1] and not other[1]


PLANTS = {
    "mask": (packed, "block_mask", lambda mask: mask.cpu()),
    "positives": (step, "set_masks", lambda masks: [mask.cpu() for mask in masks]),
    "allowed items": (best_first, "_any_below", lambda alive: alive.cpu()),
}


@pytest.mark.parametrize("name", PLANTS)
def test_a_planted_fault_is_found(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    module, function, moved = PLANTS[name]
    real = getattr(module, function)
    monkeypatch.setattr(module, function, lambda *args, **options: moved(real(*args, **options)))
    with VirtualCuda() as cuda:
        run(
            toy_arguments(data_path, tmp_path / "run", "--device=cuda", "--tiny_title_tokens=False")
        )
    assert cuda.mixes
