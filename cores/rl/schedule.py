"""Learning rates over the steps of a run, as factors of the peak."""

import math


def warmup_steps(warmup: float, total_steps: int) -> int:
    """Steps in which the rate rises: below 1 a share of `total_steps`, rounded up; else their
    number."""
    return math.ceil(warmup * total_steps) if warmup < 1 else int(warmup)


def lr_factor(
    step: int, total_steps: int, rising: int, kind: str, floor: float = 0.0, cycles: int = 1
) -> float:
    """Factor 0..1 of the optimizer step `step`, counted from 0, out of `total_steps`.

    Rises linearly to 1 over the first `rising` steps, the first of which is 1 / rising, not a step
    of rate 0. Then stays (constant), or falls towards what step `total_steps` would have: linearly
    to 0, or as (1 + cos) / 2 to `floor` (Loshchilov & Hutter 2017, "SGDR", eq. 5, one cycle). With
    restarts the cosine begins anew `cycles` times, each as long as the others. ValueError for
    another kind.
    """
    if kind not in ("constant", "linear", "cosine", "restarts"):
        raise ValueError(f"schedule {kind!r} is unknown; use constant, linear, cosine or restarts")
    if step < rising:
        return (step + 1) / rising
    if kind == "constant":
        return 1.0
    progress = min(1.0, (step - rising) / max(1, total_steps - rising))
    if kind == "linear":
        return 1 - progress
    if kind == "restarts" and progress < 1:
        # The nearest float below a beginning would be the end of the cycle before it.
        progress = round(progress * cycles, 9) % 1
    return floor + (1 - floor) * (1 + math.cos(math.pi * progress)) / 2


def lr_factors(total_steps: int, warmup: float, kind: str) -> list[float]:
    """`lr_factor` of each of `total_steps` steps."""
    rising = warmup_steps(warmup, total_steps)
    return [lr_factor(step, total_steps, rising, kind) for step in range(total_steps)]
