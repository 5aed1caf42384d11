"""What one PPO step runs of `cores/`: its functions in the order of their first call.

    python scripts/step_path.py [--workload W4] [--engine graph] [--json FILE] [OPTIONS]

One `PPOTrainer.step` of a benchmark workload, the first of a run, which scores with every model.
Counted are functions and methods that have a name; what they hold (comprehensions, lambdas,
functions within functions) is part of them. The graph decoder and kernels are left out. OPTIONS
are stage 3's.
"""

import argparse
import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cores.runtime.cli import guarded

HERE = Path(__file__).resolve().parents[1]
LEFT_OUT = ("rollout/graph/", "models/kernels.py", "models/logprob_kernels.py")


def traced(work: Any) -> dict[tuple[str, str], int]:
    """Functions of `cores/` that `work` calls as (file, name), with the depth of the first call."""
    root, found = f"{HERE}/cores/", dict[tuple[str, str], int]()

    def called(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(root):
            return
        file, name = code.co_filename.removeprefix(root), code.co_qualname
        name = name.split(".<")[0]
        if file.startswith(LEFT_OUT) or name.startswith("<") or (file, name) in found:
            return
        depth, above = 0, frame.f_back
        while above is not None:
            depth += above.f_code.co_filename.startswith(root)
            above = above.f_back
        found[file, name] = depth

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found


def main(argv: list[str]) -> None:
    """Trace the step; print its functions by depth, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="W4")
    parser.add_argument("--engine", default="graph")
    parser.add_argument("--json", type=Path)
    args, options = parser.parse_known_args(argv)

    from cores.runtime.launch import launch
    from scripts.bench.workloads import WORKLOADS, prompts_of, settings, trainer_of

    workload = WORKLOADS[args.workload]
    config = settings(workload, args.engine, options)
    trainer = trainer_of(workload, config, launch(config))
    prompts = prompts_of(workload, workload.batch, 0)
    found = traced(lambda: trainer.step(prompts))
    for (file, name), depth in found.items():
        print(f"{'  ' * depth}{name}  ({file})")
    counts = {"files": len({file for file, _ in found}), "functions": len(found)}
    counts["deepest"] = max(found.values()) + 1
    print("  ".join(f"{name} {count}" for name, count in counts.items()))
    if args.json is not None:
        args.json.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    guarded(main)
