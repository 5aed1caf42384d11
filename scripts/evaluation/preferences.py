"""How good a reward model is on pairs that it was not trained on. No model in here."""

import math
from collections.abc import Sequence
from typing import Any

from cores.evaluate.stats import mean, share, wins

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
    outcomes: Sequence[float], names: Sequence[str], clusters: Sequence[Any]
) -> list[dict[str, Any]]:
    """Accuracy of each group, in the order in which they come first."""
    found = []
    for name in dict.fromkeys(names):
        rows = [i for i, other in enumerate(names) if other == name]
        accuracy = share([outcomes[i] for i in rows], [clusters[i] for i in rows])
        found.append({"name": name, "pairs": len(rows), "accuracy": accuracy.to_json()})
    return found


def length_groups(lengths: Sequence[tuple[float, float]]) -> list[str]:
    """Of the lengths of chosen and rejected, which is the longer."""
    names = {1: "chosen is longer", 0: "of one length", -1: "chosen is shorter"}
    return [names[(a > b) - (a < b)] for a, b in lengths]


def thirds(lengths: Sequence[tuple[float, float]]) -> list[str]:
    """Which third of the pairs each is in, by the tokens of its longer reply."""
    longest = [max(pair) for pair in lengths]
    ranked = sorted(longest)
    first, second = (ranked[len(ranked) * i // 3] for i in (1, 2))
    names = [f"up to {first:g} tokens", f"up to {second:g} tokens", "longer replies"]
    return [names[(x > first) + (x > second)] for x in longest]
