"""Float32 weights behind bfloat16 ones: no step is lost, parts add up, checkpoints hold them."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_

from recbole_multdpo.model.llmrec import StepOutput
from recbole_multdpo.training import master_weights
from recbole_multdpo.training.distributed import TorchEngine
from recbole_multdpo.training.master_weights import MasterWeights, saved_in_float32

RATE = 5e-5  # the default of preference training


class Tokens:
    """The part of a model that an engine needs: an LM, and a step over token ids [B, L]."""

    device = torch.device("cpu")
    reference = None

    def __init__(self, lm: nn.Module) -> None:
        self.lm = lm

    def step(self, batch: Tensor, kl: None) -> StepOutput:
        logps = self.lm(batch).logits[:, :-1].float().log_softmax(-1)
        losses = -logps.gather(-1, batch[:, 1:, None]).mean((1, 2))
        return StepOutput(losses, losses.detach(), None)


def adamw(parameters: Iterator[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.01)


def weights_of(lm: nn.Module) -> Tensor:
    return torch.cat([p.detach().float().flatten() for p in lm.parameters()])


def batches(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(torch.randint(0, 64, (n, 6, 12), generator=generator))


def steps(engine: TorchEngine, data: list[Tensor], n_parts: int = 1) -> None:
    for batch in data:
        engine.discard_gradient()
        parts = batch.chunk(n_parts)
        for number, part in enumerate(parts, 1):
            weights = torch.full((len(part),), 1 / len(batch))
            engine.add_gradient(part, weights, None, is_last=number == len(parts))  # type: ignore[arg-type]
        engine.step()


@pytest.fixture
def lm(make_lm) -> nn.Module:  # type: ignore[no-untyped-def]
    """A model in bfloat16 whose weights are large beside a step, as those of real models."""
    return make_lm("llama", dtype=torch.bfloat16)


def engine_of(lm: nn.Module, clipping: dict[str, float] | None = None) -> TorchEngine:
    return TorchEngine(Tokens(lm), adamw(lm.parameters()), clipping)  # type: ignore[arg-type]


def test_no_step_is_lost(lm: nn.Module) -> None:
    """Sixty steps against the same in float32; control: steps on bfloat16 weights."""
    data, start = batches(60), weights_of(lm)
    exact, naive = copy.deepcopy(lm).float(), copy.deepcopy(lm)
    steps(engine_of(exact), data)
    update = weights_of(exact) - start

    engine = engine_of(lm)
    steps(engine, data)
    masters = torch.cat([p.detach().flatten() for p in engine.optimizer.param_groups[0]["params"]])
    assert masters.dtype == torch.float32
    assert float((masters != start).float().mean()) > 0.99
    assert float(torch.cosine_similarity(masters - start, update, 0)) > 0.99
    assert torch.equal(weights_of(lm), masters.bfloat16().float())

    optimizer = adamw(naive.parameters())
    for batch in data:
        optimizer.zero_grad()
        Tokens(naive).step(batch, None).losses.mean().backward()
        optimizer.step()
    lost = weights_of(naive) - start
    assert float((lost != 0).float().mean()) < 0.5
    assert float(torch.cosine_similarity(lost, update, 0)) < 0.9


@pytest.mark.parametrize("n_parts", [1, 3])
def test_steps_are_those_of_float32_weights_rounded_for_the_model(
    lm: nn.Module, n_parts: int
) -> None:
    """Reference implementation: parts, clipping, step and rounding."""
    data = batches(4)
    twin = copy.deepcopy(lm)
    masters = [nn.Parameter(p.detach().float()) for p in twin.parameters()]
    optimizer = adamw(iter(masters))
    for batch in data:
        for master in masters:
            master.grad = torch.zeros_like(master)
        for part in batch.chunk(n_parts):
            loss = Tokens(twin).step(part, None).losses.sum() / len(batch)
            gradients = torch.autograd.grad(loss, list(twin.parameters()))
            for master, gradient in zip(masters, gradients, strict=True):
                assert gradient.dtype == torch.bfloat16 and master.grad is not None
                master.grad += gradient.float()
        clip_grad_norm_(masters, 0.1)
        optimizer.step()
        with torch.no_grad():
            for parameter, master in zip(twin.parameters(), masters, strict=True):
                parameter.copy_(master)

    engine = engine_of(lm, {"max_norm": 0.1})
    steps(engine, data, n_parts)
    saved = engine.optimizer_state()
    for index, master in enumerate(masters):
        torch.testing.assert_close(saved[f"{index}.master"], master.detach(), rtol=0, atol=1e-9)
    assert all(p.grad is None for p in lm.parameters())  # none is kept in bfloat16


def test_a_checkpoint_goes_on_bit_for_bit(lm: nn.Module) -> None:
    """Control: with the bfloat16 weights alone the same steps lead elsewhere."""
    data = batches(6)
    engine = engine_of(lm)
    assert engine.optimizer_state() == {}
    steps(engine, data[:3])
    resumed, rounded = copy.deepcopy(lm), copy.deepcopy(lm)
    state = {name: value.clone() for name, value in engine.optimizer_state().items()}
    steps(engine, data[3:])
    expected = engine.optimizer_state()
    without = {name: value for name, value in state.items() if not name.endswith(".master")}
    found = []
    for model, tensors in ((resumed, state), (rounded, without)):
        other = engine_of(model)
        other.load_optimizer_state({n: v.clone() for n, v in tensors.items()}, None)  # type: ignore[arg-type]
        if tensors is state:
            again = other.optimizer_state()
            assert again.keys() == state.keys()
            assert all(torch.equal(again[name], state[name]) for name in state)
        steps(other, data[3:])
        found.append(other.optimizer_state())
    assert all(torch.equal(found[0][name], expected[name]) for name in expected)
    assert torch.equal(weights_of(resumed), weights_of(lm))
    assert not torch.equal(found[1]["1.master"], expected["1.master"])


def test_parameters_in_float32_and_frozen_ones_have_no_others(lm: nn.Module) -> None:
    names = [name for name, _ in lm.named_parameters()]
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_("proj" in name)
        if "q_proj" in name:
            parameter.data = parameter.data.float()
    trained = [p for p in lm.parameters() if p.requires_grad]
    optimizer = adamw(iter(trained))
    masters = MasterWeights(optimizer)
    assert masters
    kept = [p for p in optimizer.param_groups[0]["params"] if any(p is q for q in trained)]
    assert len(kept) == sum("q_proj" in name for name in names) > 0
    assert not MasterWeights(adamw(iter(kept)))


@pytest.mark.parametrize("name", ["Adam", "SGD", "Adagrad", "RMSprop"])
def test_every_optimizer_steps_them(lm: nn.Module, name: str) -> None:
    """Adagrad has a state before its first step."""
    updates, start = [], weights_of(lm)
    for model in (lm, copy.deepcopy(lm).float()):
        optimizer = getattr(torch.optim, name)(model.parameters(), lr=1e-3)
        steps(TorchEngine(Tokens(model), optimizer, None), batches(2))  # type: ignore[arg-type]
        stepped = torch.cat([p.detach().flatten() for p in optimizer.param_groups[0]["params"]])
        updates.append(stepped - start)
        assert {s.dtype for v in optimizer.state.values() for s in v.values()} <= {torch.float32}
    assert float(torch.cosine_similarity(*updates, 0)) > 0.9


def test_the_end_of_a_stage_leaves_the_model_alone(lm: nn.Module) -> None:
    engine = engine_of(lm)
    steps(engine, batches(1))
    engine.finish()
    Tokens(lm).step(batches(1)[0], None).losses.sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.bfloat16 for p in lm.parameters())


def test_gradients_move_in_blocks(lm: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of every size have one result; in small ones no gradient of all waits for the last."""
    found, waited = [], []
    move = MasterWeights.move_gradients
    monkeypatch.setattr(
        MasterWeights,
        "move_gradients",
        lambda self: (waited.append(len(self._waiting)), move(self))[1],
    )
    for size in (1, 2000, 2**24):
        monkeypatch.setattr(master_weights, "BLOCK", size)
        twin = copy.deepcopy(lm)
        engine = engine_of(twin)
        steps(engine, batches(2), n_parts=2)
        found.append(engine.optimizer_state())
        n_parameters = len(list(lm.parameters()))
        largest = {1: 1, 2000: n_parameters // 2, 2**24: n_parameters}[size]
        assert 0 < max(waited) <= largest
        waited.clear()
    for other in found[1:]:
        assert all(torch.equal(other[name], value) for name, value in found[0].items())


def test_an_interrupted_backward_pass_leaves_nothing(lm: nn.Module) -> None:
    engine = engine_of(lm)
    first, second = batches(2)
    Tokens(lm).step(first, None).losses.sum().backward()  # and never moved
    twin = copy.deepcopy(lm)
    for parameter in twin.parameters():
        parameter.grad = None
    steps(engine, [second])
    other = engine_of(twin)
    steps(other, [second])
    assert torch.equal(weights_of(lm), weights_of(twin))


def test_a_float32_adapter_of_before_keeps_its_digits(lm: nn.Module) -> None:
    """Its values become the master weights; control: a checkpoint in the model's own dtype."""
    trained = {name: p for name, p in lm.named_parameters() if "q_proj" in name}
    for name, parameter in lm.named_parameters():
        parameter.requires_grad_(name in trained)
    exact = {name: p.detach().float() + 1e-5 for name, p in trained.items()}
    tensors = saved_in_float32(lm, exact)
    assert tensors.keys() == {f"{index}.master" for index in range(len(exact))}
    masters = MasterWeights(adamw(iter(trained.values())))
    masters.load(tensors)
    for found, expected in zip(masters.tensors().values(), exact.values(), strict=True):
        assert torch.equal(found, expected)
    assert saved_in_float32(lm, dict(trained)) == {}
    assert saved_in_float32(lm.float(), exact) == {}
