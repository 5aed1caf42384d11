"""Triton kernels of log-probs and entropy on CUDA; their reference in plain torch is
`token_logprobs` in `actor.py`.

Shapes: N rows, V vocabulary, S stop ids. Everything is computed in float32.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from cores.models.vocabulary import EXCLUDED_LOGIT

LOGITS = 4096
"""Logits that a program reads at a time."""
WARPS = 8
"""Of a program: 16 logits a thread, two loads of 16 bytes in bfloat16."""


@triton.jit
def _scaled(  # type: ignore[no-untyped-def]
    logits, stop_ids, early, row, column, there, row_stride, column_stride, temperature, excluded,
    stops: tl.constexpr,
):  # fmt: skip
    """A row's logits over the temperature, -inf where not `there`; and which have a gradient."""
    place = row * row_stride + column * column_stride
    x = tl.load(logits + place, mask=there, other=float("-inf")).to(tl.float32) / temperature
    free = there
    if stops:
        late = tl.load(early + row).to(tl.int32) == 0
        for i in tl.static_range(stops):
            free = free & (late | (column != tl.load(stop_ids + i)))
        x = tl.where(free, x, tl.where(there, excluded, float("-inf")))
    return x, free


@triton.jit
def _forward(  # type: ignore[no-untyped-def]
    logits, ids, stop_ids, early, logprobs, normalizers, entropies, vocabulary,
    row_stride, column_stride, temperature, excluded, stops: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One program a row: normaliser and entropy in one pass."""
    row = tl.program_id(0).to(tl.int64)
    top = float("-inf")
    total = 0.0
    moment = 0.0
    for begin in range(0, vocabulary, block):
        column = begin + tl.arange(0, block)
        there = column < vocabulary
        x, _ = _scaled(
            logits, stop_ids, early, row, column, there, row_stride, column_stride, temperature,
            excluded, stops,
        )  # fmt: skip
        higher = tl.maximum(top, tl.max(x, axis=0))
        shrink = tl.exp(top - higher)
        weights = tl.exp(x - higher)
        total = total * shrink + tl.sum(weights, axis=0)
        moment = moment * shrink + tl.sum(tl.where(there, weights * x, 0.0), axis=0)
        top = higher
    normalizer = top + tl.log(total)
    chosen = tl.load(ids + row)
    x, _ = _scaled(
        logits, stop_ids, early, row, chosen, chosen < vocabulary, row_stride, column_stride,
        temperature, excluded, stops,
    )  # fmt: skip
    tl.store(logprobs + row, x - normalizer)
    tl.store(normalizers + row, normalizer)
    tl.store(entropies + row, normalizer - moment / total)


def forward(
    logits: Tensor, ids: Tensor, temperature: float, stop_ids: Tensor | None, early: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probs of ids (N,), normalisers and entropies, each (N,), from logits (N, V).

    Where early (N,) is True the logits of stop_ids (S,) are EXCLUDED_LOGIT.
    """
    rows, vocabulary = logits.shape
    logprobs, normalizers, entropies = (
        torch.empty(rows, dtype=torch.float32, device=logits.device) for _ in range(3)
    )
    _forward[(rows,)](
        logits, ids, stop_ids, early, logprobs, normalizers, entropies, vocabulary,
        logits.stride(0), logits.stride(1), temperature, EXCLUDED_LOGIT / temperature,
        stops=_stops(stop_ids, early), block=LOGITS, num_warps=WARPS,
    )  # fmt: skip
    return logprobs, normalizers, entropies


@triton.jit
def _backward(  # type: ignore[no-untyped-def]
    logits, ids, stop_ids, early, normalizers, entropies, by_logprob, by_entropy, out, vocabulary,
    row_stride, column_stride, temperature, excluded, stops: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One program a row and block of its logits."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * block + tl.arange(0, block)
    there = column < vocabulary
    x, free = _scaled(
        logits, stop_ids, early, row, column, there, row_stride, column_stride, temperature,
        excluded, stops,
    )  # fmt: skip
    logprob = x - tl.load(normalizers + row)
    probability = tl.exp(logprob)
    chosen = tl.where(column == tl.load(ids + row), 1.0, 0.0)
    slope = tl.load(by_logprob + row) * (chosen - probability)
    surprise = logprob + tl.load(entropies + row)
    slope -= tl.load(by_entropy + row) * probability * surprise
    slope = tl.where(free, slope / temperature, 0.0)
    tl.store(out + row * vocabulary + column, slope.to(out.dtype.element_ty), mask=there)


def backward(by_logprob: Tensor, by_entropy: Tensor, temperature: float, *saved: Tensor) -> Tensor:
    """Gradient (N, V) by the logits, in their dtype, from those by log-probs and entropies (N,).

    saved: logits, ids, stop_ids, early, normalizers, entropies, as `forward` has or returns them.

    With p the probabilities and H the entropy: d log p_a / d x_j = [j = a] - p_j and
    d H / d x_j = -p_j (log p_j + H), x the logits over the temperature.
    """
    logits, ids, stop_ids, early, normalizers, entropies = saved
    rows, vocabulary = logits.shape
    out = torch.empty((rows, vocabulary), dtype=logits.dtype, device=logits.device)
    _backward[(rows, triton.cdiv(vocabulary, LOGITS))](
        logits, ids, stop_ids, early, normalizers, entropies, by_logprob.contiguous(),
        by_entropy.contiguous(), out, vocabulary, logits.stride(0), logits.stride(1), temperature,
        EXCLUDED_LOGIT / temperature, stops=_stops(stop_ids, early), block=LOGITS, num_warps=WARPS,
    )  # fmt: skip
    return out


def _stops(stop_ids: Tensor | None, early: Tensor | None) -> int:
    """Stop ids to look for."""
    return 0 if stop_ids is None or early is None else len(stop_ids)
