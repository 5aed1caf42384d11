"""Finished stage folders with a file of weights that is none, for tests of what is around them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from _models import LAUNCH
from cores.runtime.stage import StageFolder

from cores.config import Config


def config(root: Path, **changes: Any) -> Config:
    return replace(Config(output_dir=str(root)), **changes)


def facts(**changes: Any) -> dict[str, Any]:
    return {"tokenizer": "t" * 64, "vocab_size": 64, "data": {}, "parents": {}, **changes}


def write(root: Path, stage: str, text: str = "weights", **changes: Any) -> Path:
    """A finished stage with one file of weights."""
    folder = StageFolder(config(root, overwrite=True), stage, LAUNCH, 0.0)
    with folder:
        (folder.path / "model.safetensors").write_text(text)
        (folder.path / "config.json").write_text("{}")
        folder.finish(facts(**changes))
    return root / stage
