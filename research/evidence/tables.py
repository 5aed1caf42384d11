"""Put the figures into docs/evidence.md: tables between its marks, and docs/evidence/ppo.png.

    python research/evidence/tables.py [FIGURES.json]      default: docs/evidence/figures.json

Needs matplotlib (`pip install -e .[plot]`).
"""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from research.pages import fill

DOCS = Path(__file__).resolve().parents[2] / "docs"
INK, COLOURS = "#333333", ("#2a6f97", "#c8553d", "#588157")
MEASURES = {
    "score": "score of the reward model that PPO saw",
    "judge": "score of the judge",
    "kl": "KL from the stage-1 model, nats a reply",
    "tokens": "reply length, tokens",
}


def render(figures: dict[str, Any]) -> str:
    """All tables as Markdown."""
    versions = ", ".join(f"{k} {v}" for k, v in figures["versions"].items())
    parts = [f"{figures['hardware']}; {versions}.", _accuracy(figures["sets"])]
    for name, facts in figures["sets"].items():
        if facts["ppo"]:
            parts.append(_changes(name, facts["ppo"]))
            if facts["ppo"]["samples"]:
                parts.append(_samples(name, facts["ppo"]["samples"]))
    parts.append(_times(figures["sets"]))
    return "\n\n".join(parts) + "\n"


def _accuracy(sets: dict[str, Any]) -> str:
    lines = [
        "Pairwise accuracy on held-out pairs, 95% intervals; the reward model's is the mean over "
        "the seeds, with their number and each seed's own accuracy beside it:",
        "",
        "| | pairs (train, held out) | held-out prompts | reward model | seeds | TF-IDF | longer "
        "wins |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, facts in sets.items():
        pairs = facts["pairs"]
        reward = pairs.get("reward")
        own = f"{len(reward['seeds'])}: {_by_seed(reward['seeds'], _short)}" if reward else "-"
        cells = [
            name,
            f"{pairs['train_pairs']}, {pairs['test_pairs']}",
            str(pairs["test_prompts"]),
            f"**{_interval(reward['all'], _short)}**" if reward else "-",
            own,
            _interval(pairs["tfidf"], _short),
            _interval(pairs["longer"], _short),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    halves = [
        f"{name} {_interval(facts['pairs'][half]['all'], _short)} "
        f"({who}, {_count(facts['pairs'][half]['seeds'])})"
        for name, facts in sets.items()
        for half, who in (("half_a", "PPO's"), ("half_b", "judge"))
        if half in facts["pairs"]
    ]
    gains = [
        f"{name} {_interval(gain['tfidf'], _points)} and {_interval(gain['longer'], _points)}"
        for name, facts in sets.items()
        if (gain := facts["pairs"].get("gain"))
    ]
    if gains:
        lines += [
            "",
            "Reward model less TF-IDF, and less the longer reply, on the same pairs: "
            + "; ".join(gains)
            + ".",
        ]
    if halves:
        lines += ["", "Reward models on half of the pairs each: " + "; ".join(halves) + "."]
    return "\n".join(lines)


def _changes(name: str, ppo: dict[str, Any]) -> str:
    seeds = ppo["score"]["change"]["seeds"]
    over = f"means over {len(seeds)} seeds with 95% intervals"
    if len(seeds) == 1:
        over = "one seed, so the 95% intervals are of the prompts alone"
    lines = [
        f"PPO on {name}: one sampled reply to each of {ppo['prompts']} held-out prompts, {over}:",
        "",
        f"| {_count(seeds)} | before | after | change | change by seed |",
        "|---|---|---|---|---|",
    ]
    for key, label in MEASURES.items():
        measure = ppo[key]
        own = _by_seed(measure["change"]["seeds"], _signed)
        form = _signed if key in ("score", "judge") else _plain
        cells = [_interval(measure[side]["all"], form) for side in ("before", "after")]
        cells.append(_interval(measure["change"]["all"], _signed))
        lines.append(f"| {label} | " + " | ".join(cells) + f" | {own} |")
    own = _by_seed(ppo["preferred"]["seeds"], _short)
    after = _interval(ppo["preferred"]["all"], _short)
    lines.append(f"| prompts where the judge prefers the reply after | | {after} | | {own} |")
    return "\n".join(lines)


def _times(sets: dict[str, Any]) -> str:
    """A half's reward model is a stage of its own: it has half of the pairs."""
    lines = ["Seconds a stage with other stages beside it on the same GPU:", ""]
    names = {"sft": "stage 1", "reward": "stage 2", "half": "stage 2 on half", "ppo": "stage 3"}
    for name, facts in sets.items():
        by_stage: dict[str, list[float]] = {}
        for key, value in facts["seconds"].items():
            _, run, stage = key.split(".")
            by_stage.setdefault("half" if stage == "reward" and "-" in run else stage, []).append(
                value
            )
        spans = [
            f"{label} {min(by_stage[stage]):.0f} to {max(by_stage[stage]):.0f} "
            f"({len(by_stage[stage])} run{'s' * (len(by_stage[stage]) > 1)})"
            for stage, label in names.items()
            if stage in by_stage
        ]
        lines.append(f"- {name}: " + ", ".join(spans))
    return "\n".join(lines)


def _interval(estimate: dict[str, float], form: Any) -> str:
    return f"{form(estimate['value'])} [{form(estimate['low'])}, {form(estimate['high'])}]"


def _by_seed(seeds: dict[str, Any], form: Any) -> str:
    return " ".join(form(estimate["value"]) for estimate in seeds.values())


def _count(seeds: dict[str, Any]) -> str:
    return f"{len(seeds)} seed{'s' * (len(seeds) > 1)}"


def _points(value: float) -> str:
    """+.025: a difference of shares."""
    return f"{value:+.3f}".replace("0.", ".", 1)


def _short(value: float) -> str:
    """.976; 1.000 keeps its one."""
    return f"{value:.3f}".removeprefix("0")


def _signed(value: float) -> str:
    return f"{value:+.2f}"


def _plain(value: float) -> str:
    return f"{value:.1f}"


def _samples(name: str, samples: list[dict[str, Any]]) -> str:
    lines = [
        f"The first {len(samples)} held-out prompts of {name} (no choice), seed 0; in brackets the "
        "scores of PPO's reward model and of the judge:",
        "",
        "| prompt | before | after |",
        "|---|---|---|",
    ]
    for sample in samples:
        cells = [sample["prompt"]]
        for side in ("before", "after"):
            reply = sample[side]
            scores = f"({_signed(reply['score'])}, {_signed(reply['judge'])})"
            cells.append(f"{reply['text']} {scores}")
        row = " | ".join(" / ".join(cell.split("\n")).replace("|", "\\|") for cell in cells)
        lines.append(f"| {row} |")
    return "\n".join(lines)


def draw(figures: dict[str, Any], out: Path) -> None:
    """Score and KL of the training replies over the updates, one line a seed."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    sets = {name: facts["ppo"] for name, facts in figures["sets"].items() if facts["ppo"]}
    if not sets:
        return
    panels = {"score": "score (calibrated)", "kl": "KL (nats a reply)"}
    figure, axes = plt.subplots(
        len(sets), 2, figsize=(9, 2.7 * len(sets)), constrained_layout=True, squeeze=False
    )
    for row, (name, ppo) in zip(axes, sets.items(), strict=True):
        for axis, (key, label) in zip(row, panels.items(), strict=True):
            for (seed, curve), colour in zip(ppo["curves"].items(), COLOURS, strict=False):
                if not curve[key]:
                    continue  # its record is missing
                steps = range(1, len(curve[key]) + 1)
                axis.plot(steps, curve[key], color=colour, linewidth=1.5, label=f"seed {seed}")
            axis.set_title(f"{name}: {label}", fontsize=10, color=INK, loc="left")
            axis.xaxis.get_major_locator().set_params(integer=True)
            axis.set_xlabel("update", fontsize=9, color=INK)
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            axis.tick_params(labelsize=8, colors=INK)
    axes[0][0].legend(fontsize=8, frameon=False)
    figure.savefig(out, dpi=110)


def main(argv: list[str]) -> None:
    """Command line."""
    kept = DOCS / "evidence" / "figures.json"
    source = Path(argv[0]) if argv else kept
    if len(argv) > 1 or not source.is_file():
        raise UserError(f"usage: python research/evidence/tables.py [FIGURES.json]; no {source}.")
    kept.parent.mkdir(exist_ok=True)
    if source.resolve() != kept.resolve():
        shutil.copyfile(source, kept)
    figures = json.loads(kept.read_text(encoding="utf-8"))
    page = DOCS / "evidence.md"
    places = {"tables": render(figures)}
    filled = fill(page.read_text(encoding="utf-8"), places, "docs/evidence.md")
    page.write_text(filled, encoding="utf-8")
    draw(figures, kept.with_name("ppo.png"))


if __name__ == "__main__":
    guarded(main)
