"""Triton kernels of a layer's parts on CUDA; their reference in plain torch is in `layers.py`, or
what transformers writes out. Everything is computed in float32 and rounded once.

Shapes: B rows of L columns, H query heads and G of keys, D numbers a head.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
"""Numbers that a program of the gates works on."""


@triton.jit
def _gate(gate, up, out, count, block: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = place < count
    g = tl.load(gate + place, mask=there, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=there, other=0.0).to(tl.float32)
    tl.store(out + place, (g * tl.sigmoid(g) * u).to(out.dtype.element_ty), mask=there)


def gate(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, all of one shape."""
    gate, up = gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    _gate[(triton.cdiv(out.numel(), BLOCK),)](gate, up, out, out.numel(), block=BLOCK)
    return out


@triton.jit
def _gate_backward(  # type: ignore[no-untyped-def]
    slope, gate, up, by_gate, by_up, count, block: tl.constexpr
):
    place = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    there = place < count
    s = tl.load(slope + place, mask=there, other=0.0).to(tl.float32)
    g = tl.load(gate + place, mask=there, other=0.0).to(tl.float32)
    u = tl.load(up + place, mask=there, other=0.0).to(tl.float32)
    open = tl.sigmoid(g)
    by_g = s * u * open * (1 + g * (1 - open))
    tl.store(by_gate + place, by_g.to(by_gate.dtype.element_ty), mask=there)
    tl.store(by_up + place, (s * g * open).to(by_up.dtype.element_ty), mask=there)


def gate_backward(slope: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients by gate and up. With s the sigmoid: d silu(g) / d g = s (1 + g (1 - s))."""
    slope, gate, up = slope.contiguous(), gate.contiguous(), up.contiguous()
    by_gate, by_up, count = torch.empty_like(gate), torch.empty_like(up), gate.numel()
    grid = (triton.cdiv(count, BLOCK),)
    _gate_backward[grid](slope, gate, up, by_gate, by_up, count, block=BLOCK)
    return by_gate, by_up


@triton.jit
def _turn(  # type: ignore[no-untyped-def]
    x, out, row, column, place, c, s, x_row, x_head, x_column, half,
    heads: tl.constexpr, some: tl.constexpr, lanes: tl.constexpr,
):  # fmt: skip
    """Rotate the heads of one token by c and s (1, lanes)."""
    head = tl.arange(0, some)[:, None]
    lane = tl.arange(0, lanes)[None, :]
    there = (head < heads) & (lane < half)
    first = x + row * x_row + head * x_head + column * x_column + lane
    x1 = tl.load(first, mask=there, other=0.0).to(tl.float32)
    x2 = tl.load(first + half, mask=there, other=0.0).to(tl.float32)
    target = out + (place * heads + head) * 2 * half + lane
    tl.store(target, (x1 * c - x2 * s).to(out.dtype.element_ty), mask=there)
    tl.store(target + half, (x2 * c + x1 * s).to(out.dtype.element_ty), mask=there)


@triton.jit
def _rotate(  # type: ignore[no-untyped-def]
    q, k, cos, sin, q_out, k_out, length, q_row, q_head, q_column, k_row, k_head, k_column,
    c_row, c_column, half, q_heads: tl.constexpr, k_heads: tl.constexpr, q_some: tl.constexpr,
    k_some: tl.constexpr, lanes: tl.constexpr, back: tl.constexpr,
):  # fmt: skip
    """One program a token: all its heads by the same angles, a pair of numbers by each."""
    place = tl.program_id(0).to(tl.int64)
    row = place // length
    column = place % length
    lane = tl.arange(0, lanes)[None, :]
    angle = row * c_row + column * c_column + lane
    c = tl.load(cos + angle, mask=lane < half, other=0.0).to(tl.float32)
    s = tl.load(sin + angle, mask=lane < half, other=0.0).to(tl.float32)
    if back:
        s = -s
    _turn(q, q_out, row, column, place, c, s, q_row, q_head, q_column, half, q_heads, q_some, lanes)
    _turn(k, k_out, row, column, place, c, s, k_row, k_head, k_column, half, k_heads, k_some, lanes)


def rotate(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, back: bool = False
) -> tuple[Tensor, Tensor]:
    """(B, H, L, D), (B, G, L, D) of q and k by angles whose cos and sin (B or 1, L, D) are: number
    i of a head with number i + D / 2, as Llama pairs them, by the same angle. `back`: by the angles
    below 0, which is the gradient."""
    q, k, cos, sin = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, cos, sin))
    (rows, q_heads, length, width), k_heads = q.shape, k.shape[1]
    cos, sin = cos.expand(rows, -1, -1), sin.expand(rows, -1, -1)
    q_out, k_out = (
        torch.empty((rows, length, x.shape[1], width), dtype=x.dtype, device=x.device)
        for x in (q, k)
    )
    _rotate[(rows * length,)](
        q, k, cos, sin, q_out, k_out, length, *q.stride()[:3], *k.stride()[:3],
        *cos.stride()[:2], width // 2, q_heads=q_heads, k_heads=k_heads,
        q_some=triton.next_power_of_2(q_heads), k_some=triton.next_power_of_2(k_heads),
        lanes=triton.next_power_of_2(width // 2), back=back,
    )  # fmt: skip
    return q_out.transpose(1, 2), k_out.transpose(1, 2)
