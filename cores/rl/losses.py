"""The losses of stage 3. Shapes: (B, T).

`weights` (B, T) multiply the loss of each token: importance weights, or `sequence_weights`.
Losses and statistics divide by the number of valid tokens, or by `denominator`: the minibatch's
number of valid tokens, given for each of its micro-batches, makes losses, gradients and
statistics of the micro-batches add up to the minibatch's. (ratio_max does not add up: take the
largest.)
"""

from typing import Literal

import torch
from torch import Tensor

from cores.rl.masked import masked_mean, select


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    response_mask: Tensor,
    clip: float,
    denominator: float | Tensor | None = None,
    *,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Clipped surrogate loss, 0-d, and its statistics.

    Schulman et al. 2017, eq. 7, negated: mean of -min(ratio * A, clip(ratio, 1 - clip, 1 +
    clip_high) * A), with ratio = exp(logprobs - old_logprobs). All (B, T). clip_high: None for
    clip; else the asymmetric clip of Yu et al. 2025, "DAPO", eq. 10. dual_clip: where A < 0 the
    loss is at most -dual_clip * A (Ye et al. 2020, "Mastering complex control in MOBA games
    with deep reinforcement learning"): None for no such limit.

    Statistics, detached 0-d: ratio_mean; ratio_max (0 with nothing valid); clip_fraction, the
    share of tokens whose gradient the clip removes; approx_kl, the mean of (ratio - 1) -
    log ratio, KL(old || new) by the k3 of `kl_estimate`.
    """
    logprobs, old_logprobs, advantages = select(response_mask, logprobs, old_logprobs, advantages)
    log_ratio = logprobs - old_logprobs
    ratio = log_ratio.exp()
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    each = torch.maximum(unclipped, clipped)
    stopped = clipped > unclipped
    if dual_clip is not None:
        limit = torch.where(advantages < 0, -dual_clip * advantages, torch.inf)
        stopped = stopped | (each > limit)
        each = torch.minimum(each, limit)
    loss = masked_mean(each, response_mask, denominator, weights)
    with torch.no_grad():
        stats = {
            "ratio_mean": masked_mean(ratio, response_mask, denominator),
            "ratio_max": torch.where(response_mask, ratio, 0.0).amax(),
            "clip_fraction": masked_mean(stopped, response_mask, denominator),
            "approx_kl": masked_mean(
                torch.expm1(log_ratio) - log_ratio, response_mask, denominator
            ),
        }
    return loss, stats


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    response_mask: Tensor,
    clip: float,
    denominator: float | Tensor | None = None,
    *,
    weights: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Half the clipped squared error, 0-d, and its statistics.

    Mean of 0.5 * max((V - R)^2, (V_clipped - R)^2), V_clipped = V_old + clip(V - V_old, -clip,
    clip): the form of the PPO authors' own code (openai/baselines, ppo2), described by Engstrom et
    al. 2020, "Implementation matters in deep policy gradients", as value function clipping. All
    (B, T), clip in units of score.

    Statistics, detached 0-d: value_clip_fraction, the share of tokens whose gradient the clip
    removes; value_error, the mean of (V - R)^2.
    """
    values, old_values, returns = select(response_mask, values, old_values, returns)
    near = old_values + (values - old_values).clamp(-clip, clip)
    unclipped = (values - returns).square()
    clipped = (near - returns).square()
    each = torch.maximum(unclipped, clipped)
    loss = 0.5 * masked_mean(each, response_mask, denominator, weights)
    with torch.no_grad():
        moved = (values - old_values).abs() > clip
        stats = {
            "value_clip_fraction": masked_mean(
                moved & (clipped > unclipped), response_mask, denominator
            ),
            "value_error": masked_mean(unclipped, response_mask, denominator),
        }
    return loss, stats


def sequence_weights(
    response_mask: Tensor, tokens: float | Tensor, sequences: float | Tensor
) -> Tensor:
    """Weights (B, T) that make a sum over tokens / `tokens` the mean over sequences of their means.

    tokens, sequences: valid tokens, and rows, of the whole minibatch. A row with nothing valid
    counts among the sequences, as 0.
    """
    lengths = response_mask.sum(dim=1, keepdim=True).clamp(min=1)
    return (tokens / (sequences * lengths)) * response_mask.float()


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
