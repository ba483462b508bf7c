"""Float32 master weights of trained bfloat16 weights.

A bfloat16 number has eight significant bits: an update below 1/256 of a weight rounds to zero, and
at usual learning rates most updates are smaller. So the optimizer updates float32 weights, and the
model computes with their rounded values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recbole_multdpo.runtime import processes

MASTER = "master"  # the entry of a checkpoint's optimizer state with the float32 weights


BLOCK = 2**24  # gradients are moved, and summed over processes, by so many numbers at a time


class MasterWeights:
    """Float32 master weights of the optimizer's parameters of another dtype.

    They replace the parameters in the optimizer. Gradients move to them while they are computed,
    `BLOCK` numbers at a time: those of a batch's parts are summed in float32, and none stays in
    bfloat16. An adapter's hundreds of small ones are moved by few operations.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace the optimizer's parameters of other dtypes by float32 master weights."""
        self.optimizer = optimizer
        self._pairs: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # by index: trained, master
        self._waiting: list[tuple[nn.Parameter, nn.Parameter]] = []
        self._n_waiting = 0  # numbers in the gradients that are not moved yet
        self._hooks = []
        self._stepped = False  # before the first step they equal the model's weights
        index = 0
        for group in optimizer.param_groups:
            for place, trained in enumerate(group["params"]):
                if trained.dtype != torch.float32:
                    master = nn.Parameter(trained.detach().float())
                    group["params"][place] = master
                    self._pairs[index] = (trained, master)
                    self._move_state(trained, master)
                    self._hooks.append(
                        trained.register_post_accumulate_grad_hook(partial(self._receive, master))
                    )
                index += 1

    def __bool__(self) -> bool:
        """True if there are any."""
        return bool(self._pairs)

    def _move_state(self, trained: nn.Parameter, master: nn.Parameter) -> None:
        """Move the state that an optimizer has before its first step, as Adagrad does."""
        state = self.optimizer.state.pop(trained, None)
        if state is not None:
            self.optimizer.state[master] = {
                name: value.float() if isinstance(value, Tensor) and value.ndim else value
                for name, value in state.items()
            }

    def _receive(self, master: nn.Parameter, trained: Tensor) -> None:
        """Hook: the gradient of a parameter is computed."""
        assert isinstance(trained, nn.Parameter)
        self._waiting.append((trained, master))
        self._n_waiting += trained.numel()
        if self._n_waiting >= BLOCK:
            self.move_gradients()

    @torch.no_grad()
    def move_gradients(self) -> None:
        """Move the gradients that have waited; call it after every backward pass."""
        waiting, self._waiting, self._n_waiting = self._waiting, [], 0
        if not waiting:
            return
        moved = [torch.empty_like(master) for _, master in waiting]
        received = [trained.grad for trained, _ in waiting if trained.grad is not None]
        torch._foreach_copy_(moved, received)
        sums, added = [], []
        for (trained, master), gradient in zip(waiting, moved, strict=True):
            trained.grad = None
            if master.grad is None:
                master.grad = gradient
            else:
                sums.append(master.grad)
                added.append(gradient)
        if sums:
            torch._foreach_add_(sums, added)

    def all_reduce_gradients(self) -> None:
        """All-reduce every gradient to its sum over the processes, in float32.

        A parameter that the batch uses in no process keeps no gradient.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        used = torch.tensor([float(p.grad is not None) for p in parameters])
        gradients = []
        for parameter, n_users in zip(
            parameters, processes.all_reduce_sum(used).tolist(), strict=True
        ):
            if n_users:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for block in _blocks(gradients):
            flat = block[0] if len(block) == 1 else torch.cat([part.flatten() for part in block])
            dist.all_reduce(flat)
            if len(block) > 1:
                parts = flat.split([part.numel() for part in block])
                summed = [part.view_as(of) for part, of in zip(parts, block, strict=True)]
                torch._foreach_copy_(block, summed)

    def discard_gradients(self) -> None:
        """Drop the gradients that an interrupted backward pass has left in the model."""
        self._waiting, self._n_waiting = [], 0
        for trained, _ in self._pairs.values():
            trained.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the master weights into the model's parameters, rounded to their dtype."""
        if self._pairs:
            trained, masters = zip(*self._pairs.values(), strict=True)
            torch._foreach_copy_(trained, masters)
        self._stepped = True

    def tensors(self) -> dict[str, Tensor]:
        """Master weights on the CPU, named as in `optimizer_tensors`; {} before the first step."""
        if not self._stepped:
            return {}
        return {
            f"{index}.{MASTER}": master.detach().cpu() for index, (_, master) in self._pairs.items()
        }

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restore the master weights of a checkpoint; one without any changes nothing.

        DeepSpeed also trains adapters in bfloat16: the master weight of a parameter that is float32
        here is the parameter's value.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, parameter in enumerate(parameters):
            if f"{index}.{MASTER}" in tensors:
                parameter.copy_(tensors[f"{index}.{MASTER}"])
                self._stepped = True

    def release(self) -> None:
        """Remove the hooks from the model's parameters."""
        for hook in self._hooks:
            hook.remove()


def _blocks(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Runs of tensors with at most `BLOCK` numbers, or a single one with more."""
    block: list[Tensor] = []
    for tensor in tensors:
        if block and sum(part.numel() for part in [*block, tensor]) > BLOCK:
            yield block
            block = []
        block.append(tensor)
    if block:
        yield block


def saved_in_float32(lm: nn.Module, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Master weights, as `MasterWeights.tensors` names them, among a checkpoint's own weights.

    Versions before 0.2 trained the adapter of a bfloat16 model in float32.

    Args:
        lm: the model that the checkpoint is loaded into.
        weights: the trained tensors of the checkpoint by name.
    """
    trained = [(name, p) for name, p in lm.named_parameters() if p.requires_grad]
    return {
        f"{index}.{MASTER}": weights[name]
        for index, (name, parameter) in enumerate(trained)
        if parameter.dtype != weights[name].dtype == torch.float32
    }
