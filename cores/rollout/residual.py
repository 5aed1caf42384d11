"""Sums of the residual stream that wait for the norm behind them, which adds in its own kernel.

A block of transformers' models computes residual + branch in Python and hands the sum to a norm.
Here the layer at the end of a branch returns a `Branch`; added to the residual it makes a `Sum`,
whose memory nobody has written yet. `FusedNorm` writes it while it reads. Anything else that is
done to a `Sum` adds first, so nothing is ever wrong, only slower.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout
from torch.utils._pytree import tree_leaves

ENDS = ("c_proj", "out_proj", "o_proj", "fc2", "down_proj")
"""Names of the layers at the end of a branch, in GPT-2, OPT and Llama's family."""
ADDS = (Tensor.add, torch.add)
_OF: Any = Tensor
LOOKS = (_OF.shape.__get__, _OF.dtype.__get__, _OF.device.__get__, _OF.size)
"""What may be asked of a sum without its numbers."""


class Late(Tensor):
    """A tensor that knows what is done to it."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if func is dropout and isinstance(first, Branch) and not kwargs["training"]:
            return first
        if func in ADDS and len(args) == 2 and not kwargs:
            residual, branch = args if isinstance(args[1], Branch) else args[::-1]
            if isinstance(branch, Branch) and _fits(residual, branch):
                return Sum.of(residual, branch)
        if isinstance(first, Sum) and first.waits:
            reshapes = func in (Tensor.view, Tensor.reshape) and not kwargs
            if reshapes and not isinstance(args[1], torch.dtype):
                return first.viewed(args[1:])
            if func in LOOKS:
                return _plainly(func, *args)
        for each in tree_leaves((args, kwargs)):
            if isinstance(each, Sum):
                each.add_now()
        return _plainly(func, *args, **kwargs)


class Branch(Late):
    """What a branch ends with (..., d), in bfloat16."""


class Sum(Late):
    """residual + branch, both (..., d); float32 as the residual is.

    `waits`: the memory is not written yet. A view of a sum waits on its own; both write the same.
    """

    residual: Tensor
    branch: Tensor
    total: Tensor
    """The sum's memory as a plain tensor."""
    waits: bool

    @staticmethod
    def of(residual: Tensor, branch: Tensor, total: Tensor | None = None) -> "Sum":
        """A sum that waits, in the memory of `total` where given."""
        if isinstance(residual, Sum):
            residual = residual.add_now()
        if total is None:
            total = _plainly(torch.empty_like, residual)
        made = cast(Sum, total.as_subclass(Sum))
        made.residual, made.total, made.waits = residual, total, True
        made.branch = _plainly(Tensor.as_subclass, branch, Tensor)
        return made

    def add_now(self) -> Tensor:
        """The sum, written if it was not."""
        if self.waits:
            torch.add(self.residual, self.branch, out=self.total)
            self.waits = False
        return self.total

    def viewed(self, shape: Any) -> "Sum":
        """This sum in another shape."""
        parts = (each.reshape(*shape) for each in (self.residual, self.branch, self.total))
        return Sum.of(*parts)


def _plainly(func: Any, *args: Any, **kwargs: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


def _fits(residual: Any, branch: Tensor) -> bool:
    """Whether a kernel can add them: as they lie, to a float32 residual."""

    def look() -> bool:
        return (
            residual.dtype == torch.float32
            and residual.shape == branch.shape
            and residual.is_contiguous()
            and branch.is_contiguous()
        )

    return isinstance(residual, Tensor) and not isinstance(residual, Branch) and _plainly(look)


def _as_branch(layer: nn.Module, args: Any, out: Tensor) -> Tensor:
    return cast(Tensor, out.as_subclass(Branch)) if out.dtype == torch.bfloat16 else out


def delay_sums(model: Any) -> None:
    """Let the norms of `model`, which are before its layers, add to the residual stream."""
    for name, module in model.named_modules():
        if name.split(".")[-1] in ENDS:
            module.register_forward_hook(_as_branch)
