"""Sum up an evidence run: OUT/scores.json and the stages' records become OUT/figures.json.

    python research/evidence/figures.py --out OUT

What is unfinished is left out. OUT/figures.md has the tables of docs/evidence.md.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from research.evidence.plan import SEEDS, SETS
from research.evidence.seeds import over_seeds
from research.evidence.tables import render
from scripts.evaluation.stats import average, share, wins

SAMPLES = 8
"""Held-out prompts shown, the first ones."""
SHOWN = ("polite",)
"""Sets with samples; those of hh_harmless are offensive."""
MEASURES = ("score", "judge", "kl", "tokens")


def collect(out: Path) -> dict[str, Any]:
    """All figures of the run in `out`; UserError if nothing has been scored."""
    path = out / "scores.json"
    if not path.is_file():
        raise UserError(f"{path}: no such file; run research/evidence/score.py first.")
    scores = json.loads(path.read_text(encoding="utf-8"))
    records = _records(out)
    sets = {}
    for name in SETS:
        if name not in scores["pairs"]:
            continue
        sets[name] = {
            "sft": _losses(records, name),
            "pairs": accuracies(scores["pairs"][name]),
            "ppo": None,
            "seconds": {k: r["seconds"] for k, r in records.items() if k.startswith(f"{name}.")},
        }
        if runs := scores["replies"].get(name):
            sets[name]["ppo"] = {
                **changes(runs),
                "curves": {seed: _curve(out, name, seed) for seed in runs},
                "samples": _samples(out, name, runs) if name in SHOWN else [],
            }
    return {
        "hardware": scores["hardware"],
        "versions": next(iter(records.values()))["versions"],
        "sets": sets,
    }


def accuracies(pairs: dict[str, Any]) -> dict[str, Any]:
    """Pairwise accuracy of the reward models and both baselines on one set's held-out pairs.

    `gain`: the reward model's outcome less each baseline's, on the same pairs.
    """
    clusters = pairs["clusters"]
    result: dict[str, Any] = {
        "train_pairs": pairs["train_pairs"],
        "test_pairs": len(clusters),
        "test_prompts": len(set(clusters)),
        "tfidf": asdict(share(pairs["tfidf"], clusters)),
        "longer": asdict(share(pairs["longer"], clusters)),
    }
    for name, end in (("reward", ""), ("half_a", "-a"), ("half_b", "-b")):
        runs = {
            s: pairs["runs"][f"seed{s}{end}"] for s in SEEDS if f"seed{s}{end}" in pairs["runs"]
        }
        if runs:
            result[name] = {
                "all": asdict(over_seeds(list(runs.values()), clusters, "share")),
                "seeds": {str(s): asdict(share(run, clusters)) for s, run in runs.items()},
            }
            for base in ("tfidf", "longer") if name == "reward" else ():
                gains = [_less(run, pairs[base]) for run in runs.values()]
                result.setdefault("gain", {})[base] = asdict(over_seeds(gains, clusters, "average"))
    return result


def changes(runs: dict[str, Any]) -> dict[str, Any]:
    """Before, after and change of each measure on the held-out replies of PPO, over the seeds.

    `preferred`: share of prompts whose reply after PPO the judge scores above the one before.
    """
    clusters = next(iter(runs.values()))["clusters"]
    if any(run["clusters"] != clusters for run in runs.values()):
        raise UserError("the seeds' held-out prompts differ, so they cannot be averaged by prompt.")

    def both(values: dict[str, list[float]], of: str) -> dict[str, Any]:
        own = {"share": share, "average": average}[of]
        return {
            "all": asdict(over_seeds(list(values.values()), clusters, of)),
            "seeds": {seed: asdict(own(column, clusters)) for seed, column in values.items()},
        }

    result: dict[str, Any] = {"prompts": len(clusters)}
    for name in MEASURES:
        values = {seed: _columns(run, name) for seed, run in runs.items()}
        result[name] = {
            side: both({seed: columns[side] for seed, columns in values.items()}, "average")
            for side in ("before", "after", "change")
        }
    gains = {seed: _columns(run, "judge")["change"] for seed, run in runs.items()}
    result["preferred"] = both({seed: wins(gain) for seed, gain in gains.items()}, "share")
    return result


def _columns(run: dict[str, Any], name: str) -> dict[str, list[float]]:
    before, after = run["before"][name], run["after"][name]
    return {"before": before, "after": after, "change": _less(after, before)}


def _less(values: list[float], others: list[float]) -> list[float]:
    return [a - b for a, b in zip(values, others, strict=True)]


def _records(out: Path) -> dict[str, Any]:
    """stage.json by `set.run.stage`; a half's sft is a link to the whole's."""
    return {
        ".".join(path.relative_to(out).parts[:3]): json.loads(path.read_text(encoding="utf-8"))
        for path in sorted(out.glob("*/*/*/stage.json"))
        if not path.parent.is_symlink()
    }


def _losses(records: dict[str, Any], name: str) -> dict[str, list[float]]:
    """Held-out loss of stage 1, nats a token, one entry a seed."""
    own = [r["metrics"] for k, r in records.items() if k.startswith(name) and k.endswith(".sft")]
    return {
        "before": [metrics["test_loss_before"] for metrics in own],
        "after": [metrics["test_loss"] for metrics in own],
    }


def _curve(out: Path, name: str, seed: str) -> dict[str, list[float]]:
    """Score and KL of the training replies at each update; no points if there is no record."""
    rows = _lines(out / name / f"seed{seed}-a" / "ppo" / "metrics.jsonl")
    return {key: [round(row[key], 4) for row in rows] for key in ("score", "kl")}


def _samples(out: Path, name: str, runs: dict[str, Any]) -> list[dict[str, Any]]:
    """The first held-out prompts, not a choice, with both replies and both scores."""
    seed = next(iter(runs))
    rows = _lines(out / name / f"seed{seed}-a" / "ppo" / "held_out_samples.jsonl")
    run, samples = runs[seed], []
    for i, row in enumerate(rows[:SAMPLES]):
        sample: dict[str, Any] = {"prompt": run["clusters"][i]}
        for side in ("before", "after"):
            judged = round(run[side]["judge"][i], 2)
            score = round(row[side]["score"], 2)
            sample[side] = {"text": row[side]["text"].strip(), "score": score, "judge": judged}
        samples.append(sample)
    return samples


def _lines(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSONL file; none if a copied run came without it."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Sum up what an evidence run has scored.")
    parser.add_argument("--out", type=Path, required=True)
    args, _ = parser.parse_known_args(argv)
    figures = collect(args.out)
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    (args.out / "figures.json").write_text(text + "\n", encoding="utf-8")
    (args.out / "figures.md").write_text(render(figures), encoding="utf-8")
    print(render(figures))


if __name__ == "__main__":
    guarded(main)
