"""Runs that end in the middle: nothing half-written, and what was there before is still there."""

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from _helpers import ROOT, SCRIPTS, environment, good, in_process, tree
from cores.runtime.metrics import Metrics


@pytest.fixture
def out(parents: Path, llama: Path, files: dict[str, Path]) -> Path:
    """A finished run of all three stages."""
    in_process("ppo", good(llama, files, parents))
    return parents


class CrashError(Exception):
    """Not a user's mistake."""


def crash_at_the_second_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second log entry of a stage fails, when training is under way."""
    log, calls = Metrics.log, []

    def failing(self: Metrics, *args: Any) -> None:
        calls.append(args)
        if len(calls) == 2:
            raise CrashError
        log(self, *args)

    monkeypatch.setattr(Metrics, "log", failing)


@pytest.mark.parametrize("stage", list(SCRIPTS))
def test_crash_keeps_the_old_folder(out: Path, llama, files, monkeypatch, stage: str) -> None:
    """With --overwrite the old stage is replaced by a whole one or not at all."""
    crash_at_the_second_entry(monkeypatch)
    before = tree(out)
    with pytest.raises(CrashError):
        in_process(stage, [*good(llama, files, out), "--overwrite"])
    assert tree(out) == before
    assert sorted(p.name for p in out.iterdir()) == sorted(SCRIPTS)


def test_crash_of_a_first_run(tmp_path: Path, llama, files, monkeypatch) -> None:
    """No folder, not even output_dir."""
    crash_at_the_second_entry(monkeypatch)
    with pytest.raises(CrashError):
        in_process("sft", good(llama, files, tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_by_a_signal(tmp_path: Path, llama, files, number: int, status: int) -> None:
    """Ctrl-C, or a scheduler: a word on stderr, the shell's status for it, no folder."""
    words = [*good(llama, files, tmp_path / "new"), "--sft.max_steps", "100000"]
    process = subprocess.Popen(
        [sys.executable, SCRIPTS["sft"], *words, "--sft.learning_rate", "1e-4"],
        cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a job behind & ignores Ctrl-C
    )  # fmt: skip
    with process:
        started = tmp_path / "new" / ".sft.partial" / "metrics.jsonl"
        deadline = time.monotonic() + 60
        while not started.exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert started.exists()
        for _ in range(4):  # Python drops an interrupt that comes while it deletes an object
            process.send_signal(number)
            try:
                _, err = process.communicate(timeout=15)
                break
            except subprocess.TimeoutExpired:
                continue
    assert (process.returncode, err) == (status, "interrupted\n")
    assert list(tmp_path.iterdir()) == []
