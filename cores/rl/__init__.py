"""The formulas of the recipe, pure: tensors in, tensors out, no model, configuration or device.

Shapes: (B, T) floats, index t being response token t, and a bool `response_mask`, True where a
token counts. What lies outside the mask, NaN included, reaches no result and no gradient, and
results are 0 there. Half precision is computed in float32; float64 stays.
"""

from cores.rl.advantages import explained_variance, gae, grpo, reinforce_pp, rloo, whiten
from cores.rl.losses import policy_loss, rollout_weights, sequence_weights, value_loss
from cores.rl.masked import masked_mean, masked_moments, repetition
from cores.rl.rewards import adjust_scores, kl_estimate, next_kl_coef, shape_rewards

__all__ = [
    "adjust_scores",
    "explained_variance",
    "gae",
    "grpo",
    "kl_estimate",
    "masked_mean",
    "masked_moments",
    "next_kl_coef",
    "policy_loss",
    "reinforce_pp",
    "repetition",
    "rloo",
    "rollout_weights",
    "sequence_weights",
    "shape_rewards",
    "value_loss",
    "whiten",
]
