"""Running commands that need each other."""

import math
import sys
import time
from pathlib import Path

import psutil
import pytest

from research.jobs import Job, run_all


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("research.jobs.POLL", 0.01)


def test_a_job_that_nothing_can_start_is_not_waited_for(tmp_path: Path) -> None:
    """It needs a file that no job makes."""
    job = Job("lost", (), (tmp_path / "nowhere",), tmp_path / "made")
    assert run_all([job], tmp_path / "logs", 1, math.inf) == [job]


def test_a_job_that_fails_after_writing_has_failed(tmp_path: Path) -> None:
    """The exit status counts, whatever lies there."""
    made = tmp_path / "made"
    code = f"open({str(made)!r}, 'w'); raise SystemExit(3)"
    job = Job("half", (sys.executable, "-c", code), (), made)
    assert run_all([job], tmp_path / "logs", 1, math.inf) == [job]
    assert made.is_file()


def test_nothing_runs_on_behind_the_deadline(tmp_path: Path) -> None:
    """Nor what a job has started itself."""
    told, made = tmp_path / "pid", tmp_path / "made"
    code = (
        "import subprocess, sys, pathlib\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(told)!r}).write_text(str(child.pid))\n"
        "child.wait()\n"
    )
    job = Job("long", (sys.executable, "-c", code), (), made)
    assert run_all([job], tmp_path / "logs", 1, time.monotonic() + 5) == [job]
    grandchild, end = int(told.read_text()), time.monotonic() + 10
    while _runs(grandchild) and time.monotonic() < end:
        time.sleep(0.05)  # a busy machine takes a moment to end what was killed
    assert not _runs(grandchild)


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != "zombie"
    except psutil.NoSuchProcess:
        return False
