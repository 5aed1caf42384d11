"""How a step's cost grows: many variants of the workloads in one process.

    python scripts/bench/costs.py OUT [--engine graph] [--updates 3] [--seconds 600] [--only REGEX]

Writes OUT/NAME.json for each variant of VARIANTS, as ppo_step.py does, but for the time to the
first update, which only a process of its own has. One that fails (memory may run out) is said and
leaves no file; so is one for which --seconds leave no time. Exit status 1 if any is missing.
"""

import argparse
import gc
import re
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from scripts.bench.ppo_step import ENGINES, arguments, at_least, measure, report, write

TOKENS = "--micro-tokens 8192"
VARIANTS = {
    "W1-batch16": "--workload W1 --batch 16",
    "W1-batch64": "--workload W1 --batch 64",
    "W1-batch256": "--workload W1 --batch 256",
    "W1-batch1024": "--workload W1 --batch 1024",
    "W1-response64": f"--workload W1 --response 64 {TOKENS}",
    "W1-response256": f"--workload W1 --response 256 {TOKENS}",
    "W1-response512": f"--workload W1 --response 512 {TOKENS}",
    "W1-response1024": f"--workload W1 --response 1024 {TOKENS}",
    "W1-stops256": f"--workload W1 --response 256 --lengths geometric {TOKENS}",
    "W1-stops1024": f"--workload W1 --response 1024 --lengths geometric {TOKENS}",
    "W2-checkpointing": f"--workload W2 --model.gradient_checkpointing true {TOKENS}",
}
"""Words of ppo_step.py's command line. Micro-batches by tokens where rows grow long: memory stays
that of W1."""


def run(name: str, words: list[str], out: Path) -> bool:
    """Measure one variant; whether it went well."""
    import torch

    from scripts.bench.machine import accelerator_memory

    torch.cuda.empty_cache()
    before = accelerator_memory()
    args, options = arguments([*words, "--json", str(out / f"{name}.json")])
    try:
        found = measure(args, options)
    except (UserError, RuntimeError) as error:  # memory that runs out is a RuntimeError
        print(f"{name}: {error}", flush=True)
        return False
    print(f"{name}, {before / 1e9:.2f} GB before it\n{report(found)}", flush=True)
    write(found | {"first_update_seconds": None}, args.json)
    return True


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure variants of a PPO step.")
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--engine", choices=ENGINES, default="graph")
    parser.add_argument("--updates", type=at_least(1), default=3, help="steps of each pass")
    parser.add_argument("--seconds", type=float, default=600, help="no variant begins after it")
    parser.add_argument("--only", default="", help="regular expression in the names")
    args = parser.parse_args(argv)
    if not any(re.search(args.only, name) for name in VARIANTS):
        raise UserError(f"--only {args.only}: no name has it. There are {', '.join(VARIANTS)}.")
    start, missing = time.perf_counter(), 0
    for name, words in VARIANTS.items():
        if not re.search(args.only, name) or (args.out / f"{name}.json").exists():
            continue
        if time.perf_counter() - start > args.seconds:
            print(f"{name}: skipped, no time left")
            missing += 1
            continue
        given = ["--engine", args.engine, "--updates", str(args.updates), *words.split()]
        missing += not run(name, given, args.out)
        gc.collect()
    sys.exit(missing > 0)


if __name__ == "__main__":
    guarded(main)
