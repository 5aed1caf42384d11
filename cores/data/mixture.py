"""Which rows are held out; several sources as one, training rows in exact shares, held-out rows in
turn."""

import hashlib
import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import accumulate, zip_longest
from typing import Any

from cores.data.report import FRAMED, SplitReport
from cores.data.transcripts import NO_TURN
from cores.errors import UserError

Row = dict[str, Any]
Rows = list[Row]
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


def held_out(key: str, fraction: float) -> bool:
    """Whether rows with this first user turn are held out: by its sha256, mapped to 0..1."""
    digest = hashlib.sha256(key.encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64 < fraction


def require(rows: Rows, report: SplitReport, what: str, key: str) -> None:
    """UserError with the counts if nothing is left."""
    if rows:
        return
    remedy = f", or set {key}.transcripts to false" if NO_TURN in report.dropped else ""
    if any(reason.startswith("holds the control token") for reason in report.dropped):
        remedy += ", or turns (messages) in place of texts that a chat template has written"
    if FRAMED in report.dropped:
        remedy += f", or set template.kind to none, or {key}.transcripts to true for hh-rlhf's form"
    raise UserError(
        f"{key}: no {what} of {report.path!r} is left: {report.read} read as format "
        f"{report.format}, all dropped ({report.reasons()}); correct the rows, raise the length "
        f"limit named if one is, or give another {key}.format{remedy}."
    )
