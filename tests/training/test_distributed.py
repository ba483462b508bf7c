"""DeepSpeed's optimizer state: each process saves what it holds, any number of them resumes."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from recbole_multdpo.errors import CheckpointError, ConfigError
from recbole_multdpo.model.llmrec import StepOutput
from recbole_multdpo.runs import checkpoint
from recbole_multdpo.runs.checkpoint import load_checkpoint, load_trainable_tensors, save_checkpoint
from recbole_multdpo.runtime import processes
from recbole_multdpo.settings.deepspeed import deepspeed_settings
from recbole_multdpo.training.distributed import DeepSpeedEngine, TorchEngine, check_deepspeed
from recbole_multdpo.training.optimizer_state import whole_tensors
from tests.settings.published_deepspeed import PUBLISHED
from tests.several_processes import run_processes

CPU = torch.device("cpu")
ENTRIES = ("exp_avg", "exp_avg_sq")


@pytest.fixture(scope="module", autouse=True)
def deepspeed() -> None:
    """Imported once, before the processes are forked."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    pytest.importorskip("deepspeed")


@dataclass
class Batch:
    """Token ids [B, L], with what an engine asks of a batch."""

    ids: Tensor

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def user_ids(self) -> Tensor:
        return self.ids[:, 0]

    def select(self, rows: Tensor) -> Batch:
        return Batch(self.ids[rows])


class Model:
    """The part of `LLMRec` that an engine needs. Its sizes are no multiples of two or three."""

    device, reference = CPU, None

    def __init__(self, dtype: torch.dtype, seed: int = 0) -> None:
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=59,
            hidden_size=10,
            intermediate_size=17,
            num_hidden_layers=2,
            num_attention_heads=1,
            num_key_value_heads=1,
        )
        self.lm = LlamaForCausalLM(config).to(dtype)

    def batch_kl(self, batch: Batch) -> None:
        return None

    def step(self, batch: Batch, kl: None) -> StepOutput:
        logps = self.lm(batch.ids).logits[:, :-1].float().log_softmax(-1)
        losses = -logps.gather(-1, batch.ids[:, 1:, None]).mean((1, 2))
        return StepOutput(losses, losses.detach(), None)


def deepspeed_engine(
    model: Any, zero: dict[str, Any], dtype: torch.dtype, grad_accum_dtype: str = "fp32"
) -> DeepSpeedEngine:
    optimizer = torch.optim.AdamW(model.lm.parameters(), lr=1e-2)
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_clipping": 0.0,  # its default is 1
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_optimization": zero,
    }
    if dtype == torch.bfloat16:
        settings["data_types"] = {"grad_accum_dtype": grad_accum_dtype}
    return DeepSpeedEngine(model, optimizer, settings)


def some_ids(seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(100 * seed + processes.rank())
    return Batch(torch.randint(0, 59, (2, 5), generator=generator))


def train(engine: Any, n_steps: int = 2) -> None:
    for number in range(n_steps):
        engine.discard_gradient()
        engine.add_gradient(some_ids(number), torch.full((2,), 0.25), None, is_last=True)
        engine.step()


def save(folder: Path, engine: DeepSpeedEngine, state: dict[str, Tensor]) -> None:
    save_checkpoint(folder, engine.weights(), {}, state, sharded=True)


def trained(folder: Path, zero: dict[str, Any], dtype: torch.dtype) -> None:
    """Save two steps of training in `folder`."""
    with processes.process_group(CPU, single=True):
        engine = deepspeed_engine(Model(dtype), zero, dtype)
        assert engine.optimizer_state() == {}
        train(engine)
        save(folder, engine, engine.optimizer_state())


def resumed(folder: Path, zero: dict[str, Any], dtype: torch.dtype) -> None:
    """Load `folder` and save it again: before the state is handed over, after, and a step later."""
    with processes.process_group(CPU, single=True):
        model: Any = Model(dtype, seed=1)
        weights, _, tensors = load_checkpoint(folder)
        load_trainable_tensors(model.lm, weights, folder)
        engine = deepspeed_engine(model, zero, dtype)
        assert tensors is not None
        own = engine.own_part(tensors)
        save(folder.with_name("untouched"), engine, own)
        engine.load_optimizer_state(tensors, some_ids())  # type: ignore[arg-type]
        save(folder.with_name("loaded"), engine, engine.optimizer_state())
        engine.load_optimizer_state(own, some_ids())  # type: ignore[arg-type]
        save(folder.with_name("loaded-own"), engine, engine.optimizer_state())
        train(engine, 1)
        save(folder.with_name("later"), engine, engine.optimizer_state())


def whole(folder: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Weights by name and optimizer state by parameter, put together."""
    weights, _, tensors = load_checkpoint(folder)
    optimizer = torch.optim.AdamW(Model(dtype).lm.parameters())
    assert tensors is not None
    return weights | whole_tensors(optimizer, tensors)


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> list[str]:
    assert one.keys() == other.keys()
    return [name for name in one if not torch.equal(one[name], other[name])]


ZERO = {
    "zero1": {"stage": 1},
    "zero2": {"stage": 2},
    "zero2_offload": {"stage": 2, "offload_optimizer": {"device": "cpu"}},
    "zero3": {"stage": 3},
    "zero3_offload": {
        "stage": 3,
        "offload_optimizer": {"device": "cpu"},
        "offload_param": {"device": "cpu"},
    },
    "zero3_groups": {"stage": 3, "sub_group_size": 300},
}


@pytest.mark.parametrize(
    ("before", "n_before", "after", "n_after", "dtype"),
    [
        ("zero2", 2, "zero2", 3, torch.float32),
        ("zero3", 2, "zero3", 1, torch.bfloat16),
        pytest.param("zero3", 3, "zero1", 2, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("zero1", 1, "zero1", 2, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("zero2", 2, "zero2", 1, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param("zero2", 3, "zero3", 2, torch.float32, marks=pytest.mark.slow),
        pytest.param("zero3", 1, "zero3", 3, torch.float32, marks=pytest.mark.slow),
        pytest.param("zero3_groups", 2, "zero3", 3, torch.bfloat16, marks=pytest.mark.slow),
        pytest.param(
            "zero2_offload", 2, "zero3_offload", 3, torch.bfloat16, marks=pytest.mark.slow
        ),
        pytest.param(
            "zero3_offload", 3, "zero2_offload", 2, torch.bfloat16, marks=pytest.mark.slow
        ),
    ],
)
def test_what_some_processes_saved_others_resume(
    tmp_path: Path, before: str, n_before: int, after: str, n_after: int, dtype: torch.dtype
) -> None:
    """Bit for bit; control: a step later all of it is different."""
    run_processes(n_before, trained, tmp_path / "first", ZERO[before], dtype)
    run_processes(n_after, resumed, tmp_path / "first", ZERO[after], dtype)
    first = whole(tmp_path / "first", dtype)
    assert sum(name.endswith(".exp_avg") for name in first) == len(
        list(Model(dtype).lm.parameters())
    )
    assert any(name.endswith(".master") for name in first) == (dtype == torch.bfloat16)
    assert float(first["0.step"]) == 2
    for name in ("untouched", "loaded", "loaded-own"):
        assert differing(first, whole(tmp_path / name, dtype)) == []
    later = differing(first, whole(tmp_path / "later", dtype))
    assert len(later) > 0.8 * len(first)


@pytest.mark.parametrize("setting", ["zero2", pytest.param("zero3", marks=pytest.mark.slow)])
def test_fragments_are_those_of_the_parameters(tmp_path: Path, setting: str) -> None:
    """Float32 weights, whose place is known: rounded they are the model's."""
    run_processes(2, trained, tmp_path / "first", ZERO[setting], torch.bfloat16)
    found = whole(tmp_path / "first", torch.bfloat16)
    names = [name for name, _ in Model(torch.bfloat16).lm.named_parameters()]
    for index, name in enumerate(names):
        assert torch.equal(found[f"{index}.master"].bfloat16(), found[name])
    _, _, tensors = load_checkpoint(tmp_path / "first")
    assert tensors is not None
    starts = {name.partition("@")[2] for name in tensors if "@" in name}
    assert starts - {"0", ""}  # some tensors lie in both processes


@pytest.mark.slow
def test_shards_resume_without_deepspeed_and_the_other_way(tmp_path: Path) -> None:
    """Whole state in one file, as versions before wrote it too, is read in parts."""
    dtype = torch.bfloat16
    run_processes(2, trained, tmp_path / "first", ZERO["zero3"], dtype)
    model: Any = Model(dtype, seed=1)
    weights, _, tensors = load_checkpoint(tmp_path / "first")
    load_trainable_tensors(model.lm, weights, tmp_path)
    engine = TorchEngine(model, torch.optim.AdamW(model.lm.parameters()), None)
    assert tensors is not None
    engine.load_optimizer_state(tensors, some_ids())  # type: ignore[arg-type]
    state = engine.optimizer_state()
    save_checkpoint(tmp_path / "whole", engine.weights(), {}, state)
    first = whole(tmp_path / "first", dtype)
    assert differing(first, whole(tmp_path / "whole", dtype)) == []
    assert (tmp_path / "whole" / "optimizer.safetensors").exists()
    run_processes(2, resumed, tmp_path / "whole", ZERO["zero2"], dtype)
    assert differing(first, whole(tmp_path / "loaded", dtype)) == []


def test_state_of_another_optimizer_is_refused(tmp_path: Path) -> None:
    def foreign() -> str:
        with processes.process_group(CPU, single=True):
            engine = deepspeed_engine(Model(torch.float32), {"stage": 2}, torch.float32)
            try:
                engine.load_optimizer_state({"0.momentum": torch.zeros(59, 10)}, some_ids())  # type: ignore[arg-type]
            except CheckpointError as error:
                return str(error)
            return "taken"

    (error,) = run_processes(1, foreign)
    assert "lacks 0.exp_avg: it is of another optimizer" in error


N_PARTS = 96


def add_parts(engine: Any) -> dict[str, Tensor]:
    """The optimizer's state after a step of many parts, of which the first has a large gradient."""
    engine.discard_gradient()
    for number in range(N_PARTS):
        weights = torch.full((2,), 1.0 if number == 0 else 2e-3)
        engine.add_gradient(some_ids(number), weights, None, is_last=number == N_PARTS - 1)
    engine.step()
    return dict(engine.optimizer_state())


def deviation(zero: dict[str, Any], grad_accum_dtype: str) -> float:
    """From the sum in float32: norm of the difference of all first moments, over their norm."""
    dtype = torch.bfloat16
    with processes.process_group(CPU, single=True):
        plain: Any = Model(dtype)
        optimizer = torch.optim.AdamW(plain.lm.parameters())
        wanted = add_parts(TorchEngine(plain, optimizer, None))
        found = add_parts(deepspeed_engine(Model(dtype), zero, dtype, grad_accum_dtype))
        found = whole_tensors(optimizer, found)
        moments = [name for name in wanted if name.endswith("exp_avg")]
        one, other = (torch.cat([s[n].flatten() for n in moments]) for s in (wanted, found))
        return float((one - other).norm() / one.norm())


@pytest.mark.parametrize(
    "setting",
    [
        "zero2",
        *(pytest.param(s, marks=pytest.mark.slow) for s in ("zero1", "zero3", "zero2_offload")),
    ],
)
def test_the_gradients_of_many_parts_are_added_up_in_float32(setting: str) -> None:
    """Control: in bfloat16 the small ones are lost. ZeRO-1 rounds the sum once, to exchange it."""
    (found,) = run_processes(1, deviation, ZERO[setting], "fp32")
    (rounded,) = run_processes(1, deviation, ZERO[setting], "bf16")
    assert found < (2e-3 if setting == "zero1" else 1e-6)
    assert rounded > 5e-3


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"reduce_bucket": 5}, "zero_optimization.reduce_bucket: Extra inputs"),
        ({"overlap_comm": "perhaps"}, "zero_optimization.overlap_comm: Input should be a valid bo"),
        (
            {
                "stage3_gather_fp16_weights_on_model_save": True,
                "stage3_gather_16bit_weights_on_model_save": True,
            },
            "deprecated parameter 'stage3_gather_fp16",
        ),
    ],
)
def test_entries_that_deepspeed_does_not_know_are_refused_at_the_start(
    entry: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=f"{message}.*correct or remove it"):
        check_deepspeed({"zero_optimization": {"stage": 2, **entry}}, CPU)
    check_deepspeed({"zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8}}, CPU)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations_train(name: str) -> None:
    """In DeepSpeed itself, where an unknown entry is an error: two steps of each change weights."""
    assert run_processes(1, _steps_with, name) == [True]


def _steps_with(name: str) -> bool:
    schedule = {"WarmupLR": "constant_with_warmup", "WarmupDecayLR": "linear"}
    run = {
        "dtype": "bfloat16",
        "learner": "adamw",
        "clip_grad_norm": {"max_norm": 1.0},
        "learning_rate": 1e-2,
        "sft_learning_rate": 1e-2,
        "weight_decay": 0.01,
        "lr_scheduler_type": schedule.get(PUBLISHED[name].get("scheduler", {}).get("type")),
    }
    settings = deepspeed_settings(PUBLISHED[name], run, 1, Path(), [])
    with processes.process_group(CPU, single=True):
        model: Any = Model(torch.bfloat16)
        before = {n: p.detach().clone() for n, p in model.lm.named_parameters()}
        optimizer = torch.optim.AdamW(model.lm.parameters(), lr=1e-2)
        engine = DeepSpeedEngine(model, optimizer, settings)
        train(engine)
        weights, state = engine.weights(), engine.optimizer_state()
        return len(state) > 0 and all(not torch.equal(before[n], weights[n]) for n in before)


# -------------------------------------------------------------------------------------------------
# no process ever has another's state

COLLECTIVES = (
    "all_reduce all_gather all_gather_into_tensor _all_gather_base all_gather_coalesced gather"
    " broadcast scatter reduce reduce_scatter reduce_scatter_tensor _reduce_scatter_base"
    " all_to_all all_to_all_single send recv isend irecv"
).split()


@contextmanager
def counted_collectives() -> Iterator[dict[str, int]]:
    """Bytes of the tensors handed to torch's collectives, by name."""
    found: dict[str, int] = defaultdict(int)

    def counting(name: str, function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            for value in [*args, *kwargs.values()]:
                for tensor in value if isinstance(value, (list, tuple)) else [value]:
                    if isinstance(tensor, Tensor):
                        found[name] += tensor.numel() * tensor.element_size()
            return function(*args, **kwargs)

        return call

    modules = [dist, dist.distributed_c10d]
    before = [(m, n, getattr(m, n)) for m in modules for n in COLLECTIVES if hasattr(m, n)]
    for module, name, function in before:
        setattr(module, name, counting(name, function))
    try:
        yield found
    finally:
        for module, name, function in before:
            setattr(module, name, function)


def gathered_state(engine: DeepSpeedEngine) -> dict[str, Tensor]:
    """The whole state in the main process, as before."""
    utils = engine.deepspeed.utils
    state = {}
    for index, parameter in enumerate(engine.trained.values()):
        for entry in ENTRIES:
            state[f"{index}.{entry}"] = utils.safe_get_full_optimizer_state(parameter, entry)
        state[f"{index}.master"] = utils.safe_get_full_fp32_param(parameter)
    return state if processes.is_main_process() else {}


def measured(folder: Path, zero: dict[str, Any], gather: bool) -> tuple[int, int]:
    """Values of the state in this process's file, and bytes that it exchanged for them."""
    numels, save_file = [], checkpoint.save_file

    def counting(tensors: dict[str, Tensor], file: Path) -> None:
        if file.name != checkpoint.MODEL_FILE:
            numels.append(sum(value.numel() for value in tensors.values() if value.ndim))
        save_file(tensors, file)

    checkpoint.save_file = counting
    with counted_collectives() as found:  # DeepSpeed keeps some of them from its beginning on
        engine = deepspeed_engine(Model(torch.bfloat16), zero, torch.bfloat16)
        train(engine)
        weights = engine.weights()
        before = sum(found.values())
        state = gathered_state(engine) if gather else engine.optimizer_state()
        save_checkpoint(folder, weights, {}, state, sharded=True)
        return sum(numels), sum(found.values()) - before


@pytest.mark.parametrize(
    "setting",
    [
        "zero2",
        "zero3",
        *(
            pytest.param(s, marks=pytest.mark.slow)
            for s in ("zero1", "zero2_offload", "zero3_offload")
        ),
    ],
)
def test_no_process_has_the_state_of_another(tmp_path: Path, setting: str) -> None:
    """Control: gathered in the main process, as before, all of it goes through collectives."""
    n_weights = sum(parameter.numel() for parameter in Model(torch.float32).lm.parameters())
    n_values = 3 * n_weights  # two moments and the float32 weight
    shards = run_processes(2, measured, tmp_path / "shards", ZERO[setting], False)
    assert sum(n for n, _ in shards) == n_values
    assert all(abs(n - n_values / 2) <= 0.02 * n_values for n, _ in shards)
    n_bytes = max(n for _, n in shards)  # of names and checksums
    assert 0 < n_bytes < n_values
    gathered = run_processes(2, measured, tmp_path / "gathered", ZERO[setting], True)
    assert [n for n, _ in gathered] == [n_values, 0]
    assert min(n for _, n in gathered) > 4 * n_values
