"""Everything that an update of stage 3 changes, all of it JSON. What can be made anew from it and
the configuration is not in it: schedules, orders, buffers, captured graphs."""

from dataclasses import dataclass, field
from typing import Any


@dataclass
class PPOState:
    """Between two updates; the roles' weights and optimizers beside it are in `Roles`."""

    kl_coef: float
    """Price of KL now."""
    update: int = 0
    """Updates taken."""
    reused: bool | None = None
    """Whether rollouts bring the old log-probs with them; None before the first look."""
    halved: bool = False
    """Memory ran out once: passes have half as many rows or tokens since."""
    skipped: int = 0
    """Optimizer steps left out in a row, up to the last one."""
    before: dict[str, Any] | None = None
    """What the evaluation said before the first update (`Evaluation`, as JSON)."""
    calibration: dict[str, Any] | None = None
    """What a reward model from elsewhere was scaled by (`calibrate`); None for one of stage 2."""
    best: dict[str, Any] = field(default_factory=dict)
    """The best evaluation so far, with its update; empty without `ppo.keep_best`."""
