"""Are captured passes eager ones? Four updates of each on a GPU, from the same weights and replies.

    python scripts/check_passes.py

A small GPT-2 of random weights (scripts/bench, W4's shape), in fp32 and bf16, rows with and without
padding, optimizer steps of one and of two micro-batches, a falling learning rate. Prints the
largest difference of the statistics, relative to their size, and ends with status 1 above
TOLERANCES. Without a GPU tests/unit/test_ppo_captured.py replays Python in place of graphs.
"""

import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.runtime.cli import guarded

TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2}
"""Of loss, gradient norms and score; sums in another order, and Adam divides by small gradients."""
NAMES = ("policy_loss", "value_loss", "actor_grad_norm", "critic_grad_norm", "score")
UPDATES = 4


def statistics(passes: str, precision: str, padded: bool, micro: int) -> list[dict[str, float]]:
    """Those of each update."""
    import torch

    from cores.errors import UserError
    from cores.runtime.launch import launch
    from scripts.bench.workloads import WORKLOADS, prompts_of, settings, trainer_of

    workload = replace(WORKLOADS["W4"], precision=precision, micro=micro)
    words = f"--ppo.passes {passes} --ppo.lr_schedule linear --ppo.updates {UPDATES}"
    rates = "--ppo.actor_learning_rate 1e-4 --ppo.critic_learning_rate 1e-4"
    options = [*words.split(), *rates.split()]
    config = settings(workload, "graph", options)
    run = launch(config)
    if run.device.type != "cuda":
        raise UserError("there is no GPU, and nothing is captured without one.")
    trainer = trainer_of(workload, config, run)
    found = []
    for update in range(UPDATES):
        prompts = prompts_of(workload, workload.batch, update)
        if padded:
            prompts = [prompt[: 4 + i % 12] for i, prompt in enumerate(prompts)]
        torch.manual_seed(update)
        found.append(trainer.step(prompts)[1])
    return found


def difference(a: list[dict[str, float]], b: list[dict[str, float]]) -> float:
    """The largest of NAMES over the updates, relative to the value (at least 0.01)."""
    return max(
        abs(x[name] - y[name]) / max(abs(x[name]), 0.01)
        for x, y in zip(a, b, strict=True)
        for name in NAMES
    )


def main(argv: list[str]) -> None:
    """Command line."""
    wrong = False
    for precision, limit in TOLERANCES.items():
        for padded in (False, True):
            for micro in (16, 8):
                case = (precision, padded, micro)
                found = difference(statistics("eager", *case), statistics("captured", *case))
                wrong |= not found <= limit
                rows = "padded rows" if padded else "whole rows"
                print(f"{precision}, {rows}, micro-batches of {micro}: {found:.1e} ({limit:g})")
    sys.exit(int(wrong))


if __name__ == "__main__":
    guarded(main)
