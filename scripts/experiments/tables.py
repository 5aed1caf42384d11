"""Put the experiments' figures into docs/experiments.md and draw its plots.

    python scripts/experiments/tables.py [EXPERIMENTS.json]

By default of docs/evidence/experiments.json, where another file is copied to. Needs matplotlib
(`pip install -e .[plot]`).
"""

import json
import shutil
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.runtime.cli import guarded
from scripts.experiments.figures import over_seeds
from scripts.pages import fill

DOCS = Path(__file__).resolve().parents[2] / "docs"
COLUMNS = {
    "gold": "+.2f",
    "score": "+.2f",
    "kl": ".2f",
    "length": ".1f",
    "ended": ".2f",
    "repetition": ".3f",
    "distinct_1": ".3f",
    "distinct_2": ".3f",
}
LEVELS = (1.0, 2.0, 3.0, 4.0)
"""KLs, nats a reply, at which two frontiers are compared."""
SHARE = 0.9
"""Of the objective's last value: how far training must come in `samples_needed`."""
SMOOTH = 3
"""Updates over which a training curve is averaged before it is read."""


def cell(measure: dict[str, Any], form: str) -> str:
    """Mean and half-width over seeds."""
    half = measure["half"]
    return f"{measure['mean']:{form}}" + ("" if half is None else f" ± {half:{form.lstrip('+')}}")


def table(rows: dict[str, Any]) -> str:
    """One line a run, one column a measure."""
    lines = ["| run | seeds | " + " | ".join(COLUMNS) + " |", "|---" * (len(COLUMNS) + 2) + "|"]
    for name, run in rows.items():
        cells = [cell(run[measure], form) for measure, form in COLUMNS.items()]
        lines.append(f"| {name} | {len(run['seeds'])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def replies(runs: dict[str, Any]) -> str:
    """What the first seed of each run says to the first held-out prompts, line breaks as " / "."""
    lines = ["| prompt | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    for said in zip(*(run["samples"] for run in runs.values()), strict=True):
        cells = [said[0]["prompt"], *(one["reply"] for one in said)]
        lines.append("| " + " | ".join(" / ".join(cell.split("\n")) for cell in cells) + " |")
    return "\n".join(lines)


def versus(runs: dict[str, Any], base: dict[str, Any], names: list[str]) -> str:
    """Gold reward less the base's, seed by seed: what a change costs or brings."""
    lines = ["| run | gold less ours, same seeds | by seed |", "|---|---|---|"]
    place = {seed: i for i, seed in enumerate(base["seeds"])}
    for name in names:
        run = runs[name]
        pairs = zip(run["seeds"], run["gold"]["seeds"], strict=True)
        lost = [gold - base["gold"]["seeds"][place[seed]] for seed, gold in pairs if seed in place]
        each = " ".join(f"{x:+.2f}" for x in lost)
        lines.append(f"| {name} | {cell(over_seeds(lost), '+.2f')} | {each} |")
    return "\n".join(lines)


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


def equal_kl(frontier: dict[str, Any], start: dict[str, Any]) -> str:
    """Gold at equal KL, ours less the peer's, seed by seed; stage 1 is both frontiers' KL of 0."""
    lines = ["| KL | ours | TRL | ours less TRL, same seeds | seeds |", "|---|---|---|---|---|"]
    for level in LEVELS:
        found = []
        for seed, gold in zip(start["seeds"], start["gold"]["seeds"], strict=True):
            ours, theirs = (
                at_level([(0.0, gold), *frontier_points(frontier[side], seed)], level)
                for side in ("ours", "trl")
            )
            if ours is not None and theirs is not None:
                found.append((ours, theirs))
        if found:
            columns = [a for a, _ in found], [b for _, b in found], [a - b for a, b in found]
            cells = [cell(over_seeds(values), "+.2f") for values in columns]
            lines.append(f"| {level:g} | " + " | ".join(cells) + f" | {len(found)} |")
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


def samples_needed(frontier: dict[str, Any]) -> str:
    """Updates that each side needs for the same objective, by price of KL and seed.

    The objective is what PPO maximises, score - kl_coef * KL; the level of a seed is SHARE of the
    mean of what the two sides end with.
    """
    lines = ["| kl_coef | ours, by seed | TRL, by seed | ours less TRL |", "|---|---|---|---|"]
    for coef in (coef for coef in frontier["ours"] if coef in frontier["trl"]):
        sides = [frontier[side][coef]["curves"] for side in ("ours", "trl")]
        needed: list[list[int]] = [[], []]
        for seed in (seed for seed in sides[0] if seed in sides[1]):
            curves = [smooth(gained(side[seed], float(coef))) for side in sides]
            level = SHARE * sum(curve[-1] for curve in curves) / len(curves)
            for found, curve in zip(needed, curves, strict=True):
                found.append(updates_to(curve, level))
        each = [" ".join(map(str, side)) for side in needed]
        less = [float(a - b) for a, b in zip(*needed, strict=True)]
        lines.append(f"| {coef} | {each[0]} | {each[1]} | {cell(over_seeds(less), '+.1f')} |")
    return "\n".join(lines)


def gained(curve: dict[str, list[float]], coef: float) -> list[float]:
    """score - coef * KL of every update."""
    return [score - coef * kl for score, kl in zip(curve["score"], curve["kl"], strict=True)]


def render(found: dict[str, Any]) -> dict[str, str]:
    """The text of each marked place of the page."""
    runs, groups = found["runs"], found["groups"]
    start = found["best_of"]["1"]

    def group(name: str) -> list[str]:
        return [run for run in runs if groups[run] == name]

    ours = runs["ours"]
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    places = {
        "machine": f"{found['hardware']}; {versions} (the peer: trl 1.12.0).",
        "demo": table({"stage 1": start, "PPO": ours}),
        "replies": replies({"stage 1": start, **{n: runs[n] for n in ("ours", "no-kl")}}),
        "checks": table({"stage 1": start, **{n: runs[n] for n in ("ours", *group("checks"))}}),
        **{
            name: table({n: runs[n] for n in ("ours", *group(name))})
            + "\n\n"
            + versus(runs, ours, group(name))
            for name in ("coati", "coati-priced", "estimators", "parts")
        },
    }
    if len(found["chosen"]) > 1:
        places["frontier"] = _frontier(found)
        places["same"] = _same(found)
    return places


def tuned(found: dict[str, Any]) -> dict[str, Any]:
    """Both sides' frontiers, each at its best rate and schedule."""
    return {side: found["frontier"][best][side] for side, best in found["chosen"].items()}


def _frontier(found: dict[str, Any]) -> str:
    sides, start = tuned(found), found["best_of"]["1"]
    named = {f"ours, kl_coef {c}": run for c, run in sides["ours"].items()}
    named |= {f"TRL, kl_coef {c}": run for c, run in sides["trl"].items()}
    best = {f"best of {n}": r for n, r in found["best_of"].items() if n != "1"}
    return "\n\n".join(
        [
            _tuning(found["tuning"]),
            table(named | best),
            "Gold reward at equal KL, on straight lines between the points of a seed:",
            equal_kl(sides, start),
            f"Updates of 128 samples until score - kl_coef * KL in training (mean of {SMOOTH} "
            f"updates) is at {SHARE:.0%} of what the two sides end with on average:",
            samples_needed(sides),
        ]
    )


def _same(found: dict[str, Any]) -> str:
    start, parts = found["best_of"]["1"], []
    for setting, sides in found["frontier"].items():
        parts += [
            f"Both at learning rate {_label(setting)}; gold reward at equal KL, then updates:",
            equal_kl(sides, start),
            samples_needed(sides),
        ]
    return "\n\n".join(parts)


def _label(setting: str) -> str:
    _, rate, schedule = setting.split("-", 2)
    return f"{rate}, {schedule}"


def _tuning(tuning: dict[str, dict[str, float]]) -> str:
    lines = ["| learning rate, schedule | ours | TRL |", "|---|---|---|"]
    for name, value in tuning["ours"].items():
        lines.append(f"| {_label(name)} | {value:+.3f} | {tuning['trl'][name]:+.3f} |")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Command line."""
    from scripts.experiments.plots import draw

    kept = DOCS / "evidence" / "experiments.json"
    source = Path(argv[0]) if argv else kept
    found = json.loads(source.read_text(encoding="utf-8"))
    if source.resolve() != kept.resolve():
        shutil.copy(source, kept)
    page = DOCS / "experiments.md"
    filled = fill(page.read_text(encoding="utf-8"), render(found), "docs/experiments.md")
    page.write_text(filled, encoding="utf-8")
    draw(found, kept.parent)
    print(f"wrote {page} and the plots beside {kept}")


if __name__ == "__main__":
    guarded(main)
