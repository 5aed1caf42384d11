"""Runs that are stopped on purpose, and what two of them have in common."""

from pathlib import Path
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
