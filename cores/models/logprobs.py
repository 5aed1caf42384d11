"""Log-probs of chosen ids and entropy, from logits: in plain torch, and by kernels on CUDA."""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from cores.models.vocabulary import EXCLUDED_LOGIT

Logprobs = Callable[..., tuple[Tensor, Tensor | None]]
"""`token_logprobs` or `fused_logprobs`."""


@cache
def logprobs_on(device: torch.device) -> Logprobs:
    """The faster one for logits on `device`."""
    fused = device.type == "cuda" and find_spec("triton") is not None
    return fused_logprobs if fused else token_logprobs


def token_logprobs(
    logits: Tensor,
    ids: Tensor,
    temperature: float,
    stop_ids: Tensor | None = None,
    early: Tensor | None = None,
    entropy: bool = True,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Log-probs of `ids` (...) and entropy (...), in nats, from logits (..., V).

    The distribution is softmax(logits / temperature), without `stop_ids` (S,) where `early` (which
    broadcasts to ids) is True; logits[t] predicts ids[t]. Without `entropy` None stands in its
    place. It carries a gradient only with `entropy_grad`: it keeps two tensors of the logits' size
    for the backward pass.
    """
    scaled = logits.float()
    if temperature != 1 or early is not None:
        scaled = scaled / temperature
    if stop_ids is not None and early is not None:
        stops = scaled.index_select(-1, stop_ids)
        stops = stops.masked_fill(early.unsqueeze(-1), EXCLUDED_LOGIT / temperature)
        # In place: the backward pass of a division by a number needs no output.
        scaled = scaled.index_copy_(-1, stop_ids, stops)
    # One pass over the logits, and one back; logsumexp and the logits' own gradient take several.
    logprobs = scaled.log_softmax(dim=-1)
    chosen = logprobs.gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    if not entropy:
        return chosen, None
    with torch.set_grad_enabled(entropy_grad):
        nats = -(logprobs.exp() * logprobs).sum(dim=-1)
    return chosen, nats


def fused_logprobs(
    logits: Tensor,
    ids: Tensor,
    temperature: float,
    stop_ids: Tensor | None = None,
    early: Tensor | None = None,
    entropy: bool = True,
    entropy_grad: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """What `token_logprobs` returns for logits (N, V), ids (N,) and early (N,), by kernels.

    The logits are read once in each direction, and nothing of their size is made but their
    gradient.
    """
    logprobs, nats = _Fused.apply(logits, ids, temperature, stop_ids, early)
    return logprobs, (nats if entropy_grad else nats.detach()) if entropy else None


class _Fused(torch.autograd.Function):
    """Log-probs and entropies (N,) of one distribution a row, both with gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        ids: Tensor,
        temperature: float,
        stop_ids: Tensor | None,
        early: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        from cores.models import kernels  # triton is not everywhere

        ctx.temperature = temperature
        logprobs, normalizers, entropies = kernels.forward(
            logits, ids, temperature, stop_ids, early
        )
        ctx.save_for_backward(logits, ids, stop_ids, early, normalizers, entropies)
        return logprobs, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_logprob: Tensor, by_entropy: Tensor) -> tuple[Tensor | None, ...]:
        from cores.models import kernels

        # A tensor of its own: a head may need its logits, say behind a tanh, for its own gradient.
        slope = kernels.backward(by_logprob, by_entropy, ctx.temperature, *ctx.saved_tensors)
        return slope, None, None, None, None
