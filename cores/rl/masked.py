"""Sums and means over the True places of a mask. Shapes: x (..., any), mask the same, bool.

A masked slot may hold anything, NaN and infinity included. It is replaced by 0 *before* any
arithmetic: multiplying by the mask afterwards would leave 0 * NaN = NaN in the result, and
selecting afterwards would leave it in the gradient.
"""

import torch
from torch import Tensor


def select(mask: Tensor | None, *tensors: Tensor) -> list[Tensor]:
    """The tensors in full precision, 0 outside the mask; None: every place counts.

    mask (B, T) bool, tensors (B, T) each. Half precision becomes float32, float64 stays.
    ValueError if a shape differs from the mask's: broadcasting (B, 1) would go unnoticed.
    """
    full = [x if x.dtype == torch.float64 else x.float() for x in tensors]
    if mask is None:
        return full
    for x in full:
        if x.shape != mask.shape:
            raise ValueError(
                f"expected shape {tuple(mask.shape)} as the mask, got {tuple(x.shape)}"
            )
    return [torch.where(mask, x, 0.0) for x in full]


def masked_mean(
    x: Tensor,
    mask: Tensor,
    denominator: float | Tensor | None = None,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum of x, times weights if given, where mask (all (B, T)), over denominator: 0-d.

    denominator: None for the number of True places of this mask, else a number or 0-d tensor:
    the whole minibatch's count of tokens, so that the means of its micro-batches add up to its
    own. With nothing valid the mean is 0.
    """
    (x,) = select(mask, x)
    if weights is not None:
        x = x * select(mask, weights)[0]
    total = x.sum()
    count = mask.sum() if denominator is None else denominator
    count = torch.as_tensor(count, dtype=total.dtype, device=total.device)
    # Only 0 is affected: 0 / tiny is 0, where 0 / 0 would be NaN.
    return total / count.clamp(min=torch.finfo(total.dtype).tiny)


def repetition(ids: Tensor, mask: Tensor, size: int = 4) -> Tensor:
    """Share (B,) of the runs of `size` tokens of each row of ids (B, T) that the row has had
    before; 0 for a row that is shorter. mask (B, T): its tokens."""
    if ids.shape[1] < size:
        return torch.zeros(len(ids), device=ids.device)
    whole = mask.unfold(1, size, 1).all(dim=-1)
    powers = torch.tensor([1_000_003**i for i in range(size)], device=ids.device)
    codes = (ids.unfold(1, size, 1) * powers).sum(dim=-1)
    # What is no run of the row is unlike all others.
    apart = -1 - torch.arange(codes.shape[1], device=ids.device)
    codes = torch.where(whole, codes, apart).sort(dim=1).values
    again = (codes[:, 1:] == codes[:, :-1]).sum(dim=1)
    return again / whole.sum(dim=1).clamp(min=1)


def masked_moments(x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased (population) variance of x (B, T) where mask (B, T), both 0-d. Exactly (c, 0)
    for an x of constant c."""
    (x,) = select(mask, x)
    mean = masked_mean(x, mask)
    # A second pass takes away the rounding error of the first, which in a large constant
    # input would be all there is to whiten.
    mean = mean + masked_mean(x - mean, mask)
    return mean, masked_mean((x - mean).square(), mask)
