"""A stage in a process that dies, or whose disk fails, at a named point.

`_victim.py POINT STAGE ARGUMENTS...`; POINT is `name`, `name:N` (at the N-th time) with a kill, or
`write-NAME:N` with a write that fails. Nothing in the product knows of it: functions are wrapped.
"""

import errno
import importlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
for folder in (ROOT, ROOT / "tests" / "integration", ROOT / "tests" / "unit"):
    sys.path.insert(0, str(folder))

POINTS: dict[str, tuple[str, str, bool]] = {
    "rollout": ("cores.ppo.score:Scorer", "rollout", False),
    "scoring": ("cores.ppo.score:Scorer", "_score_rows", False),
    "update": ("cores.ppo.trainer:PPOTrainer", "optimize", False),
    "training": ("cores.training.lasting:Steps", "on_step_begin", False),
    "row": ("cores.run.stage:StageRun", "log", True),
    "checkpoint-begins": ("cores.run.checkpoint", "write", False),
    "checkpoint-file": ("cores.run.checkpoint", "_save", False),
    "checkpoint-file-written": ("cores.run.checkpoint", "_save", True),
    "checkpoint-manifest": ("cores.run.checkpoint", "_facts", True),
    "checkpoint-rename": ("pathlib:Path", "rename", False),
    "checkpoint-renamed": ("pathlib:Path", "rename", True),
    "rotation": ("cores.run.checkpoint", "rotate", False),
    "rotated": ("cores.run.checkpoint", "rotate", True),
    "evaluation": ("cores.training.ppo", "_evaluate", False),
    "models-saved": ("cores.run.stage:StageRun", "_record", False),
    "recorded": ("cores.run.stage:StageRun", "_record", True),
    "exchange": ("cores.run.folder", "exchange", False),
    "exchanged": ("cores.run.folder", "exchange", True),
    "clean": ("cores.run.folder", "_clean", False),
    "cleaned": ("cores.run.folder", "_clean", True),
    "lock": ("cores.run.lock:Lock", "release", False),
}
"""Where a function is, its name, and whether the end comes behind it."""
WRITES: dict[str, tuple[str, str, int]] = {
    "full-tensors": ("cores.run.checkpoint", "save_file", errno.ENOSPC),
    "full-json": ("os", "fsync", errno.ENOSPC),
    "io-rename": ("pathlib:Path", "rename", errno.EIO),
    "denied-folder": ("pathlib:Path", "mkdir", errno.EACCES),
    "full-metrics": ("cores.run.metrics", "append", errno.ENOSPC),
    "full-models": ("cores.models", "save_model", errno.ENOSPC),
    "io-exchange": ("cores.run.folder", "exchange", errno.EIO),
    "io-sync": ("cores.run.folder", "sync_tree", errno.EIO),
}
"""Where a function is, its name, and how it fails."""


def owner(place: str) -> Any:
    """The module, or the class in it."""
    module, _, name = place.partition(":")
    found: Any = importlib.import_module(module)
    return getattr(found, name) if name else found


def plant(point: str) -> None:
    """Wrap the function of `point` so that its N-th call is the last, or fails."""
    name, _, number = point.partition(":")
    fails = name in WRITES
    place, function, what = (WRITES if fails else POINTS)[name]
    target, calls = owner(place), [0]
    real: Callable[..., Any] = getattr(target, function)

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if function in ("rename", "mkdir") and "unfinished" not in str(args[0]):
            return real(*args, **kwargs)  # of our folders, not of libraries' caches
        calls[0] += 1
        last = calls[0] == int(number or 1)
        if last and fails:
            raise OSError(what, os.strerror(int(what)), str(args[0]) if args else None)
        if last and not what:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*args, **kwargs)
        if last:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(target, function, wrapped)


def main(argv: list[str]) -> None:
    """Plant, and run the stage."""
    point, stage, *words = argv
    from _helpers import SCRIPTS, in_process

    importlib.import_module(SCRIPTS[stage].removesuffix(".py"))
    import cores.run
    import cores.training.ppo
    import cores.training.reward
    import cores.training.sft  # noqa: F401

    if point != "none" and os.environ.get("RANK", "0") == os.environ.get("VICTIM", "0"):
        plant(point)
    in_process(stage, words)


if __name__ == "__main__":
    from cores.runtime.cli import guarded

    guarded(main)
