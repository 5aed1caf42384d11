"""What a measurement ran on: hardware, versions, memory, and a CPU's own rates."""

import os
import platform
import resource
import time
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cores.errors import UserError
from scripts.bench.floors import GPU_BYTES, GPU_OPERATIONS, GPU_PEAK, Rates

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate")


def synchronize(device: torch.device) -> None:
    """Wait for the GPU; not where a graph is captured, as nothing runs there."""
    if device.type == "cuda" and not torch.cuda.is_current_stream_capturing():
        torch.cuda.synchronize(device)


def cap(device: torch.device, gigabytes: float | None) -> None:
    """Let torch take at most so many gigabytes (1e9 bytes) of the GPU; UserError elsewhere."""
    if gigabytes is None:
        return
    if device.type != "cuda":
        raise UserError("--memory: caps what is taken of a GPU, and there is none; leave it out.")
    whole = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / whole))


def reset_peak(device: torch.device) -> None:
    """Start a new peak; a process's resident memory has one for its whole life."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Of tensors on the GPU since `reset_peak`, and what captured graphs hold for themselves
    besides (the allocator does not see it used); on the CPU of the process so far."""
    if device.type == "cuda":
        pools = (s for s in torch.cuda.memory_snapshot() if tuple(s["segment_pool_id"]) != (0, 0))
        held = sum(segment["total_size"] - segment["allocated_size"] for segment in pools)
        return torch.cuda.max_memory_allocated(device) + held
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def accelerator_memory() -> int:
    """Bytes of tensors on the GPU now; 0 without one."""
    return torch.cuda.memory_allocated() if torch.cuda.is_available() else 0


def since_start() -> float:
    """Seconds since this process was started."""
    import psutil

    return time.time() - psutil.Process().create_time()


def describe(device: torch.device) -> dict[str, Any]:
    """Hardware and versions."""
    gpu = device.type == "cuda"
    name = torch.cuda.get_device_name(device) if gpu else _cpu()
    found = {package: version_of(package) for package in PACKAGES}
    return {
        "hardware": name,
        "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version()} | {k: v for k, v in found.items() if v},
    }


def version_of(package: str) -> str | None:
    """None where it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"


@cache
def rates_of(device: torch.device) -> tuple[Rates, float]:
    """Bytes and operations a second for the floors, and the operations for the utilisation.

    Those of an H100 on a GPU. A CPU's are measured here and now, in fp32 and with the threads that
    this process has: the best of 20 products of 1024 x 1024 matrices, and of 20 sums of 256 MB.
    """
    if device.type == "cuda":
        return Rates(GPU_BYTES, GPU_OPERATIONS), GPU_PEAK
    matrix, long = torch.rand(1024, 1024), torch.rand(64 * 2**20)
    product = min(_seconds(lambda: matrix @ matrix) for _ in range(20))
    total = min(_seconds(lambda: long.sum()) for _ in range(20))
    operations = 2 * 1024**3 / product
    return Rates(long.numel() * 4 / total, operations), operations


def _seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start
