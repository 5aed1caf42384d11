"""Where the time of each phase goes, by operation and kernel (torch.profiler)."""

from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch.profiler import ProfilerActivity, profile

from scripts.bench.clock import PHASES

ROWS = 40


def write_profile(trainer: Any, prompts: list[list[int]], path: Path) -> None:
    """One step, a table for each phase: the operations with most time of their own."""
    gpu = trainer.launch.device.type == "cuda"
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * gpu
    tables: list[str] = []

    def profiled(call: Any, name: str) -> Any:
        def run(*arguments: Any, **named: Any) -> Any:
            with profile(activities=activities) as seen:
                result = call(*arguments, **named)
                if gpu:
                    torch.cuda.synchronize()
            order = "self_cuda_time_total" if gpu else "self_cpu_time_total"
            tables.append(f"{name}\n{seen.key_averages().table(sort_by=order, row_limit=ROWS)}")
            return result

        return run

    with patch.multiple(
        trainer, **{name: profiled(getattr(trainer, name), name) for name in PHASES}
    ):
        trainer.step(prompts)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(tables), encoding="utf-8")
