"""A CUDA device without a GPU: CPU tensors whose storages are marked as being on a device.

    with VirtualCuda() as cuda:
        model.to("cuda:0")
        ...
    assert not cuda.mixes

Within the block torch reports GPUs of 80 GiB. What is made on a device or moved there is marked,
and so is what a function returns for marked tensors. Recorded by the line of code that caused it:
functions that get tensors of two devices where CUDA would refuse them, and calls that make the host
wait for the device. Only calls from Python are seen; there are no streams and no kernels. `waits`
counts what reads a value back, or needs it to know the size of a result; a copy to the device from
pageable memory, which may wait too, is among `copies`.
"""

from __future__ import annotations

import linecache
import os
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.cuda._utils import _get_device_index
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode, _get_current_function_mode
from torch.utils import checkpoint

CPU = torch.device("cpu")
MEMORY = 80 * 2**30
# functions whose result, or the size of it, the host must know
WAITING = {
    "item", "tolist", "numpy", "__array__", "__bool__", "__int__", "__float__", "__index__",
    "__contains__", "__format__", "__repr__", "is_nonzero", "nonzero", "argwhere", "unique",
    "_unique2", "unique_consecutive", "masked_select", "equal", "allclose", "bincount", "histc",
    "multinomial", "repeat_interleave",
}  # fmt: skip
# functions that may get tensors of several devices
MIXING = {
    "copy_", "set_", "__get__", "__set__", "size", "dim", "stride", "numel", "data_ptr",
    "storage_offset", "untyped_storage", "_has_compatible_shallow_copy_type",
}  # fmt: skip
INDEXING = {"__getitem__", "__setitem__", "index_put_", "index_put", "_index_put_impl_", "index"}
LIKE_FIRST = {"zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"}
OURS = (f"{os.sep}recbole_multdpo{os.sep}", f"{os.sep}recbole{os.sep}")


class VirtualCuda(TorchFunctionMode):
    """Context in which torch has `n_devices` GPUs.

    Attributes:
        mixes: what CUDA would refuse, with its line, and how often.
        waits: lines that made the host wait for a device, and how often.
        copies: lines that copied from the host to a device, and how often.
        current: index of the device that `cuda` without an index stands for.
    """

    def __init__(self, n_devices: int = 1) -> None:
        super().__init__()
        self.mixes: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.current = 0
        self._n_devices = n_devices
        self._marks: dict[int, tuple[StorageWeakRef, torch.device]] = {}
        self._patches = ExitStack()

    def device_of(self, tensor: Tensor) -> torch.device:
        """The device that the tensor is marked with, or its real one."""
        try:
            key = tensor.untyped_storage()._cdata
        except (RuntimeError, NotImplementedError):  # e.g. sparse
            return CPU
        reference, device = self._marks.get(key, (None, CPU))
        if reference is None or reference.expired():
            return tensor.device if reference is None else CPU
        return device

    def mark(self, tensor: Tensor, device: torch.device) -> Tensor:
        """Mark the tensor's storage as on the device."""
        storage = tensor.untyped_storage()
        if device.type == "cuda" and tensor.device.type == "cpu":
            self._marks[storage._cdata] = (StorageWeakRef(storage), device)
            if len(self._marks) % 10_000 == 0:
                kept = {k: mark for k, mark in self._marks.items() if not mark[0].expired()}
                self._marks = kept
        return tensor

    def resolved(self, device: Any) -> torch.device:
        """A device argument as a device with an index."""
        device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
        if device.type == "cuda" and device.index is None:
            return torch.device("cuda", self.current)
        return device

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = dict(kwargs or {}), getattr(func, "__name__", str(func))
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if name == "__get__" and first is not None:
            return self._attribute(func, first, args)
        if name == "__set__" or name == "clip_grad_norm_":
            return func(*args, **kwargs)
        if name in ("to", "cuda", "cpu") and first is not None:
            return self._moved(func, name, args, kwargs)
        if name == "get_device":
            index = self.device_of(first).index
            return -1 if index is None else index
        wanted = kwargs.get("device")
        if wanted is not None:
            wanted = self.resolved(wanted)
            if wanted.type == "cuda":
                kwargs["device"] = CPU
        tensors = [*_tensors(args), *_tensors(kwargs)]
        devices = [self.device_of(tensor) for tensor in tensors]
        if name in LIKE_FIRST or name.startswith("new_"):
            target = wanted or devices[0]
        else:
            on_device = next((d for d in devices if d.type == "cuda"), CPU)
            if on_device.type == "cuda":
                self._check(name, args, tensors, devices)
                self._count_waits(name, args, kwargs, devices)
            in_place = first is not None and name.endswith("_") and not name.endswith("__")
            target = wanted or (devices[0] if in_place else on_device)
        generator = kwargs.get("generator")
        if generator is not None and getattr(generator, "on", CPU) != target:
            self.mixes[f"{name}: a generator of another device than {target}, {_line()}"] += 1
        out = func(*args, **kwargs)
        if target.type == "cuda":
            for tensor in _tensors(out):
                self.mark(tensor, target)
            if name in ("tensor", "as_tensor", "new_tensor"):
                self.copies[_line()] += 1
        return out

    def _attribute(self, func: Any, tensor: Tensor, args: Any) -> Any:
        device = self.device_of(tensor)
        if func == Tensor.device.__get__:
            return device
        if func == Tensor.is_cuda.__get__:
            return device.type == "cuda"
        if func == Tensor.is_cpu.__get__:
            return device.type == "cpu"
        out = func(*args)
        return self.mark(out, device) if isinstance(out, Tensor) else out

    def _moved(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        """`to`, `cuda` and `cpu`: the tensor in another type and on another device."""
        tensor, *rest = args
        if name != "to":
            rest, kwargs = [CPU if name == "cpu" else (rest or ["cuda"])[0]], {}
        target: torch.device | None = None
        dtype = kwargs.get("dtype")
        for value in [kwargs.get("device"), *rest]:
            is_number = isinstance(value, int) and not isinstance(value, bool)
            if isinstance(value, Tensor):
                target, dtype = self.device_of(value), value.dtype
            elif isinstance(value, torch.dtype):
                dtype = value
            elif is_number or isinstance(value, (torch.device, str)):
                target = self.resolved(value)
        source = self.device_of(tensor)
        if "meta" in (source.type, target.type if target else ""):
            return func(*args, **kwargs)
        target = target or source
        flags = [value for value in rest if isinstance(value, bool)]  # non_blocking, copy
        copied = kwargs.get("copy", len(flags) > 1 and flags[1])
        out = Tensor.to(tensor, dtype=dtype or tensor.dtype, copy=copied)
        if target != source:
            if out.untyped_storage()._cdata == tensor.untyped_storage()._cdata:
                out = out.clone()
            (self.waits if target.type == "cpu" else self.copies)[f"{_line()} {name}"] += 1
        return self.mark(out, target)

    def _check(
        self, name: str, args: Any, tensors: list[Tensor], devices: list[torch.device]
    ) -> None:
        """Record a function over tensors of several devices, if CUDA refuses it."""
        # gradients arrive unmarked from the backward passes that are not in Python
        if len(set(devices)) == 1 or name in MIXING or torch._C._current_graph_task_id() != -1:
            return
        cpu_is_first = devices[0].type == "cpu"
        foreign = {d for d in devices if d.type == "cuda"}
        misplaced = [
            tuple(tensor.shape)
            for tensor, device in zip(tensors, devices, strict=True)
            if device.type == "cpu" and tensor.dim() > 0
        ]
        if len(foreign) > 1:
            self.mixes[f"{name}: tensors of {len(foreign)} GPUs, {_line()}"] += 1
        elif name in INDEXING:
            value = args[2] if name == "__setitem__" else None
            value_on_cpu = isinstance(value, Tensor) and self.device_of(value).type == "cpu"
            if cpu_is_first:
                self.mixes[f"{name}: a CPU tensor with CUDA tensors, {_line()}"] += 1
            elif value_on_cpu and value.dim() > 0:
                self.mixes[f"{name}: a CPU value into a CUDA tensor, {_line()}"] += 1
            else:
                self.copies[f"{_line()} index"] += 1
        elif misplaced:
            self.mixes[f"{name}: CUDA tensors with CPU ones of {misplaced[:3]}, {_line()}"] += 1

    def _count_waits(
        self, name: str, args: Any, kwargs: dict[str, Any], devices: list[torch.device]
    ) -> None:
        if name == "numpy":
            self.mixes[f"numpy() of a CUDA tensor, {_line()}"] += 1
        if name == "repeat_interleave":
            known = isinstance(args[1] if len(args) > 1 else kwargs.get("repeats"), int)
            if known or kwargs.get("output_size") is not None:
                return
        if name == "where" and len(args) + len(kwargs) > 1:
            return
        if name == "copy_" and devices[0].type == "cpu":
            self.waits[f"{_line()} copy_"] += 1
        elif name in WAITING or name == "where":
            self.waits[f"{_line()} {name}"] += 1
        elif name in ("__getitem__", "__setitem__"):
            indices = args[1] if isinstance(args[1], tuple) else (args[1],)
            masks = [i for i in indices if isinstance(i, Tensor) and i.dtype == torch.bool]
            filled = name == "__setitem__" and not isinstance(args[2], Tensor)
            if masks and not filled:
                self.waits[f"{_line()} mask as index"] += 1
            elif any(isinstance(index, list) for index in indices):
                self.copies[f"{_line()} list as index"] += 1

    def __enter__(self) -> VirtualCuda:
        properties = SimpleNamespace(
            name="virtual", total_memory=MEMORY, major=9, minor=0, multi_processor_count=132
        )

        def set_device(device: Any) -> None:
            self.current = _get_device_index(device)

        values = {
            "is_available": True,
            "is_initialized": True,
            "device_count": self._n_devices,
            "is_bf16_supported": True,
            "get_device_name": properties.name,
            "get_device_capability": (properties.major, properties.minor),
            "get_device_properties": properties,
            "mem_get_info": (MEMORY - 2**30, MEMORY),
            "memory_allocated": 0,
            "memory_reserved": 0,
            "max_memory_allocated": 0,
            "max_memory_reserved": 0,
            "reset_peak_memory_stats": None,
            "empty_cache": None,
            "synchronize": None,
            "manual_seed": None,
            "manual_seed_all": None,
        }
        replaced: dict[str, Any] = {
            name: (lambda *_, value=value, **__: value) for name, value in values.items()
        }
        replaced |= {
            "set_device": set_device,
            "current_device": lambda: self.current,
            "get_rng_state": lambda *_: torch.get_rng_state(),
            "set_rng_state": lambda state, *_: torch.set_rng_state(state),
        }
        for name, function in replaced.items():
            self._patches.enter_context(mock.patch.object(torch.cuda, name, function))
        # transformers' threads would move weights outside of this context
        synchronous = {"HF_DEACTIVATE_ASYNC_LOAD": "1"}
        self._patches.enter_context(mock.patch.dict(os.environ, synchronous))
        resolved = self.resolved

        class Generator(torch.Generator):
            """A generator of the CPU that says which device it was made for."""

            def __new__(cls, device: Any = "cpu") -> Generator:
                made = super().__new__(cls)
                made.on = resolved(device)
                return made

        run_backward = torch.autograd._engine_run_backward

        def run_backward_in_mode(*args: Any, **options: Any) -> Any:
            # torch leaves a mode while a function runs, and this one calls Python code
            if _get_current_function_mode() is self:
                return run_backward(*args, **options)
            TorchFunctionMode.__enter__(self)
            try:
                return run_backward(*args, **options)
            finally:
                TorchFunctionMode.__exit__(self, None, None, None)

        of_torch = {"load": self._loading(torch.load), "Generator": Generator}
        for name, replacement in of_torch.items():
            self._patches.enter_context(mock.patch.object(torch, name, replacement))
        engine = mock.patch.object(torch.autograd, "_engine_run_backward", run_backward_in_mode)
        self._patches.enter_context(engine)
        # a tensor is kept before the function that made it returns, and its storage is marked
        without_device = {"default": lambda tensor: (tensor.shape, tensor.dtype)}
        checks = mock.patch.dict(checkpoint._allowed_determinism_checks_to_fns, without_device)
        self._patches.enter_context(checks)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._patches.close()

    def _loading(self, load: Any) -> Any:
        """`torch.load` with a map_location on this device."""

        def load_to(file: Any, map_location: Any = None, **options: Any) -> Any:
            if map_location is None or "cuda" not in str(map_location):
                return load(file, map_location=map_location, **options)
            loaded = load(file, map_location="cpu", **options)
            for tensor in _tensors(loaded):
                self.mark(tensor, self.resolved(map_location))
            return loaded

        return load_to


def _tensors(value: Any) -> Iterator[Tensor]:
    """All tensors in nested tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for entry in value:
            yield from _tensors(entry)
    elif isinstance(value, dict):
        for entry in value.values():
            yield from _tensors(entry)


def _line() -> str:
    """The innermost line of this package (or of RecBole) in the stack, else outside of torch."""
    frame, innermost = sys._getframe(1), ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file != __file__ and f"{os.sep}torch{os.sep}" not in file:
            where = f"{'/'.join(file.split(os.sep)[-2:])}:{frame.f_lineno}"
            if any(part in file for part in OURS):
                return f"{where} {linecache.getline(file, frame.f_lineno).strip()[:80]}"
            innermost = innermost or where
        frame = frame.f_back  # type: ignore[assignment]
    return innermost
