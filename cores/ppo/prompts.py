"""Which prompts a step sees."""

import torch


class PromptSampler:
    """Batches of row numbers: every row once an epoch, in an order drawn anew each epoch.

    The same on every rank; `share` is the part of a batch that is one rank's.
    """

    def __init__(self, count: int, batch_size: int, seed: int, repeat: bool = False) -> None:
        self.count = count
        self.batch_size = batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.repeat = repeat
        """Whether every batch is the first one (a defect of the 2023 original, to study)."""
        self.waiting: list[int] = []

    def next(self) -> list[int]:
        """The next `batch_size` rows."""
        while len(self.waiting) < self.batch_size:
            self.waiting += torch.randperm(self.count, generator=self.generator).tolist()
        batch = self.waiting[: self.batch_size]
        if not self.repeat:
            self.waiting = self.waiting[self.batch_size :]
        return batch


def share(batch: list, rank: int, world: int) -> list:
    """Rank `rank`'s consecutive part of `batch`, whose length `world` divides."""
    size = len(batch) // world
    return batch[rank * size : (rank + 1) * size]
