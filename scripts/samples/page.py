"""Put the runs of scripts/samples/run.py into docs/defaults.md and draw their frontier.

    python scripts/samples/page.py [NAME=OUT ...]

Each OUT is a folder that run.py wrote, NAME what the page calls it: its curves go to
docs/evidence/samples.json. Without any the page is written anew from that file. Needs matplotlib
(`pip install -e .[plot]`).
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from scripts.experiments.frontiers import cell
from scripts.pages import fill
from scripts.samples.measure import gain, summary
from scripts.samples.plan import TASKS, join, name_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
BASE = name_of(())
COLOURS = ("#2a6f97", "#c8553d", "#588157", "#8d6a9f", "#b08900", "#555555", "#3a9188")
WIDE = 2
"""Panels in a row."""
STARTED = "start"
"""What the page calls the setting that a second pass began with."""


def gather(out: Path) -> dict[str, Any]:
    """By task, side and setting: the runs of every seed."""
    found: dict[str, Any] = {}
    for file in sorted((out / "runs").glob("*/*/*/seed*.json")):
        run = json.loads(file.read_text(encoding="utf-8"))
        sides = found.setdefault(run["task"], {})
        setting = name_of(join(tuple(run["setting"].items())))
        sides.setdefault(run["side"], {}).setdefault(setting, []).append(run)
    if not found:
        raise UserError(
            f"{out}: there are no runs; give a folder that scripts/samples/run.py wrote."
        )
    return found


def shown(name: str, task: str) -> str:
    """A setting for a table: short where it stands on what its pass began with."""
    start = name_of(join(TASKS[task].start))
    own, first = name.split(","), start.split(",")
    if start == BASE or not {part.split("=")[0] for part in first} <= {
        part.split("=")[0] for part in own
    }:
        return f"`{name}`" if name != BASE else name
    rest = [part for part in own if part not in first]
    return STARTED if not rest else f"{STARTED} + `{','.join(rest)}`"


def table(sides: dict[str, Any], name: str) -> str:
    """Every setting of both sides, fewest updates first."""
    task = TASKS[name]
    whole = gain(sides["ours"][BASE], task)
    at = " | ".join(f"gain at KL {level:g}" for level in task.levels)
    lines = [
        f"| setting | seeds | updates to 80% | KL there | gain at the end | KL at the end | {at} |",
        "|---" * (6 + len(task.levels)) + "|",
    ]
    rows = []
    for side, settings in sides.items():
        for setting, runs in settings.items():
            told = summary(runs, task, whole, task.levels)
            cells = [("TRL, " if side == "trl" else "") + shown(setting, name)]
            cells += [f"{len(runs)}", cell(told["updates"], ".1f")]
            cells.append(cell(told["kl_there"], ".1f") if told["kl_there"] else "never there")
            cells += [cell(told["gain"], "+.2f"), cell(told["kl"], ".1f")]
            levels = [told["at_kl"].get(f"{level:g}") for level in task.levels]
            cells += [cell(one, "+.2f") if one else "" for one in levels]
            rows.append((told["updates"]["mean"], "| " + " | ".join(cells) + " |"))
    return "\n".join([*lines, *(row for _, row in sorted(rows))])


def draw(found: dict[str, Any], path: Path) -> None:
    """The judge's score over KL, as runs go along: a line a seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    panels = [(name, task) for name, tasks in found.items() for task in tasks]
    rows = -(-len(panels) // WIDE)
    figure, grid = plt.subplots(
        rows, WIDE, figsize=(4.8 * WIDE, 3.6 * rows), constrained_layout=True, squeeze=False
    )
    for axis in grid.flat[len(panels) :]:
        axis.axis("off")
    for axis, (name, task) in zip(grid.flat, panels, strict=False):
        sides = found[name][task]
        whole = gain(sides["ours"][BASE], TASKS[task])
        ranked = sorted(
            (summary(runs, TASKS[task], whole)["updates"]["mean"], side, setting)
            for side, settings in sides.items()
            for setting, runs in settings.items()
        )
        fastest = [(side, setting) for _, side, setting in ranked if setting != BASE][:4]
        kept = [("ours", BASE), *fastest]
        for (side, setting), colour in zip(kept, COLOURS, strict=False):
            for i, run in enumerate(sides[side][setting]):
                points = [(row["kl"], row.get(TASKS[task].judge, row["score"])) for row in
                          run["held_out"]]  # fmt: skip
                label = ("TRL, " if side == "trl" else "") + shown(setting, task).replace("`", "")
                axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, marker="o",
                          markersize=2.5, alpha=0.8, label=None if i else label)  # fmt: skip
        axis.set_title(f"{task}, {name} pass", fontsize=10, loc="left")
        axis.set_xlabel("KL from stage 1 (nats a reply)", fontsize=9)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=7, frameon=False)
    grid[0][0].set_ylabel("judge's score, held-out prompts", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str]) -> None:
    """Command line."""
    if unclear := [word for word in argv if "=" not in word or word.startswith("-")]:
        raise UserError(f"{unclear[0]}: write NAME=OUT, such as first=runs/samples.")
    kept = DOCS / "evidence" / "samples.json"
    if argv:
        passes = {name: gather(Path(out)) for name, _, out in (w.partition("=") for w in argv)}
        kept.write_text(json.dumps(passes) + "\n", encoding="utf-8")
    found = json.loads(kept.read_text(encoding="utf-8"))
    places = {
        f"{name} {task}": table(sides, task)
        for name, tasks in found.items()
        for task, sides in tasks.items()
    }
    page = DOCS / "defaults.md"
    page.write_text(fill(page.read_text(encoding="utf-8"), places, page.name), encoding="utf-8")
    draw(found, DOCS / "evidence" / "samples.png")
    print(f"wrote {page}")


if __name__ == "__main__":
    guarded(main)
