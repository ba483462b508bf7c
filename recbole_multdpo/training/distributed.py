"""Optimizer-step engines: torch in one process or several (DDP), and DeepSpeed's ZeRO.

An engine adds up the gradient of a batch from its parts, makes the step, and hands out weights and
optimizer state by parameter, so that a checkpoint of one kind resumes as any other. Both engines
average gradients over the processes, whereas ours are weighted sums over the examples of the whole
batch, wherever they are computed: hence the factor of the number of processes, which turns the
average into that sum.

Accelerate would unify the two calls that wrap the model. It also divides losses by its own count
of accumulation steps, shards loaders, and drives DeepSpeed from settings of its own: all of it
would have to be switched off for weights per example, and what remains are the few lines below.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from recbole_multdpo.data.batch import SetwiseBatch
from recbole_multdpo.errors import CheckpointError, ConfigError
from recbole_multdpo.model.llmrec import LLMRec, StepOutput
from recbole_multdpo.runs.checkpoint import trainable_tensors
from recbole_multdpo.runtime import processes
from recbole_multdpo.scoring.lm import causal_lm
from recbole_multdpo.scoring.parts import parts_of
from recbole_multdpo.settings.config import Config
from recbole_multdpo.training.master_weights import MASTER, MasterWeights
from recbole_multdpo.training.optimizer_state import (
    fragment_name,
    fragments_by_name,
    load_optimizer_tensors,
    optimizer_tensors,
    read_fragments,
    whole_tensors,
)


class StepModule(nn.Module):
    """`LLMRec.step` as a module's forward pass, which DDP and DeepSpeed wrap."""

    def __init__(self, model: LLMRec) -> None:
        """Wrap a model at the start of a stage."""
        super().__init__()
        self.lm, self.reference = model.lm, model.reference
        self._model = [model]  # in a list: not a submodule, whose tables would be moved and cast

    def forward(
        self, batch: SetwiseBatch, kl: Tensor | None, only_kl: bool
    ) -> tuple[Tensor | None, ...]:
        """`LLMRec.step` as a tuple, the form in which both find the tensors; or (`batch_kl`,)."""
        (model,) = self._model
        if only_kl:
            return (model.batch_kl(batch),)
        output = model.step(batch, kl)
        return tuple(getattr(output, field.name) for field in fields(StepOutput))


class TorchEngine:
    """The optimizer-step engine of torch, in one process or in several (DDP).

    Weights in bfloat16 are trained through float32 ones, whose gradients are added up here: torch's
    DDP would add them up in bfloat16.

    Attributes:
        lockstep: whether all processes must make the same number of forward passes.
        sharded: whether every process has another part of the optimizer state.
    """

    lockstep = False
    sharded = False

    def __init__(
        self, model: LLMRec, optimizer: torch.optim.Optimizer, clipping: Mapping[str, Any] | None
    ) -> None:
        """Wrap a stage's model and its optimizer.

        Args:
            model: on its device.
            optimizer: of the trained parameters.
            clipping: arguments of `clip_grad_norm_`, None for no clipping.
        """
        self.model, self.optimizer = model, optimizer
        self.clipping = clipping or {"max_norm": math.inf}
        self.module: nn.Module = StepModule(model)
        self.masters = MasterWeights(optimizer)
        if processes.world_size() > 1 and not self.masters:
            self.module = DistributedDataParallel(self.module, gradient_as_bucket_view=True)

    def batch_kl(self, batch: SetwiseBatch) -> Tensor | None:
        """`LLMRec.batch_kl`."""
        return self.model.batch_kl(batch)

    def add_gradient(
        self, part: SetwiseBatch, weights: Tensor, kl: Tensor | None, *, is_last: bool
    ) -> StepOutput:
        """Accumulate the gradient of the weighted sum of a part's losses.

        Args:
            part: some of this process's examples of the batch.
            weights: float, of the examples' `StepOutput.terms` in the loss of the whole batch, and
                of their shape.
            kl: `batch_kl` of the batch.
            is_last: whether the batch has no further part: the processes then exchange gradients.
        """
        ddp = isinstance(self.module, DistributedDataParallel)
        with nullcontext() if is_last or not ddp else self.module.no_sync():  # type: ignore[operator]
            output = StepOutput(*self.module(part, kl, False))
            n_averaged = processes.world_size() if ddp else 1
            (output.terms * weights).sum().mul(n_averaged).backward()
        self.masters.move_gradients()
        return output.detached()

    def discard_gradient(self) -> None:
        """Reset the gradient to zero."""
        self.optimizer.zero_grad()
        self.masters.discard_gradients()

    def step(self) -> float:
        """Clip the gradient and step, unless it is not finite; returns the norm before clipping."""
        if self.masters and processes.world_size() > 1:
            self.masters.all_reduce_gradients()
        trained = [p for group in self.optimizer.param_groups for p in group["params"]]
        norm = float(clip_grad_norm_(trained, **self.clipping))
        if math.isfinite(norm):
            self.optimizer.step()
            self.masters.write_back()
        return norm

    def weights(self) -> dict[str, Tensor]:
        """The trained tensors of the LM by name, on the CPU."""
        return trainable_tensors(self.model.lm)

    def optimizer_state(self) -> dict[str, Tensor]:
        """`optimizer_tensors`, with the float32 weights behind trained bfloat16 ones."""
        return optimizer_tensors(self.optimizer) | self.masters.tensors()

    def load_optimizer_state(self, tensors: dict[str, Tensor], batch: SetwiseBatch) -> None:
        """Restore a saved `optimizer_state` of either engine.

        Args:
            tensors: the state, of any number of processes.
            batch: any examples, for an engine that needs a first step to have a state.

        Raises:
            CheckpointError: the state is of another model or optimizer.
        """
        tensors = self.own_part(tensors)
        own = {name: value for name, value in tensors.items() if not name.endswith(f".{MASTER}")}
        load_optimizer_tensors(self.optimizer, own)
        self.masters.load(tensors)

    def own_part(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Saved optimizer state as `optimizer_state` has it: whole, in the parameters' shapes."""
        return whole_tensors(self.optimizer, tensors)

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Context in which each process can run the model alone, without gradients."""
        yield

    def finish(self) -> None:
        """Detach the engine from the model."""
        self.module = nn.Identity()
        self.masters.release()


class DeepSpeedEngine:
    """The optimizer-step engine of DeepSpeed: ZeRO shards optimizer state, gradients and weights.

    Every process saves the optimizer state that it holds, by parameter. DeepSpeed's own checkpoints
    are pickles, which run code when they are loaded, and fit one number of processes only.
    """

    sharded = True

    def __init__(
        self, model: LLMRec, optimizer: torch.optim.Optimizer, settings: Mapping[str, Any]
    ) -> None:
        """Wrap a stage's model and its optimizer.

        Args:
            model: on its device.
            optimizer: of the trained parameters; DeepSpeed steps it on its shards.
            settings: DeepSpeed's configuration, from `deepspeed_settings`.
        """
        self.model, self.optimizer = model, optimizer
        self.stage = settings.get("zero_optimization", {}).get("stage", 0)
        self.lockstep = self.stage == 3 and processes.world_size() > 1
        self.trained = {n: p for n, p in model.lm.named_parameters() if p.requires_grad}
        for module in self._modules().values():
            parts_of(causal_lm(module))  # runs a new model, which must still be whole
        self._meta_copies = {}
        if self.stage == 3:
            self._meta_copies = {
                name: _meta_copy(module) for name, module in self._modules().items()
            }
        self.deepspeed = _import_deepspeed(model.device)
        self.engine, *_ = self.deepspeed.initialize(
            model=StepModule(model), optimizer=optimizer, config=dict(settings)
        )

    def _modules(self) -> dict[str, nn.Module]:
        modules = {"lm": self.model.lm, "reference": self.model.reference}
        return {name: module for name, module in modules.items() if module is not None}

    def batch_kl(self, batch: SetwiseBatch) -> Tensor | None:
        """`LLMRec.batch_kl`, through DeepSpeed's hooks."""
        return self.engine(batch, None, True)[0]

    def add_gradient(
        self, part: SetwiseBatch, weights: Tensor, kl: Tensor | None, *, is_last: bool
    ) -> StepOutput:
        """See `TorchEngine.add_gradient`."""
        self.engine.set_gradient_accumulation_boundary(is_last)
        output = StepOutput(*self.engine(part, kl, False))
        self.engine.backward((output.terms * weights).sum() * processes.world_size())
        return output.detached()

    def discard_gradient(self) -> None:
        """Nothing to do: DeepSpeed forgets the gradient at the end of a step."""

    def step(self) -> float:
        """Clip the gradient and step; returns the norm before clipping."""
        self.engine.step()
        return float(self.engine.get_global_grad_norm())

    def weights(self) -> dict[str, Tensor]:
        """The trained tensors of the LM by name, on the CPU; complete on the main process only."""
        tensors = {}
        for name, parameter in self.trained.items():
            with self._gathered(parameter):
                if processes.is_main_process():
                    # a copy: DeepSpeed lays all weights out in one block of memory
                    tensors[name] = parameter.detach().cpu().clone()
        return tensors

    def optimizer_state(self) -> dict[str, Tensor]:
        """This process's fragments of the optimizer's tensors, on the CPU; no communication.

        Where weights are trained in another dtype than float32 the float32 ones are among them.
        State that DeepSpeed keeps on the CPU is not copied: save it before the next step.
        """
        entries, step = self._entries()
        tensors: dict[str, Tensor] = {}
        if not self.engine.global_steps:
            return tensors
        for index, parameter in enumerate(self.trained.values()):
            if step is not None:
                tensors[f"{index}.step"] = step.cpu().clone()
            start, length = self._fragment(parameter)
            for entry in [*entries, *self._master(parameter)] if length else ():
                values = self._local(parameter, entry)[:length].detach().cpu()
                tensors[fragment_name(f"{index}.{entry}", start)] = values
        return tensors

    def load_optimizer_state(self, tensors: dict[str, Tensor], batch: SetwiseBatch) -> None:
        """See `TorchEngine.load_optimizer_state`.

        The optimizer has a state after its first step only. One is made for that, with step size 0
        and a gradient of 0; what it does to the state is replaced.
        """
        if not tensors:
            return
        with torch.random.fork_rng(devices=[self.model.device] if batch.user_ids.is_cuda else []):
            self._first_step(batch.select(torch.zeros(1, dtype=torch.long)))
        entries, step = self._entries()
        saved = fragments_by_name(tensors)
        for index, parameter in enumerate(self.trained.values()):
            start, length = self._fragment(parameter)
            masters = [entry for entry in self._master(parameter) if f"{index}.{entry}" in saved]
            for entry in [*entries, *masters] if length else ():
                if f"{index}.{entry}" not in saved:
                    raise CheckpointError(
                        f"the saved optimizer state lacks {index}.{entry}: it is of another "
                        "optimizer. Use the settings it was made with."
                    )
                values = read_fragments(saved[f"{index}.{entry}"], start, length)
                self._set_local(parameter, entry, values)
        if step is not None:
            for state in self.optimizer.state.values():
                state["step"] = tensors["0.step"].clone()

    def own_part(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Saved optimizer state as `optimizer_state` has it: the fragments of this process."""
        parameters = list(self.trained.values())
        part = {name: value.clone() for name, value in tensors.items() if not value.ndim}
        for name, fragments in fragments_by_name(tensors).items():
            start, length = self._fragment(parameters[int(name.partition(".")[0])])
            if length and name not in part:
                values = read_fragments(fragments, start, length)
                part[fragment_name(name, start)] = values.clone()
        return part

    def _first_step(self, batch: SetwiseBatch) -> None:
        """Make a step that changes no weight."""
        rates = [group["lr"] for group in self.optimizer.param_groups]
        for group in self.optimizer.param_groups:
            group["lr"] = 0.0
        zeros = torch.zeros(len(batch), device=self.model.device)
        self.add_gradient(batch, zeros, self.batch_kl(batch), is_last=True)
        self.engine.step()
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = rate

    def _entries(self) -> tuple[list[str], Tensor | None]:
        """Names of the optimizer's tensors per parameter, and its count of steps where it has one.

        Both are equal for all parameters; [] and None before the first step.
        """
        for state in self.optimizer.state.values():
            entries = sorted(k for k, v in state.items() if isinstance(v, Tensor) and v.ndim)
            step = state.get("step")
            return entries, None if step is None else torch.as_tensor(step)
        return [], None

    def _master(self, parameter: nn.Parameter) -> list[str]:
        """Name of the entry with the float32 weights; none for a float32 parameter."""
        return [] if parameter.dtype == torch.float32 else [MASTER]

    def _fragment(self, parameter: Any) -> tuple[int, int]:
        """Start and length of this process's part of the flattened parameter; length 0 for none."""
        if self.stage == 3:  # equal parts of every parameter, the last ones padded
            size = parameter.ds_tensor.ds_numel
            start = min(size * processes.rank(), parameter.ds_numel)
            return start, min(size, parameter.ds_numel - start)
        # equal parts of all parameters behind each other
        mapping = parameter._hp_mapping
        address = mapping and mapping.lp_fragment_address
        return (address.start, address.numel) if address else (0, 0)

    def _local(self, parameter: Any, entry: str) -> Tensor:
        """This process's part of an entry of the state, flat; under ZeRO-3 with padding."""
        if self.stage < 3:  # where DeepSpeed has no public function for it
            return parameter._hp_mapping.get_hp_fragment(None if entry == MASTER else entry)
        if entry == MASTER:
            return self.deepspeed.utils.safe_get_local_fp32_param(parameter)
        return self.deepspeed.utils.safe_get_local_optimizer_state(parameter, entry)

    @torch.no_grad()
    def _set_local(self, parameter: nn.Parameter, entry: str, values: Tensor) -> None:
        """Set this process's part of an entry of the state; `values` have no padding."""
        local = self._local(parameter, entry)
        if self.stage < 3:
            local.copy_(values)
            return
        padded = torch.zeros_like(local)
        padded[: len(values)] = values
        if entry == MASTER:
            self.deepspeed.utils.safe_set_local_fp32_param(parameter, padded)
        else:
            self.deepspeed.utils.safe_set_local_optimizer_state(parameter, padded, entry)

    def _gathered(self, parameter: nn.Parameter) -> Any:
        if self.stage < 3:
            return nullcontext()
        return self.deepspeed.zero.GatheredParameters([parameter])

    def _unsharded_copy(self, name: str, module: nn.Module) -> nn.Module:
        """Copy of a sharded module with unsharded weights."""
        weights = []
        for parameter in module.parameters():
            with self._gathered(parameter):
                weights.append(nn.Parameter(parameter.data.clone(), parameter.requires_grad))
        meta_copy = self._meta_copies[name]
        of = dict(zip(map(id, meta_copy.parameters()), weights, strict=True))
        return _copied(meta_copy, lambda parameter: of[id(parameter)])

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Context in which each process can run the model alone, without gradients.

        Under ZeRO-3 every forward pass is a joint one, and the search for the best items takes
        another number of them in every process. So each process gets an unsharded copy meanwhile.
        """
        sharded = self._modules() if self.stage == 3 else {}
        try:
            for name, module in sharded.items():
                setattr(self.model, name, self._unsharded_copy(name, module).eval())
            yield
        finally:
            for name, module in sharded.items():
                setattr(self.model, name, module)

    def finish(self) -> None:
        """Detach DeepSpeed from the model, whose weights are whole again."""
        if self.stage == 3:
            for name, module in self._modules().items():
                setattr(self.model, name, self._unsharded_copy(name, module).train(module.training))
        self.engine.destroy()
        for parameter in self.trained.values():
            parameter.data = parameter.data.clone()  # out of DeepSpeed's block of memory
            parameter.grad = None


def check_deepspeed(settings: Mapping[str, Any], device: torch.device) -> None:
    """Refuse entries of ZeRO that DeepSpeed itself would refuse when training begins.

    Args:
        settings: DeepSpeed's configuration, from `deepspeed_settings`.
        device: of the run.

    Raises:
        ConfigError: an entry is unknown, or of the wrong type.
    """
    version = _import_deepspeed(device).__version__
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    try:
        DeepSpeedZeroConfig(**settings["zero_optimization"])
    except (ValidationError, AssertionError) as error:
        wrong = str(error)
        if isinstance(error, ValidationError):
            found = [(".".join(map(str, each["loc"])), each["msg"]) for each in error.errors()]
            wrong = " ".join(f"zero_optimization.{key}: {message}." for key, message in found)
        raise ConfigError(
            f"deepspeed: {wrong} DeepSpeed {version} does not take it so: correct or remove it."
        ) from None


Engine = TorchEngine | DeepSpeedEngine


def make_engine(config: Config, model: LLMRec, optimizer: torch.optim.Optimizer) -> Engine:
    """Engine that the settings ask for."""
    if config.deepspeed is not None:
        return DeepSpeedEngine(model, optimizer, config.deepspeed)
    return TorchEngine(model, optimizer, config["clip_grad_norm"])


def _copied(module: nn.Module, make: Callable[[nn.Parameter], nn.Parameter]) -> nn.Module:
    """Deep copy with every parameter replaced; tied parameters stay tied."""
    return copy.deepcopy(module, {id(p): make(p) for p in module.parameters()})


def _meta_copy(module: nn.Module) -> nn.Module:
    """Copy of a module on the meta device, without memory for its weights."""
    return _copied(module, lambda p: nn.Parameter(p.detach().to("meta"), p.requires_grad))


def _import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed, which takes seconds, without its warnings about the CPU."""
    os.environ.setdefault("LOCAL_RANK", "0")  # without a launcher: one process
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else it warns that it found nothing better
    import deepspeed

    # torch renames functions that DeepSpeed calls at every step
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed\.")
    if device.type == "cpu":
        import deepspeed.ops

        # faster collectives within a machine, for which it would compile C++ code for minutes
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
