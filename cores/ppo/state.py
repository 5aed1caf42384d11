"""Everything that an update of stage 3 changes, all of it JSON. What can be made anew from it and
the configuration is not in it: schedules, orders, buffers, captured graphs."""

from dataclasses import dataclass, field, fields
from typing import Any

from cores.errors import UserError
from cores.run.checkpoint import Checkpoint


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

    @classmethod
    def of(cls, saved: Checkpoint) -> "PPOState":
        """As a checkpoint has it; UserError where it cannot have been written so."""
        known = {field.name for field in fields(cls)}
        state = cls(**{k: v for k, v in saved.numbers.items() if k in known})
        price = isinstance(state.kl_coef, int | float) and state.kl_coef >= 0
        kinds = isinstance(state.halved, bool) and isinstance(state.skipped, int)
        if state.update != saved.step or not (price and kinds):
            raise UserError(
                f"{saved.folder / 'state.json'}: damaged (update {state.update!r} in step "
                f"{saved.step}, kl_coef {state.kl_coef!r}, halved {state.halved!r}, skipped "
                f"{state.skipped!r}). Remove {saved.folder.name}, and the same command goes on "
                "from the checkpoint before it."
            )
        return state
