"""The estimators of advantages, as facts: what each has, and which of the options it reads."""

from dataclasses import dataclass

CRITIC = {"critic_learning_rate", "critic_adam", "critic_init", "critic_warmup", "value_clip"}
"""Options of stage 3 that only a critic gives an effect."""


@dataclass(frozen=True)
class Estimator:
    """One of `ppo.estimator`."""

    reads: frozenset[str]
    """Those of OPTIONS that it uses."""
    critic: bool = False
    """It needs values."""
    grouped: bool = False
    """It compares the replies to one prompt, so it needs 2 or more of each."""
    whitens: bool = False
    """Its advantages get mean 0 and variance 1 unless told otherwise."""


ESTIMATORS = {
    "gae": Estimator(frozenset({*CRITIC, "gamma", "lam", "kl_kind"}), critic=True, whitens=True),
    # Its KL is always k3; without ppo.coati.r_minus_v it reads GAE's options too.
    "coati": Estimator(frozenset({*CRITIC, "coati"}), critic=True),
    "grpo": Estimator(frozenset({"group_std", "kl_kind"}), grouped=True),
    "rloo": Estimator(frozenset({"kl_kind"}), grouped=True),
    "reinforce_pp": Estimator(frozenset({"gamma", "kl_kind"}), whitens=True),
}
OPTIONS = sorted({name for facts in ESTIMATORS.values() for name in facts.reads})
"""Options that some estimator does not read."""
WITH_CRITIC = tuple(name for name, facts in ESTIMATORS.items() if facts.critic)
