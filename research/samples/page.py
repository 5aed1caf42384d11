"""Put the runs of research/samples/run.py into docs/defaults.md and draw their frontier.

    python research/samples/page.py [NAME=OUT ...]

Each OUT is a folder that run.py wrote, NAME what the page calls the pass: its curves go to
docs/evidence/samples.json, beside those of other passes. From that file the page is written: the
tables whose marks stand in it, and the picture of these. Needs matplotlib
(`pip install -e .[plot]`).
"""

import json
import sys
from pathlib import Path
from textwrap import fill as fill_lines
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from research.experiments.frontiers import cell
from research.pages import BEGIN, fill
from research.samples.measure import curve, gain, summary
from research.samples.plan import TASKS, Setting, join, name_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
BASE = name_of(())
COLOURS = ("#2a6f97", "#588157", "#c8553d")
"""Of the configuration, of our fastest and of TRL's."""
FEWEST = 2
"""Seeds of a row of the tables; a setting with fewer is noise there, and stays in the curves."""
STARTED = "start"
"""What the page calls the setting that others of a pass stand on."""
FASTER = (("ppo.actor_learning_rate", "4e-5"), ("ppo.critic_learning_rate", "8e-5"))
STARTS: dict[str, Setting] = {"fourth polite": FASTER, "fourth hh_harmless": FASTER}
"""By pass and task."""
THEIRS = (
    "actor_adam.beta2=0.999,critic_adam.beta2=0.999,lr_schedule=linear,max_grad_norm=1000,warmup=0"
)
JOINED = "kl_target=4,minibatch_size=32"
ROWS: dict[str, tuple[str, ...]] = {
    "fourth demo": (
        *(BASE, "minibatch_size=32", "kl_target=4", JOINED, "samples_per_prompt=4"),
        *(f"{JOINED},samples_per_prompt=4", "kl_coef=0.2", "lam=1", "lr_schedule=linear", THEIRS),
    )
}
"""Of a place with many settings those that the page speaks of; the others stay in the curves."""
CALLED = {("fourth demo", BASE): "as it was", ("fourth demo", "minibatch_size=32"): "as it is"}
"""Settings that a later change of the configuration calls otherwise."""


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
            f"{out}: there are no runs; give a folder that research/samples/run.py wrote."
        )
    return found


def shown(name: str, place: str) -> str:
    """A setting for a table: short where it stands on the start of its pass."""
    if told := CALLED.get((place, name)):
        return told
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
    """Settings of both sides, fewest updates first, those that never get there last."""
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
            if len(runs) < FEWEST or setting not in ROWS.get(place, (setting,)):
                continue
            told = summary(runs, task, whole, task.levels)
            cells = [("TRL, " if side == "trl" else "") + shown(setting, place)]
            cells.append(f"{len(runs)}{cut_off(runs, updates)}")
            there, made = told["kl_there"], max(len(run["training"]["score"]) for run in runs)
            cells.append(cell(told["updates"], ".1f") if there else f"over {made}")
            cells.append(cell(there, ".1f") if there else "never there")
            cells += [cell(told["gain"], "+.2f"), cell(told["kl"], ".1f")]
            levels = [told["at_kl"].get(f"{level:g}") for level in task.levels]
            cells += [cell(one, "+.2f") if one else "" for one in levels]
            rows.append((not there, told["updates"]["mean"], "| " + " | ".join(cells) + " |"))
    return "\n".join([*lines, *(row for *_, row in sorted(rows))])


def fastest(sides: dict[str, Any], side: str, task: str) -> str | None:
    """Of those of a side with most seeds, but for the configuration: fewest updates."""
    whole = gain(sides["ours"][BASE], TASKS[task])
    ranked = [
        (-len(runs), summary(runs, TASKS[task], whole)["updates"]["mean"], setting)
        for setting, runs in sides.get(side, {}).items()
        if (side, setting) != ("ours", BASE)
    ]
    return min(ranked)[2] if ranked else None


def draw(found: dict[str, dict[str, Any]], path: Path) -> None:
    """The judge's score over updates and over KL: a row a place, a line a seed.

    Of each place the configuration, our fastest setting and TRL's.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(
        len(found), 2, figsize=(10.5, 3.3 * len(found)), constrained_layout=True, squeeze=False
    )
    for axes, (place, sides) in zip(grid, found.items(), strict=True):
        task = place.split()[-1]
        kept = [("ours", BASE), *((side, fastest(sides, side, task)) for side in ("ours", "trl"))]
        for (side, setting), colour in zip(kept, COLOURS, strict=True):
            if setting is None:
                continue
            told = ("TRL, " if side == "trl" else "") + shown(setting, place).replace("`", "")
            label = fill_lines(told.replace(",", ", "), 48)
            for i, run in enumerate(sides[side][setting]):
                updates, scores, kls = zip(*curve(run, TASKS[task]), strict=True)
                for axis, along in zip(axes, (updates, kls), strict=True):
                    axis.plot(along, scores, color=colour, linewidth=1.2, marker="o",
                              markersize=2.5, alpha=0.8, label=None if i else label)  # fmt: skip
        for axis, what in zip(axes, ("updates", "KL from stage 1 (nats a reply)"), strict=True):
            axis.set_xlabel(what, fontsize=9)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
        axes[0].set_title(task, fontsize=10, loc="left")
        axes[0].set_ylabel("judge's score, held-out prompts", fontsize=9)
        axes[1].legend(fontsize=6, frameon=False, loc="lower right")
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
