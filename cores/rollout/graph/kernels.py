"""Triton kernels of a decode step on CUDA; their reference in plain torch is in `buffers.py`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

TILES = ((4096, 2048, 1), (1024, 4096, 1), (0, 4096, 2))
"""From so many programs of `_attend` on: the numbers of keys, and as many of values, that one reads
at a time, and its warps. The fewer there are, the more must each have on its way."""
MANY_ROWS = 256
"""Rows from which the sampler's programs are small: there are enough of them to fill the GPU."""


@triton.jit
def _attend(  # type: ignore[no-untyped-def]
    query, new_keys, new_values, keys, values, out, start, position,
    q_row, q_head, k_row, k_head, v_row, v_head, c_row, c_head, o_row,
    scale, sharing: tl.constexpr, width: tl.constexpr, lanes: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    """One program a row and query head: online softmax over the row's filled positions."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1)
    group = head // sharing
    lane = tl.arange(0, lanes)
    inside = lane < width
    first = tl.load(start + row)
    filled = first + tl.load(position + row).to(tl.int32)
    q = tl.load(query + row * q_row + head * q_head + lane, mask=inside, other=0.0)
    k = tl.load(new_keys + row * k_row + group * k_head + lane, mask=inside, other=0.0)
    v = tl.load(new_values + row * v_row + group * v_head + lane, mask=inside, other=0.0)
    base = row * c_row + group * c_head
    k = k.to(keys.dtype.element_ty)
    v = v.to(values.dtype.element_ty)
    if head % sharing == 0:
        tl.store(keys + base + filled * width + lane, k, mask=inside)
        tl.store(values + base + filled * width + lane, v, mask=inside)
    q = q.to(tl.float32) * scale
    # The new position comes from registers: nothing waits for the stores above.
    top = tl.sum(q * k.to(tl.float32), axis=0)
    total = 1.0
    acc = v.to(tl.float32)
    for begin in range(first, filled, block):
        place = begin + tl.arange(0, block)
        there = place < filled
        offsets = base + place[:, None] * width + lane[None, :]
        both = there[:, None] & inside[None, :]
        old_k = tl.load(keys + offsets, mask=both, other=0.0, eviction_policy="evict_first")
        # On its way with the keys.
        old_v = tl.load(values + offsets, mask=both, other=0.0, eviction_policy="evict_first")
        scores = tl.sum(old_k.to(tl.float32) * q[None, :], axis=1)
        scores = tl.where(there, scores, float("-inf"))
        higher = tl.maximum(top, tl.max(scores, axis=0))
        weights = tl.exp(scores - higher)
        shrink = tl.exp(top - higher)
        acc = acc * shrink + tl.sum(weights[:, None] * old_v.to(tl.float32), axis=0)
        total = total * shrink + tl.sum(weights, axis=0)
        top = higher
    target = out + row * o_row + head * width + lane
    tl.store(target, (acc / total).to(out.dtype.element_ty), mask=inside)


def decode_attention(
    query: Tensor,
    new_keys: Tensor,
    new_values: Tensor,
    keys: Tensor,
    values: Tensor,
    start: Tensor,
    position: Tensor,
    scale: float,
) -> Tensor:
    """Attention (b, 1, H, D) of query (b, H, 1, D) to its row from `start` to its own column.

    That is start + position (both (R,)), where new_keys, new_values (b, G, 1, D) are written into
    keys, values (R, G, C, D). Both are read on the device, so a captured graph follows them.
    """
    rows, heads, _, width = query.shape
    lanes = triton.next_power_of_2(width)
    tile, warps = next(shape for least, *shape in TILES if rows * heads >= least)
    out = torch.empty((rows, 1, heads, width), dtype=keys.dtype, device=query.device)
    _attend[(rows, heads)](
        query, new_keys, new_values, keys, values, out, start, position,
        query.stride(0), query.stride(1), new_keys.stride(0), new_keys.stride(1),
        new_values.stride(0), new_values.stride(1), keys.stride(0), keys.stride(1), out.stride(0),
        scale, sharing=heads // keys.shape[1], width=width, lanes=lanes,
        block=max(1, tile // lanes), num_warps=warps,
    )  # fmt: skip
    return out


@triton.jit
def _sample(  # type: ignore[no-untyped-def]
    logits, uniform, tokens, logprobs, entropies, newest, places, positions, vocabulary, stride,
    temperature, block: tl.constexpr,
):  # fmt: skip
    """One program a row: normaliser and entropy in one pass, the token in a second, which ends
    where the token lies. The row's counters go on here too: kernels of their own would take as long
    as a small layer."""
    row = tl.program_id(0).to(tl.int64)
    place = tl.load(places + row)
    position = tl.load(positions + row)
    lane = tl.arange(0, block)
    top = float("-inf")
    total = 0.0
    moment = 0.0
    for begin in range(0, vocabulary, block):
        there = begin + lane < vocabulary
        x = tl.load(logits + row * stride + begin + lane, mask=there, other=float("-inf"))
        x = x.to(tl.float32) / temperature
        higher = tl.maximum(top, tl.max(x, axis=0))
        shrink = tl.exp(top - higher)
        weights = tl.exp(x - higher)
        total = total * shrink + tl.sum(weights, axis=0)
        moment = moment * shrink + tl.sum(tl.where(there, weights * x, 0.0), axis=0)
        top = higher
    normalizer = top + tl.log(total)
    target = tl.load(uniform + place) * total
    before = 0.0
    found = vocabulary
    last = 0
    begin = 0
    while (begin < vocabulary) & (found == vocabulary):
        there = begin + lane < vocabulary
        x = tl.load(logits + row * stride + begin + lane, mask=there, other=float("-inf"))
        weights = tl.exp(x.to(tl.float32) / temperature - top)
        mass = tl.sum(weights, axis=0)
        if before + mass > target:  # it lies here: only now the single sums are needed
            hits = (before + tl.cumsum(weights, axis=0) > target) & (weights > 0)
            found = tl.min(tl.where(hits, begin + lane, vocabulary), axis=0)
        last = tl.maximum(last, tl.max(tl.where(weights > 0, begin + lane, 0), axis=0))
        before += mass
        begin += block
    # Sums in another order can end a rounding below the target: then the last that can be drawn.
    token = tl.where(found < vocabulary, found, last)
    chosen = tl.load(logits + row * stride + token).to(tl.float32) / temperature
    tl.store(tokens + place, token.to(tl.int64))
    tl.store(newest + row, token.to(tl.int64))
    tl.store(logprobs + place, chosen - normalizer)
    tl.store(entropies + place, normalizer - moment / total)
    tl.store(places + row, place + 1)
    tl.store(positions + row, position + 1)


def sample_into(
    logits: Tensor,
    uniform: Tensor,
    temperature: float,
    tokens: Tensor,
    logprobs: Tensor,
    entropies: Tensor,
    newest: Tensor,
    places: Tensor,
    positions: Tensor,
) -> None:
    """What `Steps.emit` does in plain torch, in one kernel that reads logits (b, V) up to twice: by
    each row's next number of `uniform`, at its place in tokens, logprobs and entropies, all (R, T).
    newest, places and positions (R,) go on by a token."""
    rows, vocabulary = logits.shape
    block, warps = (4096, 4) if rows >= MANY_ROWS else (8192, 16)
    _sample[(rows,)](
        logits, uniform, tokens, logprobs, entropies, newest, places, positions, vocabulary,
        logits.stride(0), temperature, block=block, num_warps=warps,
    )  # fmt: skip
