"""Stages in one launch, in which a rank may fail at its second optimizer step.

_failing_worker.py STAGES HOW RANK ARGUMENTS OF THE STAGES

STAGES: with commas between. HOW: user (a UserError), crash (any other error), kill (SIGKILL, as of
a machine out of memory), hang (until someone ends it), never. RANK: the one that fails.
"""

import os
import signal
import time
from typing import Any

from cores.runtime.cli import guarded


def fail(how: str) -> None:
    from cores.errors import UserError

    if how == "user":
        raise UserError("the planted mistake")
    if how == "crash":
        raise ArithmeticError("the planted crash")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    print("hanging", flush=True)
    time.sleep(600)


def plant(how: str) -> None:
    """Make the second optimizer step of this process fail."""
    import torch

    step, calls = torch.optim.AdamW.step, []

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(self)
        if len(calls) == 2:
            fail(how)
        return step(self, *args, **kwargs)

    torch.optim.AdamW.step = failing


def main(argv: list[str]) -> None:
    from _helpers import in_process

    stages, how, rank, *words = argv
    if how != "never" and rank == os.environ["RANK"]:
        plant(how)
    for stage in stages.split(","):
        in_process(stage, words)


if __name__ == "__main__":
    guarded(main)
