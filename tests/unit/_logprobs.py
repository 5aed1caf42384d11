"""Plain torch in place of the kernels of log-probs, by formulas rather than by autograd."""

from types import ModuleType

import torch
from torch import Tensor

from cores.models.vocabulary import EXCLUDED_LOGIT


def scaled(
    logits: Tensor, temperature: float, stop_ids: Tensor | None, early: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Logits (N, V) over the temperature, and which have a gradient."""
    free = torch.ones_like(logits, dtype=torch.bool)
    if stop_ids is not None and early is not None:
        free[:, stop_ids] = ~early[:, None]
    x = logits.float() / temperature
    return torch.where(free, x, EXCLUDED_LOGIT / temperature), free


def forward(
    logits: Tensor,
    ids: Tensor,
    temperature: float,
    stop_ids: Tensor | None,
    early: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernel of this name says it does."""
    x, _ = scaled(logits, temperature, stop_ids, early)
    logp = x.log_softmax(dim=-1)
    rows = torch.arange(len(ids), device=ids.device)
    return logp[rows, ids], x.logsumexp(dim=-1), -(logp.exp() * logp).sum(dim=-1)


def backward(
    by_logprob: Tensor,
    by_entropy: Tensor,
    temperature: float,
    logits: Tensor,
    ids: Tensor,
    stop_ids: Tensor | None,
    early: Tensor | None,
    normalizers: Tensor,
    entropies: Tensor,
) -> Tensor:
    """What the kernel of this name says it does."""
    x, free = scaled(logits, temperature, stop_ids, early)
    logp = x - normalizers[:, None]
    p = logp.exp()
    chosen = torch.zeros_like(p).scatter(1, ids[:, None], 1.0)
    slope = by_logprob[:, None] * (chosen - p) - by_entropy[:, None] * p * (
        logp + entropies[:, None]
    )
    return torch.where(free, slope / temperature, 0.0).to(logits.dtype)


def plain_kernels() -> ModuleType:
    """The kernels' module, without triton."""
    kernels = ModuleType("cores.models.kernels")
    vars(kernels).update(forward=forward, backward=backward)
    return kernels
