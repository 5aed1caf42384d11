"""Whether the engine's log-probs of a rollout serve as PPO's old ones, without a forward pass.

A rollout that is scored by the trainer as well decides for those that follow, and every so many
updates another one does: an engine may drift. With adapters the first to decide is the first one
whose adapters have learned, as they add nothing before.
"""

from dataclasses import dataclass

import torch

from cores.config import PPOSection
from cores.ppo.experience import Scored
from cores.rl import masked_mean


@dataclass(frozen=True)
class Tolerance:
    """Largest mismatch |trainer - engine| of a token's log-prob, in nats."""

    mean: float
    """Over all tokens."""
    largest: float
    """Of any token."""


TOLERANCES = {"fp32": Tolerance(1e-5, 1e-4), "bf16": Tolerance(0.01, 0.5)}
"""By precision. fp32: rounding through some tens of layers stays below; a ratio is off by 0.01% at
most, where it is clipped at 20%. bf16: with 8 bits two right computations of one token differ by
hundredths, in the tail by tenths; 0.01 moves a ratio by a twentieth of the clip. A real mistake (a
position, a temperature, a mask) is off by nats."""
LOOK = 10
"""Updates between looks. A forward pass of the actor every so often costs under 1% of an update."""


def looks(ppo: PPOSection, update: int) -> bool:
    """Whether the rollout of an update (from 0) is scored by the trainer too, to decide on."""
    if ppo.old_logprobs == "recompute" or ppo.rollout_correction != "none":
        return False  # the correction weighs one against the other: both are always there
    after = ppo.critic_warmup + 1 if ppo.lora.rank else 0
    return update >= after and (update - after) % LOOK == 0


def decide(scored: Scored, precision: str) -> tuple[bool, str]:
    """Whether rollouts from now on bring the old log-probs, from the rows of all ranks; a line."""
    gap = torch.where(scored.response_mask, (scored.logprobs - scored.rollout_logprobs).abs(), 0.0)
    mean, largest = masked_mean(gap, scored.response_mask).item(), gap.max().item()
    limit = TOLERANCES[precision]
    agree = mean <= limit.mean and largest <= limit.largest
    found = (
        f"old log-probs: the engine's differ from the trainer's by {mean:.1e} nats a token, at "
        f"most {largest:.1e} (tolerated: {limit.mean:g}, {limit.largest:g})"
    )
    if agree:
        return True, f"{found}; from here on they are the rollout's own"
    return False, f"{found}; they are recomputed for every update"
