"""Every figure of a finished run in one place: OUT/figures.json and, to read, OUT/figures.txt.

Reads the stages' stage.json, ppo/held_out_samples.jsonl and, where there is one, baselines.json.
The ten pairs shown are the first ten held-out prompts, not a choice.

    python scripts/figures.py runs/polite
"""

import itertools
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from scripts.baselines import wilson

PAIRS = 10


def collect(run: Path) -> dict[str, Any]:
    """The figures of the run in folder `run`; UserError names a stage that is missing."""
    stages = {name: _record(run / name / "stage.json") for name in ("sft", "reward", "ppo")}
    reward, ppo = stages["reward"]["metrics"], stages["ppo"]["metrics"]
    if not reward["pairs"] or "before" not in ppo:
        raise UserError(f"{run}: nothing was held out (data.test_fraction, ppo.eval_prompts).")
    low, high = wilson(reward["accuracy"], reward["pairs"])
    baselines = run / "baselines.json"
    lines = (run / "ppo" / "held_out_samples.jsonl").read_text(encoding="utf-8").splitlines()
    return {
        "hardware": _hardware(),
        "seconds": {name: record["seconds"] for name, record in stages.items()},
        "sft": stages["sft"]["metrics"],
        "reward": {**reward, "low": low, "high": high},
        "baselines": json.loads(baselines.read_text(encoding="utf-8"))
        if baselines.is_file()
        else None,
        "ppo": ppo,
        "samples": [_pair(json.loads(line)) for line in lines[:PAIRS]],
        "versions": stages["ppo"]["versions"],
        "config": stages["ppo"]["config"],
    }


def _pair(row: dict[str, Any]) -> dict[str, Any]:
    """A row of held_out_samples.jsonl without the token ids."""
    sides = {when: row[when] for when in ("before", "after")}
    return {
        "prompt": row["prompt"],
        **{when: {k: side[k] for k in ("text", "score", "kl")} for when, side in sides.items()},
    }


def _record(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f"{path}: no such file; run this stage first.")
    return json.loads(path.read_text(encoding="utf-8"))


def _hardware() -> str:
    """The first GPU's name, or the processor's architecture, of the machine this runs on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"CPU {platform.machine()}, {os.cpu_count()} cores"


def render(figures: dict[str, Any]) -> str:
    """The figures as text."""
    reward, ppo, seconds = figures["reward"], figures["ppo"], figures["seconds"]
    lines = [
        f"hardware  {figures['hardware']}",
        "seconds   " + "  ".join(f"{name} {value:.0f}" for name, value in seconds.items()),
        f"sft       held-out loss {figures['sft']['test_loss_before']:.3f} -> "
        f"{figures['sft']['test_loss']:.3f} nats a token",
        "",
        f"pairwise accuracy on {reward['pairs']} held-out pairs (95% interval)",
        f"  reward model      {_share(reward)}",
    ]
    if figures["baselines"] is not None:
        lines += [
            f"  TF-IDF            {_share(figures['baselines']['tfidf'])}",
            f"  longer reply wins {_share(figures['baselines']['longer'])}",
        ]
    lines += ["", f"PPO, {ppo['updates']} updates, on {ppo['before']['prompts']} held-out prompts"]
    for when in ("before", "after"):
        s = ppo[when]
        lines.append(
            f"  {when:<7} score {s['score']:+.3f} +- {s['score_interval']:.3f}   "
            f"kl {s['kl']:.3f} +- {s['kl_interval']:.3f} nats a reply   "
            f"length {s['length']:.1f}   ended {s['ended']:.1%}"
        )
    return "\n".join([*lines, "", *_samples(figures["samples"])]) + "\n"


def _share(result: dict[str, float]) -> str:
    return f"{result['accuracy']:.3f}  [{result['low']:.3f}, {result['high']:.3f}]"


def _samples(samples: list[dict[str, Any]]) -> list[str]:
    """Prompts without what the template puts around all of them, each with its two replies."""
    prompts = [sample["prompt"] for sample in samples]
    shared = prompts[0][: _equal_characters(prompts)]
    head = shared.rfind("\n") + 1  # a template's line, and no part of a word
    tail = _equal_characters([prompt[head:][::-1] for prompt in prompts])
    lines = []
    for sample, prompt in zip(samples, prompts, strict=True):
        lines.append(f"prompt  {prompt[head : len(prompt) - tail].strip()}")
        for when in ("before", "after"):
            side = sample[when]
            lines.append(f"{when:<7} {side['score']:+.2f}  {side['text'].strip()}")
        lines.append("")
    return lines


def _equal_characters(texts: list[str]) -> int:
    """Characters that all texts begin with."""
    columns = zip(*texts, strict=False)
    return len(list(itertools.takewhile(lambda column: len(set(column)) == 1, columns)))


def main(argv: list[str]) -> None:
    """Command line: the run's folder."""
    if len(argv) != 1:
        raise UserError("usage: python scripts/figures.py RUN, RUN being the stages' output_dir.")
    run = Path(argv[0])
    figures = collect(run)
    text = json.dumps(figures, indent=2, ensure_ascii=False)
    (run / "figures.json").write_text(text + "\n", encoding="utf-8")
    (run / "figures.txt").write_text(render(figures), encoding="utf-8")
    print(render(figures))


if __name__ == "__main__":
    guarded(main)
