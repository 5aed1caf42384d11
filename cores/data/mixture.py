"""Several sources as one: training rows in exact shares, held-out rows in turn."""

import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, zip_longest
from typing import Any

Row = dict[str, Any]
IDS = ("input_ids", "ids", "chosen_ids", "rejected_ids")
"""Where rows of the stages hold their tokens."""


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


def tokens_in(rows: Sequence[Row]) -> int:
    """Tokens of all rows, both sides of pairs, what encoder and decoder read."""
    return sum(
        len(row[name])
        for row in rows
        for name in (*IDS, *(("labels",) if "encoder_ids" in row else ()))
        if name in row
    )


def mix(
    parts: Sequence[list[Row]], weights: Sequence[float], seed: int, tokens: bool = False
) -> tuple[list[Row], list[list[Row]]]:
    """Rows of all parts in the proportion of `weights`, shuffled; and those of each part.

    As many rows (with `tokens`: tokens, to within half a row a part) as the parts have together. A
    part that gives more than it has gives all of its rows as often as they fit, and for the rest
    others, drawn without replacement.
    """
    draw = random.Random(seed)
    amount = tokens_in if tokens else len
    quotas = shares(weights, sum(amount(part) for part in parts))
    mixed = []
    for part, quota in zip(parts, quotas, strict=True):
        passes, rest = divmod(quota, amount(part))
        others = _nearest(draw.sample(part, len(part)), rest) if tokens else draw.sample(part, rest)
        mixed.append(part * passes + others)
    rows = [row for part in mixed for row in part]
    draw.shuffle(rows)
    return rows, mixed


def _nearest(rows: list[Row], tokens: int) -> list[Row]:
    """The first rows whose tokens come nearest to so many, fewer rows where two are as near."""
    sums = [0, *accumulate(tokens_in([row]) for row in rows)]
    return rows[: min(range(len(sums)), key=lambda n: abs(sums[n] - tokens))]


def interleave(parts: Sequence[list[Row]]) -> list[Row]:
    """One row of each part in turn, so that the first n rows are of all of them."""
    return [row for turn in zip_longest(*parts) for row in turn if row is not None]
