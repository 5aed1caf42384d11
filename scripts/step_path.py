"""What one PPO step runs of `cores/`: its functions in the order of their first call.

    python scripts/step_path.py [--workload W4] [--engine graph] [--json FILE] [OPTIONS]

One `PPOTrainer.step` of a benchmark workload, the second of a run: what is done once is behind it.
Counted are functions and methods that have a name; what they hold (comprehensions, lambdas,
functions within functions) is part of them. Kernels, and layers in place of transformers' own,
are left out, and in the second count what only the decoder (`rollout/graph`) calls. OPTIONS are
stage 3's.
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
KERNELS = ("models/kernels.py", "models/layer", "rollout/graph/kernels.py")
"""Kernels, and the layers that stand for ones of transformers."""
DECODER = "rollout/graph/"


Function = tuple[str, str]
"""File and name."""


def traced(work: Any) -> tuple[dict[Function, int], set[Function]]:
    """Functions of `cores/` that `work` calls, with the depth of the first call, and those of them
    that are called outside the decoder."""
    root, found, outside = f"{HERE}/cores/", dict[Function, int](), set[Function]()

    def called(frame: FrameType, event: str, _: Any) -> None:
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(root):
            return
        file, name = code.co_filename.removeprefix(root), code.co_qualname
        name = name.split(".<")[0]
        if file.startswith(KERNELS) or name.startswith("<") or (file, name) in outside:
            return
        files, above = [file], frame.f_back
        while above is not None:
            if above.f_code.co_filename.startswith(root):
                files.append(above.f_code.co_filename.removeprefix(root))
            above = above.f_back
        found.setdefault((file, name), len(files) - 1)
        if not any(file.startswith(DECODER) for file in files):
            outside.add((file, name))

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return found, outside


def main(argv: list[str]) -> None:
    """Trace the step; print its functions by depth, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workload", default="W4")
    parser.add_argument("--engine", default="graph")
    parser.add_argument("--json", type=Path)
    args, options = parser.parse_known_args(argv)

    from cores.runtime.launch import launch
    from scripts.bench.made import trainer_of
    from scripts.bench.workloads import WORKLOADS, prompts_of, settings

    workload = WORKLOADS[args.workload]
    config = settings(workload, args.engine, options)
    trainer = trainer_of(workload, config, launch(config))
    prompts = prompts_of(workload, workload.batch, 0)
    trainer.step(prompts)
    found, outside = traced(lambda: trainer.step(prompts))
    for (file, name), depth in found.items():
        print(f"{'  ' * depth}{name}  ({file})")
    counts = {"deepest": max(found.values()) + 1}
    for name, functions in (("", set(found)), (" without the decoder", outside)):
        counts[f"files{name}"] = len({file for file, _ in functions})
        counts[f"functions{name}"] = len(functions)
    print("\n".join(f"{name}: {count}" for name, count in counts.items()))
    if args.json is not None:
        args.json.write_text(json.dumps(counts, indent=1) + "\n")


if __name__ == "__main__":
    guarded(main)
