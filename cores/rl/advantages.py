"""What a token is paid (estimators of the KL and its price, one score a reply), what that makes of
it: advantages and returns, and how well the values foretell them. Shapes: scores, ended (B,); the
rest (B, T).

Estimators without a critic take the replies to one prompt as `group` rows in a row; a row's return
is the sum of its rewards. ValueError if `group` does not divide B.
"""

import torch
from torch import Tensor

from cores.rl.masked import masked_moments, select

EPS = 1e-6
"""Added to a group's standard deviation, which is 0 where all its replies score alike."""


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
    logprobs, ref_logprobs = select(response_mask, logprobs, ref_logprobs)
    x = logprobs - ref_logprobs
    if kind == "k1":
        return x
    if kind == "k2":
        return x.square() / 2
    if kind == "k3":
        return torch.expm1(-x) + x  # expm1: exp(-x) - 1 would round below -x when x is small
    raise ValueError(f"kl kind {kind!r} is unknown; use k1, k2 or k3")


def adjust_scores(
    scores: Tensor,
    ended: Tensor,
    lengths: Tensor,
    missing_eos_penalty: float,
    length_penalty: float,
    clip: float,
) -> Tensor:
    """Scores (B,) clipped to -clip..clip (0: not clipped), then less the penalties.

    ended (B,) bool: the reply stopped by itself; one that did not loses `missing_eos_penalty`.
    lengths (B,): tokens of the reply, each of which costs `length_penalty`. Penalties come after
    the clip, so that a reply that never stops is worse than the worst one that does (Huang et al.
    2024, "The N+ implementation details of RLHF with PPO", the "EOS trick").
    """
    for name, x in (("ended", ended), ("lengths", lengths)):
        if x.shape != scores.shape:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, scores {tuple(scores.shape)}")
    (scores,) = select(None, scores)
    if clip > 0:
        scores = scores.clamp(-clip, clip)
    scores = scores - length_penalty * lengths
    return torch.where(ended, scores, scores - missing_eos_penalty)


def shape_rewards(scores: Tensor, kl: Tensor, response_mask: Tensor, kl_coef: float) -> Tensor:
    """Rewards (B, T) in units of score: -kl_coef * kl (B, T), plus scores (B,) at the end.

    The score is added once, on the last valid token of its row; a row without one gets none.
    Ziegler et al. 2019, "Fine-tuning language models from human preferences", eq. 2; Ouyang
    et al. 2022, eq. 2.
    """
    if scores.shape != response_mask.shape[:1]:
        raise ValueError(
            f"scores has shape {tuple(scores.shape)}, expected {tuple(response_mask.shape[:1])}: "
            "one score a reply"
        )
    (kl,), (scores,) = select(response_mask, kl), select(None, scores)
    remaining = response_mask.flip(1).cumsum(1).flip(1)  # valid tokens from here on
    last = response_mask & (remaining == 1)
    return -kl_coef * kl + torch.where(last, scores[:, None], 0.0)


def next_kl_coef(coef: float, kl: float, target: float, replies: int, horizon: float) -> float:
    """The price of KL after a rollout of `replies` whose KL was `kl`, both in nats a reply.

    coef * (1 + e * replies / horizon), e = kl / target - 1 held to -0.2..0.2: Ziegler et al. 2019,
    section 2.2.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * replies / horizon)


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
