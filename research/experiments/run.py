"""All experiments, many jobs side by side: train, judge, tune, compare.

    python research/experiments/run.py --out runs/experiments --peer-path FOLDER [--workers 2]
        [--gpus 4 --workers 24]

FOLDER holds trl==1.12.0 (`pip install --no-deps --target FOLDER trl==1.12.0`); without it the peer
is left out. With --gpus, PPO (ours and the peer's) runs on GPUs; stages 1 and 2 and the judge stay
on the CPU. A finished job is not run again, so a run that was stopped goes on where it was. Both
sides try RATES and SCHEDULES on seed 0 at the demo's kl_coef, and take the pair with the best
objective (score less missing-EOS penalty - kl_coef * KL, mean over training) into the frontier. At
the end, or when --stop-after seconds are over, what is finished is gathered in
OUT/experiments.json.
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
from research.experiments.figures import machine
from research.experiments.objective import gained
from research.experiments.peer_trl import RELEASE
from research.experiments.plan import (
    BEST_OF,
    CPU,
    KL_COEF,
    KL_COEFS,
    RATES,
    SCHEDULES,
    SEEDS,
    Variant,
    best_of,
    chain,
    ours,
    peer,
    ppo,
    variants,
)
from research.jobs import Job, run_all


def objective(metrics: Path) -> float:
    """Mean over all updates of what PPO maximises, so that learning sooner counts too."""
    rows = [json.loads(line) for line in metrics.read_text(encoding="utf-8").splitlines()]
    return sum(gained(row, KL_COEF) for row in rows) / len(rows)


def tried() -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """What is tried on seed 0: words of the command line for us and for the peer, by name."""
    return {
        f"rate-{rate:g}-{schedule}": (
            ppo(actor_learning_rate=rate, lr_schedule=schedule),
            ("--learning-rate", str(rate), "--set", f"lr_scheduler_type={schedule}"),
        )
        for rate in RATES
        for schedule in SCHEDULES
    }


def tuning(out: Path, variables: dict[str, str] | None) -> list[Job]:
    """Everything tried, for us and for the peer."""
    jobs = []
    for name, (words, theirs) in tried().items():
        jobs += ours(out, 0, Variant(name, "tuning", words))[:1]
        if variables is not None:
            told = ("--kl-coef", str(KL_COEF), *theirs)
            jobs += peer(out, 0, f"trl-{name}", told, variables, sys.executable)[:1]
    return jobs


def best(out: Path) -> dict[str, str]:
    """The name of the best tried by us ("ours") and by the peer ("trl"), as far as either has."""
    folder = out / "seed0"
    files = {
        "ours": {name: folder / name / "ppo" / "metrics.jsonl" for name in tried()},
        "trl": {name: folder / f"trl-{name}" / "metrics.jsonl" for name in tried()},
    }
    found = {
        side: {name: objective(file) for name, file in runs.items() if file.is_file()}
        for side, runs in files.items()
    }
    (out / "tuning.json").write_text(json.dumps(found) + "\n", encoding="utf-8")
    return {side: max(values, key=values.__getitem__) for side, values in found.items() if values}


def frontier(out: Path, variables: dict[str, str] | None) -> list[Job]:
    """Every price of KL and seed, for us and for the peer, each with what was best for it and with
    what was best for the other."""
    jobs = []
    for setting in sorted(set(best(out).values())):
        words, theirs = tried()[setting]
        for seed in SEEDS:
            for coef in KL_COEFS:
                name = f"frontier-{setting}-{coef:g}"
                jobs += ours(out, seed, Variant(name, "frontier", (*words, *ppo(kl_coef=coef))))
                if variables is not None:
                    told = (*theirs, "--kl-coef", str(coef))
                    name = f"trl-{setting}-{coef:g}"
                    jobs += peer(out, seed, name, told, variables, sys.executable)
    return jobs


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Run the experiments.")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--peer-path", type=Path, help=f"folder that holds trl {RELEASE}")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="jobs at a time")
    parser.add_argument("--gpus", type=int, default=0, help="GPUs to spread PPO over; 0: the CPU")
    parser.add_argument("--stop-after", type=float, default=86400, help="seconds for the jobs")
    args = parser.parse_args(argv)
    if args.workers < 1:
        raise UserError(f"--workers {args.workers}: give 1 job at a time or more.")
    if args.peer_path and not (args.peer_path / "trl").is_dir():
        raise UserError(
            f"--peer-path {args.peer_path}: it holds no trl; make it with `pip install --no-deps "
            f"--target {args.peer_path} trl=={RELEASE}`, or leave the option out."
        )
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
    out.mkdir(parents=True, exist_ok=True)
    (out / "machine.json").write_text(json.dumps(machine()) + "\n", encoding="utf-8")
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
