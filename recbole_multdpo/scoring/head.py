"""Log-probabilities of chosen tokens under the LM head, without a [rows, vocabulary] table.

Plain autograd stores the logits and the softmax of every scored row: at a vocabulary of 151k that
is most of a training step's memory, and on a CPU most of its memory traffic. Here the head runs
over chunks of rows; only the hidden states and one log-normaliser per row are kept, and the
backward pass recomputes each chunk's logits. If all logits together are few, their softmax is kept
instead, which saves the recomputation:

    d log p(y | h) / dh = W[y] - E_p[W],      d log p(y | h) / dW = (onehot(y) - p) h^T
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from recbole_multdpo.scoring.parts import OwnHead

Head = nn.Module | OwnHead

CHUNK_LOGITS = 2**20  # logits held at once on a CPU: 4 MiB in float32, about a core's cache
CHUNK_LOGITS_CUDA = 2**27  # 512 MiB in float32: large enough to fill the device
# softmax values kept for the backward pass, at most: 64 MiB in float32; on CUDA one chunk
STORED_LOGITS = 2**24
# each chunk reads the whole head from memory, which dominates with a large vocabulary and few rows
# (measured at a vocabulary of 49k: 256 rows are 2.4 times as fast as 21)
MIN_CHUNK_ROWS = 256


def as_float(logits: Tensor) -> Tensor:
    """Logits in float32, or float64 if they are in float64."""
    return logits if logits.dtype == torch.float64 else logits.float()


def logits_bytes(vocabulary: int, dtype: torch.dtype, is_cuda: bool) -> int:
    """Most bytes that a training step holds of logits and what is computed from them.

    A chunk's logits and their gradient, each once as the head computes them and once in float32,
    and the softmax that is kept.
    """
    at_once, kept = CHUNK_LOGITS, STORED_LOGITS
    if is_cuda:
        at_once = kept = CHUNK_LOGITS_CUDA
    chunk = max(at_once, MIN_CHUNK_ROWS * vocabulary)
    return chunk * (4 + dtype.itemsize) + 4 * kept


class _LinearHeadLogps(torch.autograd.Function):
    """log softmax(hidden @ weight.T)[row_of, tokens] for a bias-free linear head.

    hidden [n_rows, H], weight [V, H], row_of [R] ascending, tokens [R]; returns [R]. Products run
    in the weights' dtype, as in `nn.Linear`; softmax and sums in at least float32.
    """

    @staticmethod
    def forward(ctx, hidden, weight, row_of, tokens, chunk, keep, counts=None):  # type: ignore[no-untyped-def]
        bounds = _bounds(row_of, len(hidden), chunk, counts)
        high = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        normaliser = hidden.new_empty(len(hidden), dtype=high)
        chosen = hidden.new_empty(len(tokens), dtype=high)
        kept = []
        for number, first in enumerate(range(0, len(hidden), chunk)):
            logits = as_float(hidden[first : first + chunk] @ weight.T)
            start, stop = bounds[number], bounds[number + 1]
            chosen[start:stop] = logits[row_of[start:stop] - first, tokens[start:stop]]
            highest = logits.amax(-1, keepdim=True)
            total = logits.sub_(highest).exp_().sum(-1, keepdim=True)
            if keep:
                kept.append(logits.div_(total))
            normaliser[first : first + chunk] = (highest + total.log_())[:, 0]
        ctx.save_for_backward(hidden, weight, row_of, tokens, normaliser, *kept)
        ctx.bounds, ctx.chunk = bounds, chunk
        return chosen - normaliser[row_of]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):  # type: ignore[no-untyped-def]
        hidden, weight, row_of, tokens, normaliser, *kept = ctx.saved_tensors
        row_grad = torch.zeros_like(normaliser).index_add_(0, row_of, grad)
        hidden_grad = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        weight_grad = (
            torch.zeros_like(weight, dtype=normaliser.dtype) if ctx.needs_input_grad[1] else None
        )
        for number, first in enumerate(range(0, len(hidden), ctx.chunk)):
            stop_row = first + ctx.chunk
            rows = hidden[first:stop_row]
            factor = -row_grad[first:stop_row, None]
            if kept:
                logits_grad = kept[number] * factor
            else:
                logits_grad = as_float(rows @ weight.T)
                logits_grad.sub_(normaliser[first:stop_row, None]).exp_().mul_(factor)
            start, stop = ctx.bounds[number], ctx.bounds[number + 1]
            logits_grad.index_put_(
                (row_of[start:stop] - first, tokens[start:stop]), grad[start:stop], accumulate=True
            )
            if hidden_grad is not None:
                hidden_grad[first:stop_row] = logits_grad.to(weight.dtype) @ weight
            if weight_grad is not None:
                weight_grad.addmm_(logits_grad.T, rows.to(logits_grad.dtype))
        if weight_grad is not None:
            weight_grad = weight_grad.to(weight.dtype)
        return hidden_grad, weight_grad, None, None, None, None, None


def _bounds(row_of: Tensor, n_rows: int, chunk: int, counts: np.ndarray | None) -> list[int]:
    """Start of each chunk of rows in the sorted `row_of`, and the end of the last chunk."""
    if n_rows <= chunk:
        return [0, len(row_of)]
    if counts is not None:
        before = np.append(0, counts.cumsum())
        return [int(before[min(first, n_rows)]) for first in range(0, n_rows + chunk, chunk)]
    firsts = torch.arange(0, n_rows + chunk, chunk, device=row_of.device)
    return torch.searchsorted(row_of, firsts).tolist()


def _module_logps(hidden: Tensor, head: Head, row_of: Tensor, tokens: Tensor) -> Tensor:
    """`_LinearHeadLogps` by plain autograd, for any head."""
    logits = as_float(head(hidden))
    return logits[row_of, tokens] - logits.logsumexp(-1)[row_of]


def head_logps(
    hidden: Tensor,
    head: Head,
    row_of: Tensor,
    tokens: Tensor,
    *,
    counts: np.ndarray | None = None,
    chunk_logits: int | None = None,
    stored_logits: int | None = None,
) -> Tensor:
    """Log-probabilities of `tokens` at the hidden states that predict them.

    Args:
        hidden: float [n_rows, hidden size].
        head: the LM head. A bias-free `nn.Linear` takes the fast path. Any other head (an adapter,
            a bias, scaled or capped logits) runs in chunks that are recomputed in the backward
            pass.
        row_of: long [R], sorted ascending, the row of `hidden` that predicts each token; a row may
            predict several tokens or none.
        tokens: long [R], token ids.
        counts: int [n_rows], the number of tokens of each row, if the host knows them; otherwise a
            GPU may be asked for their sums.
        chunk_logits: logits held at once, at least one row; None: chosen for the device.
        stored_logits: keep the softmax of all rows for the backward pass if it has at most so many
            values, otherwise recompute the logits; None: chosen for the device.

    Returns:
        [R] log-probabilities in nats, float32, or float64 for a float64 head.
    """
    vocabulary = int(getattr(head, "out_features", 2**15))
    if chunk_logits is None:
        at_once = CHUNK_LOGITS_CUDA if hidden.is_cuda else CHUNK_LOGITS
        chunk = max(at_once // vocabulary, MIN_CHUNK_ROWS)
    else:
        chunk = max(chunk_logits // vocabulary, 1)
    if type(head) is nn.Linear and head.bias is None:
        if stored_logits is None:
            stored_logits = CHUNK_LOGITS_CUDA if hidden.is_cuda else STORED_LOGITS
        trained = torch.is_grad_enabled() and (hidden.requires_grad or head.weight.requires_grad)
        keep = trained and len(hidden) * vocabulary <= stored_logits
        return _LinearHeadLogps.apply(hidden, head.weight, row_of, tokens, chunk, keep, counts)
    if len(hidden) == 0:  # every candidate is padding
        return hidden.new_zeros(0, dtype=torch.promote_types(hidden.dtype, torch.float32))
    bounds = _bounds(row_of, len(hidden), chunk, counts)
    pieces = [
        checkpoint(
            _module_logps,
            hidden[first : first + chunk],
            head,
            row_of[bounds[number] : bounds[number + 1]] - first,
            tokens[bounds[number] : bounds[number + 1]],
            use_reentrant=False,
        )
        for number, first in enumerate(range(0, len(hidden), chunk))
    ]
    return torch.cat(pieces)
