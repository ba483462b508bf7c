"""Float32 master weights of trained bfloat16 weights.

A bfloat16 number has eight significant bits: an update below 1/256 of a weight rounds to zero, and
at usual learning rates most updates are smaller. So the optimizer updates float32 weights, and the
model computes with their rounded values.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor, nn

from recbole_multdpo.runtime import processes

MASTER = "master"  # the entry of a checkpoint's optimizer state with the float32 weights


def _adding_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    """Hook that moves a parameter's gradient to its float32 master weight."""

    def move(trained: Tensor) -> None:
        assert trained.grad is not None
        if master.grad is None:
            master.grad = trained.grad.float()
        else:
            master.grad.add_(trained.grad)
        trained.grad = None

    return move


class MasterWeights:
    """Float32 master weights of the optimizer's parameters of another dtype.

    They replace the parameters in the optimizer. Each gradient moves to them as soon as it is
    computed: the gradients of a batch's parts are summed in float32, and none stays in bfloat16.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        """Replace the optimizer's parameters of other dtypes by float32 master weights."""
        self.optimizer = optimizer
        self._pairs: dict[int, tuple[nn.Parameter, nn.Parameter]] = {}  # by index: trained, master
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
                        trained.register_post_accumulate_grad_hook(_adding_to(master))
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

    def all_reduce_gradients(self) -> None:
        """All-reduce every gradient to its sum over the processes, in float32.

        A parameter that the batch uses in no process keeps no gradient.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        used = torch.tensor([float(p.grad is not None) for p in parameters])
        for parameter, n_users in zip(
            parameters, processes.all_reduce_sum(used).tolist(), strict=True
        ):
            if n_users:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                dist.all_reduce(parameter.grad)

    def discard_gradients(self) -> None:
        """Drop the gradients that an interrupted backward pass has left in the model."""
        for trained, _ in self._pairs.values():
            trained.grad = None

    @torch.no_grad()
    def write_back(self) -> None:
        """Copy the master weights into the model's parameters, rounded to their dtype."""
        for trained, master in self._pairs.values():
            trained.copy_(master)
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
