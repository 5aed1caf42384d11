"""Advantages, returns and how well the values foretell them. Shapes: (B, T)."""

import torch
from torch import Tensor

from cores.rl.masked import masked_moments, select


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


def whiten(
    x: Tensor,
    mask: Tensor,
    mean: float | Tensor | None = None,
    var: float | Tensor | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) where mask, else 0: mean 0 and variance 1, (B, T).

    The variance is the biased (population) one. mean, var: None for those of x's valid places,
    else numbers or 0-d tensors, for example of all ranks. One valid place, or equal ones, give 0.
    """
    (x,) = select(mask, x)
    mean, own_var = masked_moments(x, mask, mean)
    var = torch.as_tensor(own_var if var is None else var, dtype=x.dtype, device=x.device)
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
