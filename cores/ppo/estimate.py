"""From what the models say of a rollout to what the update learns from."""

from dataclasses import fields

import torch
from torch import Tensor

from cores.config import PPOSection
from cores.config.estimators import ESTIMATORS
from cores.ppo.experience import Experience, Scored
from cores.rl import (
    adjust_scores,
    gae,
    grpo,
    kl_estimate,
    reinforce_pp,
    rloo,
    shape_rewards,
    whiten,
)
from cores.rl.coati import coati_advantages, coati_rewards


def has_critic(ppo: PPOSection) -> bool:
    """Whether the estimator needs values."""
    return ESTIMATORS[ppo.estimator].critic


def estimate(scored: Scored, ppo: PPOSection, kl_coef: float) -> Experience:
    """Rewards a token, advantages and returns, over the rows of all ranks."""
    mask = scored.response_mask
    scores = adjust_scores(
        scored.scores,
        scored.ended,
        mask.sum(dim=1),
        ppo.missing_eos_penalty,
        ppo.length_penalty,
        ppo.reward_clip,
    )
    in_reward = kl_coef if ppo.kl_in == "reward" else 0.0
    kl = kl_estimate(scored.logprobs, scored.ref_logprobs, ppo.kl_kind, mask)
    rewards = shape_rewards(scores, kl, mask, in_reward)
    if ppo.estimator == "coati":
        rewards, advantages, returns = _coati(scored, scores, ppo, kl_coef)
    else:
        advantages, returns = _advantages(rewards, scored, ppo)
    wanted = ppo.whiten_advantages
    if wanted or (wanted is None and ESTIMATORS[ppo.estimator].whitens):
        advantages = whiten(advantages, mask)
    known = {f.name: getattr(scored, f.name) for f in fields(Scored)}
    return Experience(**known, rewards=rewards, advantages=advantages, returns=returns)


def _advantages(rewards: Tensor, scored: Scored, ppo: PPOSection) -> tuple[Tensor, Tensor]:
    """Advantages and, for a critic, returns: (B, T) each."""
    mask, group = scored.response_mask, ppo.samples_per_prompt
    if ppo.estimator == "gae":
        return gae(rewards, scored.values, mask, ppo.gamma, ppo.lam)
    if ppo.estimator == "grpo":
        advantages = grpo(rewards, mask, group, ppo.group_std)
    elif ppo.estimator == "rloo":
        advantages = rloo(rewards, mask, group)
    else:
        advantages = reinforce_pp(rewards, mask, ppo.gamma)
    return advantages, advantages.new_zeros(advantages.shape)


def _coati(
    scored: Scored, scores: Tensor, ppo: PPOSection, kl_coef: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, advantages and returns: (B, T) each."""
    switches, mask = ppo.coati, scored.response_mask
    total = coati_rewards(
        scores, scored.logprobs, scored.ref_logprobs, mask, kl_coef, switches.reversed_kl
    )
    rewards = shape_rewards(total, torch.zeros_like(scored.logprobs), mask, kl_coef=0.0)
    learnt = coati_advantages(total, scored.values, mask, switches.r_minus_v, ppo.gamma, ppo.lam)
    return rewards, *learnt
