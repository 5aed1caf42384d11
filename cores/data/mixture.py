"""Several sources as one: training rows in exact shares, held-out rows in turn."""

import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import zip_longest
from typing import Any

Row = dict[str, Any]


def shares(weights: Sequence[float], total: int) -> list[int]:
    """`total` split in the proportion of `weights`, whole numbers that add up to it.

    Largest remainder (Hamilton's method): each gets its exact share rounded down, and those with
    the largest remainders one more, the earlier first where they are equal. Weights are read as
    the decimals they are written as, so that .1, .2 and .7 of ten are 1, 2 and 7.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    quotas = [weight * total / sum(exact) for weight in exact]
    counts = [int(quota) for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda i: counts[i] - quotas[i])
    for i in by_remainder[: total - sum(counts)]:
        counts[i] += 1
    return counts


def mix(
    parts: Sequence[list[Row]], weights: Sequence[float], seed: int
) -> tuple[list[Row], list[int]]:
    """Rows of all parts in the proportion of `weights`, shuffled; how many of each part.

    As many rows as the parts have together. A part that gives more rows than it has gives all of
    them as often as they fit, and for the rest as many others, drawn without replacement.
    """
    draw = random.Random(seed)
    counts = shares(weights, sum(len(part) for part in parts))
    rows = []
    for part, count in zip(parts, counts, strict=True):
        passes, rest = divmod(count, len(part))
        rows += part * passes + draw.sample(part, rest)
    draw.shuffle(rows)
    return rows, counts


def interleave(parts: Sequence[list[Row]]) -> list[Row]:
    """One row of each part in turn, so that the first n rows are of all of them."""
    return [row for turn in zip_longest(*parts) for row in turn if row is not None]
