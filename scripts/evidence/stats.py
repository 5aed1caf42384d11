"""Intervals: of a share, of a mean, with rows that hang together, and over seeds.

Rows with one first user turn are not independent, so variances are those of cluster sums. Seeds
share their held-out rows; an interval over seeds has one part for the rows and one for the seeds.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

Z95 = 1.96
"""Half-width of a 95% interval in standard errors."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95% interval."""

    value: float
    low: float
    high: float


def wilson(share: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's (1927) score interval of a share of n trials."""
    centre = share + z * z / (2 * n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    return (centre - half) / scale, (centre + half) / scale


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def variance_of_mean(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Variance of the mean of rows in clusters: G/(G-1) * sum over clusters of (sum of
    deviations)^2 / n^2 (Liang and Zeger 1986)."""
    centre = mean(values)
    sums: dict[Hashable, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - centre
    count = len(sums)
    return count / (count - 1) * sum(s * s for s in sums.values()) / len(values) ** 2


def effective_rows(values: Sequence[float], clusters: Sequence[Hashable]) -> float:
    """Independent rows whose share would have this variance, and no more than there are rows.

    Where all outcomes are alike nothing shows how they hang together: then one row a cluster.
    """
    share, variance = mean(values), variance_of_mean(values, clusters)
    if variance == 0:
        return float(len(set(clusters)))
    return min(float(len(values)), share * (1 - share) / variance)


def share(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Share of wins (1, ties 0.5, 0) with Wilson's interval at the effective number of rows."""
    value = mean(values)
    return Estimate(value, *wilson(value, effective_rows(values, clusters)))


def average(values: Sequence[float], clusters: Sequence[Hashable]) -> Estimate:
    """Mean with the normal interval."""
    half = Z95 * math.sqrt(variance_of_mean(values, clusters))
    return Estimate(mean(values), mean(values) - half, mean(values) + half)


def over_seeds(runs: Sequence[Sequence[float]], clusters: Sequence[Hashable], of: str) -> Estimate:
    """Mean over seeds of a `share` or an `average` on the same rows.

    The distance to each limit is sqrt(rows^2 + seeds^2): `rows` is the distance of that limit for
    the rows' means over the seeds; `seeds` is t * s / sqrt(S), with s the standard deviation of the
    S seeds' values and t Student's quantile at S - 1 degrees of freedom (4.30 for three).
    """
    from scipy.stats import t

    means = [mean(run) for run in runs]
    rows = [mean(column) for column in zip(*runs, strict=True)]
    middle = {"share": share, "average": average}[of](rows, clusters)
    if len(runs) == 1:
        return middle
    centre = mean(means)
    spread = math.sqrt(sum((m - centre) ** 2 for m in means) / (len(means) - 1))
    seeds = float(t.ppf(0.975, len(means) - 1)) * spread / math.sqrt(len(means))
    low = centre - math.hypot(centre - middle.low, seeds)
    high = centre + math.hypot(middle.high - centre, seeds)
    if of == "share":
        low, high = max(0.0, low), min(1.0, high)
    return Estimate(centre, low, high)
