"""Two processes against one: the same batches, losses, weights and metrics; errors; resuming.

Tolerances: float32 sums come in another order, which shifts a loss or a gradient by about 1e-7 of
its size. AdamW divides each entry of the gradient by its own root mean square, so that an entry
near zero may come out anywhere within the step size: weights of small models differ by up to 1e-4
after steps of 1e-3, those of LoRA by less.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer, Gemma3ForCausalLM, Gemma3TextConfig

from recbole_multdpo.data.prompt import PromptFrame
from recbole_multdpo.errors import ConfigError, ProcessError
from recbole_multdpo.model import llmrec
from recbole_multdpo.model.backbone import save_backbone
from recbole_multdpo.quick_start import run
from recbole_multdpo.runs import checkpoint
from recbole_multdpo.runtime import processes
from recbole_multdpo.runtime.interruption import Interrupted
from recbole_multdpo.settings.config import load_config
from recbole_multdpo.training.distributed import DeepSpeedEngine, TorchEngine
from recbole_multdpo.training.optimizer_state import fragments_by_name, read_fragments
from recbole_multdpo.training.step import TrainingStep
from recbole_multdpo.training.trainer import SetwiseTrainer
from tests.integration.toy import toy_arguments, toy_model
from tests.several_processes import free_port, launcher_environment, run_processes

pytestmark = pytest.mark.integration
ROOT = Path(__file__).parents[2]
# batches that two processes cannot halve: 7, 7, 7, 3 and 5, 5, 5, 5, 4 of 24 users
UNEVEN_SFT = ["--sft_batch_size=5", "--rank_batch_users=5", "--sft_cache=False"]
UNEVEN = ["--train_batch_size=7", *UNEVEN_SFT]
PARTS = ["--gradient_accumulation_steps=2"]
LOSS, WEIGHT, LORA_WEIGHT = 2e-5, 2e-4, 2e-6


@pytest.fixture(scope="module")
def backbone(data_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model that LoRA can be put on."""
    folder = tmp_path_factory.mktemp("backbone") / "run"
    run(toy_arguments(data_path, folder, "--loss=sft"))
    return folder / "model"


def recorded(arguments: list[str]) -> dict[str, Any]:
    """The result of a run with the loss of every step of the preference stage."""
    losses, train_step = [], SetwiseTrainer._train_step

    def recording(trainer: SetwiseTrainer, batch: Any) -> dict[str, float]:
        metrics = train_step(trainer, batch)
        losses.append(metrics["loss"])
        return metrics

    SetwiseTrainer._train_step = recording  # type: ignore[method-assign]
    try:
        return {**run(arguments), "losses": losses}
    finally:
        SetwiseTrainer._train_step = train_step  # type: ignore[method-assign]


def largest_difference(one: Path, other: Path) -> float:
    first, second = (load_file(folder / "model" / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


def lora(backbone: Path, arguments: list[str]) -> list[str]:
    kept = [text for text in arguments if not text.startswith("--tiny_")]
    return [*kept, f"--backbone={backbone}", "--lora_r=2"]


def compare(
    one_arguments: list[str], two_arguments: list[str], weight: float, metrics: float = 1e-9
) -> None:
    """Run the first in one process and the second in two; both must find the same."""
    one = recorded(one_arguments)
    two, other = run_processes(2, recorded, two_arguments)
    assert two["losses"] == pytest.approx(one["losses"], abs=LOSS)
    assert other["losses"] == two["losses"]  # both know the loss of the whole batch
    assert len(one["losses"]) == 5 + 2 * 4
    assert largest_difference(folder_of(one_arguments), folder_of(two_arguments)) < weight
    assert (one["processes"], two["processes"]) == (1, 2)
    for part in ("valid_result", "test_result"):
        assert two[part] == pytest.approx(one[part], abs=metrics)


def folder_of(arguments: list[str]) -> Path:
    (found,) = (a.removeprefix("--run_dir=") for a in arguments if a.startswith("--run_dir="))
    return Path(found)


@pytest.mark.parametrize(
    ("both", "two"),
    [
        pytest.param([], [], marks=pytest.mark.slow),
        # parts of unequal number: the process with fewer of them fills up
        ([], ["--max_tokens_per_batch=60", "--gradient_checkpointing=True"]),
        pytest.param(
            ["--loss_average=positive", "--level_thresholds=[5, 4]", "--loss=mult2_dpo"],
            ["--gradient_accumulation_steps=3"],
            marks=pytest.mark.slow,
        ),
    ],
    ids=["plain", "tokens", "accumulated"],
)
def test_two_processes_train_as_one(
    data_path: Path, tmp_path: Path, both: list[str], two: list[str]
) -> None:
    compare(
        toy_arguments(data_path, tmp_path / "one", *UNEVEN, *both),
        toy_arguments(data_path, tmp_path / "two", *UNEVEN, *both, *two),
        WEIGHT,
    )


def test_rewards_are_means_over_the_examples_of_all_processes(
    data_path: Path, tmp_path: Path
) -> None:
    """Batches of 7 that two processes share as 4 and 3, computed in parts of unequal size."""
    extra = [*UNEVEN, "--level_thresholds=[5, 4]", "--loss=mult2_dpo", "--epochs=1"]
    run(toy_arguments(data_path, tmp_path / "one", *extra))
    run_processes(2, run, toy_arguments(data_path, tmp_path / "two", *extra, *PARTS))
    one, two = (steps_of(tmp_path / name) for name in ("one", "two"))
    assert len(one) == len(two) == 4
    for first, second in zip(one, two, strict=True):
        for name in ("positive_logp", "negative_logp", "margin", "reward_accuracy"):
            assert float(second[name]) == pytest.approx(float(first[name]), abs=1e-3), name
    assert 0 < float(one[-1]["reward_accuracy"]) < 1


def steps_of(folder: Path) -> list[dict[str, str]]:
    """Rows of the preference stage in `steps.csv`."""
    with (folder / "steps.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["stage"] == "preference"]


def test_a_share_weighed_by_itself_trains_another_model(data_path: Path, tmp_path: Path) -> None:
    """Control: the average over the processes of each one's average, as is usual."""

    def naive() -> dict[str, Any]:
        def weights(step: TrainingStep, batch: Any) -> torch.Tensor:
            return torch.full((len(batch),), 1 / len(batch) / processes.world_size())

        TrainingStep.example_weights = weights  # type: ignore[method-assign]
        return recorded(toy_arguments(data_path, tmp_path / "two", *UNEVEN_SFT, "--loss=sft"))

    run(toy_arguments(data_path, tmp_path / "one", *UNEVEN_SFT, "--loss=sft"))
    run_processes(2, naive)
    assert largest_difference(tmp_path / "one", tmp_path / "two") > 5 * WEIGHT


def test_two_processes_train_lora_as_one(data_path: Path, tmp_path: Path, backbone: Path) -> None:
    one, two = (toy_arguments(data_path, tmp_path / name, *UNEVEN) for name in ("one", "two"))
    compare(lora(backbone, one), lora(backbone, two), LORA_WEIGHT)


@pytest.fixture(scope="module")
def deepspeed() -> None:
    """Imported once, before the processes are forked."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    pytest.importorskip("deepspeed")


@pytest.mark.parametrize(
    ("setting", "extra"),
    [
        pytest.param("zero1", [], marks=pytest.mark.slow),
        ("zero2", ["--gradient_accumulation_steps=2"]),
        pytest.param("zero3", ["--max_tokens_per_batch=60"], marks=pytest.mark.slow),
        pytest.param("zero3", ["--gradient_checkpointing=True"], marks=pytest.mark.slow),
        pytest.param("zero2_offload", [], marks=pytest.mark.slow),
        pytest.param("zero3_offload", [], marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("trained", ["all", "lora"])
def test_zero_trains_as_one_process(
    data_path: Path,
    tmp_path: Path,
    backbone: Path,
    deepspeed: None,
    setting: str,
    extra: list[str],
    trained: str,
) -> None:
    extra = [f"--deepspeed={setting}", *extra]
    one = toy_arguments(data_path, tmp_path / "one", *UNEVEN)
    two = toy_arguments(data_path, tmp_path / "two", *UNEVEN, *extra)
    if trained == "lora":
        compare(lora(backbone, one), lora(backbone, two), LORA_WEIGHT)
    else:
        compare(one, two, 2 * WEIGHT)


@pytest.mark.slow
def test_zero3_with_a_window_and_capped_logits(
    data_path: Path, tmp_path: Path, backbone: Path, deepspeed: None
) -> None:
    """The head is then the model's own code, run on gathered weights."""
    tokenizer = AutoTokenizer.from_pretrained(backbone)
    config = Gemma3TextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        layer_types=["sliding_attention", "full_attention"],
        sliding_window=8,
        final_logit_softcapping=5.0,
    )
    save_backbone(Gemma3ForCausalLM(config), tokenizer, tmp_path / "gemma")
    one, two = (toy_arguments(data_path, tmp_path / name, *UNEVEN) for name in ("one", "two"))
    two = lora(tmp_path / "gemma", two)
    compare(lora(tmp_path / "gemma", one), [*two, "--deepspeed=zero3"], LORA_WEIGHT)


def masters_of(arguments: list[str], engine_class: Any, folder: Path) -> None:
    """Run one stage and keep the float32 weights that it ends with, of each process what it has."""
    finish = engine_class.finish

    def keeping(engine: Any) -> None:
        state = engine.optimizer_state()
        folder.mkdir(exist_ok=True)
        masters = {name: state[name] for name in state if ".master" in name}
        save_file(masters, folder / f"{processes.rank()}.safetensors")
        finish(engine)

    engine_class.finish = keeping
    run(arguments)


def flat_tensors(folder: Path) -> dict[str, torch.Tensor]:
    """Tensors of all files, put together from their fragments."""
    files = sorted(folder.iterdir())
    fragments = fragments_by_name({k: v for file in files for k, v in load_file(file).items()})
    return {
        name: read_fragments(found, 0, sum(len(values) for _, values in found))
        for name, found in fragments.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n_processes", "setting", "largest", "mean"),
    [
        (1, "zero1", 1e-6, 1e-9),
        (1, "zero2", 1e-6, 1e-9),
        # sums in another order, rounded to bfloat16: AdamW moves what is near zero either way
        (1, "zero3", 1e-3, 1e-5),
        (2, "zero2", 1e-3, 1e-5),
        (2, None, 1e-3, 1e-5),
    ],
)
def test_sixty_steps_of_bfloat16_weights_are_those_of_one_process(
    data_path: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    n_processes: int,
    setting: str | None,
    largest: float,
    mean: float,
) -> None:
    """With DeepSpeed, which keeps float32 weights too, and without."""
    if setting is not None:
        request.getfixturevalue("deepspeed")
    arguments = ["--loss=sft", "--dtype=bfloat16", "--sft_epochs=20", "--sft_learning_rate=1e-4"]
    one, two = (
        toy_arguments(data_path, tmp_path / name, "--sft_cache=False", *arguments)
        for name in ("one", "two")
    )
    run_processes(1, masters_of, one, TorchEngine, tmp_path / "masters-one")
    other = TorchEngine if setting is None else DeepSpeedEngine
    if setting is not None:
        two.append(f"--deepspeed={setting}")
    run_processes(n_processes, masters_of, two, other, tmp_path / "masters-two")
    first, second = (flat_tensors(tmp_path / f"masters-{name}") for name in ("one", "two"))
    assert first.keys() == second.keys()
    differences = torch.cat([(first[name] - second[name]).abs() for name in first])
    assert differences.max() < largest and differences.mean() < mean


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["kto", "dpo"])
@pytest.mark.parametrize("negatives", ["static", "dynamic"])
def test_zero3_with_passes_of_unequal_number(
    data_path: Path, tmp_path: Path, deepspeed: None, loss: str, negatives: str
) -> None:
    """The statistic of KTO, dynamic negatives and rankings run the model outside the steps."""
    extra = ["--deepspeed=zero3", f"--loss={loss}", f"--negatives={negatives}"]
    arguments = toy_arguments(data_path, tmp_path / "two", *UNEVEN, *extra)
    first, second = run_processes(2, recorded, arguments)
    assert first["losses"] == second["losses"] and first["test_result"] == second["test_result"]


@pytest.mark.parametrize(
    "extra",
    [
        "--ranker=best_first",
        pytest.param("--ranker=exhaustive", marks=pytest.mark.slow),
        "--assistant=EASE",
        "--test_users=7",
    ],
)
def test_metrics_of_two_processes_are_those_of_one_to_the_bit(
    data_path: Path, tmp_path: Path, extra: str
) -> None:
    def arguments(name: str) -> list[str]:
        metrics = "--metrics=['NDCG', 'MRR', 'ItemCoverage', 'AveragePopularity']"
        untrained = ["--loss=sft", "--sft_epochs=0", extra, metrics]
        return toy_arguments(data_path, tmp_path / name, "--rank_batch_users=5", *untrained)

    one = run(arguments("one"))
    two, other = run_processes(2, run, arguments("two"))
    for part in ("valid_result", "test_result", "num_users_evaluated", "trial"):
        assert one.get(part) == two.get(part) == other.get(part)
    per_user = [(tmp_path / name / "per_user.csv").read_bytes() for name in ("one", "two")]
    n_users = 7 if extra == "--test_users=7" else 24
    assert per_user[0] == per_user[1] and per_user[0].count(b"\n") == 1 + n_users


@pytest.mark.parametrize("mode", ["full", "uni5"])
def test_a_user_ranked_twice_is_noticed(data_path: Path, tmp_path: Path, mode: str) -> None:
    def everything() -> str:
        processes.work_queue = lambda n: iter(range(n))  # type: ignore[assignment]
        untrained = ["--loss=sft", "--sft_epochs=0", f"--eval_args={{'mode': '{mode}'}}"]
        try:
            run(toy_arguments(data_path, tmp_path / "run", *untrained))
        except RuntimeError as error:
            return str(error)
        return "not noticed"

    expected = "the processes did not rank every user exactly once"
    assert run_processes(2, everything) == [expected, expected]


@pytest.mark.parametrize(
    "options",
    [
        ["--metrics=[NDCG, ItemCoverage]"],
        ["--metrics=[NDCG, GAUC]"],
        ["--assistant=EASE"],  # with six weights
    ],
)
def test_sampled_candidates_are_shared_out(
    data_path: Path, tmp_path: Path, options: list[str]
) -> None:
    def arguments(name: str) -> list[str]:
        sampled = "--eval_args={'mode': {'valid': 'uni6', 'test': 'total8'}}"
        untrained = ["--loss=sft", "--sft_epochs=0", sampled, *options]
        return toy_arguments(data_path, tmp_path / name, "--rank_batch_users=5", *untrained)

    one = run(arguments("one"))
    for two in run_processes(2, run, arguments("two")):
        assert (two["valid_result"], two["test_result"]) == (
            one["valid_result"],
            one["test_result"],
        )
    per_user = [(tmp_path / name / "per_user.csv").read_bytes() for name in ("one", "two")]
    assert per_user[0] == per_user[1] and per_user[0].count(b"\n") == 25


@pytest.mark.slow
def test_dynamic_negatives_are_shared_out(data_path: Path, tmp_path: Path) -> None:
    one, two = (
        toy_arguments(data_path, tmp_path / name, *UNEVEN, "--negatives=dynamic", "--epochs=1")
        for name in ("one", "two")
    )
    expected = recorded(one)
    first, second = run_processes(2, recorded, two)
    assert first["losses"] == second["losses"]
    # the draw depends on the policy: equal as long as it is, which is to the last digits
    assert first["losses"] == pytest.approx(expected["losses"], abs=1e-3)


@pytest.mark.parametrize("batch_size", [7, 3])  # of 3, the second process has one example
def test_kto_compares_with_pairs_of_all_processes(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_size: int
) -> None:
    config, parts, model = toy_model(data_path, tmp_path, "--loss=kto")
    # without its lower limit of 0, where this untrained model ends
    monkeypatch.setattr(llmrec, "kl_estimate", lambda policy, other: (policy - other).mean())

    def statistic() -> tuple[float, int]:
        from recbole_multdpo.training.stages import train_loader

        model.start_preference_stage("kto")
        with torch.no_grad():
            for parameter in model.lm.parameters():
                parameter.mul_(5.0)
        loader = train_loader(config, model, parts[0], "kto", batch_size)
        loader.set_epoch(0)
        batch = next(iter(loader))
        kl = model.batch_kl(batch)
        assert kl is not None
        return float(kl), int((batch.user_ids > 0).sum())

    shares = run_processes(2, statistic)  # first: here it changes the model
    expected, n_examples = statistic()
    assert [n for _, n in shares] == [n_examples - n_examples // 2, n_examples // 2]
    assert [kl for kl, _ in shares] == pytest.approx([expected, expected], rel=1e-4)
    assert abs(expected) > 0.1  # control: nothing would be equal to anything


def test_bounds_of_every_context_are_in_one_file(data_path: Path, tmp_path: Path) -> None:
    for name, n_processes in (("one", 1), ("two", 2)):
        arguments = toy_arguments(
            data_path, tmp_path / name, *UNEVEN, "--track_bounds=True", "--epochs=1"
        )
        run(arguments) if n_processes == 1 else run_processes(2, run, arguments)
    rows = [
        sorted(line.split(",")[:3] for line in (tmp_path / name / "bounds.csv").open())
        for name in ("one", "two")
    ]
    assert rows[0] == rows[1] and len(rows[0]) == 1 + 24


def interrupted_after(step: int, stage: str, arguments: list[str]) -> str:
    """Run until a signal reaches one process, the last, during a step."""
    train_step = SetwiseTrainer._train_step

    def signalled(trainer: SetwiseTrainer, batch: Any) -> dict[str, float]:
        metrics = train_step(trainer, batch)
        is_last = processes.rank() == processes.world_size() - 1
        if is_last and trainer.stage.name == stage and trainer.global_step == step:
            trainer.signals.requested = 15
        return metrics

    SetwiseTrainer._train_step = signalled  # type: ignore[method-assign]
    try:
        run(arguments)
    except Interrupted as stopped:
        return str(stopped)
    return "not stopped"


@pytest.mark.parametrize(
    ("setting", "before", "after", "tolerance"),
    [
        (None, 2, 2, 0.0),
        pytest.param("bfloat16", 2, 2, 0.0, marks=pytest.mark.slow),
        ("bfloat16", 1, 1, 0.0),
        pytest.param(None, 2, 1, WEIGHT, marks=pytest.mark.slow),
        pytest.param(None, 1, 2, WEIGHT, marks=pytest.mark.slow),
        pytest.param("zero2", 2, 2, 0.0, marks=pytest.mark.slow),
        pytest.param("zero2", 2, 1, 2 * WEIGHT, marks=pytest.mark.slow),
        pytest.param("zero3", 2, 2, 0.0, marks=pytest.mark.slow),
        pytest.param("zero3", 2, 1, 2 * WEIGHT, marks=pytest.mark.slow),
        # with DeepSpeed before and after
        pytest.param("zero2 kept", 2, 1, 2 * WEIGHT, marks=pytest.mark.slow),
        pytest.param("zero2 kept", 1, 2, 2 * WEIGHT, marks=pytest.mark.slow),
        pytest.param("zero3 kept", 2, 1, 2 * WEIGHT, marks=pytest.mark.slow),
        pytest.param("zero3 kept", 1, 2, 2 * WEIGHT, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_goes_on(
    data_path: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    setting: str | None,
    before: int,
    after: int,
    tolerance: float,
) -> None:
    """After a step inside an epoch, also over another number of processes or without DeepSpeed."""
    extra = []
    if setting == "bfloat16":
        extra = ["--dtype=bfloat16"]
    elif setting is not None:
        request.getfixturevalue("deepspeed")
        extra = [f"--deepspeed={setting.removesuffix(' kept')}"]

    def start(n_processes: int, function: Any, *arguments: Any) -> Any:
        if n_processes > 1:
            return run_processes(n_processes, function, *arguments)
        (only,) = run_processes(1, function, *arguments)
        return [only]

    whole, cut = (
        toy_arguments(data_path, tmp_path / name, *UNEVEN, *extra) for name in ("whole", "cut")
    )
    start(before, run, whole)
    stopped = start(before, interrupted_after, 6, "preference", cut)
    assert all(f"--resume={tmp_path / 'cut'}" in text for text in stopped)
    drops_zero = after != before and setting in ("zero2", "zero3")
    more = ["--deepspeed=None"] if drops_zero else []
    start(after, run, [f"--resume={tmp_path / 'cut'}", *more])
    assert largest_difference(tmp_path / "whole", tmp_path / "cut") <= tolerance
    if setting == "bfloat16":
        saved = load_file(tmp_path / "cut/checkpoints/preference/step-6/optimizer.safetensors")
        masters = [value for name, value in saved.items() if name.endswith(".master")]
        assert masters and all(value.dtype == torch.float32 for value in masters)
        assert any(not torch.equal(value.bfloat16().float(), value) for value in masters)
    states = tmp_path / "cut" / "checkpoints" / "preference"
    assert any(folder.name == "step-6" for folder in states.iterdir())


def killed_while_saving(rank: int, arguments: list[str]) -> str:
    """Run until one process is killed while it writes its part of the second checkpoint."""
    save_file, calls = checkpoint.save_file, []

    def killing(tensors: dict[str, torch.Tensor], file: Path) -> None:
        calls.append(file.name)
        if processes.rank() == rank and sum("-of-" in name for name in calls) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        save_file(tensors, file)

    checkpoint.save_file = killing
    try:
        run(arguments)
    except ProcessError as error:
        return str(error)
    return "not noticed"


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_killed_while_saving_loses_nothing(
    data_path: Path, tmp_path: Path, deepspeed: None, rank: int
) -> None:
    """The other one ends with an error, and the resumed run is the undisturbed one."""
    extra = ["--deepspeed=zero2", "--dtype=bfloat16", "--save_steps=2"]
    whole, cut = (
        toy_arguments(data_path, tmp_path / name, *UNEVEN, *extra) for name in ("whole", "cut")
    )
    run_processes(2, run, whole)
    (error,) = run_processes(2, killed_while_saving, rank, cut, killed=rank)
    assert "a process of this run has ended" in error
    run_processes(2, run, [f"--resume={tmp_path / 'cut'}"])
    assert largest_difference(tmp_path / "whole", tmp_path / "cut") == 0
    hidden = [path.name for path in (tmp_path / "cut").rglob(".*.tmp")]
    assert hidden == []


@pytest.mark.parametrize(
    "launcher",
    [
        ["torchrun", "--nproc_per_node=2", "--master_port={port}"],
        pytest.param(["deepspeed", "--num_gpus=2", "--master_port={port}"], marks=pytest.mark.slow),
    ],
    ids=lambda launcher: launcher[0],
)
def test_the_launchers(data_path: Path, tmp_path: Path, launcher: list[str]) -> None:
    """The real commands: one folder, one voice."""
    program = Path(sys.executable).with_name(launcher[0])
    if not program.exists():
        pytest.skip(f"no {launcher[0]} next to this Python")
    options = [text.format(port=free_port()) for text in launcher[1:]]
    extra = ["--deepspeed=zero1"] if launcher[0] == "deepspeed" else []
    arguments = toy_arguments(data_path, tmp_path / "run", "--loss=sft", *extra)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    environment["PATH"] = f"{program.parent}{os.pathsep}{environment['PATH']}"
    done = subprocess.run(
        [str(program), *options, str(ROOT / "run_recbole_multdpo.py"), *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["processes"] == 2
    assert result["command"].startswith("torchrun --nproc_per_node 2 -m recbole_multdpo --mod")
    assert {p.name for p in tmp_path.iterdir()} == {"run", "cache"}
    assert done.stdout.count("result: ") == 1
    assert done.stderr.count("model: tiny") == 1
    assert (tmp_path / "run" / "run.log").read_text().count("model: tiny") == 1


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--train_batch_size=1"], r"train_batch_size=1 examples per step.*Start 1 at most"),
        (["--sft_batch_size=1"], "sft_batch_size=1 examples per step"),
        (["--nproc=2"], "nproc .*torchrun"),
        (["--auto_batch=True"], "auto_batch=True is for one process"),
    ],
)
def test_what_several_processes_cannot_do(
    data_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    extra: list[str],
    message: str,
) -> None:
    for name, value in launcher_environment(0, 2, 29511).items():
        monkeypatch.setenv(name, value)
    arguments = toy_arguments(data_path, tmp_path / "run", *extra)
    with pytest.raises(ConfigError, match=message):
        load_config(arguments)


def test_recboles_own_models_are_for_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in launcher_environment(0, 2, 29511).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match="model=EASE: RecBole's own models run in one process"):
        run(["--model=EASE", "--dataset=ml-100k"])


def test_zero3_leaves_no_pass_out(data_path: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("deepspeed") is None:
        pytest.skip("no deepspeed")
    arguments = toy_arguments(
        data_path, tmp_path / "run", "--deepspeed=zero3", "--reference_cache=True"
    )
    with pytest.raises(ConfigError, match="reference_cache=True leaves forward passes out"):
        load_config(arguments)


def test_all_processes_have_the_prompt_that_the_first_rendered(
    data_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one in each process, as a template with a clock could make at midnight."""

    def render(*_: Any, **__: Any) -> PromptFrame:
        return PromptFrame(f"Process {processes.rank()}:", "\n-", "\nNext:", " ")

    def head() -> str:
        return toy_model(data_path, tmp_path)[2].prompts.frame.head

    monkeypatch.setattr(llmrec, "prompt_frame", render)
    assert run_processes(2, head) == ["Process 0:", "Process 0:"]
