"""Activations in one kernel."""

from typing import Any

from torch import nn
from transformers.activations import NewGELUActivation


def fuse_activations(model: Any) -> Any:
    """`model` with torch's GELU (tanh approximation) in place of transformers' `gelu_new`.

    The same function (Hendrycks & Gimpel 2016, as GPT-2 approximates it), which transformers
    writes out as eight operations, each a pass over the widest tensor of a layer.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
    return model
