"""Are captured passes eager ones? Four updates of each on a GPU, from the same weights and replies.

    python scripts/check_passes.py
    torchrun --nproc_per_node 2 scripts/check_passes.py

A small GPT-2 of random weights (scripts/bench, W4's shape), in fp32 and bf16, rows with and without
padding, replies of one and of many lengths, optimizer steps of one and of several micro-batches, a
falling learning rate. Eager micro-batches are padded or packed as captured ones, so that both run
the same kernels. Several ranks may share a GPU: what they exchange then goes by way of the host
(gloo). Prints the largest difference of the statistics, relative to their size, and
ends with status 1 if it is above TOLERANCE anywhere. Without a GPU
tests/unit/test_ppo_captured.py replays Python in place of graphs.
"""

import math
import os
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import NamedTuple
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.runtime.cli import guarded

TOLERANCE = 1e-5
"""Of NAMES; sums of gradients whose order is free (atomics) may differ in their last digits."""
NAMES = ("policy_loss", "value_loss", "actor_grad_norm", "critic_grad_norm", "score")
UPDATES = 4


class Case(NamedTuple):
    """What is varied."""

    precision: str
    padded: bool
    stops: bool
    micro: int


def statistics(passes: str, case: Case) -> list[dict[str, float]]:
    """Those of each update."""
    import torch

    from cores.errors import UserError
    from cores.ppo import passes as module
    from cores.runtime.launch import launch
    from scripts.bench.made import trainer_of
    from scripts.bench.workloads import WORKLOADS, prompts_of, settings

    workload = replace(
        WORKLOADS["W4"],
        precision=case.precision,
        micro=case.micro,
        mean_length=16.0 if case.stops else None,
    )
    words = f"--ppo.passes {passes} --ppo.lr_schedule linear --ppo.updates {UPDATES}"
    rates = "--ppo.actor_learning_rate 1e-4 --ppo.critic_learning_rate 1e-4"
    config = settings(workload, "graph", [*words.split(), *rates.split()])
    run = launch(config)
    if run.device.type != "cuda":
        raise UserError("there is no GPU, and nothing is captured without one.")
    torch.manual_seed(0)
    trainer = trainer_of(workload, config, run)
    found = []
    trainer.passes.packed &= case.precision == "bf16"
    trainer.widths = module.WIDTHS
    with patch.object(trainer.passes, "widths", module.WIDTHS):
        for update in range(UPDATES):
            prompts = prompts_of(workload, workload.batch, update)[run.rank :: run.world]
            if case.padded:
                prompts = [prompt[: 4 + i % 12] for i, prompt in enumerate(prompts)]
            torch.manual_seed(update)
            found.append(trainer.step(prompts)[1])
    graphs = len(trainer.passes.captured.graphs)
    if (graphs > 0) != (passes == "captured"):
        raise UserError(f"{passes}: {graphs} graphs, so this compares nothing.")
    return found


def difference(a: list[dict[str, float]], b: list[dict[str, float]]) -> float:
    """The largest of NAMES over the updates, relative to the value (at least 0.01); inf where one
    is no number."""
    found = [
        abs(x[name] - y[name]) / max(abs(x[name]), 0.01)
        for x, y in zip(a, b, strict=True)
        for name in NAMES
    ]
    return max(found) if all(map(math.isfinite, found)) else math.inf


def meet() -> None:
    """Let ranks that share a GPU exchange numbers; NCCL wants a GPU for each."""
    import torch

    from cores.sharding import ASKED

    if int(os.environ.get("WORLD_SIZE", "1")) > torch.cuda.device_count():
        os.environ["LOCAL_RANK"], ASKED["LOCAL_WORLD_SIZE"] = "0", "1"
        torch.distributed.init_process_group("gloo")


def main(argv: list[str]) -> None:
    """Command line."""
    wrong = False
    meet()
    for values in product(("fp32", "bf16"), (False, True), (False, True), (16, 8)):
        case = Case(*values)
        found = difference(statistics("eager", case), statistics("captured", case))
        wrong |= not found <= TOLERANCE
        if int(os.environ.get("RANK", "0")) == 0:
            print(f"{case}: {found:.1e}", flush=True)
    sys.exit(int(wrong))


if __name__ == "__main__":
    guarded(main)
