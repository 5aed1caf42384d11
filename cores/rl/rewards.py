"""What a token is paid: estimators of the KL and its price, and one score a reply. Shapes: scores,
ended (B,); the rest (B, T)."""

import torch
from torch import Tensor

from cores.rl.masked import select


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
