"""Random numbers as functions of (seed, purpose, position): no generator lives on.

Nothing has to be saved to draw the same numbers again, another number of processes draws the same
ones, and whoever seeds torch, numpy or `random` in between changes none. By counters: Philox
(Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3") under a key made by a hash.
"""

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

BLOCK = 8
"""float32 numbers of one step of the counter: 4 words of 64 bits."""


def key(seed: int, purpose: str, *position: int) -> int:
    """128 bits of `seed`, what the numbers are for, and where in the run they are drawn."""
    text = ":".join([str(seed), purpose, *map(str, position)])
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=16).digest(), "little")


def uniforms(
    rows: int, width: int, seed: int, purpose: str, *position: int, first: int = 0
) -> Tensor:
    """(rows, width) float32 in [0, 1), on the CPU: those of the rows from number `first` on.

    A row's numbers depend on its own number, not on how many rows are drawn with it.
    """
    blocks = -(-width // BLOCK)
    bits = np.random.Philox(key=key(seed, purpose, *position)).advance(first * blocks)
    drawn = np.random.Generator(bits).random((rows, blocks * BLOCK), dtype=np.float32)
    return torch.from_numpy(drawn[:, :width])


@lru_cache(maxsize=8)
def permutation(count: int, seed: int, purpose: str, *position: int) -> tuple[int, ...]:
    """0 .. count - 1 in a random order."""
    bits = np.random.Philox(key=key(seed, purpose, *position))
    return tuple(np.random.Generator(bits).permutation(count).tolist())


def in_epochs(count: int, start: int, size: int, seed: int, purpose: str) -> list[int]:
    """Numbers `start` .. `start + size` of an endless row: 0 .. count - 1 in an order drawn anew
    each epoch, so that each comes once before any comes again."""
    numbers: list[int] = []
    while len(numbers) < size:
        epoch, place = divmod(start + len(numbers), count)
        order = permutation(count, seed, purpose, epoch)
        numbers += order[place : place + size - len(numbers)]
    return numbers


@contextmanager
def seeded(seed: int, purpose: str, *position: int) -> Iterator[None]:
    """Within it the generators of torch (dropout, fresh weights), numpy and `random` draw from
    here; afterwards they go on where they were."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    number, states = key(seed, purpose, *position), (random.getstate(), np.random.get_state())
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(number % 2**63)
        np.random.seed(number % 2**32)
        random.seed(number)
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])


def share(batch: list[Any], rank: int, world: int) -> list[Any]:
    """Rank `rank`'s consecutive part of `batch`, whose length `world` divides."""
    size = len(batch) // world
    return batch[rank * size : (rank + 1) * size]
