"""Intervals: of a share, a mean, a ratio, and by the bootstrap, of rows that hang together.

Rows with one first user turn are not independent, so variances are those of cluster sums.
`clusters`: what each row hangs together by; None: each stands for itself.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cores.draws import key
from cores.evaluate.held_out import Z95, mean, wins

DRAWS = 1000
"""Of a bootstrap: the limits of a 95% interval are then the 25th of its numbers from either end."""
PLACES = 4
Clusters = Sequence[Hashable] | None
__all__ = [
    "PLACES",
    "Z95",
    "Estimate",
    "average",
    "bootstrap",
    "effective_rows",
    "mean",
    "ratio",
    "share",
    "variance_of_mean",
    "wilson",
    "wins",
]  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval; a limit is infinite where nothing tells it."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float | None]:
        """{mean, low, high}, to four places; null for a limit that nothing tells."""
        named = {"mean": self.value, "low": self.low, "high": self.high}
        return {k: round(v, PLACES) if math.isfinite(v) else None for k, v in named.items()}


def wilson(share: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's (1927) score interval of a share of n trials."""
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def variance_of_mean(values: Sequence[float], clusters: Clusters = None) -> float:
    """Variance of the mean of rows in clusters: G/(G-1) * sum over clusters of (sum of
    deviations)^2 / n^2 (Liang and Zeger 1986); infinite for a single cluster."""
    return _variance(values, [1.0] * len(values), clusters)


def _variance(values: Sequence[float], weights: Sequence[float], clusters: Clusters) -> float:
    """Of sum(values) / sum(weights), linearised: deviations are value - ratio * weight."""
    total = sum(weights)
    ratio = sum(values) / total
    sums: dict[Hashable, float] = defaultdict(float)
    rows = zip(values, weights, clusters or range(len(values)), strict=True)
    for value, weight, cluster in rows:
        sums[cluster] += value - ratio * weight
    count = len(sums)
    if count < 2:
        return math.inf
    return count / (count - 1) * sum(s * s for s in sums.values()) / total**2


def effective_rows(values: Sequence[float], clusters: Clusters = None) -> float:
    """Independent rows whose share would have this variance, and no more than there are rows.

    Where all outcomes are alike nothing shows how they hang together: then one row a cluster.
    """
    share, variance = mean(values), variance_of_mean(values, clusters)
    if variance in (0, math.inf):
        return float(len(set(clusters or range(len(values)))))
    return min(float(len(values)), share * (1 - share) / variance)


def share(values: Sequence[float], clusters: Clusters = None) -> Estimate:
    """Share of wins (1, ties 0.5, 0) with Wilson's interval at the effective number of rows."""
    value = mean(values)
    return Estimate(value, *wilson(value, effective_rows(values, clusters)))


def average(values: Sequence[float], clusters: Clusters = None) -> Estimate:
    """Mean with the normal interval."""
    return ratio(values, [1.0] * len(values), clusters)


def ratio(values: Sequence[float], weights: Sequence[float], clusters: Clusters = None) -> Estimate:
    """sum(values) / sum(weights), such as nats a token, with the normal interval of its
    linearisation (Cochran 1977, section 6.3)."""
    value = sum(values) / sum(weights)
    half = Z95 * math.sqrt(_variance(values, weights, clusters))
    return Estimate(value, value - half, value + half)


def bootstrap(
    of: Callable[[list[Any]], float | None], rows: Sequence[Any], clusters: Clusters = None
) -> Estimate | None:
    """`of` all rows, with the interval of what it says of whole clusters drawn with replacement
    (Efron 1979, percentiles). None where it says None of the rows; draws of which it says None do
    not count. The same numbers each time, for rows in the same order.
    """
    value = of(list(rows))
    if value is None:
        return None
    groups: dict[Hashable, list[Any]] = defaultdict(list)
    for row, cluster in zip(rows, clusters or range(len(rows)), strict=True):
        groups[cluster].append(row)
    each = list(groups.values())
    if len(each) < 2:
        return Estimate(value, -math.inf, math.inf)
    generator = np.random.Generator(np.random.Philox(key=key(0, "bootstrap")))
    drawn = generator.integers(len(each), size=(DRAWS, len(each))).tolist()
    told = (of([row for i in numbers for row in each[i]]) for numbers in drawn)
    found = [one for one in told if one is not None]
    low, high = np.quantile(found, [0.025, 0.975]).tolist()
    return Estimate(value, low, high)
