"""How models lie on the processes of a launch, and how a step is taken there: one seam.

One process and DDP are `Whole`, DeepSpeed's ZeRO is `Zero`. Nothing outside asks which it is.
"""

import os

from cores.sharding.whole import Trained, Whole

__all__ = ["Trained", "Whole", "deepspeed_asked", "sharding"]


def deepspeed_asked() -> bool:
    """Whether the launcher chose DeepSpeed."""
    return os.environ.get("ACCELERATE_USE_DEEPSPEED", "false") == "true"


def sharding(precision: str, cpu: bool) -> Whole:
    """The one that the launcher asked for; UserError if it could never begin."""
    if not deepspeed_asked():
        return Whole(precision, cpu)
    from cores.sharding.zero import Zero, check_locks

    check_locks()
    return Zero(precision, cpu)
