"""Whether a stopped PPO run goes on as if nothing had happened, on this machine; what a checkpoint
costs.

    python scripts/check_resume.py [--workload W1] [--updates 4] [--stop 2] [--json FILE] [OPTIONS]

Trains `--updates` updates of a benchmark workload in one go, and again with a checkpoint behind
`--stop`, read back into new roles. Compares weights, optimizer states and statistics bit for bit,
and times the checkpoint. OPTIONS are stage 3's.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cores.runtime.cli import guarded


def apart(wanted: Any, got: Any) -> dict[str, float]:
    """How far tensors are from each other that are not the same bit for bit, by name."""
    return {
        f"{file}:{name}": (got.tensors[file][name] - tensor).abs().max().item()
        for file, tensors in wanted.tensors.items()
        for name, tensor in tensors.items()
        if not bool((tensor == got.tensors[file][name]).all())
    }


def main(argv: list[str]) -> None:
    """Run both, print and write what differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="W1")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--stop", type=int, default=2)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", help="in place of the workload's")
    parser.add_argument("--control", action="store_true", help="train in one go twice, too")
    parser.add_argument("--json", type=Path)
    args, options = parser.parse_known_args(argv)

    import torch

    from cores.ppo import build_roles
    from cores.run import checkpoint
    from cores.runtime.launch import launch
    from cores.training.ppo import build_trainer
    from scripts.bench import machine
    from scripts.bench.workloads import (
        WORKLOADS,
        prompts_of,
        random_parents,
        settings,
        tokenizer_of,
        trainer_of,
        variant,
    )

    workload = variant(WORKLOADS[args.workload], precision=args.precision)
    config = settings(workload, args.engine, options)
    here, tokenizer = launch(config), tokenizer_of(workload)

    def steps(trainer: Any, first: int, last: int) -> list[dict[str, float]]:
        return [
            trainer.step(prompts_of(workload, workload.batch, seed))[1]
            for seed in range(first, last)
        ]

    def wait() -> None:
        if here.device.type == "cuda":
            torch.cuda.synchronize()

    whole = trainer_of(workload, config, here)
    rows = steps(whole, 0, args.updates)
    wanted = whole.state_dict()
    del whole
    control = None
    if args.control:
        again = trainer_of(workload, config, here)
        steps(again, 0, args.updates)
        control = max(apart(wanted, again.state_dict()).values(), default=0.0)
        del again
    parts = trainer_of(workload, config, here)
    found = steps(parts, 0, args.stop)
    wait()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        began = time.monotonic()
        state = parts.state_dict()
        gathered = time.monotonic() - began
        path = checkpoint.write(Path(folder), args.stop, state)
        written = time.monotonic() - began
        size = sum(p.stat().st_size for p in path.iterdir())
        began = time.monotonic()
        saved, _ = checkpoint.newest(Path(folder))
        checked = time.monotonic() - began
        assert saved is not None, "it was just written"
        del parts, state
        with random_parents(workload, here.device) as parents:
            roles = build_roles(config, tokenizer, parents, here, saved)
        resumed = build_trainer(config, roles, tokenizer, here)
        resumed.load_state_dict(saved)
        found += steps(resumed, args.stop, args.updates)
    gaps = apart(wanted, resumed.state_dict())
    result = {
        "workload": args.workload,
        "precision": workload.precision,
        "options": options,
        "machine": machine.describe(here.device),
        "tensors": sum(map(len, wanted.tensors.values())),
        "tensors_apart": len(gaps),
        "largest_difference": max(gaps.values(), default=0.0),
        "largest_difference_of_two_whole_runs": control,
        "rows_equal": rows == found,
        "checkpoint_bytes": size,
        "seconds_to_gather": gathered,
        "seconds_to_write": written,
        "seconds_to_check": checked,
    }
    print(json.dumps(result, indent=1))
    for name, gap in sorted(gaps.items(), key=lambda item: -item[1])[:5]:
        print(f"{name}: {gap:.2e}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    guarded(main)
