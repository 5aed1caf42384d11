"""How models lie on the processes of a launch, and how a step is taken there: one seam.

One process and DDP are `Whole`, DeepSpeed's ZeRO is `Zero`. Nothing outside asks which it is.
"""

from cores.sharding.whole import Trained, Whole

__all__ = ["Trained", "Whole", "sharding"]


def sharding(precision: str, cpu: bool) -> Whole:
    """The one that the launcher asked for."""
    from cores.sharding.asked import deepspeed_asked

    if not deepspeed_asked():
        return Whole(precision, cpu)
    from cores.sharding.zero import Zero

    return Zero(precision, cpu)
