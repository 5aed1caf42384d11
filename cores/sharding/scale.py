"""Losses multiplied before the backward pass, so that gradients in float16 do not vanish below its
smallest numbers (Micikevicius et al. 2018)."""

import torch
from torch import Tensor

FIRST, EVERY = 2.0**16, 2000.0
"""The first factor, and steps without an overflow behind which it doubles: torch's GradScaler's."""


class LossScale:
    """The factor: half of it behind a step whose gradients overflow, which is left out. All of it
    stays on the device, where a CUDA graph may read it."""

    def __init__(self, device: torch.device) -> None:
        self.factor = torch.full((), FIRST, device=device)
        self.good = torch.zeros((), device=device)
        """0-d, steps since it has changed."""

    def unscale(self, gradients: list[Tensor]) -> None:
        """Divide gradients by the factor."""
        torch._foreach_mul_(gradients, self.factor.reciprocal())

    def update(self, bad: Tensor) -> None:
        """Behind a step; bad: 0-d bool, whether a gradient was no number."""
        good = torch.where(bad, 0.0, self.good + 1)
        grows = good >= EVERY
        self.factor *= torch.where(bad, 0.5, torch.where(grows, 2.0, 1.0))
        self.good.copy_(torch.where(grows, 0.0, good))

    @property
    def lost(self) -> bool:
        """Whether gradients are no numbers whatever the factor."""
        return self.factor.item() < 1

    def state_dict(self) -> list[float]:
        """What it has changed."""
        return [self.factor.item(), self.good.item()]

    def load_state_dict(self, saved: list[float]) -> None:
        """Go on from there."""
        for tensor, value in zip((self.factor, self.good), saved, strict=True):
            tensor.fill_(value)
