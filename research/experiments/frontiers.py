"""Two sides' frontiers of gold reward over KL, and how fast each got there, seed by seed.

A frontier is the runs of one side by their price of KL, as research/experiments/figures.py gathers
them.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from research.experiments import objective
from research.experiments.figures import over_seeds

LEVELS = (2.0, 3.0, 4.0, 5.0)
"""KLs, nats a reply, at which two frontiers are compared: all lie between points that were run. A
line from stage 1 to the first would be a chord of a concave curve."""
SHARE = 0.9
"""Of the objective's last value: how far training must come in `samples_needed`."""
SMOOTH = 3
"""Updates over which a training curve is averaged before it is read."""


def cell(measure: dict[str, Any], form: str) -> str:
    """Mean and half-width over seeds."""
    half = measure["half"]
    return f"{measure['mean']:{form}}" + ("" if half is None else f" ± {half:{form.lstrip('+')}}")


def at_level(points: list[tuple[float, float]], level: float) -> float | None:
    """The second coordinate where the first is `level`, on the line through the points in order of
    the first; None outside them."""
    points = sorted(points)
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 <= level <= x1:
            return y0 if x1 == x0 else y0 + (y1 - y0) * (level - x0) / (x1 - x0)
    return None


def frontier_points(side: dict[str, Any], seed: int) -> list[tuple[float, float]]:
    """(KL, gold) of each price of KL that the seed was run with."""
    runs = [run for run in side.values() if seed in run["seeds"]]
    places = [run["seeds"].index(seed) for run in runs]
    return [
        (run["kl"]["seeds"][i], run["gold"]["seeds"][i])
        for run, i in zip(runs, places, strict=True)
    ]


def both_at(frontier: dict[str, Any], seed: int, level: float) -> tuple[float, float] | None:
    """Gold at a KL of `level`, ours and the peer's; None where one of them was not run on both
    sides of it."""
    ours, theirs = (
        at_level(frontier_points(frontier[side], seed), level) for side in ("ours", "trl")
    )
    return None if ours is None or theirs is None else (ours, theirs)


def equal_kl(frontier: dict[str, Any]) -> str:
    """Gold at equal KL, ours less the peer's, seed by seed."""
    lines = ["| KL | ours | TRL | ours less TRL, same seeds | seeds |", "|---|---|---|---|---|"]
    seeds = sorted({seed for run in frontier["ours"].values() for seed in run["seeds"]})
    for level in LEVELS:
        pairs = [both_at(frontier, seed, level) for seed in seeds]
        found = [pair for pair in pairs if pair is not None]
        if found:
            columns = [a for a, _ in found], [b for _, b in found], [a - b for a, b in found]
            cells = [cell(over_seeds(values), "+.2f") for values in columns]
            lines.append(f"| {level:g} | " + " | ".join(cells) + f" | {len(found)} |")
    return "\n".join(lines)


def best_of_n(frontier: dict[str, Any], best_of: dict[str, Any]) -> str:
    """Gold of the best of n less PPO's at the KL that bounds it, for each n whose bound both sides
    have points around in every seed."""
    lines = [
        "| n | KL | best of n | less ours, same seeds | by seed | less TRL, same seeds | by seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for n, run in best_of.items():
        bound = run["kl"]["mean"]
        pairs = [both_at(frontier, seed, bound) for seed in run["seeds"]]
        found = [pair for pair in pairs if pair is not None]
        if len(found) == len(pairs):
            cells = [n, f"{bound:.2f}", cell(run["gold"], "+.2f")]
            for side in zip(*found, strict=True):
                less = [a - b for a, b in zip(run["gold"]["seeds"], side, strict=True)]
                cells += [cell(over_seeds(less), "+.2f"), " ".join(f"{x:+.2f}" for x in less)]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def smooth(values: list[float]) -> list[float]:
    """Means of the last SMOOTH values up to each."""
    return [
        sum(values[max(0, i - SMOOTH + 1) : i + 1]) / (i + 1 - max(0, i - SMOOTH + 1))
        for i in range(len(values))
    ]


def updates_to(curve: list[float], level: float) -> int:
    """Updates until `curve` is at `level`; one more than there are where it never is."""
    return next((i + 1 for i, value in enumerate(curve) if value >= level), len(curve) + 1)


def needed(sides: list[dict[str, Any]], coef: float) -> dict[str, tuple[int, int]]:
    """By seed: updates that each of two sides' training curves needs for the same objective.

    The level of a seed is SHARE of the mean of what the two sides end with.
    """
    found = {}
    for seed in (seed for seed in sides[0] if seed in sides[1]):
        ours, theirs = (smooth(gained(side[seed], coef)) for side in sides)
        level = SHARE * (ours[-1] + theirs[-1]) / 2
        found[seed] = updates_to(ours, level), updates_to(theirs, level)
    return found


def samples_needed(frontier: dict[str, Any]) -> str:
    """Updates that each side needs for the same objective (what PPO maximises), by price of KL and
    seed; last, each seed's means over the prices."""
    lines = ["| kl_coef | ours, by seed | TRL, by seed | ours less TRL |", "|---|---|---|---|"]
    rows = {}
    for coef in (coef for coef in frontier["ours"] if coef in frontier["trl"]):
        rows[coef] = needed([frontier[s][coef]["curves"] for s in ("ours", "trl")], float(coef))
        lines.append(_needed_row(coef, list(rows[coef].values()), "d"))
    shared = set.intersection(*(set(row) for row in rows.values())) if rows else set()
    means = []
    for seed in sorted(shared):
        ours, theirs = zip(*(row[seed] for row in rows.values()), strict=True)
        means.append((sum(ours) / len(ours), sum(theirs) / len(theirs)))
    if means:
        lines.append(_needed_row("all, mean", means, ".1f"))
    return "\n".join(lines)


def _needed_row(name: str, pairs: Sequence[tuple[float, float]], form: str) -> str:
    each = [" ".join(f"{x:{form}}" for x in side) for side in zip(*pairs, strict=True)]
    less = [float(a - b) for a, b in pairs]
    return f"| {name} | {each[0]} | {each[1]} | {cell(over_seeds(less), '+.1f')} |"


def gained(curve: dict[str, list[float]], coef: float) -> list[float]:
    """What PPO maximises at every update of a training curve."""
    rows = zip(*curve.values(), strict=True)
    return [objective.gained(dict(zip(curve, row, strict=True)), coef) for row in rows]
