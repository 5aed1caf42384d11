"""What one micro-batch contributes to an optimizer step: the policy's loss and the critic's."""

from dataclasses import dataclass

import torch
from torch import Tensor

from cores.config import PPOSection
from cores.ppo.experience import Experience, Scored
from cores.rl import (
    kl_estimate,
    masked_mean,
    policy_loss,
    rollout_weights,
    sequence_weights,
    value_loss,
)
from cores.rl.coati import read_values

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Totals:
    """Of the whole minibatch over all ranks: what sums over its parts are divided by."""

    tokens: Tensor
    """0-d, response tokens."""
    replies: int


def policy_objective(
    batch: Experience,
    logprobs: Tensor,
    entropy: Tensor | None,
    totals: Totals,
    ppo: PPOSection,
    kl_coef: float | Tensor,
) -> tuple[Tensor, Terms]:
    """The actor's loss, 0-d, and its statistics: this micro-batch's share of the minibatch's.

    The clipped surrogate, plus kl_coef * KL where it is paid in the loss, less entropy_coef *
    entropy, scaled down where the ptx loss is mixed in. logprobs, entropy (B, T) have gradients;
    entropy may be None where entropy_coef is 0.
    """
    mask, tokens = batch.response_mask, totals.tokens
    mean = _mean_weights(batch, totals, ppo)
    weights = mean
    extra: Terms = {}
    if ppo.rollout_correction != "none":
        correction = rollout_weights(
            batch.logprobs, batch.rollout_logprobs, mask, ppo.rollout_correction, ppo.rollout_cap
        )
        weights = correction if mean is None else correction * mean
        extra["rollout_weight"] = masked_mean(correction, mask, tokens)
    loss, stats = policy_loss(
        logprobs,
        batch.logprobs,
        batch.advantages,
        mask,
        ppo.clip,
        tokens,
        clip_high=ppo.clip_high,
        dual_clip=ppo.dual_clip,
        weights=weights,
    )
    extra["policy_loss"] = loss.detach()
    if ppo.kl_in == "loss":
        kl = kl_estimate(logprobs, batch.ref_logprobs, ppo.kl_kind, mask)
        kl_loss = masked_mean(kl if mean is None else kl * mean, mask, tokens)
        loss = loss + kl_coef * kl_loss
        extra["kl_loss"] = kl_loss.detach()
    if ppo.entropy_coef:
        assert entropy is not None
        loss = loss - ppo.entropy_coef * masked_mean(
            entropy if mean is None else entropy * mean, mask, tokens
        )
    if ppo.ptx_coef and ppo.ptx_mix == "convex":
        loss = (1 - ppo.ptx_coef) * loss
    return loss, {**stats, **extra}


def critic_objective(
    batch: Experience, values: Tensor, totals: Totals, ppo: PPOSection
) -> tuple[Tensor, Terms]:
    """The critic's loss, 0-d, and its statistics; values (B, T) have gradients."""
    loss, stats = value_loss(
        values,
        batch.values,
        batch.returns,
        batch.response_mask,
        ppo.value_clip,
        totals.tokens,
        weights=_mean_weights(batch, totals, ppo),
    )
    return loss, {**stats, "value_loss": loss.detach()}


def response_values(values: Tensor, batch: Scored, ppo: PPOSection) -> Tensor:
    """Values (B, T) of the states before the response tokens, from all (B, L)."""
    width = batch.response_mask.shape[1]
    if ppo.estimator == "coati":
        switches = ppo.coati
        return read_values(
            values, batch.mask, width, switches.mean_over_positions, switches.r_minus_v
        )
    return values[:, -width - 1 : -1]


def _mean_weights(batch: Experience, totals: Totals, ppo: PPOSection) -> Tensor | None:
    """What makes the mean over tokens one over replies, if that is asked for."""
    if ppo.loss_mean == "tokens" and ppo.estimator != "coati":
        return None
    with torch.no_grad():
        return sequence_weights(batch.response_mask, totals.tokens, totals.replies)
