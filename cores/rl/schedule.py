"""What changes over a run: the learning rate, as a factor of its peak, and the price of KL."""

import math
from typing import Literal


def lr_factor(
    step: int,
    total_steps: int,
    warmup_steps: int,
    kind: Literal["constant", "linear", "cosine"],
) -> float:
    """Factor 0..1 of the optimizer step `step`, counted from 0, out of `total_steps`.

    Rises linearly to 1 over the first `warmup_steps`, the first of which is 1 / warmup_steps, not
    a step of rate 0. Then stays (constant), or falls to the 0 that step `total_steps` would have,
    linearly or as (1 + cos) / 2 (Loshchilov & Hutter 2017, "SGDR", eq. 5, one cycle): the last
    step taken still moves. ValueError for another kind.
    """
    if kind not in ("constant", "linear", "cosine"):
        raise ValueError(f"schedule {kind!r} is unknown; use constant, linear or cosine")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if kind == "constant":
        return 1.0
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    return 1 - progress if kind == "linear" else (1 + math.cos(math.pi * progress)) / 2


def next_kl_coef(coef: float, kl: float, target: float, replies: int, horizon: float) -> float:
    """The price of KL after a rollout of `replies` whose KL was `kl`, both in nats a reply.

    coef * (1 + e * replies / horizon), e = kl / target - 1 held to -0.2..0.2: Ziegler et al. 2019,
    section 2.2.
    """
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coef * (1 + error * replies / horizon)
