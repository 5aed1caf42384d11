"""Whether a long run stays as fast and as small as it began.

    python scripts/check_flat.py OUT.json stage3_ppo.py --config ... --output_dir RUN [OPTIONS]

Runs the stage as a process of its own, looks at its memory every second, and prints for each tenth
of its rows of metrics.jsonl the seconds a row and the largest resident memory. The first tenth
holds what is done once. Exits with 1 if the last tenth is more than a fifth slower or larger than
the second.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil

PARTS = 10
LIMIT = 1.2
"""Of the last tenth to the second: the clock of a shared machine varies by as much."""


def watched(command: list[str]) -> tuple[int, list[tuple[float, int]]]:
    """Exit status, and (seconds from the start, resident bytes of it and its children)."""
    seen, began = [], time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    own = psutil.Process(process.pid)
    while process.poll() is None:
        try:
            everyone = [own, *own.children(recursive=True)]
            seen.append((time.monotonic() - began, sum(p.memory_info().rss for p in everyone)))
        except psutil.Error:
            pass  # one has ended since
        time.sleep(1)
    return process.returncode, seen


def main(argv: list[str]) -> int:
    """Run, measure, compare."""
    if len(argv) < 4 or "--output_dir" not in argv:
        sys.exit(__doc__)
    out, script, *options = argv
    stage = {"stage1_sft.py": "sft", "stage2_rm.py": "reward", "stage3_ppo.py": "ppo"}[script]
    status, seen = watched([sys.executable, script, *options])
    if status:
        return status
    folder = Path(options[options.index("--output_dir") + 1]) / stage
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    clock = [json.loads(line)["seconds"] for line in lines]
    parts = []
    for i in range(PARTS):
        first, last = i * (len(clock) - 1) // PARTS, (i + 1) * (len(clock) - 1) // PARTS
        within = [size for at, size in seen if clock[first] <= at <= clock[last]]
        each = (clock[last] - clock[first]) / (last - first)
        parts.append({"rows": last, "seconds": each, "bytes": max(within, default=0)})
        print(f"to row {last}: {each:.4f} s a row, {parts[-1]['bytes'] / 2**20:.0f} MiB")
    Path(out).write_text(json.dumps(parts, indent=1) + "\n", encoding="utf-8")
    ratios = {key: parts[-1][key] / parts[1][key] for key in ("seconds", "bytes")}
    print("last tenth to the second: " + ", ".join(f"{k} {v:.3f}" for k, v in ratios.items()))
    return int(max(ratios.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
