"""Checkpoints: round trips, identical resumption, damage, full disks, and no code in them."""

import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from recbole_multdpo.errors import CheckpointError
from recbole_multdpo.runs import checkpoint as checkpoint_module
from recbole_multdpo.runs.checkpoint import (
    load_checkpoint,
    load_trainable_tensors,
    save_checkpoint,
    trainable_tensors,
)
from recbole_multdpo.training.optimizer_state import load_optimizer_tensors, optimizer_tensors

STATE = {"stage": "sft", "epoch": 3, "best_valid_score": float("-inf"), "best_valid_result": None}


class Model(nn.Module):
    """A frozen embedding, a trained layer, and a head tied to the layer."""

    def __init__(self, width=4, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.frozen = nn.Embedding(5, width).requires_grad_(False)
        self.layer = nn.Linear(width, width)
        self.tied = nn.Linear(width, width)
        self.tied.weight = self.layer.weight

    def forward(self, ids):
        return self.tied(self.layer(self.frozen(ids)).tanh())


def step(model, optimizer, seed):
    """One optimizer step on data drawn from the seed."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, (6,), generator=generator)
    optimizer.zero_grad()
    model(ids).square().sum().backward()
    optimizer.step()


def saved(folder, state=STATE, with_optimizer=True):
    """A checkpoint of a model after three AdamW steps, with the model and the optimizer."""
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for seed in range(3):
        step(model, optimizer, seed)
    tensors = optimizer_tensors(optimizer) if with_optimizer else None
    save_checkpoint(folder, trainable_tensors(model), state, tensors)
    return model, optimizer


def listing(folder):
    return sorted(entry.name for entry in folder.iterdir())


# -------------------------------------------------------------------------------------------------
# round trip


def test_round_trip(tmp_path):
    model, optimizer = saved(tmp_path / "a" / "b" / "last")
    tensors, state, optimizer_state = load_checkpoint(tmp_path / "a" / "b" / "last")
    assert {**state, **STATE} == state and state["format"] == 2
    assert sorted(tensors) == ["layer.bias", "layer.weight", "tied.bias"]
    for name, tensor in trainable_tensors(model).items():
        assert torch.equal(tensors[name], tensor)
    expected = optimizer_tensors(optimizer)
    assert optimizer_state.keys() == expected.keys() and "1.exp_avg" in expected
    assert all(torch.equal(optimizer_state[name], expected[name]) for name in expected)
    assert listing(tmp_path / "a" / "b") == ["last"]


def test_without_optimizer(tmp_path):
    saved(tmp_path / "best", with_optimizer=False)
    assert listing(tmp_path / "best") == ["model.safetensors", "state.json"]
    assert load_checkpoint(tmp_path / "best")[2] is None


def test_a_checkpoint_of_a_model_without_trainable_parameters(tmp_path):
    save_checkpoint(tmp_path / "best", {}, STATE)
    assert load_checkpoint(tmp_path / "best")[0] == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_dtypes_survive(tmp_path, dtype):
    model = Model().to(dtype)
    save_checkpoint(tmp_path / "best", trainable_tensors(model), STATE)
    tensors, _, _ = load_checkpoint(tmp_path / "best")
    assert {tensor.dtype for tensor in tensors.values()} == {dtype}
    other = Model(seed=1).to(dtype)
    load_trainable_tensors(other, tensors, tmp_path)
    assert torch.equal(other.layer.weight, model.layer.weight)


def test_frozen_parameters_are_left_alone_and_tied_ones_stay_tied(tmp_path):
    model, _ = saved(tmp_path / "best")
    other = Model(seed=1)
    frozen = other.frozen.weight.clone()
    load_trainable_tensors(other, load_checkpoint(tmp_path / "best")[0], tmp_path)
    assert torch.equal(other.frozen.weight, frozen)
    assert other.tied.weight is other.layer.weight
    assert torch.equal(other.tied.weight, model.tied.weight)


@pytest.mark.parametrize("name", ["AdamW", "Adam", "SGD", "Adagrad", "RMSprop"])
def test_the_next_step_is_the_same_bit_for_bit(tmp_path, name):
    """Every optimizer of RecBole's `learner`. Control: a fresh optimizer takes another step."""
    model = Model()
    make = getattr(torch.optim, name)
    options = {"lr": 0.05, "momentum": 0.9} if name == "SGD" else {"lr": 0.05}
    optimizer = make(model.parameters(), **options)
    for seed in range(3):
        step(model, optimizer, seed)
    save_checkpoint(
        tmp_path / "last", trainable_tensors(model), STATE, optimizer_tensors(optimizer)
    )
    tensors, _, optimizer_state = load_checkpoint(tmp_path / "last")

    def resumed(with_state):
        other = Model(seed=1)
        other.frozen.load_state_dict(model.frozen.state_dict())
        load_trainable_tensors(other, tensors, tmp_path)
        other_optimizer = make(other.parameters(), **options)
        if with_state:
            load_optimizer_tensors(other_optimizer, optimizer_state)
        step(other, other_optimizer, 3)
        step(other, other_optimizer, 4)
        return other

    with_state, fresh = resumed(True), resumed(False)
    step(model, optimizer, 3)
    step(model, optimizer, 4)
    for key, parameter in trainable_tensors(model).items():
        assert torch.equal(trainable_tensors(with_state)[key], parameter)
    assert not torch.equal(fresh.layer.weight, model.layer.weight)


def test_parameter_groups_keep_their_present_settings(tmp_path):
    saved(tmp_path / "last")
    optimizer = torch.optim.AdamW(Model().parameters(), lr=0.7, weight_decay=0.3)
    load_optimizer_tensors(optimizer, load_checkpoint(tmp_path / "last")[2])
    assert optimizer.param_groups[0]["lr"] == 0.7
    assert optimizer.param_groups[0]["weight_decay"] == 0.3


# -------------------------------------------------------------------------------------------------
# what does not belong together


def test_foreign_parameter_names_are_refused(tmp_path):
    tensors = trainable_tensors(Model())
    tensors["other.weight"] = tensors.pop("tied.bias")
    with pytest.raises(CheckpointError, match=r"best belongs to another model: 2 parameter names"):
        load_trainable_tensors(Model(), tensors, tmp_path / "best")


def test_foreign_shapes_are_refused_before_anything_is_copied(tmp_path):
    model = Model(seed=1)
    before = {name: tensor.clone() for name, tensor in trainable_tensors(model).items()}
    tensors = trainable_tensors(Model())
    tensors["tied.bias"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"tied\.bias has shape \[3\] there and \[4\] here"):
        load_trainable_tensors(model, tensors, tmp_path / "best")
    for name, tensor in trainable_tensors(model).items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("9.exp_avg", torch.zeros(4)),  # no such parameter
        ("0.exp_avg", torch.zeros(3, 3)),  # another model's shape
        ("rng", torch.zeros(1)),  # not an entry of a parameter
        ("x.exp_avg", torch.zeros(1)),
    ],
)
def test_foreign_optimizer_state_is_refused(name, tensor):
    optimizer = torch.optim.AdamW(Model().parameters())
    with pytest.raises(CheckpointError, match=f"does not fit the model: '{name}'"):
        load_optimizer_tensors(optimizer, {"0.step": torch.tensor(1.0), name: tensor})
    assert optimizer.state_dict()["state"] == {}


# -------------------------------------------------------------------------------------------------
# damage


def test_an_absent_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match="there is no checkpoint at .*none"):
        load_checkpoint(tmp_path / "none")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
@pytest.mark.parametrize("kept", [0, 7, 0.5, 0.99])
def test_truncated_files_are_damage(tmp_path, file, kept):
    saved(tmp_path / "last")
    path = tmp_path / "last" / file
    content = path.read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(len(content) * kept)])
    with pytest.raises(CheckpointError, match="last is damaged .*remove it"):
        load_checkpoint(tmp_path / "last")


@pytest.mark.parametrize("file", ["model.safetensors", "state.json"])
def test_missing_files_are_damage(tmp_path, file):
    saved(tmp_path / "last")
    (tmp_path / "last" / file).unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(tmp_path / "last")


@pytest.mark.parametrize("content", [b"\xff\xfe", b"[]", b'"x"', b'{"format": 1}', b"{}"])
def test_states_of_another_format(tmp_path, content):
    saved(tmp_path / "last")
    (tmp_path / "last" / "state.json").write_bytes(content)
    with pytest.raises(CheckpointError, match="of checkpoint format .* and not 2|damaged"):
        load_checkpoint(tmp_path / "last")


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_no_pickle_is_executed(tmp_path, file):
    """A pickle that leaves a mark when loaded, in place of each file. Control: pickle runs it."""

    class Bomb:
        def __reduce__(self):
            return Path.touch, (tmp_path / "executed",)

    saved(tmp_path / "last")
    bombs = pickle.dumps(Bomb()), b""
    torch.save(Bomb(), tmp_path / "last" / file)
    for content in (bombs[0], (tmp_path / "last" / file).read_bytes()):
        (tmp_path / "last" / file).write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged"):
            load_checkpoint(tmp_path / "last")
        assert not (tmp_path / "executed").exists()
    pickle.loads(bombs[0])
    assert (tmp_path / "executed").exists()


# -------------------------------------------------------------------------------------------------
# failing to write: what was there stays, no other file is left


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def fails_on_call(number, function):
    """`function`, except that its n-th call finds the disk full."""
    calls = []

    def wrapped(*arguments, **options):
        calls.append(1)
        if len(calls) == number:
            full_disk()
        return function(*arguments, **options)

    return wrapped


def rust_error(*_, **__):
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("owner", "name", "replacement"),
    [
        (checkpoint_module, "save_file", full_disk),
        (checkpoint_module, "save_file", rust_error),
        (checkpoint_module, "save_file", fails_on_call(2, save_file)),  # the optimizer's file
        (Path, "write_text", full_disk),
        (os, "fsync", full_disk),
        (Path, "mkdir", full_disk),
        (Path, "rename", fails_on_call(1, Path.rename)),  # moving the old one aside
        (Path, "rename", fails_on_call(2, Path.rename)),  # moving the new one into place
    ],
    ids=["model", "rust", "optimizer", "state", "sync", "folder", "aside", "into place"],
)
def test_a_full_disk_keeps_the_old_checkpoint(tmp_path, monkeypatch, owner, name, replacement):
    model, _ = saved(tmp_path / "last")
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, replacement)
        with pytest.raises(CheckpointError, match="last could not be written .*--run_dir"):
            save_checkpoint(
                tmp_path / "last", {"w": torch.zeros(1)}, {"epoch": 4}, {"0.x": torch.ones(1)}
            )
    assert listing(tmp_path) == ["last"]
    tensors, state, _ = load_checkpoint(tmp_path / "last")
    assert state["epoch"] == 3
    assert torch.equal(tensors["layer.weight"], model.layer.weight)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="could not be written"):
        save_checkpoint(tmp_path / "file" / "last", {}, STATE)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch, error):
    saved(tmp_path / "last")

    def interrupted(*_):
        raise error

    monkeypatch.setattr(checkpoint_module, "save_file", interrupted)
    with pytest.raises(error):
        save_checkpoint(tmp_path / "last", {}, {"epoch": 4})
    assert listing(tmp_path) == ["last"]
    assert load_checkpoint(tmp_path / "last")[1]["epoch"] == 3


def test_a_state_that_json_cannot_hold_leaves_nothing_behind(tmp_path):
    with pytest.raises(TypeError):
        save_checkpoint(tmp_path / "last", {}, {"loss": torch.zeros(1)})
    assert listing(tmp_path) == []


def test_replacing_removes_the_old_checkpoint(tmp_path):
    saved(tmp_path / "last")
    save_checkpoint(tmp_path / "last", {"w": torch.zeros(1)}, {"epoch": 4})
    tensors, state, optimizer = load_checkpoint(tmp_path / "last")
    assert (list(tensors), state["epoch"], optimizer) == (["w"], 4, None)
    assert listing(tmp_path) == ["last"]


def test_the_state_is_readable_json(tmp_path):
    saved(tmp_path / "last")
    assert json.loads((tmp_path / "last" / "state.json").read_text())["stage"] == "sft"
