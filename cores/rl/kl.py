"""Estimators of the KL divergence a token. Shapes: (B, T)."""

import torch
from torch import Tensor

from cores.rl.masked import full_precision, select


def kl_estimate(
    logprobs: Tensor, ref_logprobs: Tensor, kind: str, response_mask: Tensor | None = None
) -> Tensor:
    """KL(policy || reference) of each token in nats, (B, T), from samples of the policy.

    With x = logprobs - ref_logprobs, the log-probs of the sampled tokens (B, T):
    k1 = x: unbiased, either sign. k2 = x^2 / 2: biased, low variance, never negative.
    k3 = exp(-x) - 1 + x: unbiased and never negative. Schulman 2020, "Approximating KL
    divergence" (http://joschu.net/blog/kl-approx.html; there r = exp(-x)).

    response_mask (B, T) bool: 0 outside it. ValueError if kind is none of the three.
    """
    if response_mask is None:
        x = full_precision(logprobs) - full_precision(ref_logprobs)
    else:
        logprobs, ref_logprobs = select(response_mask, logprobs, ref_logprobs)
        x = logprobs - ref_logprobs
    if kind == "k1":
        return x
    if kind == "k2":
        return x.square() / 2
    if kind == "k3":
        return torch.expm1(-x) + x  # expm1: exp(-x) - 1 would round below -x when x is small
    raise ValueError(f"kl kind {kind!r} is unknown; use k1, k2 or k3")
