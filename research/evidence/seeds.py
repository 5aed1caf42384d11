"""Intervals over seeds.

Seeds share their held-out rows; an interval over seeds has one part for the rows and one for the
seeds.
"""

import math
from collections.abc import Hashable, Sequence

from scripts.evaluation.stats import Estimate, average, mean, share


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
