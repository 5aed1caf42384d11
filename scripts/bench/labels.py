"""What a measurement is called in tables and plots."""

from dataclasses import asdict
from typing import Any

from scripts.bench.workloads import WORKLOADS

Found = dict[str, Any]
"""What a JSON file of a measurement holds."""
SIZES = ("minibatch", "micro", "epochs")
"""Of a workload, named where they are not the usual ones."""


def floor_of(found: Found, kind: str = "overlapped") -> float:
    """Seconds of the whole step's floor."""
    return sum(floor[kind] for floor in found["floors"].values())


def label(found: Found) -> str:
    """W1, or what differs from it; the engine, and options beyond the workload's."""
    w = found["workload"]
    name = w["name"]
    if not found["standard"]:
        lengths = f"~{found['mean_length']:.0f} of {w['response']}"
        response = w["response"] if w["mean_length"] is None else lengths
        name += f", {w['batch']} x {w['prompt']} -> {response}"
    usual = asdict(WORKLOADS[w["name"]])
    other = [f"{what} {w[what]}" for what in SIZES if w.get(what, usual[what]) != usual[what]]
    return ", ".join([name, engine_of(found), *other, *given(found)])


def given(found: Found) -> list[str]:
    """Options beyond the workload's own."""
    return [f"`{' '.join(found['options'])}`"] if found["options"] else []


def engine_of(found: Found) -> str:
    """As `rollout.engine` names it; `auto` has chosen one."""
    return str(found["engine"]).removesuffix("Engine").lower()
