"""Norms whose output goes straight to a linear layer, in one kernel each."""

from typing import Any

from torch import Tensor, nn

from cores.rollout.kernels import norm
from cores.rollout.residual import Sum

RMS = ("LlamaRMSNorm", "MistralRMSNorm", "Qwen2RMSNorm", "Qwen3RMSNorm")


class FusedNorm(nn.Module):
    """`norm` (LayerNorm or an RMSNorm) in float32 as autocast computes it, rounded to bfloat16 as
    the linear layer behind it would."""

    def __init__(self, norm: Any, rms: bool) -> None:
        super().__init__()
        self.weight = norm.weight
        self.bias = None if rms else norm.bias
        self.eps = norm.variance_epsilon if rms else norm.eps
        self.rms = rms

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) of x (..., d), which is written if it is a sum that waits."""
        if isinstance(x, Sum) and x.waits:
            x.waits = False
            parts = (x.residual, x.branch, x.total)
            return norm(parts[0], self.weight, self.bias, self.eps, self.rms, *parts[1:])
        return norm(x, self.weight, self.bias, self.eps, self.rms)


def fuse_norms(model: Any) -> None:
    """Replace the norms of the residual stream in `model`, whose norms are all before a layer."""
    width = model.config.hidden_size
    for module in list(model.modules()):
        for name, child in module.named_children():
            rms = type(child).__name__ in RMS
            if (rms or isinstance(child, nn.LayerNorm)) and child.weight.numel() == width:
                setattr(module, name, FusedNorm(child, rms))
