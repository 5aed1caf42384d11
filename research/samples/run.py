"""What stage 3 learns fastest with: rounds of runs by successive halving, many side by side.

    python research/samples/run.py --task demo --out OUT [--workers 2] [--stop-after SECONDS]
    python research/samples/run.py --task polite --out OUT --data DATA --model MODEL --peer FOLDER

DATA: the folder with the sets' JSONL files. MODEL: SmolLM2-135M-Instruct as a folder. FOLDER holds
trl==1.12.0 (`pip install --no-deps --target FOLDER trl==1.12.0`); without it the peer is left out.
The rounds are in plan.py. A finished run is not made again, so a call that was stopped goes on
where it was. OUT/runs has one JSON file a run (one.py), which page.py reads.
"""

import argparse
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from research.evidence import plan as evidence
from research.experiments import plan as experiments
from research.jobs import Job, run_all
from research.samples.measure import gain, load, summary
from research.samples.plan import (
    ALONE,
    TASKS,
    Setting,
    Task,
    alone,
    around,
    join,
    run_job,
    together,
)

MARGIN = 1.2
"""Of the KL at which the configuration as it is gets to the level: what a setting may take. Going
further from stage 1 is no better learning."""


class Rounds:
    """The plan of one task and side, as far as the results that it needs are there."""

    def __init__(self, out: Path, task: Task, side: str) -> None:
        self.out, self.task, self.side = out, task, side
        self.knobs = task.knobs if side == "ours" else task.theirs
        self.whole: float | None = None
        """The gain of our configuration as it is."""
        self.limit = math.inf
        """KL that a setting may take to the level."""

    def found(self, chosen: Setting, seeds: tuple[int, ...]) -> list[dict[str, Any]] | None:
        """The runs of a setting, if all seeds have one."""
        runs = [load(self.out, self.task, self.side, chosen, seed) for seed in seeds]
        return None if None in runs else [run for run in runs if run is not None]

    def jobs(self, settings: list[Setting], seeds: tuple[int, ...]) -> list[Job]:
        """Seed by seed."""
        return [
            run_job(self.out, self.task, self.side, one, seed) for seed in seeds for one in settings
        ]

    def ranked(self, settings: list[Setting], seeds: tuple[int, ...]) -> list[Setting]:
        """Those that are finished, lost no seed and went no further than `limit` to the level;
        fewest updates first."""
        if self.whole is None:
            return []
        rated = []
        for one in settings:
            runs = self.found(one, seeds)
            if runs is None:
                continue
            told = summary(runs, self.task, self.whole)
            far = told["kl_there"] is None or told["kl_there"]["mean"] > self.limit
            if not told["lost"] and not far:
                rated.append((told["updates"]["mean"], one))
        return [one for _, one in sorted(rated)]

    def better(
        self, settings: list[Setting], start: Setting, seeds: tuple[int, ...]
    ) -> list[Setting]:
        """Those that need fewer updates than `start`."""
        ranked = self.ranked([start, *settings], seeds)
        return ranked[: ranked.index(start)] if start in ranked else ranked

    def steps(self) -> list[tuple[str, list[Setting], tuple[int, ...]]]:
        """The rounds that can be planned now: name, settings, seeds."""
        task = self.task
        few, some = task.seeds[: task.first], task.seeds[: task.middle]
        start = join(task.start) if self.side == "ours" else ()
        singles = [join(start, one) for one in alone(self.knobs)]
        rounds = [("alone", list(dict.fromkeys([(), start, *singles])), few)]
        chosen = self.better(singles, start, few)[:ALONE]
        rounds.append(("again", list(dict.fromkeys([(), start, *chosen])), some))
        joined = together(self.better(chosen, start, some), start)
        rounds.append(("together", joined, some))
        tried = list(dict.fromkeys([(), start, *chosen, *joined]))
        if best := self.ranked(tried, some):
            near = around(task, self.side, best[0]) if task.around else []
            rounds.append(("around", near, some))
            rounds.append(("final", [(), self.ranked([*tried, *near], some)[0]], task.seeds))
        return rounds


def chain(out: Path, task: Task, data: Path | None, model: Path | None) -> list[Job]:
    """Stages 1 and 2 of every seed."""
    if task.name == "demo":
        return experiments.chain(out / "demo", task.seeds)
    if data is None or model is None:
        raise UserError(f"--task {task.name}: give --data and --model as well.")
    for name, place in (("source", data), ("model", model)):
        link = out / name
        if not link.exists():
            link.symlink_to(place.resolve())
    evidence.lay_out(data, out)
    jobs = evidence.jobs(out / "source", out / "model", out)
    wanted = [job for job in jobs if job.set == task.name and job.stage != "ppo"]
    return [job for job in wanted if job.stage == "sft" or job.run[-2:] in ("-a", "-b")]


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Find what stage 3 learns fastest with.")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--data", type=Path, help="folder of the JSONL files")
    parser.add_argument("--model", type=Path, help="folder of the base model")
    parser.add_argument("--peer", type=Path, help="folder that holds trl 1.12.0")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="runs at a time")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs to spread the runs over")
    parser.add_argument("--rounds", type=int, default=5, help="of the five, how many")
    parser.add_argument("--stop-after", type=float, default=86400, help="seconds")
    args = parser.parse_args(argv)
    task, out = TASKS[args.task], args.out.resolve()
    deadline = time.monotonic() + args.stop_after
    out.mkdir(parents=True, exist_ok=True)
    sides = ["ours"]
    if args.peer is not None and task.theirs:
        sides.append("trl")
        if not (out / "peer").exists():
            (out / "peer").symlink_to(args.peer.resolve())
    logs = out / "logs"
    place = (logs, args.workers, deadline, args.gpus)
    unfinished = run_all(chain(out, task, args.data, args.model), *place)
    for number in range(args.rounds):
        plan: list[Job] = []
        base = Rounds(out, task, "ours")
        for side in sides:
            rounds = Rounds(out, task, side)
            for seeds in (task.seeds, task.seeds[: task.middle], task.seeds[: task.first]):
                runs = base.found((), seeds)
                if rounds.whole is None and runs is not None:
                    rounds.whole = gain(runs, task)
                    there = summary(runs, task, rounds.whole)["kl_there"]
                    rounds.limit = MARGIN * there["mean"] if there else math.inf
            steps = rounds.steps()
            for name, settings, seeds in steps[number : number + 1]:
                print(f"round {name} of {side}: {len(settings)} settings, {len(seeds)} seeds")
                plan += rounds.jobs(settings, seeds)
        unfinished += run_all(plan, *place)
    if unfinished:
        raise UserError(f"not finished: {', '.join(job.name for job in unfinished)} (see {logs}).")


if __name__ == "__main__":
    guarded(main)
