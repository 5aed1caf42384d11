"""Parts of a model's layers in few kernels: functions of which transformers writes out each step.

On a GPU every operation that is written out is a launch and a pass over the layer's widest tensor.
Shapes: B rows of L columns, H query heads and G of keys, D numbers a head, F width of the layer.
"""

import math
import sys
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import rms_norm
from transformers.activations import NewGELUActivation, SiLUActivation

FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")
"""What the names of transformers' classes begin with whose layers are written as Llama's."""
NORMS = tuple(f"{family}RMSNorm" for family in FAMILIES)
"""Norms with this formula. (Gemma's weights are counted from 1.)"""
MLPS = tuple(f"{family}MLP" for family in FAMILIES)
BEFORE_LINEAR = ("input_layernorm", "post_attention_layernorm")
"""Names of norms in those layers whose output linear layers alone read."""


@cache
def _triton() -> bool:
    return find_spec("triton") is not None


def by_kernels(*tensors: Tensor) -> bool:
    """Whether our kernels work on these tensors; compilers make their own."""
    fits = all(x.is_cuda and x.dtype == tensors[0].dtype for x in tensors)
    return fits and _triton() and not torch.compiler.is_compiling()


class TanhGELU(nn.GELU):
    """GELU as GPT-2 approximates it: x (1 + tanh u) / 2, u = sqrt(2 / pi) (x + 0.044715 x^3)."""

    def __init__(self) -> None:
        super().__init__(approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        """(...) of x (...)."""
        if not torch.compiler.is_compiling():
            return super().forward(x)
        # x sigmoid(2 u), which is the same: on a CPU the vectorised tanh takes most of torch's
        # kernel and of the compiled one alike, and exp a third of that.
        slope = 2 * math.sqrt(2 / math.pi)
        return x * torch.sigmoid(x * (slope + slope * 0.044715 * x * x))


class FusedRMSNorm(nn.Module):
    """A stock norm, which writes its formula out as seven operations, by torch's one kernel."""

    def __init__(self, norm: Any, narrow: bool = False) -> None:
        """narrow: linear layers alone read the output."""
        super().__init__()
        self.weight: nn.Parameter = norm.weight
        self.variance_epsilon: float = norm.variance_epsilon
        self.narrow = narrow

    def forward(self, x: Tensor) -> Tensor:
        """(..., F) of x (..., F): weight * x / sqrt(mean(x^2) + epsilon), in fp32 within.

        A `narrow` one is rounded here, once, as autocast would for each of the layers behind it.
        """
        weight, epsilon, device = self.weight, self.variance_epsilon, x.device.type
        if weight.dtype == x.dtype:
            found = rms_norm(x, weight.shape, weight, epsilon)
        else:
            found = weight * rms_norm(x.float(), weight.shape, None, epsilon).to(x.dtype)
        if self.narrow and torch.is_autocast_enabled(device):
            return found.to(torch.get_autocast_dtype(device))
        return found


class GatedMLP(nn.Module):
    """A stock MLP with a SiLU gate (Shazeer 2020), its gate in one kernel each way on a GPU."""

    def __init__(self, mlp: Any) -> None:
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        self.act_fn = mlp.act_fn

    def forward(self, x: Tensor) -> Tensor:
        """(..., F) of x (..., F)."""
        gate, up = self.gate_proj(x), self.up_proj(x)
        if by_kernels(gate, up):
            return self.down_proj(_Gate.apply(gate, up))
        return self.down_proj(self.act_fn(gate) * up)


class _Gate(torch.autograd.Function):
    """silu(gate) * up, rounded once."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        from cores.models import layer_kernels  # triton is not everywhere

        ctx.save_for_backward(gate, up)
        return layer_kernels.gate(gate, up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor, Tensor]:
        from cores.models import layer_kernels

        return layer_kernels.gate_backward(slope, *ctx.saved_tensors)


class Rotary:
    """Stands where a module of transformers has its `apply_rotary_pos_emb` (Su et al. 2021): on a
    GPU one kernel, of which the backward pass is the rotation back."""

    def __init__(self, stock: Callable[..., tuple[Tensor, Tensor]]) -> None:
        self.stock = stock

    def __call__(
        self, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        """(B, H, L, D) and (B, G, L, D), rotated, of q and k by cos and sin (B or 1, L, D)."""
        if unsqueeze_dim == 1 and by_kernels(q, k):
            return _Rotate.apply(q, k, cos, sin)
        return self.stock(q, k, cos, sin, unsqueeze_dim)


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        from cores.models import layer_kernels

        ctx.save_for_backward(cos, sin)
        return layer_kernels.rotate(q, k, cos, sin)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_q: Tensor, by_k: Tensor) -> tuple[Tensor | None, ...]:
        from cores.models import layer_kernels

        cos, sin = ctx.saved_tensors
        return *layer_kernels.rotate(by_q, by_k, cos, sin, back=True), None, None


def fuse_layers(model: Any) -> Any:
    """`model` with these in place of what transformers writes out: `gelu_new` (Hendrycks & Gimpel
    2016, as GPT-2 approximates it), norms (Zhang & Sennrich 2019), SiLU gates, and for all models
    of a family its rotary embedding. Names of parameters stay."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            kind = type(child).__name__
            if isinstance(child, NewGELUActivation):
                setattr(module, name, TanhGELU())
            elif kind in NORMS:
                setattr(module, name, FusedRMSNorm(child, narrow=name in BEFORE_LINEAR))
            elif kind in MLPS:
                home = sys.modules[type(child).__module__]
                if not isinstance(home.apply_rotary_pos_emb, Rotary):
                    vars(home)["apply_rotary_pos_emb"] = Rotary(home.apply_rotary_pos_emb)
                if isinstance(child.act_fn, nn.SiLU | SiLUActivation):
                    setattr(module, name, GatedMLP(child))
    return model
