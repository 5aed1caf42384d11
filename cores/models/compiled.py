"""torch.compile, a layer at a time."""

from typing import Any

import torch
from transformers.modeling_layers import GradientCheckpointingLayer

VARIANTS = 64
"""Compiled forms of one layer's code at most: with and without gradient, padding and adapters, of
actor and critic. Beyond it torch silently runs the layer uncompiled."""


def compile_layers(model: Any) -> Any:
    """`model` with each of its transformer layers compiled.

    All layers share one compiled form, so this takes a fraction of the time that the whole model
    would. Names of parameters and modules stay; a copy of the model is not compiled.
    """
    torch._dynamo.config.recompile_limit = VARIANTS
    torch._dynamo.config.accumulated_recompile_limit = 4 * VARIANTS
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.compile()
    return model
