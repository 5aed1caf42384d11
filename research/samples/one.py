"""One run of stage 3, ours or TRL 1.12's, kept as a small JSON file.

    python research/samples/one.py --out OUT --task demo --side ours --seed 0 [--until UPDATE]
        [KEY=VALUE ...]

KEY=VALUE: options of stage 3, or fields of TRL's PPOConfig. What stages 1 and 2 made of the seed
lies under OUT (see research/samples/run.py). Writes OUT/runs/<task>/<side>/<setting>/seed<n>.json:

    held_out: at update 0 and so on: score and the judge's score of one sampled reply to each
              held-out prompt, KL from stage 1 (nats a reply), length; the same draws each time
    training: score (less the missing-EOS penalty) and kl of each update's own replies
    lost:     where it ended by an error, its last line

and drops the weights. A run that was stopped goes on where it was. --until stops it behind that
update, for where the end is not what is asked; schedules are those of the whole run.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.config import parse_config
from cores.errors import UserError
from cores.runtime.cli import guarded
from research.evidence import plan as evidence
from research.jobs import ROOT
from research.samples.plan import TASKS, Setting, Task, name_of

KEPT = ("score", "kl", "length", "ended")
LOOK = 0.3
"""Seconds between looks at how far a run is."""


def base_words(task: Task, out: Path, seed: int) -> list[str]:
    """The configuration and data of the task."""
    if task.name == "demo":
        return ["--config", str(ROOT / "configs/demo.yaml"), "--seed", str(seed)]
    jobs = evidence.jobs(out / "source", out / "model", out)
    job = next(j for j in jobs if j.name == f"{task.name}.seed{seed}-a.ppo")
    words = list(job.arguments)
    place = words.index("--output_dir")
    return words[:place] + words[place + 2 :]


def parents(task: Task, out: Path, seed: int) -> Path:
    """The folder that holds `sft` and `reward` of the seed."""
    return out / task.name / (f"seed{seed}" if task.name == "demo" else f"seed{seed}-a")


def environment(task: Task, out: Path, seed: int, side: str) -> dict[str, str]:
    """Where the judge and the peer are found."""
    found = {**os.environ, **dict(task.variables)}
    paths = [str(ROOT), found.get("PYTHONPATH", "")]
    if side == "trl":
        paths = [str(out / "peer"), *paths]
    found["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    found["JUDGE"] = str(out / task.name / f"seed{seed}-b" / "reward")
    return found


def command(
    task: Task, out: Path, folder: Path, side: str, seed: int, chosen: Setting
) -> list[str]:
    """What trains; its folder is `folder`."""
    base, made = base_words(task, out, seed), parents(task, out, seed)
    shown = ["--ppo.rewards", task.sources, "--ppo.eval_every", str(task.eval_every)]
    shown += ["--ppo.eval_prompts", str(task.eval_prompts)]
    if side == "ours":
        folder.mkdir(parents=True, exist_ok=True)
        for stage in ("sft", "reward"):
            if not (folder / stage).is_symlink():
                (folder / stage).symlink_to((made / stage).resolve())
        words = [word for key, value in chosen for word in (f"--{key}", value)]
        script = str(ROOT / "stage3_ppo.py")
        return [sys.executable, script, *base, "--output_dir", str(folder), *shown, *words]
    words = [f"{key}={value}" for key, value in chosen]
    script = str(ROOT / "research/experiments/peer_trl.py")
    stages = ["--sft", str(made / "sft"), "--reward", str(made / "reward")]
    told = [*base, *stages, "--out", str(folder), *shown, "--held-out"]
    return [sys.executable, script, *told, *(["--set", *words] if words else [])]


def lines(path: Path) -> list[dict[str, Any]]:
    """Rows of a JSON-lines file; none where it is not there."""
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def place_of(folder: Path, side: str) -> Path:
    """Where a run writes its lines."""
    place = folder if side == "trl" else folder / "ppo"
    return place if place.is_dir() else folder / "ppo.unfinished"


def trained(
    words: list[str], variables: dict[str, str], folder: Path, side: str, until: int | None
) -> subprocess.CompletedProcess[str]:
    """Run the command; with `until` it is told to end once that update, and the look behind it, are
    done."""
    told = False
    with subprocess.Popen(words, env=variables, stderr=subprocess.PIPE, text=True) as process:
        while True:
            try:
                _, said = process.communicate(timeout=None if until is None or told else LOOK)
                break
            except subprocess.TimeoutExpired:
                if len(lines(place_of(folder, side) / "metrics.jsonl")) > (until or 0):
                    process.terminate()
                    told = True
    return subprocess.CompletedProcess(words, 0 if told else process.returncode, "", said)


def looks(place: Path, side: str) -> list[dict[str, Any]]:
    """The evaluations of a run; of ours, the one before the first update too, and the last."""
    rows = lines(place / "evaluations.jsonl")
    if side == "trl":
        return rows
    if (place / "stage.json").is_file():
        told = json.loads((place / "stage.json").read_text(encoding="utf-8"))["metrics"]
        last = {"update": told["updates"], **(told["after"] or {})}
        return [{"update": 0, **told["before"]}, *rows, last]
    from cores.evaluate import Evaluation

    for saved in place.glob("checkpoints/*/state.json"):
        before = Evaluation(**json.loads(saved.read_text(encoding="utf-8"))["before"])
        return [{"update": 0, **before.summary()}, *rows]
    return rows


def gather(
    task: Task, folder: Path, side: str, penalty: float, until: int | None = None
) -> dict[str, Any]:
    """The curves of a run, to its end or that update."""
    place = place_of(folder, side)
    metrics = lines(place / "metrics.jsonl")[:until]
    evaluations = [row for row in looks(place, side) if until is None or row["update"] <= until]
    names = (*KEPT, task.judge)
    held_out = [{k: row[k] for k in ("update", *names) if k in row} for row in evaluations]
    taken = [penalty * (1 - row["ended"]) if "ended" in row else 0.0 for row in metrics]
    scores = [row["score"] - less for row, less in zip(metrics, taken, strict=True)]
    return {
        "held_out": held_out,
        "training": {
            "score": [round(score, 4) for score in scores],
            "kl": [round(row["kl"], 4) for row in metrics],
        },
    }


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Run one setting of stage 3 on one seed.")
    parser.add_argument("--out", type=Path, required=True, help="folder of all runs")
    parser.add_argument("--task", choices=TASKS, required=True)
    parser.add_argument("--side", choices=("ours", "trl"), default="ours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--until", type=int, metavar="UPDATE", help="stop behind it")
    parser.add_argument("settings", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args(argv)
    if unclear := [word for word in args.settings if "=" not in word]:
        raise UserError(f"{unclear[0]}: write KEY=VALUE, such as ppo.epochs=4.")
    chosen: Setting = tuple((k, v) for k, _, v in (w.partition("=") for w in args.settings))
    task, out = TASKS[args.task], args.out.resolve()
    place = Path(task.name) / args.side / name_of(chosen)
    made = out / "runs" / place / f"seed{args.seed}.json"
    folder = out / "work" / place / f"seed{args.seed}"
    words = command(task, out, folder, args.side, args.seed, chosen)
    config = parse_config(base_words(task, out, args.seed), "research/samples/one.py", "")
    start = time.monotonic()
    variables = environment(task, out, args.seed, args.side)
    result = trained(words, variables, folder, args.side, args.until)
    sys.stderr.write(result.stderr)
    found = gather(task, folder, args.side, config.ppo.missing_eos_penalty, args.until)
    if result.returncode:
        said = result.stderr.strip().splitlines()[-1:] or [""]
        if result.returncode < 0 or "not finite" not in said[0]:
            sys.exit(result.returncode)  # a signal, or a mistake: no outcome of the setting
        found["lost"] = said[0]
    about = {"task": task.name, "side": args.side, "seed": args.seed, "setting": dict(chosen)}
    made.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**about, **found, "seconds": round(time.monotonic() - start, 1)})
    made.write_text(text + "\n", encoding="utf-8")
    shutil.rmtree(folder)


if __name__ == "__main__":
    guarded(main)
