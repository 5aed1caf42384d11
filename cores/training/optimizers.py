"""Optimizers of stages 1 and 2 that torch has not, and the order of rows by length."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.data import Sampler

from cores.draws import permutation

NAMES = {"adamw": "adamw_torch", "lion": "adamw_torch"}
"""What the Trainer of transformers calls those that it calls otherwise; Lion it is handed."""
POOL = 50
"""Batches sorted by length together: most of the padding goes, and a batch may still hold any
rows of such a pool."""


class Lion(Optimizer):
    """Chen et al. 2023, "Symbolic discovery of optimization algorithms", algorithm 2.

    A weight moves by the rate times the sign of b1 m + (1 - b1) g, and decays by the rate times
    `weight_decay`; then m becomes b2 m + (1 - b2) g.
    """

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), **group: Any
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": 0.0, **group})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            rate, (b1, b2) = group["lr"], group["betas"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                state = self.state[weight]
                mean = state.setdefault("exp_avg", torch.zeros_like(weight))
                weight.mul_(1 - rate * group["weight_decay"])
                weight.add_(torch.lerp(weight.grad, mean, b1).sign_(), alpha=-rate)
                mean.lerp_(weight.grad, 1 - b2)


class ByLength(Sampler[int]):
    """Rows in batches of about one length: another order each epoch, the same for a seed."""

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by accelerate's loader."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        size, place = self.batch_size, (self.seed, "length", self.epoch)
        rows = permutation(len(self.lengths), *place)
        # The batch that is not full stays behind the others, or those after it would begin in it.
        full = len(rows) - len(rows) % size
        batches = []
        for first in range(0, full, size * POOL):
            pool = sorted(
                rows[first : min(first + size * POOL, full)], key=self.lengths.__getitem__
            )
            batches += [pool[i : i + size] for i in range(0, len(pool), size)]
        for number in permutation(len(batches), *place, 1):
            yield from batches[number]
        yield from rows[full:]
