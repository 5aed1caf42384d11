"""Correction for rollouts that were sampled from other log-probs than the trainer's. (B, T)."""

from typing import Literal

import torch
from torch import Tensor

from cores.rl.masked import select


def rollout_weights(
    logprobs: Tensor,
    rollout_logprobs: Tensor,
    response_mask: Tensor,
    kind: Literal["truncate", "mask"],
    cap: float,
) -> Tensor:
    """Importance weights (B, T) of tokens sampled by another engine, 0 outside the mask.

    w = exp(logprobs - rollout_logprobs): 1 where trainer and engine agree. truncate: min(w, cap)
    (Yao et al. 2025, "Your efficient RL framework secretly brings you off-policy RL training").
    mask: w where it lies in 1 / cap .. cap, else 0: the token is left out. No gradient.
    """
    logprobs, rollout_logprobs = select(response_mask, logprobs, rollout_logprobs)
    weights = (logprobs - rollout_logprobs).detach().exp()
    if kind == "truncate":
        weights = weights.clamp(max=cap)
    elif kind == "mask":
        weights = torch.where((weights <= cap) & (weights >= 1 / cap), weights, 0.0)
    else:
        raise ValueError(f"correction {kind!r} is unknown; use truncate or mask")
    return torch.where(response_mask, weights, 0.0)
