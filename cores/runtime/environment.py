"""What launchers leave in the environment, before anything acts on it.

A variable that an earlier job left behind makes a lone process one of several: it would wait for
others that never come.
"""

import os
import re
from collections.abc import Mapping

import psutil

RANKS = ("RANK", "LOCAL_RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
SIZES = (
    "WORLD_SIZE", "LOCAL_WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE",
)  # fmt: skip
OTHERS = (
    "MASTER_PORT", "MPI_LOCALRANKID", "MPI_LOCALNRANKS", "OMPI_COMM_WORLD_LOCAL_RANK",
    "OMPI_COMM_WORLD_LOCAL_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE",
    "OMP_NUM_THREADS", "ACCELERATE_GRADIENT_ACCUMULATION_STEPS",
)  # fmt: skip
"""Numbers that accelerate and torch read as well."""
BOOLEANS = "y yes t true on 1 n no f false off 0".split()
LAUNCHERS = re.compile(
    r"(torchrun|accelerate|deepspeed|mpi\w*|orted|prte\w*|hydra\w*|slurm\w*|srun)"
)
"""Programs and modules that start several processes."""


def environment_problem(env: Mapping[str, str]) -> str | None:
    """What is wrong with the variables of launchers in `env`, and what to do about it."""
    for name in (*RANKS, *SIZES, *OTHERS):
        if name in env and not re.fullmatch(r"-?\d{1,9}|auto", env[name]):
            return _unset([name], f"is {env[name]!r}, which is no number")
    for name, value in env.items():
        if name.startswith("ACCELERATE_USE_") and value.lower() not in BOOLEANS:
            return _unset([name], f"is {value!r}, which is neither true nor false")
    several = [name for name in SIZES if int(env.get(name, 1)) > 1]
    several += [name for name in RANKS if int(env.get(name, -1)) >= 0]
    if several and not launched():
        return _unset(
            several,
            "would make this process wait for others that no launcher started with it, left over "
            "from another job perhaps",
        )
    return None


def launched() -> bool:
    """Whether a launcher is among the processes above this one."""
    try:
        words = [word for parent in psutil.Process().parents() for word in parent.cmdline()]
    except psutil.Error:
        return False
    names = {part for word in words for part in re.split(r"\W+", os.path.basename(word))}
    return "torch.distributed.run" in words or any(map(LAUNCHERS.fullmatch, names))


def _unset(names: list[str], problem: str) -> str:
    return (
        f"the environment variable {' and '.join(names)} {problem}. Run `unset {' '.join(names)}`, "
        "or start several processes with accelerate launch or torchrun."
    )
