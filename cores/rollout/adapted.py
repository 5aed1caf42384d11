"""Linear layers with adapters, in three products of the twin: W, A and B."""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear as LoraLinear
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


class Adapted(nn.Module):
    """y = W x + b + s B A x, the last product adding to the rest; peft scales and adds in kernels
    of their own, which take as long at a few rows."""

    def __init__(self, layer: Any, adapter: str) -> None:
        super().__init__()
        self.base = layer.base_layer
        self.down, self.up = layer.lora_A[adapter], layer.lora_B[adapter]
        self.scaling = float(layer.scaling[adapter])

    def forward(self, x: Tensor) -> Tensor:
        """(..., n) of x (..., d)."""
        out, low = self.base(x), self.down(x)
        flat = out.view(-1, out.shape[-1])
        low = low.view(-1, low.shape[-1])
        return torch.addmm(flat, low, self.up.weight.t(), alpha=self.scaling).view(out.shape)


def fuse_adapters(model: Any) -> None:
    """Replace the layers of `model` (in evaluation mode) that have one plain adapter in use, over a
    base that computes in bfloat16."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is not LoraLinear or child.disable_adapters or child.merged:
                continue
            adapter = child.active_adapters[0]
            plain = len(child.active_adapters) == 1 and adapter not in child.lora_variant
            simple = isinstance(child.base_layer, nn.Linear | Conv1D)
            if plain and simple and child.lora_B[adapter].bias is None:
                setattr(module, name, Adapted(child, adapter))
