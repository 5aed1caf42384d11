"""Runs and finished folders of stages with a file of weights that is none, for tests of what is
around them."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _models import LAUNCH

from cores.config import Config
from cores.run import StageRun
from cores.run.checkpoint import State
from cores.runtime.launch import Launch


def config(root: Path, **changes: Any) -> Config:
    return replace(Config(output_dir=str(root)), **changes)


def facts(**changes: Any) -> dict[str, Any]:
    return {"tokenizer": "t" * 64, "vocab_size": 64, "data": {}, "parents": {}, **changes}


def begun(made: Config, stage: str = "sft", launch: Launch = LAUNCH, **about: Any) -> StageRun:
    """A run that has its folder; `about` is what its steps depend on."""
    run = StageRun(made, stage, launch, time.monotonic())
    run.claim()
    run.begin(about)
    return run


def save_weights(text: str = "weights") -> Any:
    """What `StageRun.finish` writes models by."""

    def save(folder: Path) -> None:
        (folder / "model.safetensors").write_text(text)
        (folder / "config.json").write_text("{}")

    return save


def write(root: Path, stage: str, text: str = "weights", **changes: Any) -> Path:
    """A finished stage with one file of weights."""
    with begun(config(root, overwrite=True), stage) as run:
        run.finish(save_weights(text), facts(**changes))
    return root / stage


def state(step: int, **numbers: Any) -> State:
    """A state with one tensor, told by its step."""
    return State({"weights": {"w": torch.full((3,), float(step))}}, {"at": step, **numbers})
