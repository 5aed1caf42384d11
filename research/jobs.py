"""Commands that need each other's results, run side by side.

A job is done when the file that it makes is there, so that a run that was stopped goes on where it
was.
"""

import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
POLL = 0.5
"""Seconds between looks at the running jobs."""
GRACE = 20
"""Seconds that a job has to leave after a signal."""


@dataclass(frozen=True)
class Job:
    """One command."""

    name: str
    """For logs and the screen."""
    command: tuple[str, ...]
    needs: tuple[Path, ...]
    """Files that it starts from."""
    makes: Path
    """The file that it writes last."""
    variables: tuple[tuple[str, str], ...] = ()
    """Environment variables of its own."""

    @property
    def done(self) -> bool:
        """Whether it has been run to its end."""
        return self.makes.is_file()

    @property
    def ready(self) -> bool:
        """Whether all it needs is there."""
        return all(need.is_file() for need in self.needs)


def run_all(
    plan: Sequence[Job], logs: Path, workers: int, deadline: float, gpus: int = 1
) -> list[Job]:
    """Run the jobs that are not done, at most `workers` at a time; returns those that failed.

    A job starts once what it needs is there, on the GPU with fewest jobs; `plan` is in order of
    preference. Nothing runs on after `deadline` (of time.monotonic).
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting = [job for job in plan if not job.done]
    running: dict[Job, subprocess.Popen[bytes]] = {}
    places: dict[Job, int] = {}
    failed: list[Job] = []
    start = time.monotonic()
    while (waiting or running) and time.monotonic() < deadline:
        for job in [job for job, process in running.items() if process.poll() is not None]:
            status = running.pop(job).returncode
            _say(start, f"{job.name} {'ended with ' + str(status) if status else 'done'}")
            if status or not job.done:
                failed.append(job)
        blocked = {job.makes for job in failed}
        hopeless = [job for job in waiting if blocked & set(job.needs)]
        failed += hopeless
        waiting = [job for job in waiting if job not in hopeless]
        for job in [job for job in waiting if job.ready][: workers - len(running)]:
            waiting.remove(job)
            gpu = min(range(gpus), key=[places.get(other) for other in running].count)
            places[job] = gpu
            running[job] = _start(job, logs, gpu if gpus > 1 else None)
            _say(start, f"{job.name} started")
        if not running:
            break  # what waits needs what nothing here makes
        time.sleep(POLL)
    for process in running.values():
        for one in [*psutil.Process(process.pid).children(recursive=True), process]:
            one.terminate()  # a job may have started another command
    for job, process in running.items():
        _wait(process)
        _say(start, f"{job.name} stopped: no time left")
    return [*failed, *running, *waiting]


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(GRACE)
    except subprocess.TimeoutExpired:
        process.kill()


def _start(job: Job, logs: Path, gpu: int | None) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    environment["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"  # many share one GPU
    if gpu is not None:
        environment["CUDA_VISIBLE_DEVICES"] = str(gpu)
    environment |= dict(job.variables)
    with (logs / f"{job.name}.txt").open("wb") as log:
        return subprocess.Popen(
            job.command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def _say(start: float, text: str) -> None:
    print(f"{time.monotonic() - start:6.0f} s  {text}", flush=True)
