"""The formulas of the recipe, pure: tensors in, tensors out, no model, configuration or device.

Shapes: (B, T) floats, index t being response token t, and a bool `response_mask`, True where a
token counts. What lies outside the mask, NaN included, reaches no result and no gradient, and
results are 0 there. Half precision is computed in float32; float64 stays.
"""

from cores.rl.advantages import (
    adjust_scores,
    explained_variance,
    gae,
    grpo,
    kl_estimate,
    next_kl_coef,
    reinforce_pp,
    rloo,
    shape_rewards,
    whiten,
)
from cores.rl.losses import policy_loss, rollout_weights, sequence_weights, value_loss
from cores.rl.masked import masked_mean, masked_moments, repetition
