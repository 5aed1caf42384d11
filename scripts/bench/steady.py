"""Show that a long run has flat memory and flat time a step.

    python scripts/bench/steady.py --workload W1 [--updates 500] [--json out.json] [--engine graph]
        [--batch 32] [--minibatch 16] [--epochs 1] [--lengths geometric] [--section.key value ...]

The product's trainer on a workload whose prompts have 1 to all of its tokens, as real data vary.
After every update: its seconds, the process's resident memory, on a GPU that of tensors, what the
allocator holds and the update's peak, and how many graphs and compiled forms there are.
"""

import argparse
import random
import statistics
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from scripts.bench.ppo_step import (
    ENGINES,
    add_workload_options,
    at_least,
    json_file,
    workload_from,
    write,
)

WARM_UP = 20
"""Updates whose seconds are not looked at: compilation, captures and the first buffers."""
SETTLED = 50
"""From this update on memory is to stay: most shapes have come by then."""
FORMS = ("decode steps", "passes", "compiled")
"""Captured decode steps, captured passes, and graphs that were compiled."""
Found = dict[str, Any]


def varied_prompts(workload: Any, seed: int) -> list[list[int]]:
    """A rollout's prompts, each of 1 to `workload.prompt` tokens."""
    from scripts.bench.workloads import prompts_of

    lengths = random.Random(seed)
    whole = prompts_of(workload, workload.batch, seed)
    return [prompt[: lengths.randint(1, len(prompt))] for prompt in whole]


def memory(device: Any) -> dict[str, int]:
    """Bytes in use now, and on a GPU the largest since the peak was reset."""
    import psutil
    import torch

    found = {"resident": psutil.Process().memory_info().rss}
    if device.type == "cuda":
        found["allocated"] = torch.cuda.memory_allocated(device)
        found["reserved"] = torch.cuda.memory_reserved(device)
        found["peak"] = torch.cuda.max_memory_allocated(device)
    return found


def forms(trainer: Any) -> dict[str, int]:
    """How many of each of `FORMS` there are."""
    from torch._dynamo.utils import counters

    counts = (
        len(getattr(trainer.engine, "graphs", ())),
        len(trainer.passes.captured.graphs),
        counters["stats"]["unique_graphs"],
    )
    return dict(zip(FORMS, counts, strict=True))


def measure(args: argparse.Namespace, options: list[str]) -> Found:
    """Everything that the JSON holds: a number an update in each list."""
    from cores.runtime.launch import launch
    from scripts.bench import machine
    from scripts.bench.made import trainer_of
    from scripts.bench.workloads import settings

    if args.updates < 2 * SETTLED:
        raise UserError(f"--updates: {args.updates} are too few; choose {2 * SETTLED} or more.")
    workload = workload_from(args)
    config = settings(workload, args.engine, ["--ppo.updates", str(args.updates), *options])
    run = launch(config)
    trainer = trainer_of(workload, config, run)
    rows: list[dict[str, float]] = []
    for update in range(args.updates):
        prompts = varied_prompts(workload, update)
        machine.reset_peak(run.device)
        machine.synchronize(run.device)
        start = time.perf_counter()
        experience, _ = trainer.step(prompts)
        machine.synchronize(run.device)
        seconds = round(time.perf_counter() - start, 4)
        tokens = int(experience.response_mask.sum())
        rows.append({"seconds": seconds, "tokens": tokens, **memory(run.device), **forms(trainer)})
    found = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        "kind": "steady",
        "workload": asdict(workload),
        "standard": False,
        "engine": type(trainer.engine).__name__,
        "asked_engine": args.engine,
        "options": options,
        "machine": machine.describe(run.device),
        "mean_length": statistics.mean(found["tokens"]) / workload.batch,
        "updates": found,
    }


def fifths(seconds: list[float]) -> tuple[float, float]:
    """Median seconds of the first and of the last fifth of the updates behind the warm-up."""
    measured = seconds[WARM_UP:]
    fifth = len(measured) // 5
    return statistics.median(measured[:fifth]), statistics.median(measured[-fifth:])


def settled(numbers: list[int]) -> tuple[int, int]:
    """A number at update 50 and at the end."""
    return numbers[SETTLED - 1], numbers[-1]


def report(found: Found) -> str:
    """The figures on the screen."""
    from scripts.bench.labels import label

    updates = found["updates"]
    first, last = fifths(updates["seconds"])
    lines = [
        f"{label(found)}: {len(updates['seconds'])} updates, median of the first fifth "
        f"{first:.4f} s, of the last {last:.4f} s, ratio {last / first:.3f}"
    ]
    for name, numbers in updates.items():
        if name not in ("seconds", "tokens"):
            before, after = settled(numbers)
            lines.append(f"{name:<14}{before:>16,} at update {SETTLED}{after:>16,} at the end")
    return "\n".join(lines)


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Time and memory of many updates.")
    add_workload_options(parser)
    parser.add_argument("--engine", choices=ENGINES, default="graph")
    parser.add_argument("--updates", type=at_least(1), default=500, help="100 or more")
    parser.add_argument("--json", type=json_file, help="file to write")
    args, options = parser.parse_known_args(argv)
    found = measure(args, options)
    print(report(found))
    write(found, args.json)


if __name__ == "__main__":
    guarded(main)
