"""All experiments, many jobs side by side: train, judge, tune, compare.

    python scripts/experiments/run.py --out runs/experiments --peer-path FOLDER [--workers 2]
        [--gpus 4 --workers 24]

FOLDER holds trl==1.12.0 (`pip install --no-deps --target FOLDER trl==1.12.0`); without it the peer
is left out. With --gpus, PPO (ours and the peer's) runs on GPUs; stages 1 and 2 and the judge stay
on the CPU. A finished job is not run again, so a run that was stopped goes on where it was. Both
sides try RATES on seed 0 at the demo's kl_coef, and take the one with the best objective (score -
kl_coef * KL, mean over the last five updates of training) into the frontier. At the end, or when
--stop-after seconds are over, what is finished is gathered in OUT/experiments.json.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from scripts.experiments.plan import (
    BEST_OF,
    CPU,
    KL_COEFS,
    RATES,
    SEEDS,
    Variant,
    best_of,
    chain,
    ours,
    peer,
    ppo,
    variants,
)
from scripts.jobs import Job, run_all

KL_COEF = 0.1
"""The demo's, at which learning rates are compared."""
LAST = 5
"""Updates over which they are."""


def objective(metrics: Path) -> float:
    """Mean of score - kl_coef * KL over the last updates of a run."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    values = [row["score"] - KL_COEF * row["kl"] for row in rows[-LAST:]]
    return sum(values) / len(values)


def tuning(out: Path, variables: dict[str, str] | None) -> list[Job]:
    """Every rate on seed 0, for us and for the peer."""
    jobs = []
    for rate in RATES:
        ours_ = Variant(f"rate-{rate:g}", "tuning", ppo(actor_learning_rate=rate))
        jobs += ours(out, 0, ours_)[:1]
        if variables is not None:
            words = ("--learning-rate", str(rate), "--kl-coef", str(KL_COEF))
            jobs += peer(out, 0, f"trl-rate-{rate:g}", words, variables, sys.executable)[:1]
    return jobs


def best_rates(out: Path) -> dict[str, float]:
    """Of us ("ours") and of the peer ("trl"), as far as either has tried any."""
    folder = out / "seed0"
    files = {
        "ours": {r: folder / f"rate-{r:g}" / "ppo" / "metrics.jsonl" for r in RATES},
        "trl": {r: folder / f"trl-rate-{r:g}" / "metrics.jsonl" for r in RATES},
    }
    found = {
        side: {rate: objective(file) for rate, file in tried.items() if file.is_file()}
        for side, tried in files.items()
    }
    (out / "tuning.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    return {side: max(values, key=values.__getitem__) for side, values in found.items() if values}


def frontier(out: Path, variables: dict[str, str] | None) -> list[Job]:
    """Every price of KL and seed at the best rates, for us and for the peer."""
    rates = best_rates(out)
    jobs = []
    for seed in SEEDS:
        for coef in KL_COEFS:
            if "ours" in rates:
                words = ppo(kl_coef=coef, actor_learning_rate=rates["ours"])
                jobs += ours(out, seed, Variant(f"frontier-{coef:g}", "frontier", words))
            if variables is not None and "trl" in rates:
                told = ("--learning-rate", str(rates["trl"]), "--kl-coef", str(coef))
                jobs += peer(out, seed, f"trl-{coef:g}", told, variables, sys.executable)
    return jobs


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Run the experiments.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--peer-path", type=Path, help="folder that holds trl 1.12.0")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="jobs at a time")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to spread PPO over; 0: the CPU")
    parser.add_argument("--stop-after", type=float, default=86400, help="seconds for the jobs")
    args = parser.parse_args(argv)
    out = args.out.resolve()
    deadline = time.monotonic() + args.stop_after
    if not args.gpus:
        os.environ |= dict(CPU)
    here = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [here, os.environ.get("PYTHONPATH", "")])
    )
    variables = None
    if args.peer_path:
        paths = [str(args.peer_path.resolve()), os.environ["PYTHONPATH"]]
        variables = {"PYTHONPATH": os.pathsep.join(paths)}
    first = [*chain(out), *tuning(out, variables)]
    for variant in variants():
        for seed in variant.seeds:
            first += ours(out, seed, variant)
    first += [best_of(out, seed, n) for seed in SEEDS for n in (1, *BEST_OF)]
    place = (out / "logs", args.workers, deadline, max(1, args.gpus))
    unfinished = run_all(first, *place)
    unfinished += run_all(frontier(out, variables), *place)
    script = Path(__file__).with_name("figures.py")
    subprocess.run([sys.executable, str(script), "--out", str(out)], check=True)
    if unfinished:
        names = ", ".join(job.name for job in unfinished)
        raise UserError(f"not finished: {names} (see {out / 'logs'}).")


if __name__ == "__main__":
    guarded(main)
