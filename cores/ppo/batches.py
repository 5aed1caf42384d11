"""Which rows go through a model together: so many rows, or so many tokens with their padding.

Decided on the host from lengths that are read once, so that the device is never waited for.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cores.config import PPOSection

Lengths = Sequence[tuple[int, int]]
"""Prompt and response tokens of each row. A forward pass pads both to their longest."""
FORWARD_FACTOR = 4
"""Rows or tokens of a forward pass that keeps nothing for a backward one, to one that does."""


def widened(lengths: Lengths, widths: int) -> Lengths:
    """Lengths rounded up to multiples of `widths`."""
    return [
        (-(-prompt // widths) * widths, -(-response // widths) * widths)
        for prompt, response in lengths
    ]


def by_length(rows: Sequence[int], lengths: Lengths) -> list[int]:
    """The longest first: neighbours then need little padding, and memory runs out at once or not
    at all."""
    return sorted(rows, key=lambda i: sum(lengths[i]), reverse=True)


def cut(rows: Sequence[int], lengths: Lengths, size: int, tokens: int | None) -> list[list[int]]:
    """`rows` in parts of `size` rows, or of at most `tokens` tokens if that is not None.

    Tokens are those of the forward pass, padding included; a row that has more goes alone.
    """
    parts: list[list[int]] = []
    prompt = response = 0  # longest of the part being filled
    for row in rows:
        longer = max(prompt, lengths[row][0]), max(response, lengths[row][1])
        count = len(parts[-1]) + 1 if parts else 1
        fits = count <= size if tokens is None else count * sum(longer) <= tokens
        if parts and fits:
            parts[-1].append(row)
            prompt, response = longer
        else:
            parts.append([row])
            prompt, response = lengths[row]
    return parts


def room(ppo: PPOSection, halved: bool) -> tuple[int, int | None]:
    """Rows and, where they decide, tokens of a micro-batch."""
    size, tokens = ppo.microbatch_size, ppo.microbatch_tokens
    if not halved:
        return size, tokens
    return max(1, size // 2), None if tokens is None else tokens // 2


def for_scoring(lengths: Lengths, ppo: PPOSection, halved: bool = False) -> list[list[int]]:
    """All rows, the longest first, in parts for a forward pass without a backward one."""
    size, tokens = room(ppo, halved)
    rows = by_length(range(len(lengths)), lengths)
    return cut(
        rows, lengths, FORWARD_FACTOR * size, None if tokens is None else FORWARD_FACTOR * tokens
    )


def in_parts(parts: list[list[int]], count: int) -> list[list[int]]:
    """`parts` as `count` parts, none of them empty, by halving the largest as often as it takes.

    ValueError if there are fewer rows than that, or more parts.
    """
    if not len(parts) <= count <= sum(map(len, parts)):
        raise ValueError(f"{parts} cannot be {count} parts")
    parts = list(parts)
    while len(parts) < count:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        half = (len(parts[largest]) + 1) // 2
        parts[largest : largest + 1] = [parts[largest][:half], parts[largest][half:]]
    return parts


def shared(
    rows: Sequence[int], lengths: Lengths, world: int, size: int, tokens: int | None
) -> list[list[list[int]]]:
    """The micro-batches of each of `world` ranks: as many on each, since they meet at every one.

    `world` divides the number of rows, which are dealt out by length.
    """
    ordered = by_length(rows, lengths)
    ranks = [cut(ordered[rank::world], lengths, size, tokens) for rank in range(world)]
    most = max(map(len, ranks))
    return [in_parts(parts, most) for parts in ranks]


def share(batch: list[Any], rank: int, world: int) -> list[Any]:
    """Rank `rank`'s consecutive part of `batch`, whose length `world` divides."""
    size = len(batch) // world
    return batch[rank * size : (rank + 1) * size]


def on_device(rows: Sequence[int], device: torch.device) -> Tensor:
    """Row numbers (N,) on `device`, without waiting for what it is computing."""
    index = torch.tensor(rows, dtype=torch.int64)
    return index.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else index
