"""The 2023 original's estimator (ColossalAI's Coati), defects and all, to compare with.

One number a reply: reward R = score - kl_coef * KL, value V, advantage R - V for every token. Each
defect has a switch of that name; see docs/recipe.md for what is wrong with it.
"""

import torch
from torch import Tensor

from cores.rl.advantages import gae, kl_estimate
from cores.rl.masked import select


def mean_over_row(values: Tensor, mask: Tensor) -> Tensor:
    """Mean (B,) of values (B, L) over the row's tokens (mask (B, L)) but its last, the prompt's
    included. (The original's mean took in padding as well, and so hung on the batch.)"""
    remaining = mask.flip(1).cumsum(1).flip(1)
    counted = mask & (remaining > 1)
    (values,) = select(counted, values)
    return values.sum(dim=1) / counted.sum(dim=1).clamp(min=1)


def read_values(values: Tensor, means: Tensor | None, r_minus_v: bool) -> Tensor:
    """Values (B, T) of the response tokens from the critic's of the states before them, (B, T).

    means (B,): the mean over the row, which then stands at every token (mean_over_positions). Else
    with r_minus_v the value of the state before the first token, at every token; without, each
    token's own.
    """
    if means is not None:
        return means[:, None].expand_as(values)
    return values[:, :1].expand_as(values) if r_minus_v else values


def coati_rewards(
    scores: Tensor,
    logprobs: Tensor,
    ref_logprobs: Tensor,
    response_mask: Tensor,
    kl_coef: float,
    reversed_kl: bool,
) -> Tensor:
    """R (B,) in units of score: the score less kl_coef times the mean over the tokens of k3.

    logprobs, ref_logprobs (B, T). k3 = e^x - 1 - x with x = ref - policy (ColossalAI since pull
    request 4338); reversed_kl: x = policy - ref, as before it.
    """
    first, second = (ref_logprobs, logprobs) if reversed_kl else (logprobs, ref_logprobs)
    k3 = kl_estimate(first, second, "k3", response_mask)
    lengths = response_mask.sum(dim=1).clamp(min=1)
    (scores,) = select(None, scores)
    return scores - kl_coef * k3.sum(dim=1) / lengths


def coati_advantages(
    rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    r_minus_v: bool,
    gamma: float,
    lam: float,
) -> tuple[Tensor, Tensor]:
    """Advantages and returns, (B, T) each, from R (B,) and values (B, T).

    r_minus_v: R - V and R at every token. Else GAE of R at the last token and these values.
    """
    (values,) = select(response_mask, values)
    everywhere = torch.where(response_mask, rewards[:, None], 0.0)
    if r_minus_v:
        return torch.where(response_mask, everywhere - values, 0.0), everywhere
    remaining = response_mask.flip(1).cumsum(1).flip(1)
    last = response_mask & (remaining == 1)
    return gae(torch.where(last, everywhere, 0.0), values, response_mask, gamma, lam)
