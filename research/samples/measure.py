"""How many updates a run needs, what it is worth at equal KL, and whether its seed is lost.

All of held-out prompts, by a judge that the policy never saw. The level is SHARE of what the
configuration as it is gains by its end (the mean over seeds), above where the seed began.
"""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from research.experiments.figures import over_seeds
from research.samples.plan import Setting, Task, name_of

SHARE = 0.8
LOST = 0.5
"""A seed is lost whose run ends by an error, or below this share of that gain."""
Curve = list[tuple[float, float, float]]
"""Update, the judge's score, KL: in the order of updates."""


def load(out: Path, task: Task, side: str, chosen: Setting, seed: int) -> dict[str, Any] | None:
    """What a run left, if it is finished."""
    path = out / "runs" / task.name / side / name_of(chosen) / f"seed{seed}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def curve(run: dict[str, Any], task: Task) -> Curve:
    """Of the held-out prompts; by the score where the judge was not asked."""
    rows = [row for row in run["held_out"] if "kl" in row]
    return sorted((row["update"], row.get(task.judge, row["score"]), row["kl"]) for row in rows)


def gain(runs: Sequence[dict[str, Any]], task: Task) -> float:
    """Mean over runs of the judge's score at the end less that at the start."""
    curves = [curve(run, task) for run in runs]
    return sum(found[-1][1] - found[0][1] for found in curves) / len(curves)


def reached(found: Curve, level: float) -> tuple[float, float] | None:
    """Updates (on the line between two looks) and KL where the curve first is at `level`."""
    for (u0, g0, k0), (u1, g1, k1) in pairwise(found):
        if g1 >= level:
            part = 0.0 if g0 >= level else (level - g0) / (g1 - g0)
            return u0 + part * (u1 - u0), k0 + part * (k1 - k0)
    return None


def at_kl(found: Curve, kl: float) -> float | None:
    """The judge's score where the run first is `kl` nats away; None if it never is."""
    for (_, g0, k0), (_, g1, k1) in pairwise(found):
        if k0 <= kl <= k1:
            return g1 if k1 == k0 else g0 + (g1 - g0) * (kl - k0) / (k1 - k0)
    return None


def summary(
    runs: Sequence[dict[str, Any]], task: Task, whole: float, levels: Sequence[float] = ()
) -> dict[str, Any]:
    """Of one setting over seeds; `whole`: the gain of the configuration as it is.

    A run that never gets to the level counts with one update more than it has.
    """
    seeds, updates, kls, ends, end_kls, lost = [], [], [], [], [], 0
    at: dict[float, list[float]] = {level: [] for level in levels}
    for run in runs:
        found = curve(run, task)
        start, (last, end, end_kl) = found[0][1], found[-1]
        hit = reached(found, start + SHARE * whole)
        total = max(last, *(len(r["training"]["score"]) for r in runs))
        updates.append(hit[0] if hit else total + 1.0)
        kls += [hit[1]] if hit else []
        ends.append(end - start)
        end_kls.append(end_kl)
        lost += "lost" in run or end - start < LOST * whole
        seeds.append(run["seed"])
        for level in levels:
            value = at_kl(found, level)
            at[level] += [] if value is None else [value - start]
    return {
        "seeds": seeds,
        "updates": over_seeds(updates),
        "kl_there": over_seeds(kls) if kls else None,
        "gain": over_seeds(ends),
        "kl": over_seeds(end_kls),
        "lost": lost,
        "at_kl": {f"{level:g}": over_seeds(v) for level, v in at.items() if v},
    }
