"""Stages in forks of one process that has imported everything: a run costs a second, not ten."""

import os
import select
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import _victim


@dataclass(frozen=True)
class Ended:
    """How a run ended."""

    status: int
    """Exit status, or minus the signal."""
    out: str
    err: str


class Forked:
    """A stage that runs in a fork."""

    def __init__(self, point: str, stage: str, words: list[Any], folder: Path) -> None:
        self.files = [folder / f"{name}-{time.monotonic_ns()}.txt" for name in ("out", "err")]
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._run([point, stage, *map(str, words)])

    def _run(self, argv: list[str]) -> None:
        status = 99
        try:
            for number, path in zip((1, 2), self.files, strict=True):
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
            sys.stdout, sys.stderr = (open(n, "w", closefd=False) for n in (1, 2))  # noqa: SIM115
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.SIG_DFL)
            sys.argv = ["_victim.py", *argv]
            from cores.runtime.cli import guarded

            guarded(_victim.main)
        finally:
            os._exit(status)

    def until(self, seen: Callable[[], bool], seconds: float = 120) -> None:
        """Wait for something that the run does."""
        end = time.monotonic() + seconds
        while not seen() and time.monotonic() < end and os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            select.select([], [], [], 0.01)

    def end(self, seconds: float = 120) -> Ended:
        """Wait for the end; kills what takes longer."""
        limit = time.monotonic() + seconds
        while (found := os.waitpid(self.pid, os.WNOHANG)) == (0, 0):
            if time.monotonic() > limit:
                os.kill(self.pid, signal.SIGKILL)
            select.select([], [], [], 0.01)
        texts = [path.read_text(errors="replace") for path in self.files]
        for path in self.files:
            path.unlink()
        return Ended(os.waitstatus_to_exitcode(found[1]), *texts)


def run(point: str, stage: str, words: list[Any], folder: Path, seconds: float = 120) -> Ended:
    """One run from its start to its end."""
    return Forked(point, stage, words, folder).end(seconds)
