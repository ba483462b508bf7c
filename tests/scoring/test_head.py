"""The chunked LM head against plain autograd: values, gradients, chunk boundaries, odd heads."""

import pytest
import torch
from torch import nn

from recbole_multdpo.scoring import head as head_module
from recbole_multdpo.scoring.best_first import SLACK
from recbole_multdpo.scoring.catalogue import log_softmax_within
from recbole_multdpo.scoring.head import head_logps

VOCABULARY, HIDDEN, ROWS = 11, 6, 7
# rows 0 and 3 predict several tokens, one of them twice; row 5 none
ROW_OF = torch.tensor([0, 0, 1, 2, 3, 3, 3, 4, 6])
TOKENS = torch.tensor([4, 9, 0, 10, 2, 2, 7, 1, 5])


class ScaledHead(nn.Module):
    """A head that is not an `nn.Linear`, like an adapter around one."""

    def __init__(self, linear):
        super().__init__()
        self.linear = linear

    def forward(self, hidden):
        return 1.5 * self.linear(hidden)


def make(dtype=torch.float64, bias=False, seed=0):
    torch.manual_seed(seed)
    hidden = torch.randn(ROWS, HIDDEN, dtype=dtype, requires_grad=True)
    return hidden, nn.Linear(HIDDEN, VOCABULARY, bias=bias).to(dtype)


def plain(hidden, head, row_of=ROW_OF, tokens=TOKENS):
    """The definition: log softmax of every row's logits, then the selected entries."""
    logits = head(hidden)
    dtype = torch.promote_types(logits.dtype, torch.float32)
    return logits.to(dtype).log_softmax(-1)[row_of, tokens]


def gradients(logps, *inputs):
    """Gradients under weights that differ from token to token."""
    weights = torch.linspace(-1, 2, len(logps), dtype=logps.dtype)
    return torch.autograd.grad((weights * logps).sum(), inputs)


# 11: one row at a time, 33: three, so that 7 rows leave a rest, 77: all, 10: less than a row
@pytest.mark.parametrize("chunk_logits", [10, 11, 22, 33, 76, 77, 10_000, None])
@pytest.mark.parametrize(
    ("kind", "stored_logits"), [("linear", 0), ("linear", None), ("bias", None), ("module", None)]
)
def test_values_and_gradients_equal_plain_autograd(kind, stored_logits, chunk_logits):
    hidden, linear = make(bias=kind == "bias")
    head = ScaledHead(linear) if kind == "module" else linear
    inputs = [hidden, *head.parameters()]
    logps = head_logps(
        hidden, head, ROW_OF, TOKENS, chunk_logits=chunk_logits, stored_logits=stored_logits
    )
    expected = plain(hidden, head)
    torch.testing.assert_close(logps, expected, rtol=1e-12, atol=1e-12)
    for found, wanted in zip(gradients(logps, *inputs), gradients(expected, *inputs), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-11, atol=1e-12)


def test_a_value_by_hand():
    """Logits (log 1, log 2, log 3): token 2 has probability 3/6."""
    head = nn.Linear(1, 3, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[1.0], [2.0], [3.0]]).log())
    logps = head_logps(torch.ones(1, 1), head, torch.tensor([0]), torch.tensor([2]))
    torch.testing.assert_close(logps, torch.tensor([0.5]).log())


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("chunk_logits", [22, 10_000])
@pytest.mark.parametrize("trained", [(True, True), (True, False), (False, True)])
def test_gradcheck(chunk_logits, trained, keep):
    """Numerical derivatives, with trained hidden states, weight, or both."""
    hidden, head = make()
    hidden.requires_grad_(trained[0])
    head.weight.requires_grad_(trained[1])

    def function(hidden, weight):
        chunk = max(chunk_logits // VOCABULARY, 1)
        return head_module._LinearHeadLogps.apply(hidden, weight, ROW_OF, TOKENS, chunk, keep)

    assert torch.autograd.gradcheck(function, (hidden, head.weight))


@pytest.mark.parametrize(("stored_logits", "n_products"), [(VOCABULARY * ROWS, 3), (76, 4)])
def test_few_logits_are_not_computed_twice(monkeypatch, stored_logits, n_products):
    """A product for the logits, one for each gradient, and one more if they were not kept."""
    hidden, head = make()
    counted = []
    monkeypatch.setattr(head_module, "as_float", lambda logits: counted.append(1) or logits)
    logps = head_logps(hidden, head, ROW_OF, TOKENS, stored_logits=stored_logits)
    gradients(logps, hidden, head.weight)
    assert len(counted) == n_products - 2


def test_a_frozen_head_gets_no_gradient_and_the_hidden_states_the_same():
    hidden, head = make()
    (trained,) = gradients(head_logps(hidden, head, ROW_OF, TOKENS, chunk_logits=22), hidden)
    head.requires_grad_(False)
    logps = head_logps(hidden, head, ROW_OF, TOKENS, chunk_logits=22)
    (frozen,) = gradients(logps, hidden)
    assert torch.equal(frozen, trained)
    assert head.weight.grad is None


def test_hidden_states_without_gradient_train_the_head_alone():
    hidden, head = make()
    detached = hidden.detach()
    logps = head_logps(detached, head, ROW_OF, TOKENS, chunk_logits=22)
    (found,) = gradients(logps, head.weight)
    (wanted,) = gradients(plain(hidden, head), head.weight)
    torch.testing.assert_close(found, wanted)


def test_tied_weights_add_both_gradients():
    """The head's weight is the embedding too: its gradient is the sum of both uses."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(VOCABULARY, HIDDEN, dtype=torch.float64))
    head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
    head.weight = weight

    def embedded():
        return weight[TOKENS[:ROWS]].tanh()

    (found,) = gradients(head_logps(embedded(), head, ROW_OF, TOKENS, chunk_logits=22), weight)
    (wanted,) = gradients(plain(embedded(), head), weight)
    torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("kind", ["linear", "module"])
def test_bfloat16_is_summed_in_float32(kind):
    """Values equal plain autograd's on the same bfloat16 logits; gradients to its rounding."""
    hidden, linear = make(torch.bfloat16)
    head = ScaledHead(linear) if kind == "module" else linear
    logps = head_logps(hidden, head, ROW_OF, TOKENS, chunk_logits=22)
    expected = plain(hidden, head)
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-5)
    found, wanted = (gradients(x, hidden, linear.weight) for x in (logps, expected))
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_large_logits_stay_finite():
    """exp(logits) would overflow: the row's largest logit is subtracted first."""
    hidden, head = make(torch.float32)
    with torch.no_grad():
        head.weight.mul_(1e4)
    logps = head_logps(hidden, head, ROW_OF, TOKENS, chunk_logits=22)
    found = gradients(logps, hidden, head.weight)
    assert logps.isfinite().all() and all(gradient.isfinite().all() for gradient in found)
    torch.testing.assert_close(logps, plain(hidden, head))


@pytest.mark.parametrize("kind", ["linear", "module"])
def test_no_rows_at_all(kind):
    """A slice of padding has nothing to score."""
    hidden, linear = make(torch.float32)
    head = ScaledHead(linear) if kind == "module" else linear
    nothing = torch.empty(0, dtype=torch.long)
    logps = head_logps(hidden[:0], head, nothing, nothing)
    assert logps.shape == (0,) and logps.dtype == torch.float32


def test_without_gradients():
    hidden, head = make()
    with torch.no_grad():
        logps = head_logps(hidden, head, ROW_OF, TOKENS)
    assert not logps.requires_grad
    torch.testing.assert_close(logps, plain(hidden, head))


def test_inputs_are_left_alone():
    """The function works in place, but only on its own logits."""
    hidden, head = make()
    before = hidden.detach().clone(), head.weight.detach().clone()
    gradients(head_logps(hidden, head, ROW_OF, TOKENS, chunk_logits=22), hidden, head.weight)
    assert torch.equal(hidden, before[0]) and torch.equal(head.weight, before[1])


@pytest.mark.parametrize(("rows", "chunks"), [(256, 1), (257, 2), (1000, 4)])
def test_chunks_have_256_rows_under_a_large_vocabulary(monkeypatch, rows, chunks):
    """A chunk reads the whole head: few rows at a time would be slow (2^20 logits are 21 here)."""
    vocabulary = 49_152
    calls = []
    linear = nn.Linear(2, vocabulary, bias=True)
    monkeypatch.setattr(
        head_module,
        "_module_logps",
        lambda hidden, *_: calls.append(len(hidden)) or hidden[:, 0],
    )
    head_logps(torch.zeros(rows, 2), linear, torch.arange(rows), torch.zeros(rows).long())
    assert len(calls) == chunks and calls[0] == min(rows, 256)


@pytest.mark.parametrize("kind", ["linear", "module"])
@pytest.mark.parametrize("normalised", [False, True], ids=["vocabulary", "catalogue"])
def test_no_token_gains_in_bfloat16(kind, normalised):
    """The search prunes by the score of a prefix, so a token may not add to it.

    Numerator and normaliser are of the same rounded logits; those of unrounded ones would let
    certain tokens add a hundred times the slack of the search.
    """
    torch.manual_seed(0)
    n_rows, vocabulary = 200, 50
    hidden = torch.randn(n_rows, HIDDEN, dtype=torch.bfloat16)
    linear = nn.Linear(HIDDEN, vocabulary, bias=False).to(torch.bfloat16)
    linear.weight.data *= 20  # some predictions are certain
    rows = torch.arange(n_rows).repeat_interleave(vocabulary)
    tokens = torch.arange(vocabulary).repeat(n_rows)
    with torch.no_grad():
        head = linear if kind == "linear" else ScaledHead(linear)
        logps = head_logps(hidden, head, rows, tokens)
        if normalised:
            few = tokens < 7
            logps = log_softmax_within(logps[few], rows[few], n_rows)
        assert -0.01 < logps.max() <= 1e-5 < SLACK
        rounded, exact = linear(hidden).float(), linear.float()(hidden.float())
    assert (rounded - exact.logsumexp(-1, keepdim=True)).max() > 100 * SLACK
