"""Optimizer state in fragments: any layout over any number of processes reads any other."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.training.optimizer_state import (
    check_tensors,
    fragment_name,
    fragments_by_name,
    load_optimizer_tensors,
    optimizer_tensors,
    read_fragments,
    whole_tensors,
)

Cuts = list[list[tuple[int, int]]]  # of every process: start and length in each parameter


def flat_cuts(sizes: list[int], n: int) -> Cuts:
    """The layout of ZeRO-1 and 2: parameters behind each other, in n equal parts with padding."""
    part = -(-sum(sizes) // n)
    cuts = []
    for rank in range(n):
        own, offset = [], 0
        for size in sizes:
            low, high = max(offset, rank * part), min(offset + size, (rank + 1) * part)
            own.append((low - offset, high - low) if low < high else (0, 0))
            offset += size
        cuts.append(own)
    return cuts


def parameter_cuts(sizes: list[int], n: int) -> Cuts:
    """The layout of ZeRO-3: every parameter in n equal parts, the last ones padded."""
    parts = [-(-size // n) for size in sizes]
    return [
        [
            (min(rank * part, size), min(part, size - min(rank * part, size)))
            for size, part in zip(sizes, parts, strict=True)
        ]
        for rank in range(n)
    ]


def divided(state: dict[str, Tensor], cuts: Cuts) -> list[dict[str, Tensor]]:
    """The state as every process would save it."""
    shards = []
    for own in cuts:
        shard = {}
        for name, value in state.items():
            start, length = own[int(name.partition(".")[0])]
            if value.ndim == 0:
                shard[name] = value
            elif length:
                shard[fragment_name(name, start)] = value.flatten()[start : start + length].clone()
        shards.append(shard)
    return shards


def merged(shards: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: value for shard in shards for name, value in shard.items()}


def adamw(shapes: list[tuple[int, ...]]) -> torch.optim.Optimizer:
    torch.manual_seed(0)
    return torch.optim.AdamW([nn.Parameter(torch.randn(shape)) for shape in shapes])


def stepped(shapes: list[tuple[int, ...]]) -> torch.optim.Optimizer:
    optimizer = adamw(shapes)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return optimizer


layouts = st.sampled_from([flat_cuts, parameter_cuts])
shapes = st.lists(st.sampled_from([(1,), (7,), (3, 5), (2, 2, 2), (31,)]), min_size=1, max_size=6)


@given(shapes=shapes, before=layouts, after=layouts, n=st.integers(1, 5), m=st.integers(1, 5))
def test_what_n_processes_saved_m_processes_read(shapes, before, after, n, m) -> None:  # type: ignore[no-untyped-def]
    optimizer = stepped(shapes)
    state = optimizer_tensors(optimizer)
    sizes = [torch.Size(shape).numel() for shape in shapes]
    saved = merged(divided(state, before(sizes, n)))
    check_tensors(optimizer, saved)
    fragments = fragments_by_name(saved)
    for expected, own in zip(divided(state, after(sizes, m)), after(sizes, m), strict=True):
        for name in state:
            start, length = own[int(name.partition(".")[0])]
            if state[name].ndim and length:
                found = read_fragments(fragments[name], start, length)
                assert torch.equal(found, expected[fragment_name(name, start)])
    whole = whole_tensors(optimizer, saved)
    assert whole.keys() == state.keys()
    assert all(torch.equal(whole[name], state[name]) for name in state)


@pytest.mark.parametrize("cuts", [flat_cuts, parameter_cuts])
def test_the_next_step_after_shards_is_the_same_bit_for_bit(cuts) -> None:  # type: ignore[no-untyped-def]
    """Control: with the shards of one process exchanged for zeros it is another one."""
    shapes = [(7, 3), (31,), (1,)]
    saved = divided(optimizer_tensors(stepped(shapes)), cuts([21, 31, 1], 3))
    broken = [*saved[:1], {k: v * 0 for k, v in saved[1].items()}, *saved[2:]]
    ends = []
    for tensors in (optimizer_tensors(stepped(shapes)), merged(saved), merged(broken)):
        optimizer = adamw(shapes)
        load_optimizer_tensors(optimizer, tensors)
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        ends.append(torch.cat([p.flatten() for p in optimizer.param_groups[0]["params"]]))
    assert torch.equal(ends[0], ends[1]) and not torch.equal(ends[0], ends[2])


def test_a_part_needs_no_other_fragments_than_its_own() -> None:
    """So that a process reads no more of a checkpoint than it keeps."""
    fragments = fragments_by_name({"0.x@4": torch.arange(4, 9), "0.x@20": torch.arange(20, 25)})
    assert read_fragments(fragments["0.x"], 5, 3).tolist() == [5, 6, 7]
    view = read_fragments(fragments["0.x"], 20, 5)
    assert view.data_ptr() == fragments["0.x"][1][1].data_ptr()  # no copy of what is mapped


@pytest.mark.parametrize(
    ("start", "length"), [(0, 5), (3, 2), (8, 2), (10, 5), (4, 12), (100, 1), (11, 1)]
)
def test_values_that_are_nowhere_are_refused(start: int, length: int) -> None:
    fragments = fragments_by_name({"0.x@4": torch.arange(5), "0.x@20": torch.arange(5)})
    with pytest.raises(CheckpointError, match="gaps or overlaps"):
        read_fragments(fragments["0.x"], start, length)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"0.exp_avg@4": None}, "0.exp_avg has 4 values"),
        ({"0.exp_avg@5": torch.zeros(2)}, r"does not fit the model: '0\.exp_avg@5'"),
        ({"0.exp_avg@4": torch.zeros(2, 2)}, r"does not fit the model: '0\.exp_avg@4'"),
        ({"5.exp_avg@0": torch.zeros(9)}, r"does not fit the model: '5\.exp_avg@0'"),
        ({"0.exp_avg@x": torch.zeros(0)}, "'0.exp_avg@x' names no fragment"),
        ({"0.exp_avg@4": None, "0.exp_avg@3": torch.zeros(5)}, "gaps or overlaps"),
    ],
)
def test_shards_that_do_not_fit_are_refused(change: dict[str, Tensor | None], message: str) -> None:
    optimizer = stepped([(9,)])
    saved = merged(divided(optimizer_tensors(optimizer), [[(0, 4)], [(4, 5)]]))
    whole_tensors(optimizer, saved)  # control
    changed = {name: value for name, value in {**saved, **change}.items() if value is not None}
    with pytest.raises(CheckpointError, match=message):
        whole_tensors(optimizer, changed)
