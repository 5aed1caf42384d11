"""The experiments as pictures."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes

INK = "#333333"
COLOURS = ("#2a6f97", "#c8553d", "#588157", "#8d6a9f", "#b08900", "#555555", "#3a9188")


def draw(found: dict[str, Any], folder: Path) -> None:
    """Write frontier.png, checks.png and ablations.png to `folder`."""
    if len(found["chosen"]) > 1:
        _save(_frontier(found), folder / "frontier.png")
    _save(_curves(found), folder / "checks.png")
    _save(_ablations(found), folder / "ablations.png")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _tidy(axis: Axes, title: str, x: str) -> None:
    axis.set_title(title, fontsize=10, color=INK, loc="left")
    axis.set_xlabel(x, fontsize=9, color=INK)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(labelsize=8, colors=INK)


def _frontier(found: dict[str, Any]) -> Any:
    """Gold reward over KL: each seed's points faint, the means over seeds with intervals."""
    figure, axis = plt.subplots(figsize=(7, 4.2), constrained_layout=True)
    start = found["best_of"]["1"]["gold"]["mean"]
    runs = {side: found["frontier"][best][side] for side, best in found["chosen"].items()}
    sides = {"ours": (runs["ours"], COLOURS[0]), "TRL 1.12": (runs["trl"], COLOURS[1])}
    sides["best of n"] = ({n: r for n, r in found["best_of"].items() if n != "1"}, COLOURS[5])
    for name, (runs, colour) in sides.items():
        if not runs:
            continue
        ordered = sorted(runs.values(), key=lambda run: run["kl"]["mean"])
        for run in ordered:
            axis.scatter(run["kl"]["seeds"], run["gold"]["seeds"], s=10, color=colour, alpha=0.35)
        axis.errorbar(
            [0, *(run["kl"]["mean"] for run in ordered)],
            [start, *(run["gold"]["mean"] for run in ordered)],
            yerr=[0, *(run["gold"]["half"] or 0 for run in ordered)],
            color=colour,
            linewidth=1.6,
            capsize=2,
            marker="o",
            markersize=4,
            linestyle="--" if name == "best of n" else "-",
            label=name,
        )
    _tidy(axis, "gold reward on held-out prompts", "KL from the stage-1 model (nats a reply)")
    axis.legend(fontsize=8, frameon=False)
    return figure


def _curves(found: dict[str, Any]) -> Any:
    """The demo and its checks over the updates, a line a seed."""
    names = [n for n in ("ours", "huge-kl", "no-kl", "shuffled") if n in found["runs"]]
    measures = {
        "score": "score that PPO sees",
        "score_gold": "gold reward, not seen",
        "kl": "KL (nats a reply)",
    }
    figure, axes = plt.subplots(1, len(measures), figsize=(12, 3.2), constrained_layout=True)
    for axis, (measure, title) in zip(axes, measures.items(), strict=True):
        for name, colour in zip(names, COLOURS, strict=False):
            curves = found["runs"][name]["curves"].values()
            for i, curve in enumerate(c for c in curves if measure in c):
                label = name if i == 0 else None
                axis.plot(
                    range(1, len(curve[measure]) + 1),
                    curve[measure],
                    color=colour,
                    linewidth=1,
                    alpha=0.8,
                    label=label,
                )
        _tidy(axis, title, "update")
    axes[0].legend(fontsize=8, frameon=False)
    return figure


def _ablations(found: dict[str, Any]) -> Any:
    """Gold reward at the end of every variant, one dot a seed."""
    groups = ("coati", "coati-priced", "estimators", "parts")
    names = [n for g in groups for n in found["runs"] if found["groups"][n] == g]
    names = ["ours", *names]
    figure, axis = plt.subplots(figsize=(7, 0.28 * len(names) + 0.9), constrained_layout=True)
    for row, name in enumerate(reversed(names)):
        run = found["runs"][name]
        colour = COLOURS[0] if name == "ours" else COLOURS[1]
        axis.scatter(run["gold"]["seeds"], [row] * len(run["seeds"]), s=14, color=colour, alpha=0.6)
        axis.plot([run["gold"]["mean"]], [row], marker="|", markersize=12, color=INK)
    axis.set_yticks(range(len(names)), list(reversed(names)))
    _tidy(axis, "gold reward on held-out prompts, a dot a seed", "gold reward")
    return figure
