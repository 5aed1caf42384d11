"""The evidence run: three sets, three seeds, all stages, several jobs side by side on one GPU.

    python research/evidence/run.py --data DATA --model MODEL --out OUT [--workers 7] [--gpus 1]
        [--only PATTERN] [--section.key value ...]

DATA: the folder with the sets' JSONL files. MODEL: SmolLM2-135M-Instruct as a folder. Further
arguments go to every stage. A finished stage is not run again, so a run that was stopped goes on
where it was. At the end, and with --stop-after SECONDS when the time is over, whatever is finished
is scored (OUT/scores.json) and summed up (OUT/figures.json, OUT/figures.md).
"""

import argparse
import re
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from research.evidence.plan import SETS, jobs, lay_out
from research.jobs import run_all


def _files_missing(data: Path) -> list[str]:
    names = sorted({f"{name}.jsonl" for files in SETS.values() for name in files})
    return [name for name in names if not (data / name).is_file()]


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Train and judge what docs/evidence.md shows.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the JSONL files")
    parser.add_argument("--model", type=Path, required=True, help="folder of the base model")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--workers", type=int, default=7, help="jobs side by side")
    parser.add_argument("--gpus", type=int, default=1, help="GPUs to spread the jobs over")
    parser.add_argument("--only", default="", help="regular expression in the names of jobs to run")
    parser.add_argument("--stop-after", type=float, default=86400, help="seconds for the jobs")
    args, more = parser.parse_known_args(argv)
    data, model, out = args.data.resolve(), args.model.resolve(), args.out.resolve()
    if missing := _files_missing(data):
        raise UserError(f"--data {data}: there is no {', '.join(missing)}.")
    if not (model / "config.json").is_file():
        raise UserError(f"--model {model}: no model there; see scripts/smollm2_from_gguf.py.")
    lay_out(data, out)
    deadline = time.monotonic() + args.stop_after
    plan = [job for job in jobs(data, model, out, more) if re.search(args.only, job.name)]
    unfinished = run_all(plan, out / "logs", args.workers, deadline, args.gpus)
    words = ["--data", str(data), "--model", str(model), "--out", str(out), *more]
    for script in ("score.py", "figures.py"):
        subprocess.run([sys.executable, str(Path(__file__).with_name(script)), *words], check=True)
    if unfinished:
        names = ", ".join(job.name for job in unfinished)
        raise UserError(f"not finished: {names} (see {out / 'logs'}).")


if __name__ == "__main__":
    guarded(main)
