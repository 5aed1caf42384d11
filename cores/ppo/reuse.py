"""Whether the engine's log-probs of a rollout serve as PPO's old ones, without a forward pass.

The run's first rollout is scored by the trainer as well, and decides for all that follow; with
adapters the first one whose adapters have learned, as they add nothing before.
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


class Reuse:
    """The decision, and what it rests on."""

    def __init__(self, ppo: PPOSection, precision: str) -> None:
        corrected = ppo.rollout_correction != "none"  # weighs one against the other: needs both
        self.decided = ppo.old_logprobs == "recompute" or corrected
        self.after = ppo.critic_warmup + 1 if ppo.lora.rank else 0
        """Updates before the decision."""
        self.on = False
        """Whether rollouts from now on bring the old log-probs with them."""
        self.tolerance = TOLERANCES[precision]

    def decide(self, scored: Scored) -> str:
        """Decide on a rollout's rows, those of all ranks; return a line to print."""
        gap = torch.where(
            scored.response_mask, (scored.logprobs - scored.rollout_logprobs).abs(), 0.0
        )
        mean, largest = masked_mean(gap, scored.response_mask).item(), gap.max().item()
        limit = self.tolerance
        self.decided, self.on = True, mean <= limit.mean and largest <= limit.largest
        found = (
            f"old log-probs: the engine's differ from the trainer's by {mean:.1e} nats a token, at "
            f"most {largest:.1e} (tolerated: {limit.mean:g}, {limit.largest:g})"
        )
        if self.on:
            return f"{found}; from here on they are the rollout's own"
        return f"{found}; they are recomputed for every update"
