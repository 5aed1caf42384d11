"""How good a reward model is on pairs that it was not trained on. No model in here."""

import math
from collections.abc import Sequence
from typing import Any

from scripts.evaluation.stats import mean, share, wins

BINS = 10
"""Of equal width between 1/2 and 1."""


def calibration(margins: Sequence[float]) -> dict[str, Any]:
    """Bradley and Terry's (1952) probability of the reply that a reward model prefers against the
    share of pairs where it is right.

    margins: score of chosen less score of rejected, in the units that the loss was in. Expected
    calibration error (Naeini et al. 2015): mean over pairs of |share right - mean probability| of
    their bin. Pairs that tie are right by half.
    """
    bins: list[list[tuple[float, float]]] = [[] for _ in range(BINS)]
    for margin, won in zip(margins, wins(margins), strict=True):
        sure = 1 / (1 + math.exp(-min(abs(margin), 700.0)))
        bins[min(int((sure - 0.5) * 2 * BINS), BINS - 1)].append((sure, won))
    rows = []
    for i, part in enumerate(bins):
        if part:
            low, high = (0.5 + j / (2 * BINS) for j in (i, i + 1))
            probability, right = (mean(column) for column in zip(*part, strict=True))
            row = {"from": low, "to": high, "pairs": len(part)}
            rows.append(row | {"probability": round(probability, 4), "right": round(right, 4)})
    error = sum(r["pairs"] * abs(r["right"] - r["probability"]) for r in rows) / len(margins)
    return {"bins": rows, "expected_error": round(error, 4)}


def grouped(
    outcomes: Sequence[float],
    names: Sequence[str],
    clusters: Sequence[Any],
    order: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Accuracy of each group, in `order`, or in which they come first."""
    found = []
    for name in dict.fromkeys([name for name in order if name in names] or names):
        rows = [i for i, other in enumerate(names) if other == name]
        accuracy = share([outcomes[i] for i in rows], [clusters[i] for i in rows])
        found.append({"name": name, "pairs": len(rows), "accuracy": accuracy.to_json()})
    return found


def by_difference(
    outcomes: Sequence[float], lengths: Sequence[tuple[float, float]], clusters: Sequence[Any]
) -> list[dict[str, Any]]:
    """Accuracy by which side is the longer; lengths: those of chosen and rejected."""
    order = ["chosen is shorter", "of one length", "chosen is longer"]
    names = [order[1 + (a > b) - (a < b)] for a, b in lengths]
    return grouped(outcomes, names, clusters, order)


def by_length(
    outcomes: Sequence[float], lengths: Sequence[tuple[float, float]], clusters: Sequence[Any]
) -> list[dict[str, Any]]:
    """Accuracy by thirds of the pairs, by the tokens of their longer reply."""
    longest = [max(pair) for pair in lengths]
    ranked = sorted(longest)
    first, second = (ranked[len(ranked) * i // 3] for i in (1, 2))
    order = [f"up to {first:g} tokens", f"up to {second:g} tokens", "longer replies"]
    names = [order[(x > first) + (x > second)] for x in longest]
    return grouped(outcomes, names, clusters, order)
