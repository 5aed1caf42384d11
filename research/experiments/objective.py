"""What PPO pays for a whole update, of ours and of TRL's metrics."""

from collections.abc import Mapping

MISSING_EOS_PENALTY = 2.0
"""The demo's, configs/demo.yaml."""


def gained(row: Mapping[str, float], kl_coef: float) -> float:
    """What PPO maximises, of one update's metrics: score - kl_coef * KL, nats a reply.

    The missing-EOS penalty is taken off both sides' scores: TRL's has lost it where it is logged,
    and our `score` loses it here, by the share `ended` of replies that stopped by themselves.
    """
    penalty = MISSING_EOS_PENALTY * (1 - row["ended"]) if "ended" in row else 0.0
    return row["score"] - penalty - kl_coef * row["kl"]
