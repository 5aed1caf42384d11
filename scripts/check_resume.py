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


def trained(trainer: Any, workload: Any, first: int, last: int) -> list[dict[str, float]]:
    """Statistics of the updates `first` to `last`."""
    from scripts.bench.workloads import prompts_of

    return [
        trainer.step(prompts_of(workload, workload.batch, seed))[1] for seed in range(first, last)
    ]


def resumed(trainer: Any, workload: Any, config: Any, step: int, last: int) -> dict[str, Any]:
    """The rest of a run behind a checkpoint of `trainer`, which is read back into new roles: its
    state and statistics, and the checkpoint's bytes and seconds."""
    import torch

    from cores.ppo import build_roles
    from cores.run import checkpoint
    from cores.training.ppo import build_trainer
    from scripts.bench.made import random_parents
    from scripts.bench.workloads import tokenizer_of

    here, tokenizer = trainer.launch, tokenizer_of(workload)
    if here.device.type == "cuda":
        torch.cuda.synchronize()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        began = time.monotonic()
        state = trainer.state_dict()
        found: dict[str, Any] = {"seconds_to_gather": time.monotonic() - began}
        began = time.monotonic()
        path = checkpoint.write(Path(folder), step, state)
        found["seconds_to_write"] = time.monotonic() - began
        found["checkpoint_bytes"] = sum(p.stat().st_size for p in path.iterdir())
        began = time.monotonic()
        saved, _ = checkpoint.newest(Path(folder))
        found["seconds_to_check"] = time.monotonic() - began
        assert saved is not None, "it was just written"
        with random_parents(workload, here.device) as parents:
            roles = build_roles(config, tokenizer, parents, here, saved)
        again = build_trainer(config, roles, tokenizer, here)
        again.load_state_dict(saved)
        rows = trained(again, workload, step, last)
    return {"state": again.state_dict(), "rows": rows, "costs": found}


def main(argv: list[str]) -> None:
    """Run both, print and write what differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workload", default="W1")
    parser.add_argument("--updates", type=int, default=4)
    parser.add_argument("--stop", type=int, default=2)
    parser.add_argument("--engine", default="auto")
    parser.add_argument("--precision", help="in place of the workload's")
    parser.add_argument("--control", action="store_true", help="train in one go twice, too")
    parser.add_argument("--json", type=Path)
    args, options = parser.parse_known_args(argv)

    from cores.runtime.launch import launch
    from scripts.bench import machine
    from scripts.bench.made import trainer_of
    from scripts.bench.workloads import WORKLOADS, settings, variant

    workload = variant(WORKLOADS[args.workload], precision=args.precision)
    config = settings(workload, args.engine, options)
    here = launch(config)
    whole = trainer_of(workload, config, here)
    rows = trained(whole, workload, 0, args.updates)
    wanted, control = whole.state_dict(), None
    del whole
    if args.control:
        again = trainer_of(workload, config, here)
        trained(again, workload, 0, args.updates)
        control = max(apart(wanted, again.state_dict()).values(), default=0.0)
        del again
    parts = trainer_of(workload, config, here)
    first = trained(parts, workload, 0, args.stop)
    rest = resumed(parts, workload, config, args.stop, args.updates)
    gaps = apart(wanted, rest["state"])
    result = {
        "workload": args.workload,
        "precision": workload.precision,
        "options": options,
        "machine": machine.describe(here.device),
        "tensors": sum(map(len, wanted.tensors.values())),
        "tensors_apart": len(gaps),
        "largest_difference": max(gaps.values(), default=0.0),
        "largest_difference_of_two_whole_runs": control,
        "rows_equal": rows == first + rest["rows"],
        **rest["costs"],
    }
    print(json.dumps(result, indent=1))
    for name, gap in sorted(gaps.items(), key=lambda item: -item[1])[:5]:
        print(f"{name}: {gap:.2e}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    guarded(main)
