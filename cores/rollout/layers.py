"""Linear layers of the twin that do several layers' work in one kernel.

They take what a rounded twin has: weights of its own, in bfloat16. A step of few rows waits for
weights and launches, not for arithmetic, so fewer and larger products are faster.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers.pytorch_utils import Conv1D

PAIRS = (("c_fc", "act"), ("fc1", "activation_fn"))
"""Layers and the activations that follow them, in GPT-2 and OPT."""
GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))
"""Layers that read the same input, in OPT and Llama's family."""


class Activated(nn.Module):
    """A linear layer and the activation behind it: ReLU, or GELU by the tanh approximation.

    The activation reads the float32 sums before they are rounded. On a CPU torch's kernel takes
    the exact GELU, off by up to 5e-4.
    """

    def __init__(self, layer: Any, gelu: bool) -> None:
        super().__init__()
        self.weight = layer.weight
        self.bias = layer.bias
        self.transposed = isinstance(layer, nn.Linear)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) of x (..., d)."""
        weight = self.weight.t() if self.transposed else self.weight
        flat = x.reshape(-1, x.shape[-1]).to(weight.dtype)
        out = torch._addmm_activation(self.bias, flat, weight, use_gelu=self.gelu)
        return out.view(*x.shape[:-1], -1)


class Joint:
    """Linear layers of one input in one matrix product; each of them hands out its own part."""

    def __init__(self, layers: list[nn.Linear]) -> None:
        self.sizes = [layer.out_features for layer in layers]
        self.weight = self._together([layer.weight for layer in layers])
        biases = [layer.bias for layer in layers if layer.bias is not None]
        self.bias = self._together(biases) if biases else None
        self.input: Tensor | None = None
        self.parts: list[Tensor | None] = [None] * len(layers)

    def _together(self, parameters: list[Any]) -> Tensor:
        """One tensor, of which the parameters are parts from now on."""
        whole = torch.cat([p.detach() for p in parameters])
        for parameter, part in zip(parameters, whole.split(self.sizes), strict=True):
            parameter.data = part
        return whole

    def take(self, i: int, x: Tensor) -> Tensor:
        """What layer `i` makes of x (..., d); nothing is kept once all have taken theirs."""
        part = self.parts[i] if self.input is x else None
        if part is None:
            self.input = x
            self.parts = list(linear(x, self.weight, self.bias).split(self.sizes, dim=-1))
            part = self.parts[i]
            assert part is not None, "just made"
        self.parts[i] = None
        if not any(p is not None for p in self.parts):
            self.input = None
        return part


class Part(nn.Module):
    """Layer `i` of a joint product."""

    def __init__(self, layer: nn.Linear, joint: Joint, i: int) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.joint = joint
        self.i = i

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) of x (..., d)."""
        return self.joint.take(self.i, x)


def fuse_layers(model: Any, own: list[Tensor]) -> None:
    """Join layers of `model` whose weights and biases are all among `own`: no other's memory is
    moved, and layers with adapters are left as they are."""
    theirs = {id(tensor) for tensor in own}

    def rounded(layer: Any, *kinds: type) -> bool:
        return type(layer) in kinds and {id(p) for p in layer.parameters()} <= theirs

    for module in list(model.modules()):
        for name, follower in PAIRS:
            layer: Any = getattr(module, name, None)
            activation = getattr(module, follower, None)
            gelu = isinstance(activation, nn.GELU) and activation.approximate == "tanh"
            known = gelu or isinstance(activation, nn.ReLU)
            if known and rounded(layer, nn.Linear, Conv1D) and layer.bias is not None:
                setattr(module, name, Activated(layer, gelu))
                setattr(module, follower, nn.Identity())
        for names in GROUPS:
            layers: list[Any] = [getattr(module, name, None) for name in names]
            if not all(rounded(layer, nn.Linear) for layer in layers):
                continue
            if len({layer.bias is None for layer in layers}) > 1:
                continue
            joint = Joint(layers)
            for i, name in enumerate(names):
                setattr(module, name, Part(layers[i], joint, i))
