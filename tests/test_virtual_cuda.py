"""The virtual device finds what CUDA would refuse, allows what it allows, and counts waits."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.virtual_cuda import VirtualCuda

# not "cuda", so that a tensor on a device without an index is a case of its own
HERE = "cuda:0"


def ones(*shape: int, device: str | None = HERE) -> torch.Tensor:
    return torch.ones(*shape, device=device)


def on_cpu(*shape: int) -> torch.Tensor:
    return torch.ones(*shape)


def places(device: str | None = None) -> torch.Tensor:
    return torch.zeros(2, dtype=torch.long, device=device)


def gradient() -> torch.Tensor:
    parameter = ones(3).requires_grad_()
    parameter.sum().backward()
    assert parameter.grad is not None
    return parameter.grad


def loaded() -> torch.Tensor:
    module = nn.Linear(3, 3).to(HERE)
    module.load_state_dict({name: value.cpu() for name, value in module.state_dict().items()})
    return module.weight


@pytest.mark.parametrize(
    "fault",
    {
        "sum": lambda: ones(3) + on_cpu(3),
        "arange without a device": lambda: torch.arange(3) < ones(3),
        "CPU table, CUDA index": lambda: on_cpu(3)[places(HERE)],
        "CPU value by index": lambda: ones(3).__setitem__(places(HERE), on_cpu(2)),
        "cat": lambda: torch.cat([ones(3), on_cpu(0)]),
        "numpy": lambda: ones(3).numpy(),
        "embedding": lambda: nn.Embedding(3, 2).to(HERE)(places()),
        "result": lambda: (ones(3) * 2).exp() + on_cpu(3),
        "view": lambda: ones(4).view(2, 2)[0] + on_cpu(2),
        "gradient": lambda: gradient() + on_cpu(3),
        "parameter": lambda: nn.Linear(3, 3).to("cuda").weight + on_cpu(3, 3),
        "loaded parameter": lambda: loaded() + on_cpu(3, 3),
        "moved by cuda()": lambda: on_cpu(3).cuda() + on_cpu(3),
        "like another": lambda: torch.zeros_like(ones(3)) + on_cpu(3),
        "new_zeros": lambda: ones(3).new_zeros(3) + on_cpu(3),
        "generator of the CPU": lambda: ones(3).normal_(generator=torch.Generator()),
        "generator of the GPU": lambda: torch.randn(3, generator=torch.Generator(HERE)),
        "two GPUs": lambda: ones(3) + ones(3, device="cuda:1"),
    }.items(),
    ids=lambda fault: fault[0],
)
def test_a_planted_mix_is_found(fault: tuple[str, Callable[[], object]]) -> None:
    with VirtualCuda(2) as cuda:
        fault[1]()
    assert sum(cuda.mixes.values()) == 1, cuda.mixes
    assert "test_virtual_cuda.py" in next(iter(cuda.mixes))


def test_what_cuda_allows_is_no_mix() -> None:
    with VirtualCuda() as cuda:
        assert (ones(3) + torch.tensor(1.0)).is_cuda
        assert ones(3)[places()].device == torch.device("cuda", 0)
        assert not ones(3).cpu().numpy().any() == 0
        assert ones(3, device="cuda").device == ones(3).device
        assert on_cpu(3).to(HERE, torch.bfloat16).dtype == torch.bfloat16
        assert ones(3).to(torch.float64).is_cuda
        assert on_cpu(3).to(ones(2)).is_cuda
        assert on_cpu(3).to("cuda").cpu().is_cpu
        assert on_cpu(3).copy_(ones(3)).is_cpu
        assert torch.randn(3, device=HERE, generator=torch.Generator(HERE)).is_cuda
        assert not on_cpu(3).is_cuda
    assert not cuda.mixes


def test_moving_copies_and_leaves_the_source_where_it_is() -> None:
    with VirtualCuda() as cuda:
        source = on_cpu(3)
        moved = source.to(HERE)
        moved += 1
        assert source.tolist() == [1, 1, 1] and moved.tolist() == [2, 2, 2]
        assert source.is_cpu and moved.is_cuda
    assert sum(cuda.copies.values()) == 1 and sum(cuda.waits.values()) == 1


@pytest.mark.parametrize(
    ("n_waits", "call"),
    [
        (1, lambda x: x.sum().item()),
        (1, lambda x: bool(x[0] > 0)),
        (1, lambda x: int(x.max())),
        (1, lambda x: x.nonzero()),
        (1, lambda x: torch.where(x > 0)),
        (1, lambda x: x.cpu()),
        (1, lambda x: x[x > 0]),
        (1, lambda x: torch.repeat_interleave(x, x.long())),
        (1, lambda x: torch.empty(3).copy_(x)),
        (0, lambda x: torch.repeat_interleave(x, x.long(), output_size=3)),
        (0, lambda x: torch.repeat_interleave(x, 2)),
        (0, lambda x: torch.where(x > 0, x, 0)),
        (0, lambda x: x.masked_fill_(x > 0, 1)),
        (0, lambda x: x.__setitem__(x > 0, 1)),
        (0, lambda x: x.sort().values.cumsum(0)),
        (0, lambda x: x.cpu),
    ],
)
def test_waits_of_the_host(n_waits: int, call: Callable[[torch.Tensor], object]) -> None:
    with VirtualCuda() as cuda:
        tensor = ones(3)
        cuda.waits.clear()
        call(tensor)
    assert sum(cuda.waits.values()) == n_waits, cuda.waits


def test_a_device_without_an_index_is_refused_where_torch_refuses_it() -> None:
    with VirtualCuda(2) as cuda:
        with pytest.raises(ValueError, match="specified index"):
            torch.cuda.set_device(torch.device("cuda"))
        torch.cuda.set_device(torch.device("cuda", 1))
        assert ones(3, device="cuda").device == torch.device("cuda", 1)
    assert not cuda.mixes


def test_the_cpu_comes_back() -> None:
    with VirtualCuda():
        tensor = ones(3)
    assert not torch.cuda.is_available() or torch.cuda.get_device_name() != "virtual"
    assert (tensor + on_cpu(3)).is_cpu
