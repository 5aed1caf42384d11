"""Put the runs of scripts/samples/run.py into docs/defaults.md and draw their frontier.

    python scripts/samples/page.py [NAME=OUT ...]

Each OUT is a folder that run.py wrote, NAME what the page calls the pass: its curves go to
docs/evidence/samples.json, beside those of other passes. From that file the page is written: the
tables whose marks stand in it, and the picture of the same. Needs matplotlib
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
from scripts.pages import BEGIN, fill
from scripts.samples.measure import gain, summary
from scripts.samples.plan import TASKS, Setting, join, name_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
BASE = name_of(())
COLOURS = ("#2a6f97", "#c8553d", "#588157", "#8d6a9f", "#b08900", "#555555", "#3a9188")
WIDE = 2
"""Panels in a row."""
STARTED = "start"
"""What the page calls the setting that others of a pass stand on."""
FASTER = (("ppo.actor_learning_rate", "4e-5"), ("ppo.critic_learning_rate", "8e-5"))
SMALL = tuple((f"ppo.{role}_adam.eps", "1e-8") for role in ("actor", "critic"))
STARTS: dict[str, Setting] = {
    "second polite": join(FASTER, SMALL),
    "second hh_harmless": join(FASTER, SMALL),
    "third polite": FASTER,
}
"""By pass and task. The third has the small epsilon from the configuration."""


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


def shown(name: str, place: str) -> str:
    """A setting for a table: short where it stands on the start of its pass."""
    own, first = name.split(","), name_of(STARTS.get(place, ())).split(",")
    keys = [{part.split("=")[0] for part in parts} for parts in (first, own)]
    if name == BASE or not keys[0] <= keys[1] or not set(first) & set(own):
        return f"`{name}`" if name != BASE else name
    rest = [part for part in own if part not in first]
    return STARTED if not rest else f"{STARTED} + `{','.join(rest)}`"


def cut_off(runs: list[dict[str, Any]], whole: int) -> str:
    """Which updates the runs were stopped at that made fewer than `whole`."""
    made = sorted(n for run in runs if (n := len(run["training"]["score"])) < whole)
    return f", {len(made)} stopped at {', '.join(map(str, made))}" if made else ""


def table(sides: dict[str, Any], place: str) -> str:
    """Every setting of both sides, fewest updates first."""
    task = TASKS[place.split()[-1]]
    whole = gain(sides["ours"][BASE], task)
    updates = max(len(run["training"]["score"]) for run in sides["ours"][BASE])
    at = " | ".join(f"gain at KL {level:g}" for level in task.levels)
    lines = [
        f"| setting | seeds | updates to 80% | KL there | gain at the end | KL at the end | {at} |",
        "|---" * (6 + len(task.levels)) + "|",
    ]
    rows = []
    for side, settings in sides.items():
        for setting, runs in settings.items():
            told = summary(runs, task, whole, task.levels)
            cells = [("TRL, " if side == "trl" else "") + shown(setting, place)]
            cells += [f"{len(runs)}{cut_off(runs, updates)}", cell(told["updates"], ".1f")]
            cells.append(cell(told["kl_there"], ".1f") if told["kl_there"] else "never there")
            cells += [cell(told["gain"], "+.2f"), cell(told["kl"], ".1f")]
            levels = [told["at_kl"].get(f"{level:g}") for level in task.levels]
            cells += [cell(one, "+.2f") if one else "" for one in levels]
            rows.append((told["updates"]["mean"], "| " + " | ".join(cells) + " |"))
    return "\n".join([*lines, *(row for _, row in sorted(rows))])


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """The judge's score over KL, as runs go along: a line a seed, a panel a place.

    Of each place the configuration, and of what has most seeds the fastest.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = -(-len(found) // WIDE)
    figure, grid = plt.subplots(
        rows, WIDE, figsize=(5.4 * WIDE, 4.0 * rows), constrained_layout=True, squeeze=False
    )
    for axis in grid.flat[len(found) :]:
        axis.axis("off")
    for axis, (place, sides) in zip(grid.flat, found.items(), strict=False):
        name, task = place.split()
        whole = gain(sides["ours"][BASE], TASKS[task])
        ranked = sorted(
            (-len(runs), summary(runs, TASKS[task], whole)["updates"]["mean"], side, setting)
            for side, settings in sides.items()
            for setting, runs in settings.items()
        )
        fastest = [(side, setting) for *_, side, setting in ranked if setting != BASE][:4]
        kept = [("ours", BASE), *fastest]
        for (side, setting), colour in zip(kept, COLOURS, strict=False):
            for i, run in enumerate(sides[side][setting]):
                points = [(row["kl"], row.get(TASKS[task].judge, row["score"])) for row in
                          run["held_out"]]  # fmt: skip
                label = ("TRL, " if side == "trl" else "") + shown(setting, place).replace("`", "")
                axis.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, marker="o",
                          markersize=2.5, alpha=0.8, label=None if i else label)  # fmt: skip
        axis.set_title(f"{task}, {name} pass", fontsize=10, loc="left")
        axis.set_xlabel("KL from stage 1 (nats a reply)", fontsize=9)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(fontsize=6, frameon=False, loc="upper left", bbox_to_anchor=(-0.05, -0.17))
    grid[0][0].set_ylabel("judge's score, held-out prompts", fontsize=9)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(argv: list[str]) -> None:
    """Command line."""
    if unclear := [word for word in argv if "=" not in word or word.startswith("-")]:
        raise UserError(f"{unclear[0]}: write NAME=OUT, such as first=runs/samples.")
    kept = DOCS / "evidence" / "samples.json"
    passes = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    if argv:
        passes |= {name: gather(Path(out)) for name, _, out in (w.partition("=") for w in argv)}
        kept.write_text(json.dumps(passes) + "\n", encoding="utf-8")
    page = DOCS / "defaults.md"
    text = page.read_text(encoding="utf-8")
    found = {
        place: sides
        for name, tasks in passes.items()
        for task, sides in tasks.items()
        if BEGIN.format(place := f"{name} {task}") in text
    }
    places = {place: table(sides, place) for place, sides in found.items()}
    page.write_text(fill(text, places, page.name), encoding="utf-8")
    draw(found, DOCS / "evidence" / "samples.png")
    print(f"wrote {page}")


if __name__ == "__main__":
    guarded(main)
