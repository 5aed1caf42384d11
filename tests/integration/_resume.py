"""Runs that are stopped on purpose, and what two of them have in common."""

from collections.abc import Callable
from pathlib import Path
from shutil import copytree
from typing import Any

import pytest
import torch
from _helpers import in_process, rows
from safetensors.torch import load_file

from cores.run import StageRun, Stopped
from cores.runtime.stop import STOP

TIMES = ("seconds", "tokens_per_second", "device_wait")


def until(monkeypatch: pytest.MonkeyPatch, stage: str, words: list[str], step: int) -> None:
    """Run the stage until it is told to stop behind `step`."""
    look = StageRun.look

    def told(self: StageRun, now: int, last: bool) -> tuple[bool, bool]:
        if now == step:
            STOP.reason = "a test"
        return look(self, now, last)

    with monkeypatch.context() as patch:
        patch.setattr(StageRun, "look", told)
        patch.setattr(STOP, "reason", None)  # put back: trainers of other tests ask it too
        with pytest.raises(Stopped, match=f"saved at step {step} of"):
            in_process(stage, words)


def checkpoint(out: Path, stage: str, step: int) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights and optimizer states."""
    folder = out / f"{stage}.unfinished" / "checkpoints" / f"step-{step}"
    return {
        f"{path.stem}:{name}": tensor
        for path in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def metrics(folder: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl, times aside."""
    found = rows(folder / "metrics.jsonl")
    return [{k: v for k, v in row.items() if k not in TIMES} for row in found]


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    """Names of tensors that are not the same bit for bit."""
    assert set(one) == set(other)
    return [name for name in one if not torch.equal(one[name], other[name])]


def goes_on_exactly(
    monkeypatch: pytest.MonkeyPatch, home: Path, words: Callable[[str], list[str]]
) -> None:
    """Two updates of stage 3 from the parents in home/run, once through (home/straight) and once
    stopped behind the first (home/stopped): the same tensors and figures. `words`: of a folder."""
    for out in ("straight", "stopped"):
        copytree(home / "run", home / out)
    straight, stopped = (
        [*words(out), "--checkpoint.every_steps", "1"] for out in ("straight", "stopped")
    )
    until(monkeypatch, "ppo", straight, 2)
    until(monkeypatch, "ppo", stopped, 1)
    until(monkeypatch, "ppo", stopped, 2)
    ends = [checkpoint(home / out, "ppo", 2) for out in ("straight", "stopped")]
    assert apart(*ends) == []
    in_process("ppo", straight)
    in_process("ppo", stopped)
    assert metrics(home / "straight" / "ppo") == metrics(home / "stopped" / "ppo")
