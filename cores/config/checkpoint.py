"""The sections of the configuration tree that say how a run lasts. Imports nothing heavy."""

from dataclasses import dataclass
from typing import Literal, Optional

from cores.config.limits import number


@dataclass(frozen=True)
class CheckpointSection:
    """What an unfinished run keeps to go on from (docs/reliability.md)."""

    every_steps: Optional[int] = number(None, above=0)
    """Steps between checkpoints: optimizer steps in stages 1 and 2, updates in stage 3. None:
    by time alone."""
    every_minutes: Optional[float] = number(15.0, above=0)
    """Minutes between checkpoints: what a killed run loses at most. None: by steps alone."""
    keep: int = number(2, above=0)
    """Checkpoints kept, the newest ones; an older one goes when a newer one is whole."""
    keep_weights: int = 0
    """Stage 3: the policy of every so many updates stays as ppo/weights/step-N. 0: none."""
    stop_after_minutes: Optional[float] = number(None, above=0)
    """Stop so many minutes after the start as a signal would: save, and exit with 75. For machines
    that are taken away at a known time. None: off."""


@dataclass(frozen=True)
class FaultsSection:
    """What a run does about numbers that are none."""

    nonfinite: Literal["stop", "skip"] = "stop"
    """A gradient with NaN or infinity. stop: end the run, its last checkpoint kept. skip: leave
    that optimizer step out and count it; not under DeepSpeed, whose engine takes it unasked."""
    max_skips: int = 3
    """With skip: so many in a row; one more ends the run."""
