"""Advantages, returns and how well the values foretell them. Shapes: (B, T).

Estimators without a critic take the replies to one prompt as `group` rows in a row; a row's return
is the sum of its rewards. ValueError if `group` does not divide B.
"""

import torch
from torch import Tensor

from cores.rl.masked import masked_moments, select

EPS = 1e-6
"""Added to a group's standard deviation, which is 0 where all its replies score alike."""


def gae(
    rewards: Tensor, values: Tensor, response_mask: Tensor, gamma: float, lam: float
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimates and returns, (B, T) each.

    Schulman et al. 2016, eq. 16: A_t = sum over l of (gamma * lam)^l * delta_{t+l}, with
    delta_t = r_t + gamma * V_{t+1} - V_t; returns = advantages + values. values[:, t] is the
    state before token t, and the state after the last valid token is worth 0. Masked slots are
    treated as not there: the next valid token follows the last one, at a distance of one.
    """
    rewards, values = select(response_mask, rewards, values)
    advantages = torch.zeros_like(rewards + values)
    advantage = next_value = torch.zeros_like(advantages[:, 0])  # (B,), of the token after t
    for t in reversed(range(rewards.shape[1])):
        valid = response_mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        advantage = torch.where(valid, delta + gamma * lam * advantage, advantage)
        next_value = torch.where(valid, values[:, t], next_value)
        advantages[:, t] = torch.where(valid, advantage, 0.0)
    return advantages, advantages + values


def whiten(x: Tensor, mask: Tensor, eps: float = 1e-8) -> Tensor:
    """(x - mean) / sqrt(var + eps) where mask, else 0: mean 0 and variance 1, (B, T).

    The variance is the biased (population) one. One valid place, or equal ones, give 0.
    """
    (x,) = select(mask, x)
    mean, var = masked_moments(x, mask)
    return torch.where(mask, (x - mean) * torch.rsqrt(var + eps), 0.0)


def explained_variance(values: Tensor, returns: Tensor, mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over the valid places of (B, T), 0-d, at most 1.

    1: the values foretell the returns; 0: no better than a constant; below: worse. Returns that
    do not vary leave nothing to explain and give 0. A ratio of variances: unlike the losses'
    statistics, those of micro-batches do not add up.
    """
    values, returns = select(mask, values, returns)
    _, total = masked_moments(returns, mask)
    _, unexplained = masked_moments(returns - values, mask)
    return torch.where(total > 0, 1 - unexplained / torch.where(total > 0, total, 1.0), 0.0)


def grpo(rewards: Tensor, response_mask: Tensor, group: int, std: bool) -> Tensor:
    """(R - mean) / (std + 1e-6) of the group, for every token of the row, (B, T).

    Shao et al. 2024, "DeepSeekMath", section 4.1.2, with the population's deviation. std False:
    R - mean alone (Liu et al. 2025, "Understanding R1-Zero-like training", Dr. GRPO). The same
    paper's length term is in the loss: `sequence_weights`.
    """
    returns = _grouped(rewards, response_mask, group)
    centred = returns - returns.mean(dim=1, keepdim=True)
    if std:
        centred = centred / (returns.std(dim=1, correction=0, keepdim=True) + EPS)
    return _every_token(centred, response_mask)


def rloo(rewards: Tensor, response_mask: Tensor, group: int) -> Tensor:
    """R less the mean return of the group's other replies, for every token of the row, (B, T).

    Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline for free!"; Ahmadian et al. 2024,
    "Back to basics". ValueError for a group of one.
    """
    if group < 2:
        raise ValueError("rloo compares a reply to the others of its prompt: at least 2 are needed")
    returns = _grouped(rewards, response_mask, group)
    others = (returns.sum(dim=1, keepdim=True) - returns) / (group - 1)
    return _every_token(returns - others, response_mask)


def reinforce_pp(rewards: Tensor, response_mask: Tensor, gamma: float) -> Tensor:
    """Discounted sum of the rewards from each token on, (B, T); to be whitened over all rows.

    Hu 2025, "REINFORCE++": with the price of KL in the rewards, no critic and no group.
    """
    (rewards,) = select(response_mask, rewards)
    advantages = torch.zeros_like(rewards)
    running = torch.zeros_like(rewards[:, 0])
    for t in reversed(range(rewards.shape[1])):
        valid = response_mask[:, t]
        running = torch.where(valid, rewards[:, t] + gamma * running, running)
        advantages[:, t] = torch.where(valid, running, 0.0)
    return advantages


def _grouped(rewards: Tensor, response_mask: Tensor, group: int) -> Tensor:
    """Returns as (B / group, group), less the group's first: only differences within it count.

    Replies that score alike are then exactly 0. Their mean would be off by rounding, which `grpo`
    would divide by a deviation as small: advantages of up to 0.7 out of nothing.
    """
    (rewards,) = select(response_mask, rewards)
    if rewards.shape[0] % group:
        raise ValueError(f"{rewards.shape[0]} rows do not divide into groups of {group}")
    returns = rewards.sum(dim=1).view(-1, group)
    return returns - returns[:, :1]


def _every_token(advantages: Tensor, response_mask: Tensor) -> Tensor:
    return torch.where(response_mask, advantages.reshape(-1, 1), 0.0)
