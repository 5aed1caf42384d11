"""The estimators of advantages, as facts: what each has, and which of the options it reads."""

from dataclasses import dataclass

CRITIC = frozenset(
    ["critic_learning_rate", "critic_adam", "critic_init", "critic_warmup", "value_clip"]
)
"""Options of stage 3 that only a critic gives an effect."""


@dataclass(frozen=True)
class Estimator:
    """One of `ppo.estimator`."""

    reads: frozenset[str]
    """Those of OPTIONS that it uses."""
    grouped: bool = False
    """It compares the replies to one prompt, so it needs 2 or more of each."""
    whitens: bool = False
    """Its advantages get mean 0 and variance 1 unless told otherwise."""

    @property
    def critic(self) -> bool:
        """Whether it needs values."""
        return self.reads >= CRITIC


ESTIMATORS = {
    "gae": Estimator(CRITIC | {"gamma", "lam", "kl_kind"}, whitens=True),
    "coati": Estimator(CRITIC | {"coati"}),  # its KL is always k3; GAE's options without r_minus_v
    "grpo": Estimator(frozenset({"group_std", "kl_kind"}), grouped=True),
    "rloo": Estimator(frozenset({"kl_kind"}), grouped=True),
    "reinforce_pp": Estimator(frozenset({"gamma", "kl_kind"}), whitens=True),
}
OPTIONS = tuple(dict.fromkeys(name for e in ESTIMATORS.values() for name in sorted(e.reads)))
"""Options that some estimator does not read."""
GROUPED = tuple(name for name, facts in ESTIMATORS.items() if facts.grouped)
WITH_CRITIC = tuple(name for name, facts in ESTIMATORS.items() if facts.critic)
WHITENED = tuple(name for name, facts in ESTIMATORS.items() if facts.whitens)


def options_read(estimator: str, r_minus_v: bool) -> frozenset[str]:
    """Those of OPTIONS that have an effect; coati's r_minus_v off makes it use GAE."""
    reads = ESTIMATORS[estimator].reads
    return reads if estimator != "coati" or r_minus_v else reads | {"gamma", "lam"}
