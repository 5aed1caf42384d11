"""Two ranks: one ends badly and both do, with one word of why; rows do not divide and both finish.

Finished stages stay; what was trained until then stands beside them.
"""

import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from _helpers import ACCELERATE, OURS, ROOT, TORCHRUN, environment, good, record, rows
from _tiny import write_jsonl

WORKER = ROOT / "tests" / "integration" / "_failing_worker.py"
FILES = ROOT / "configs" / "accelerate"


def with_file(name: str) -> list[str]:
    """`accelerate launch` with a file of configs/accelerate."""
    return [*ACCELERATE[:-1], str(FILES / name)]


def start(launcher: list[str], arguments: list[Any]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*launcher, str(WORKER), *map(str, arguments)], cwd=ROOT, text=True,
        env=environment(PYTHONPATH=f"{ROOT}:{WORKER.parent}:{ROOT / 'tests' / 'unit'}"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def said(err: str) -> str:
    """The one thing that the ranks said, on one line."""
    found = OURS.findall(err)
    assert len(found) == 1, err
    return " ".join(found[0].split())


CASES = {
    "user-1": (TORCHRUN, "sft", "user", "1", "error on rank 1: the planted mistake"),
    "crash-1": (with_file("cpu2.yaml"), "ppo", "crash", "1", "error on rank 1: Traceback"),
    "crash-0": (with_file("zero2.yaml"), "reward", "crash", "0", "error on rank 0: Traceback"),
    "kill-0": (TORCHRUN, "sft", "kill", "0", "error: rank 0 ended without a word"),
}
"""What is started, which stage, what happens on which rank, and what must be said."""


@pytest.mark.parametrize(
    "case",
    [pytest.param(c, marks=pytest.mark.long) if c[:5] == "crash" else c for c in CASES],
)
def test_job_ends_with_the_error_of_the_rank(case: str, parents: Path, llama, files) -> None:
    """Within a minute, whichever rank fails and however; others only lose the connection."""
    launcher, stage, how, rank, expected = CASES[case]
    began = time.monotonic()
    words = [*good(llama, files, parents), "--overwrite"]
    with start(launcher, [stage, how, rank, *words]) as process:
        out, err = process.communicate(timeout=90)
    assert time.monotonic() - began < 60
    assert process.returncode != 0
    message = said(err)
    assert message.startswith(expected), err
    if how == "crash":
        assert message.count("ArithmeticError: the planted crash") == 1
    assert (parents / f"{stage}.unfinished" / "state.json").is_file()
    assert (parents / "sft" / "stage.json").is_file()
    assert "wrote" not in out


def test_launcher_told_to_end(tmp_path: Path, llama, files) -> None:
    """A scheduler's SIGTERM in the middle of steps: both ranks save at the same one, and the same
    command would go on; the launcher has a status of its own."""
    out = tmp_path / "out"
    words = [*good(llama, files, out), "--sft.max_steps", "2000", "--sft.learning_rate", "1e-4"]
    with start(TORCHRUN, ["sft", "never", "0", *words]) as process:
        assert process.stdout is not None
        while "sft 100/" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert err.count("SIGTERM: stopping behind this step") == 2
    message = " ".join(err.split())
    assert message.count("SIGTERM: saved at step") == 1, err
    (folder,) = (out / "sft.unfinished" / "checkpoints").glob("step-*")
    assert (folder / "manifest.json").is_file()
    assert f"saved at step {folder.name[5:]} of 2000" in message


@pytest.mark.long
def test_uneven_batches_end(tmp_path: Path, llama, files) -> None:
    """Invariant 21: rows that do not fill the last batch, and odd numbers of held-out rows."""
    words = good(llama, files, tmp_path / "out")
    words += ["--data.test_fraction", "0", "--ppo.eval_prompts", "5"]
    for source, name in {"sft": "sft", "preference": "preference", "prompts": "preference"}.items():
        parts = {"path": rows(files[name])[:13], "test_path": rows(files[name])[13:18]}
        for key, part in parts.items():
            file = write_jsonl(tmp_path / f"{source}_{key}.jsonl", part)
            words += [f"--data.{source}.{key}", str(file)]
    with start(TORCHRUN, ["sft,reward,ppo", "never", "0", *words]) as process:
        _, err = process.communicate(timeout=150)
    assert process.returncode == 0, err
    stages = {stage: record(tmp_path / "out" / stage) for stage in ("sft", "reward", "ppo")}
    for facts in stages.values():
        assert facts["processes"] == 2
        assert [facts["data"][split]["used"] for split in ("train", "test")] == [13, 5]
    assert stages["reward"]["metrics"]["pairs"] == 5
    assert stages["ppo"]["metrics"]["before"]["prompts"] == 5
