"""The evidence run: three sets, three seeds, all stages, several jobs side by side on one GPU.

    python scripts/evidence/run.py --data DATA --model MODEL --out OUT [--workers 7] [--gpus 1]
        [--only PATTERN] [--section.key value ...]

DATA: the folder with the sets' JSONL files. MODEL: SmolLM2-135M-Instruct as a folder. Further
arguments go to every stage. A finished stage is not run again, so a run that was stopped goes on
where it was. At the end, and with --stop-after SECONDS when the time is over, whatever is finished
is scored (OUT/scores.json) and summed up (OUT/figures.json, OUT/figures.md).
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from scripts.evidence.plan import ROOT, SCRIPTS, SETS, Job, jobs, lay_out

POLL = 0.5
"""Seconds between looks at the running jobs."""
GRACE = 20
"""Seconds that a job has to leave after a signal."""


def run_all(
    plan: list[Job], out: Path, workers: int, more: list[str], deadline: float, gpus: int = 1
) -> list[Job]:
    """Run the jobs that are not done, at most `workers` at a time; returns those that failed.

    A job starts once what it needs is there, on the GPU with fewest jobs; `plan` is in order of
    preference.
    """
    waiting = [job for job in plan if not job.done]
    running: dict[Job, subprocess.Popen[bytes]] = {}
    places: dict[Job, int] = {}
    failed: list[Job] = []
    start = time.monotonic()
    while (waiting or running) and time.monotonic() < deadline:
        for job in [job for job, process in running.items() if process.poll() is not None]:
            status = running.pop(job).returncode
            _say(start, f"{job.name} {'ended with ' + str(status) if status else 'done'}")
            if not job.done:
                failed.append(job)
        blocked = {job.folder for job in failed}
        hopeless = [job for job in waiting if blocked & set(job.needs)]
        failed += hopeless
        waiting = [job for job in waiting if job not in hopeless]
        for job in [job for job in waiting if job.ready][: workers - len(running)]:
            waiting.remove(job)
            gpu = min(range(gpus), key=[places.get(other) for other in running].count)
            places[job] = gpu
            running[job] = _start(job, out, more, gpu if gpus > 1 else None)
            _say(start, f"{job.name} started")
        time.sleep(POLL)
    for process in running.values():
        process.terminate()
    for job, process in running.items():
        _wait(process)
        _say(start, f"{job.name} stopped: no time left")
    return [*failed, *running, *waiting]


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()


def _start(job: Job, out: Path, more: list[str], gpu: int | None = None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"  # many share one GPU
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    command = [sys.executable, str(ROOT / SCRIPTS[job.stage]), *job.arguments, *more]
    with (out / "logs" / f"{job.name}.txt").open("wb") as log:
        return subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def _say(start: float, text: str) -> None:
    print(f"{time.monotonic() - start:6.0f} s  {text}", flush=True)


def _files_missing(data: Path) -> list[str]:
    names = sorted({f"{name}.jsonl" for files in SETS.values() for name in files})
    return [name for name in names if not (data / name).is_file()]


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train and judge what docs/evidence.md shows.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the JSONL files")
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--workers", type=int, default=7, help="jobs side by side")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs to spread the jobs over")
    parser.add_argument("--only", default="", help="regular expression in the names of jobs to run")
    parser.add_argument("--stop-after", type=float, default=86400, help="seconds for the jobs")
    args, more = parser.parse_known_args(argv)
    data, model, out = args.data.resolve(), args.model.resolve(), args.out.resolve()
    if missing := _files_missing(data):
        raise UserError(f"--data {data}: there is no {', '.join(missing)}.")
    if not (model / "config.json").is_file():
        raise UserError(f"--model {model}: no model there; see scripts/smollm2_from_gguf.py.")
    lay_out(data, out)
    deadline = time.monotonic() + args.stop_after
    plan = [job for job in jobs(data, model, out) if re.search(args.only, job.name)]
    unfinished = run_all(plan, out, args.workers, more, deadline, args.gpus)
    words = ["--data", str(data), "--model", str(model), "--out", str(out), *more]
    for script in ("score.py", "figures.py"):
        subprocess.run([sys.executable, str(Path(__file__).with_name(script)), *words], check=True)
    if unfinished:
        names = ", ".join(job.name for job in unfinished)
        raise UserError(f"not finished: {names} (see {out / 'logs'}).")


if __name__ == "__main__":
    guarded(main)
