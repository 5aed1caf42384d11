"""One line and one JSON entry on how far a launch ended from one process; see check_gpu.sh.

    compare_launches.py OUT MODEL ONE LAUNCH SECONDS PROCESSES

OUT/MODEL/ONE and OUT/MODEL/LAUNCH hold what tests/integration/_modes_worker.py left. Exits with 1
if a difference is above its limit, or if the launch did not do what its name says.
"""

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "integration"))

from _compare import KINDS, STAGES, facts, metric_difference, weight_differences  # noqa: E402

WEIGHTS = 1e-4
"""Limit of a weight's difference. The steps move weights by 2e-3 and more, so that a step that is
left out, doubled or scaled shows; Adam makes as much as 1e-5 of rounding where gradients are 0."""
METRICS = 1e-3
"""Limit of a statistic's difference, as a share."""
NAMES = dict(zip(STAGES, ("sft", "reward", "actor", "critic"), strict=True))


def entry(root: Path, one: str, launch: str, kind: str, seconds: float) -> dict[str, Any]:
    """What is known of one launch with full weights or adapters."""
    first, second = root / one / kind, root / launch / kind
    noted = facts(second)
    return {
        "model": root.name,
        "launch": launch,
        "kind": kind,
        "processes": noted["world"],
        "share_of_weights": noted["sharded"],
        "weights": {
            NAMES[stage]: value for stage, value in weight_differences(first, second).items()
        },
        "metrics": metric_difference(first, second),
        "seconds": seconds,
    }


def sound(row: dict[str, Any], processes: int) -> bool:
    """Whether the differences are small, and the launch had the processes and shards it is for."""
    share = 1 / processes + 0.01 if row["launch"].startswith(("zero3", "fsdp2")) else 1.0
    return (
        row["processes"] == processes
        and max(row["weights"].values()) <= WEIGHTS
        and row["metrics"] <= METRICS
        and all(held <= share for held in row["share_of_weights"].values())
    )


def main() -> None:
    """Print, append, judge."""
    out, model, one, launch, seconds, processes = Path(sys.argv[1]), *sys.argv[2:]
    path = out / "equivalence.json"
    rows = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    new = [entry(out / model, one, launch, kind, float(seconds)) for kind in KINDS]
    path.write_text(json.dumps(rows + new, indent=1) + "\n", encoding="utf-8")
    if not rows:
        head = "  ".join(f"{name:>8}" for name in (*NAMES.values(), "metrics", "seconds"))
        print(f"{'model':<6} {'launch':<14} {'kind':<5} {head}")
    verdict = 0
    for row in new:
        fine = sound(row, int(processes))
        verdict |= not fine
        values = "  ".join(f"{v:8.1e}" for v in (*row["weights"].values(), row["metrics"]))
        mark = "" if fine else "  TOO FAR"
        print(
            f"{model:<6} {launch:<14} {row['kind']:<5} {values}  {float(seconds):8.0f}{mark}",
            flush=True,
        )
    sys.exit(verdict)


if __name__ == "__main__":
    main()
