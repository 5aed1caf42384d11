"""From one score a reply to one reward a token. Shapes: scores, ended (B,); the rest (B, T)."""

import torch
from torch import Tensor

from cores.rl.masked import full_precision, select


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
    scores = full_precision(scores)
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
    (kl,) = select(response_mask, kl)
    remaining = response_mask.flip(1).cumsum(1).flip(1)  # valid tokens from here on
    last = response_mask & (remaining == 1)
    return -kl_coef * kl + torch.where(last, full_precision(scores)[:, None], 0.0)
