"""Activations in one kernel."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import NewGELUActivation


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
