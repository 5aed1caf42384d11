"""Layers made faster: activations in one kernel, torch.compile a layer at a time."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation
from transformers.modeling_layers import GradientCheckpointingLayer

VARIANTS = 64
"""Compiled forms of one layer's code at most: with and without gradient, padding and adapters, of
actor and critic. Beyond it torch silently runs the layer uncompiled."""


class TanhGELU(nn.GELU):
    """GELU as GPT-2 approximates it: x (1 + tanh u) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3)."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        """(...) of x (...).

        Compiled it is x sigmoid(2 u), which is the same: on a CPU the vectorised tanh takes most of
        torch's kernel and of the compiled one alike, and exp a third of that.
        """
        if not torch.compiler.is_compiling():
            return super().forward(x)
        slope = 2 * math.sqrt(2 / math.pi)
        return x * torch.sigmoid(x * (slope + slope * 0.044715 * x * x))


def fuse_activations(model: Any) -> Any:
    """`model` with torch's GELU (tanh approximation) in place of transformers' `gelu_new`.

    The same function (Hendrycks & Gimpel 2016, as GPT-2 approximates it), which transformers
    writes out as eight operations, each a pass over the widest tensor of a layer.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, TanhGELU())
    return model


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
