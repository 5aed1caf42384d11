"""Two ranks, on the second of which memory runs out: see test_memory_of_ranks.py.

    _memory_worker.py OUT

OUT gets the actor of each rank after a step of each case of ROWS; the last case ends the launch.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

import _models
import torch

from cores.models import Actor
from cores.ppo.experience import gather_rows
from cores.runtime.cli import guarded
from cores.runtime.launch import launch

ROWS = {"never": 4, "score": 2, "update": 1, "last": 2, "again": 0}
"""Of the largest passes that have room: scoring takes 4 at a time, an update 2 of each rank's 4, or
all of them in a pass that is the first and the last."""
SIZES = {"update": 2, "last": 4}


@contextmanager
def short(where: str, rank: int) -> Iterator[None]:
    """Within it larger passes fail on the second rank, in scoring or in an update."""
    patched: Any = Actor
    forward = patched.forward

    def limited(actor: Any, ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        result = forward(actor, ids, *args, **kwargs)
        in_update = where in SIZES
        if rank == 1 and ids.shape[0] > ROWS[where] and torch.is_grad_enabled() is in_update:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return result

    patched.forward = limited
    yield
    patched.forward = forward


def main(argv: list[str]) -> None:
    _models.parents("gpt2")  # by each rank, in a folder of its own
    options: dict[str, Any] = {"batch_size": 8, "minibatch_size": 8, **_models.ROUNDING}
    _models.LAUNCH = process = launch(_models.ppo_config(**options))
    whole = _models.fixed_rollout(rows=8)
    mine = slice(4 * process.rank, 4 * process.rank + 4)
    columns = {name: tensor[mine] for name, tensor in vars(whole).items() if tensor is not None}
    for where in ROWS:
        size = SIZES.get(where, 1)
        trainer = _models.make_trainer("gpt2", microbatch_size=size, **options)
        trainer.packed = trainer.passes.packed = False  # so that passes have rows in known numbers
        with short(where, process.rank):
            scored = gather_rows(trainer.score(replace(whole, **columns)), process)
            trainer.update(trainer.estimate(scored))
        assert trainer.state.halved is (where != "never")
        weights = _models.parameters(trainer.roles.actor.unwrapped)
        torch.save(weights, Path(argv[0]) / f"{where}-{process.rank}.pt")


if __name__ == "__main__":
    guarded(main)
