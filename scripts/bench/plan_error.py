"""The planner beside what was measured: peak memory and seconds of a step of stage 3.

    python scripts/bench/plan_error.py [FILE.json ...] [--write]

FILE: measurements of ppo_step.py; default those of docs/performance that today's code would give
(see OLDER). Prints planned and measured figures and their ratio; --write puts the table of the
default files into docs/scaling.md. Exit status 1 if a peak is off by more than 10%, or seconds by
more than 25%.
"""

import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.memory import Case, Layout
from cores.runtime.cli import guarded
from cores.shapes import Texts, shape_from
from research.pages import fill
from scripts.plan.layouts import Plan, plan
from scripts.plan.times import card_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
OLDER = (
    "W1-stops", "W4-", "before", "W2-captured8", "W1-response256", "W1-response512",
    "W3-graph", "W5-packed", "W6-packed",
)  # fmt: skip
"""Beginnings or ends of names of files that are no measure of today's code: rows were read with
their padding, or dealt out otherwise; buffers were not kept beside captured passes; Llama's layers
were not ours yet. W4 is on a CPU."""
PEAK, SECONDS = 0.10, 0.25
"""Largest errors, as shares of what was measured."""
GPUS = {"NVIDIA H100 80GB HBM3": ("H100", 85.0e9), "NVIDIA H200": ("H200", 150.1e9)}
"""Card of the planner, and bytes of its memory as torch tells them."""
Found = dict[str, Any]


def measured() -> list[Path]:
    """The default files."""
    files = sorted((DOCS / "performance").rglob("W*.json"))
    return [file for file in files if not any(part in file.stem for part in OLDER)]


def planned(found: Found) -> Plan:
    """The plan of a measurement: its configuration and shapes, its replies' mean length."""
    from scripts.bench.workloads import Workload, settings, shape

    workload = Workload(**found["workload"])
    adapted = [f"--reward.lora.rank={workload.lora}"] * (workload.lora > 0)  # as the parents are
    config = settings(workload, found["asked_engine"], [*found["options"], *adapted])
    name, memory = GPUS[found["machine"]["hardware"]]
    policy, judge = (
        shape_from(shape(each).to_dict(), each) for each in (workload.policy, workload.scalar)
    )
    texts = Texts(workload.prompt, workload.response, found["mean_length"])
    case = Case(config, policy, judge, Layout(card=memory), texts)
    return plan("ppo", case, card_of(0.0, name), 1, {})


def compared(found: Found) -> tuple[float, float, float, float]:
    """Peak (bytes) planned and measured, seconds planned and measured.

    Measured is the largest of all that were taken: steps as in training, and those by phase.
    """
    form = planned(found)
    return form.peak[1], max(found["peak_bytes"].values()), form.total, found["seconds"]


def row(file: Path, found: Found) -> list[str]:
    """A line of the table."""
    from scripts.bench.labels import label

    size, most, time, took = compared(found)
    gpu = GPUS[found["machine"]["hardware"]][0]
    sizes = [f"{size / 1e9:.1f}", f"{most / 1e9:.1f}", f"{size / most - 1:+.0%}"]
    times = [f"{time:.3g}", f"{took:.3g}", f"{time / took - 1:+.0%}"]
    return [f"{label(found)}, {gpu}", *sizes, *times]


def table(files: list[Path]) -> str:
    """Markdown, a line a file."""
    head = ["", "GB planned", "measured", "", "s a step planned", "measured", ""]
    rows = [head, ["---"] * len(head)]
    rows += [row(file, json.loads(file.read_text(encoding="utf-8"))) for file in files]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in rows)


def main(argv: list[str]) -> None:
    """Command line."""
    files = [Path(word) for word in argv if word != "--write"] or measured()
    print(table(files))
    if "--write" in argv:
        page = DOCS / "scaling.md"
        text = fill(page.read_text(encoding="utf-8"), {"errors": table(measured())}, page.name)
        page.write_text(text, encoding="utf-8")
    worst = [compared(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    wrong = any(abs(a / b - 1) > PEAK or abs(c / d - 1) > SECONDS for a, b, c, d in worst)
    sys.exit(wrong)


if __name__ == "__main__":
    guarded(main)
