"""The learning rate over a run, as a factor of its peak."""

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
