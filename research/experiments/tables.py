"""Put the experiments' figures into docs/experiments.md and draw its plots.

    python research/experiments/tables.py [EXPERIMENTS.json]

By default of docs/evidence/experiments.json, where another file is copied to. Needs matplotlib
(`pip install -e .[plot]`).
"""

import json
import shutil
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from research.experiments.figures import of_seeds, over_seeds
from research.experiments.frontiers import (
    SHARE,
    SMOOTH,
    best_of_n,
    cell,
    equal_kl,
    samples_needed,
)
from research.pages import fill

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
COMPARED = {
    "coati": "coati-none",
    "coati-priced": "coati-none-priced",
    "estimators": None,
    "parts": None,
}
"""Groups whose runs are compared with ours, and of each the run that is a base too."""
NOT_RUN = "Not run."
"""In place of what needs both sides, where one was left out."""


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


def versus(
    runs: dict[str, Any], base: dict[str, Any], names: Collection[str], label: str = "ours"
) -> str:
    """Gold reward less the base's, seed by seed: what a change costs or brings."""
    lines = [f"| run | gold less {label}, same seeds | by seed |", "|---|---|---|"]
    place = {seed: i for i, seed in enumerate(base["seeds"])}
    for name in names:
        run = runs[name]
        pairs = zip(run["seeds"], run["gold"]["seeds"], strict=True)
        lost = [gold - base["gold"]["seeds"][place[seed]] for seed, gold in pairs if seed in place]
        each = " ".join(f"{x:+.2f}" for x in lost)
        lines.append(f"| {name} | {cell(over_seeds(lost), '+.2f')} | {each} |")
    return "\n".join(lines)


def against(runs: dict[str, Any], names: Sequence[str], bare: str | None = None) -> str:
    """Runs beside ours of the same seeds, and each less ours; with `bare` also each of the others
    less this one."""
    if not names:
        return NOT_RUN
    seeds = {seed for name in names for seed in runs[name]["seeds"]}
    ours = of_seeds(runs["ours"], seeds)
    parts = [table({"ours": ours, **{n: runs[n] for n in names}}), versus(runs, ours, names)]
    if bare is not None and bare in names:
        parts.append(versus(runs, runs[bare], [n for n in names if n != bare], bare))
    return "\n\n".join(parts)


def render(found: dict[str, Any]) -> dict[str, str]:
    """The text of each marked place of the page."""
    runs, groups = found["runs"], found["groups"]
    start = found["best_of"]["1"]

    def group(name: str) -> list[str]:
        return [run for run in runs if groups[run] == name]

    ours, peer = runs["ours"], found["peer"]["release"]
    versions = ", ".join(f"{k} {v}" for k, v in found["versions"].items())
    places = {
        "machine": f"{found['hardware']}; {versions} (the peer: trl {peer}).",
        "demo": table({"stage 1": start, "PPO": ours}),
        "replies": replies({"stage 1": start, **{n: runs[n] for n in ("ours", "no-kl")}}),
        "checks": table({"stage 1": start, **{n: runs[n] for n in ("ours", *group("checks"))}}),
        **{name: against(runs, group(name), bare) for name, bare in COMPARED.items()},
        "frontier": NOT_RUN,
        "same": NOT_RUN,
    }
    if len(found["chosen"]) > 1:
        places["frontier"] = _frontier(found)
        places["same"] = _same(found)
    return places


def tuned(found: dict[str, Any]) -> dict[str, Any]:
    """Both sides' frontiers, each at its best rate and schedule."""
    return {side: found["frontier"][best][side] for side, best in found["chosen"].items()}


def _frontier(found: dict[str, Any]) -> str:
    sides = tuned(found)
    named = {f"ours, kl_coef {c}": run for c, run in sides["ours"].items()}
    named |= {f"TRL, kl_coef {c}": run for c, run in sides["trl"].items()}
    best = {n: run for n, run in found["best_of"].items() if n != "1"}
    return "\n\n".join(
        [
            _tuning(found["tuning"]),
            table(named | {f"best of {n}": run for n, run in best.items()}),
            "Gold reward at equal KL, on straight lines between the points of a seed:",
            equal_kl(sides),
            "Best of n at its bound of KL, against PPO there:",
            best_of_n(sides, best),
            "Updates of 128 samples until score less missing-EOS penalty - kl_coef * KL in "
            f"training (mean of {SMOOTH} updates) is at {SHARE:.0%} of what the two sides end "
            "with on average:",
            samples_needed(sides),
        ]
    )


def _same(found: dict[str, Any]) -> str:
    parts = []
    for setting, sides in found["frontier"].items():
        parts += [
            f"Both at learning rate {_label(setting)}; gold reward at equal KL, then updates:",
            equal_kl(sides),
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
    kept = DOCS / "evidence" / "experiments.json"
    source = Path(argv[0]) if argv else kept
    if not source.is_file():
        raise UserError(
            f"there is no file {source}; give the experiments.json that "
            "research/experiments/run.py wrote."
        )
    found = json.loads(source.read_text(encoding="utf-8"))
    from research.experiments.plots import draw  # after the check: matplotlib is slow to import

    if source.resolve() != kept.resolve():
        shutil.copy(source, kept)
    page = DOCS / "experiments.md"
    filled = fill(page.read_text(encoding="utf-8"), render(found), "docs/experiments.md")
    page.write_text(filled, encoding="utf-8")
    draw(found, kept.parent)
    print(f"wrote {page} and the plots beside {kept}")


if __name__ == "__main__":
    guarded(main)
