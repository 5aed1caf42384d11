"""Draw a PPO run: score, KL, entropy and reply length over the updates.

    python scripts/plot_run.py runs/demo/ppo/metrics.jsonl docs/demo.png [--title TEXT]

Needs matplotlib (`pip install -e .[plot]`).
"""

import argparse
import json
import sys
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded

PANELS = {
    "score": "score (calibrated reward)",
    "kl": "KL from the reference (nats a reply)",
    "entropy": "entropy (nats a token)",
    "response_length": "reply length (tokens)",
}
INK, LINE = "#333333", "#2a6f97"


def draw(metrics: Path, out: Path, title: str) -> None:
    """Write a picture of the metrics file `metrics` to `out`."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    steps = [row["step"] for row in rows]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(13, 2.9), constrained_layout=True)
    for axis, (name, label) in zip(axes, PANELS.items(), strict=True):
        axis.plot(steps, [row[name] for row in rows], color=LINE, linewidth=1.8)
        axis.set_title(label, fontsize=10, color=INK, loc="left")
        axis.set_xlabel("update", fontsize=9, color=INK)
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8, colors=INK)
    figure.suptitle(title, fontsize=11, color=INK, x=0.01, ha="left")
    figure.savefig(out, dpi=110)


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Draw a PPO run.")
    parser.add_argument("metrics", type=Path, help="metrics.jsonl of a ppo folder")
    parser.add_argument("out", type=Path, help="picture to write, .png or .svg")
    parser.add_argument("--title", default="PPO", help="line above the picture")
    arguments = parser.parse_args(argv)
    if not arguments.metrics.is_file():
        raise UserError(f"{arguments.metrics}: there is no such file.")
    if find_spec("matplotlib") is None:
        raise UserError("matplotlib is not installed: pip install -e .[plot]")
    draw(arguments.metrics, arguments.out, arguments.title)


if __name__ == "__main__":
    guarded(main)
