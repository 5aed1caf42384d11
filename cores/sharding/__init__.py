"""How models lie on the processes of a launch, and how a step is taken there: one seam.

One process and DDP are `Whole`, DeepSpeed's ZeRO is `Zero`, torch's FSDP2 is `Fully`. Nothing
outside asks which it is.
"""

import os
from collections.abc import Mapping

from cores.errors import UserError
from cores.sharding.whole import HALVES, Trained, Whole

__all__ = ["ASKED", "HALVES", "Trained", "Whole", "deepspeed_asked", "fsdp_asked", "sharding"]

ASKED = dict(os.environ)
"""The environment as the launcher left it; trainers add to it later."""
FSDP = "ACCELERATE_USE_FSDP"
"""Taken out of the environment when a run begins: accelerate's own FSDP is DDP on a CPU."""


def deepspeed_asked() -> bool:
    """Whether the launcher chose DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"


def fsdp_asked(env: Mapping[str, str] = ASKED) -> bool:
    """Whether the launcher chose FSDP."""
    return env.get(FSDP, "false").lower() == "true"


def sharding(precision: str, cpu: bool) -> Whole:
    """The one that the launcher asked for; UserError if it could never begin."""
    if precision == "fp16" and (fsdp_asked() or deepspeed_asked()):
        raise UserError(
            "model.precision: fp16 does not go with DeepSpeed or FSDP2, which scale no losses "
            "here. Set it to bf16 or fp32, or launch with whole weights "
            "(configs/accelerate/ddp.yaml)."
        )
    if fsdp_asked():
        from cores.sharding.fully import Fully

        return Fully(precision, cpu, ASKED.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true")
    if not deepspeed_asked():
        return Whole(precision, cpu)
    from cores.sharding.zero import Zero, check_locks

    check_locks()
    return Zero(precision, cpu)
