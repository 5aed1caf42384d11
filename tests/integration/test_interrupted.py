"""Runs that end in the middle: what was trained is kept, and what was there before still is."""

import json
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from _helpers import ROOT, SCRIPTS, environment, good, in_process, rows, tree

from cores.run.metrics import Metrics
from cores.runtime.stop import STOPPED


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
    """With --overwrite the old stage is replaced by a whole one or not at all; what was trained
    stands beside it, and the next run goes on from there."""
    before = tree(out)
    words = [*good(llama, files, out), "--checkpoint.every_steps", "1"]
    with monkeypatch.context() as patch:
        crash_at_the_second_entry(patch)
        with pytest.raises(CrashError):
            in_process(stage, [*words, "--overwrite"])
    left = out / f"{stage}.unfinished"
    apart = (left.name, "report.html")
    assert {k: v for k, v in tree(out).items() if not k.startswith(apart)} == {
        k: v for k, v in before.items() if not k.startswith(apart)
    }
    assert sorted(p.name for p in out.iterdir()) == sorted([*SCRIPTS, left.name, "report.html"])
    assert {p.name for p in left.iterdir()} >= {
        "metrics.jsonl", "log.txt", "state.json", "checkpoints",
    }  # fmt: skip
    assert [row["step"] for row in rows(left / "metrics.jsonl")] == [1]
    assert [p.name for p in (left / "checkpoints").iterdir()] == ["step-1"]
    assert json.loads((left / "state.json").read_text())["stopped"].startswith("CrashError")
    in_process(stage, words)
    assert sorted(p.name for p in out.iterdir()) == sorted([*SCRIPTS, "report.html"])
    assert f"resuming {stage} at step 1 of" in (out / stage / "log.txt").read_text()


def test_crash_of_a_first_run(tmp_path: Path, llama, files, monkeypatch) -> None:
    """Before the training begins: no folder, not even output_dir."""

    def fail(*_: Any, **__: Any) -> None:
        raise CrashError

    monkeypatch.setattr("cores.training.sft.sft_model", fail)
    with pytest.raises(CrashError):
        in_process("sft", good(llama, files, tmp_path / "new"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.long),
        signal.SIGTERM,
        pytest.param(signal.SIGHUP, marks=pytest.mark.long),
    ],
)
def test_stopped_by_a_signal(tmp_path: Path, llama, files, number: int) -> None:
    """Ctrl-C, a scheduler or a closed terminal: it finishes its step, saves, says how to go on, and
    exits with 75."""
    words = [*good(llama, files, tmp_path / "new"), "--sft.max_steps", "100000"]
    words += ["--checkpoint.every_steps", "2"]
    process = subprocess.Popen(
        [sys.executable, SCRIPTS["sft"], *words, "--sft.learning_rate", "1e-4"],
        cwd=ROOT, env=environment(), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),  # a job behind & ignores Ctrl-C
    )  # fmt: skip
    left = tmp_path / "new" / "sft.unfinished"
    with process:
        try:
            deadline = time.monotonic() + 60
            while not (left / "checkpoints" / "step-2").exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(number)
            _, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == STOPPED == 75
    name = signal.Signals(number).name
    told, _, said = err.partition("\n")
    assert told == f"{name}: stopping behind this step (once more: at once)"
    step = max(int(p.name.removeprefix("step-")) for p in (left / "checkpoints").iterdir())
    assert (left / "log.txt").read_text().endswith(err)
    said, command, end = said.split("\n")
    assert (said, end) == (f"{name}: saved at step {step} of 100000; to go on:", "")
    assert command == json.loads((left / "state.json").read_text())["resume"]  # to be copied
    assert shlex.split(command)[1:] == [SCRIPTS["sft"], *words, "--sft.learning_rate", "1e-4"]
    assert {p.name for p in (tmp_path / "new").iterdir()} == {left.name, "report.html"}
