"""Gather the experiments' results into one file: OUT/experiments.json.

    python research/experiments/figures.py --out runs/experiments

Per run: what research/experiments/judge.py found on the held-out prompts, and the training curves.
Over seeds: mean and 95% interval by Student's t.
"""

import argparse
import json
import math
import platform
import sys
from collections.abc import Collection
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from research.experiments.peer_trl import RELEASE
from research.experiments.plan import BEST_OF, KL_COEF, KL_COEFS, SEEDS, variants

T95 = {2: 12.71, 3: 4.30, 4: 3.18, 5: 2.78}
"""Student's t, 97.5%, by number of seeds."""
MEASURES = ("gold", "score", "kl", "length", "ended", "repetition", "distinct_1", "distinct_2")
CURVES = ("score", "kl", "score_gold", "response_length", "entropy", "ended")
"""Of these, what a run logged: TRL's has no `ended`."""
PACKAGES = ("torch", "transformers", "trl")


def over_seeds(values: list[float]) -> dict[str, Any]:
    """Mean, half-width of the 95% interval (None for a single seed) and the values."""
    mean = sum(values) / len(values)
    half = None
    if len(values) > 1:
        spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
        half = round(T95[len(values)] * spread / math.sqrt(len(values)), 4)
    return {"mean": round(mean, 4), "half": half, "seeds": [round(v, 4) for v in values]}


def judged(files: dict[int, Path]) -> dict[str, Any] | None:
    """Each measure over the seeds whose file is there; None if none is.

    `halves`: of each seed, the half-width of its own interval, over the prompts.
    """
    found = {seed: json.loads(f.read_text("utf-8")) for seed, f in files.items() if f.is_file()}
    if not found:
        return None
    result: dict[str, Any] = {"seeds": sorted(found)}
    for name in MEASURES:
        each = [found[seed][name] for seed in sorted(found)]
        halves = [one["half"] for one in each]
        result[name] = over_seeds([one["mean"] for one in each]) | {"halves": halves}
    result["samples"] = next(iter(found.values()))["samples"][:4]
    return result


def of_seeds(run: dict[str, Any], seeds: Collection[int]) -> dict[str, Any]:
    """A judged run as if it had been run with these seeds alone; curves and samples as they are."""
    kept = [i for i, seed in enumerate(run["seeds"]) if seed in seeds]
    result = run | {"seeds": [run["seeds"][i] for i in kept]}
    for name in MEASURES:
        halves = [run[name]["halves"][i] for i in kept]
        result[name] = over_seeds([run[name]["seeds"][i] for i in kept]) | {"halves": halves}
    return result


def curve(file: Path) -> dict[str, list[float]] | None:
    """What a run logged at each update."""
    if not file.is_file():
        return None
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    return {n: [round(r[n], 4) for r in rows] for n in CURVES if all(n in r for r in rows)}


def entry(out: Path, name: str, metrics: str) -> dict[str, Any] | None:
    """Judgement and curves of the runs `name` of all seeds."""
    result = judged({seed: out / f"seed{seed}" / name / "judged.json" for seed in SEEDS})
    if result is None:
        return None
    curves = {seed: curve(out / f"seed{seed}" / name / metrics) for seed in result["seeds"]}
    return result | {"curves": {str(seed): c for seed, c in curves.items() if c}}


def hardware() -> str:
    """The processor, by its own name where the system tells, and the GPUs."""
    import torch

    info = Path("/proc/cpuinfo")
    names = {
        line.partition(":")[2].strip()
        for line in (info.read_text("utf-8").splitlines() if info.is_file() else [])
        if line.startswith("model name")
    }
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return ", ".join([*(sorted(names) or [platform.machine()]), *sorted(set(gpus))])


def machine() -> dict[str, Any]:
    """What this runs on."""
    return {"hardware": hardware(), "versions": {name: version(name) for name in PACKAGES}}


def frontier(out: Path, setting: str) -> dict[str, dict[str, Any]]:
    """By side and price of KL, at one rate and schedule."""
    found = {}
    for side, prefix, metrics in (
        ("ours", "frontier", "ppo/metrics.jsonl"),
        ("trl", "trl", "metrics.jsonl"),
    ):
        runs = {f"{c:g}": entry(out, f"{prefix}-{setting}-{c:g}", metrics) for c in KL_COEFS}
        found[side] = {coef: run for coef, run in runs.items() if run}
    return found


def peer(out: Path, setting: str | None) -> dict[str, Any]:
    """The peer's release, and of one of its runs all settings and versions."""
    found = {"release": RELEASE}
    record = out / "seed0" / f"trl-{setting}-{KL_COEF:g}" / "peer.json"
    if setting is None or not record.is_file():
        return found
    run = json.loads(record.read_text("utf-8"))
    settings = {name: value for name, value in run["settings"].items() if name != "output_dir"}
    return found | {"versions": run["versions"], "settings": settings}


def gather(out: Path) -> dict[str, Any]:
    """Everything that is there; UserError for a folder that run.py did not write."""
    if not (out / "machine.json").is_file():
        raise UserError(
            f"--out {out}: there is no machine.json in it; give the folder that "
            "research/experiments/run.py wrote."
        )
    runs = {v.name: entry(out, v.name, "ppo/metrics.jsonl") for v in variants()}
    groups = {v.name: v.group for v in variants()}
    tuning = out / "tuning.json"
    tuned = json.loads(tuning.read_text("utf-8")) if tuning.is_file() else {}
    chosen = {side: max(values, key=values.__getitem__) for side, values in tuned.items() if values}
    best = {
        str(n): judged({s: out / f"seed{s}" / f"best-of-{n}.json" for s in SEEDS})
        for n in (1, *BEST_OF)
    }
    return {
        **json.loads((out / "machine.json").read_text("utf-8")),
        "tuning": tuned,
        "chosen": chosen,
        "peer": peer(out, chosen.get("trl")),
        "groups": groups,
        "runs": {name: value for name, value in runs.items() if value},
        "frontier": {setting: frontier(out, setting) for setting in sorted(set(chosen.values()))},
        "best_of": {n: value for n, value in best.items() if value},
    }


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Gather the experiments' results.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs")
    args = parser.parse_args(argv)
    result = gather(args.out)
    place = args.out / "experiments.json"
    place.write_text(json.dumps(result, allow_nan=False) + "\n", encoding="utf-8")
    print(f"wrote {place}: {len(result['runs'])} variants")


if __name__ == "__main__":
    guarded(main)
