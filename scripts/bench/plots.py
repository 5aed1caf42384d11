"""Plots of docs/performance.md."""

from pathlib import Path
from typing import Any

from scripts.bench.labels import engine_of, floor_of, label
from scripts.bench.steady import WARM_UP

INK = "#333333"
COLOURS = ("#2a6f97", "#c8553d", "#588157", "#8d6a9f", "#d4a373", "#6c757d")
Found = dict[str, Any]


def groups(values: dict[str, float]) -> dict[str, float]:
    """Seconds of the bars' colours: rollout, scoring, the two models' updates, optimizer, rest."""
    found = dict.fromkeys(("rollout", "scoring", "actor", "critic", "optimizer", "rest"), 0.0)
    for name, seconds in values.items():
        phase, _, part = name.partition("/")
        if phase == "rollout":
            found["rollout"] += seconds
        elif phase == "score":
            found["scoring"] += seconds
        else:
            found[part if part in found else "rest"] += seconds
    return found


def draw(measured: list[Found], folder: Path) -> list[str]:
    """Write what the measurements are enough for; returns the names of the files."""
    import matplotlib as mpl

    mpl.use("Agg")
    steps = [f for f in measured if f["kind"] == "ppo_step"]
    standard = [f for f in steps if f["standard"]]
    rollouts = [f for f in measured if f["kind"] == "rollout"]
    costs = {name: _series(steps, name) for name in ("batch", "response")}
    made = []
    if standard:
        made.append(_phases(standard, folder / "phases.png"))
    if rollouts:
        made.append(_rollouts(rollouts, folder / "rollouts.png"))
    if any(costs.values()):
        made.append(_costs(costs, folder / "costs.png"))
    if runs := [f for f in measured if f["kind"] == "steady"]:
        made.append(_steady(runs, folder / "steady.png"))
    return made


def _panels(count: int, width: float) -> tuple[Any, list[Any]]:
    import matplotlib.pyplot as plt

    size = (min(width * count, 14), 3.4)
    figure, axes = plt.subplots(1, count, figsize=size, constrained_layout=True, squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=INK)
    return figure, list(axes[0])


def _log(axis: Any, ticks: set[int]) -> None:
    """Both axes; the measured places are named, and heights are written as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    axis.set_xscale("log", base=2)
    axis.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.yaxis.set_minor_locator(NullLocator())


def _save(figure: Any, axis: Any, out: Path) -> str:
    axis.legend(fontsize=7, frameon=False)
    figure.savefig(out, dpi=110)
    return out.name


def _phases(steps: list[Found], out: Path) -> str:
    figure, axes = _panels(len(steps), 2.6)
    for axis, found in zip(axes, steps, strict=True):
        floors = {name: floor["overlapped"] for name, floor in found["floors"].items()}
        bars = {"measured": groups(found["phases"]), "floor": groups(floors)}
        bottom = [0.0, 0.0]
        for name, colour in zip(bars["floor"], COLOURS, strict=True):
            heights = [bar[name] for bar in bars.values()]
            axis.bar(list(bars), heights, bottom=bottom, color=colour, width=0.6, label=name)
            bottom = [a + b for a, b in zip(bottom, heights, strict=True)]
        title = label(found).replace("`", "").replace(", --", " --")
        lines = [word.rpartition(".")[2] for word in title.split(" --")]  # --ppo.passes: passes
        axis.set_title("\n".join(lines), fontsize=7, color=INK, loc="left")
        axis.set_ylabel("seconds", fontsize=8, color=INK)
    handles, names = axes[-1].get_legend_handles_labels()
    figure.legend(handles, names, fontsize=7, frameon=False, loc="outside right center")
    figure.savefig(out, dpi=110)
    return out.name


def _rollouts(rollouts: list[Found], out: Path) -> str:
    """Of each model the middle one of the measured lengths."""
    figure, axes = _panels(len(rollouts), 5.4)
    for axis, found in zip(axes, rollouts, strict=True):
        cells = [c for c in found["cells"] if "failed" not in c]
        lengths = sorted({c["workload"]["response"] for c in cells})
        response = lengths[len(lengths) // 2]
        cells = [c for c in cells if c["workload"]["response"] == response]
        lines: dict[str, list[tuple[float, float]]] = {}
        for c in cells:
            batch = c["workload"]["batch"]
            line = lines.setdefault(f"{c['engine']}, {c['lengths']}", [])
            line.append((batch, c["tokens_per_second"]))
            floor = lines.setdefault(f"floor, {c['lengths']}", [])
            floor.append((batch, c["mean_length"] * batch / c["floors"]["overlapped"]))
        for name, points in lines.items():
            x, y = zip(*sorted(dict(points).items()), strict=True)  # engines have one floor
            axis.plot(x, y, "--" if name.startswith("floor") else "o-", markersize=3, label=name)
        _log(axis, {c["workload"]["batch"] for c in cells})
        axis.set_title(
            f"{found['model']}, {response} new tokens", fontsize=9, color=INK, loc="left"
        )
        axis.set_xlabel("batch", fontsize=8, color=INK)
        axis.set_ylabel("tokens/s", fontsize=8, color=INK)
        axis.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(out, dpi=110)
    return out.name


def _series(steps: list[Found], changed: str) -> dict[str, list[Found]]:
    """Measurements that differ in `changed` alone, by what they share; two points or more."""
    found: dict[str, list[Found]] = {}
    other = {"batch": "response", "response": "batch"}[changed]
    for step in steps:
        w = step["workload"]
        lengths = "fixed" if w["mean_length"] is None else "geometric"
        name = f"{w['name']}, {engine_of(step)}, {other} {w[other]}, {lengths}"
        if any("passes" in word for word in step["options"]):
            continue  # another way to compute, not another size
        found.setdefault(name, []).append(step)
    several = {k: v for k, v in found.items() if len({s["workload"][changed] for s in v}) > 1}
    return {k: sorted(v, key=lambda s: s["workload"][changed]) for k, v in several.items()}


def _costs(costs: dict[str, dict[str, list[Found]]], out: Path) -> str:
    shown = {name: series for name, series in costs.items() if series}
    figure, axes = _panels(len(shown), 4.6)
    words = {"batch": "batch", "response": "response length (at most)"}
    for axis, (name, series) in zip(axes, shown.items(), strict=True):
        for (title, steps), colour in zip(series.items(), COLOURS * 3, strict=False):
            x = [step["workload"][name] for step in steps]
            rows = [step["workload"]["batch"] for step in steps]
            y = [1e3 * s["seconds"] / n for s, n in zip(steps, rows, strict=True)]
            floor = [1e3 * floor_of(s) / n for s, n in zip(steps, rows, strict=True)]
            axis.plot(x, y, "o-", markersize=3, color=colour, label=title)
            axis.plot(x, floor, "--", color=colour, linewidth=1)
        _log(axis, {s["workload"][name] for steps in series.values() for s in steps})
        axis.set_xlabel(words[name], fontsize=8, color=INK)
        axis.set_ylabel("ms a sample (dashed: floor)", fontsize=8, color=INK)
        axis.legend(fontsize=7, frameon=False)
    return _save(figure, axes[0], out)


def _steady(runs: list[Found], out: Path) -> str:
    """Every update's seconds and memory (on a GPU what the allocator holds)."""
    figure, axes = _panels(2, 4.6)
    for found, colour in zip(runs, COLOURS * 3, strict=False):
        updates, title = found["updates"], label(found).replace("`", "")
        memory = updates.get("reserved", updates["resident"])
        across = range(1, len(memory) + 1)
        axes[0].plot(across, updates["seconds"], ".", markersize=2, color=colour, label=title)
        axes[1].plot(across, [n / 1e9 for n in memory], color=colour, label=title)
    slowest = max(max(found["updates"]["seconds"][WARM_UP:]) for found in runs)
    memory_shown = "GB (on a GPU reserved, else resident)"
    for axis, what in zip(axes, ("seconds an update", memory_shown), strict=True):
        axis.set_xlabel("update", fontsize=8, color=INK)
        axis.set_ylabel(what, fontsize=8, color=INK)
        axis.set_ylim(bottom=0)
    axes[0].set_ylim(top=1.1 * slowest)  # compilation and captures take seconds, once
    return _save(figure, axes[1], out)
