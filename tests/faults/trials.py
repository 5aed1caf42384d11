"""Runs that are killed, or whose disk fails, at every named point and at random ones; what they
leave, and what the same command makes of it.

    python tests/faults/trials.py [--kills N] [--seed S] [--out FILE]

A trial is right if the older finished stage is never gone, the same command goes on, and what it
finishes is bit for bit what an uninterrupted run makes.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for folder in (HERE, HERE.parents[1], HERE.parent / "integration", HERE.parent / "unit"):
    sys.path.insert(0, str(folder))

import _forked  # noqa: E402
import _tiny  # noqa: E402
import _victim  # noqa: E402
from _helpers import good, tree  # noqa: E402

import cores.evaluate  # noqa: E402  # once, for all forks
import cores.training.ppo  # noqa: E402
import cores.training.reward  # noqa: E402
import cores.training.sft  # noqa: E402, F401

MORE = """--sft.max_steps 6 --sft.learning_rate 1e-2
--reward.max_steps 6 --reward.learning_rate 1e-2
--ppo.updates 4 --ppo.actor_learning_rate 1e-3 --ppo.eval_prompts 2
--checkpoint.every_steps 2 --checkpoint.every_minutes null""".split()
TOLD = {"stage.json", "README.md", "metrics.jsonl", "log.txt"}
"""Files with times in them."""
IN_STAGE = {
    "sft": "training row".split(),
    "reward": "training row".split(),
    "ppo": "rollout scoring update row evaluation".split(),
}
ANYWHERE = [name for name in _victim.POINTS if name not in {*IN_STAGE["ppo"], "training"}]


class Place:
    """Models, data, finished stages and what an uninterrupted run makes of each stage."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.base = _tiny.make_llama(root / "base")
        self.files = _tiny.make_data(root / "data")
        self.whole: dict[str, dict[str, str]] = {}
        for stage in ("sft", "reward", "ppo"):
            ended = _forked.run("none", stage, self.words(root / "whole"), root)
            assert ended.status == 0, ended.err
            self.whole[stage] = self.made(root / "whole" / stage)

    def words(self, out: Path, *more: str) -> list[str]:
        """Arguments of a run into `out`."""
        return [*good(self.base, self.files, out), *MORE, *more]

    def made(self, folder: Path) -> dict[str, str]:
        """What a stage made, times aside."""
        return {name: digest for name, digest in tree(folder).items() if name not in TOLD}

    def fresh(self, stage: str, name: str, older: bool) -> Path:
        """An output_dir with the parents; with `older` a finished stage of another seed's form
        stands there too."""
        out = self.root / name
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        for parent in {"sft": [], "reward": ["sft"], "ppo": ["sft", "reward"]}[stage]:
            (out / parent).symlink_to(self.root / "whole" / parent)
        if older:
            shutil.copytree(self.root / "whole" / stage, out / stage)
            (out / stage / "older").write_text("the older one")
        return out


def judge(place: Place, stage: str, out: Path, older: bool, words: list[Any]) -> str:
    """What is wrong with what a run left, after the same command; empty if nothing."""
    there = (out / stage / "stage.json").exists()
    if older and not there:
        return "the older stage is gone"
    err = ""
    for _ in range(2):
        published = (out / stage / "stage.json").exists() and not (out / stage / "older").exists()
        left = (out / f"{stage}.unfinished").exists() or (out / stage / "state.json").exists()
        if published and not left:
            break
        ended = _forked.run("none", stage, words, place.root)
        if ended.status not in (0, 1) or "Traceback" in ended.err:
            return f"goes on with {ended.status}: {ended.err[-300:]}"
        err = ended.err
    if place.made(out / stage) != place.whole[stage]:
        wrong = {k for k, v in place.whole[stage].items() if place.made(out / stage).get(k) != v}
        return f"not what an uninterrupted run makes: {sorted(wrong)[:4]} {err[-300:]}"
    meant = {"sft", "reward", "ppo", "report.html", f".{stage}.lock"}
    extra = {p.name for p in out.iterdir()} - meant
    return f"left {extra}" if extra else ""


def trial(place: Place, point: str, stage: str, older: bool) -> str:
    """One kill or failing write at a named point."""
    out = place.fresh(stage, "trial", older)
    words = place.words(out, *(["--overwrite"] if older else []))
    ended = _forked.run(point, stage, words, place.root)
    name = point.partition(":")[0]
    if name in _victim.POINTS and ended.status == 0:
        return "not reached"
    if name in _victim.WRITES:
        if ended.status == 0:
            return "not reached"
        if "Traceback" in ended.err or not ended.err.startswith("error: "):
            return f"no paragraph: {ended.err[-400:]}"
    elif ended.status != -signal.SIGKILL:
        return f"ended with {ended.status}: {ended.err[-300:]}"
    return judge(place, stage, out, older, words)


def at_random(place: Place, stage: str, number: int, older: bool, draw: random.Random) -> str:
    """A signal at a random moment of the run."""
    out = place.fresh(stage, "trial", older)
    words = place.words(out, *(["--overwrite"] if older else []))
    began = time.monotonic()
    victim = _forked.Forked("none", stage, words, place.root)
    time.sleep(draw.uniform(0.1, 3.0))  # before that no line of ours has run
    try:
        os.kill(victim.pid, number)
    except ProcessLookupError:
        return "not reached"
    ended = victim.end()
    if ended.status not in (0, 75, -signal.SIGKILL):
        return f"ended with {ended.status} after {time.monotonic() - began:.1f} s: {ended.err}"
    return judge(place, stage, out, older, words)


def main() -> None:
    """All named points, then `--kills` at random."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="JSON of the counts")
    parser.add_argument("--only", default="", help="points whose name holds this")
    options = parser.parse_args()
    draw, found, wrong = random.Random(options.seed), Counter[str](), []
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        planned = [
            (f"{name}:{number}", stage)
            for stage in ("sft", "reward", "ppo")
            for name in [*IN_STAGE[stage], *ANYWHERE, *_victim.WRITES]
            for number in ((1, 2, 3) if "checkpoint" in name or name in IN_STAGE[stage] else (1,))
            if options.only in name
        ]
        for i, (point, stage) in enumerate(planned):
            older = i % 2 == 0 or "exchange" in point
            tell(f"{stage} {point}", trial(place, point, stage, older), found, wrong)
        for i in range(options.kills):
            stage = ("sft", "reward", "ppo", "ppo")[i % 4]
            number = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)[i // 4 % 4]
            result = at_random(place, stage, number, i % 3 == 0, draw)
            tell(f"{stage} {signal.Signals(number).name} at random", result, found, wrong)
    print(json.dumps({"trials": dict(found), "wrong": wrong}, indent=1))
    if options.out:
        options.out.write_text(json.dumps({"trials": dict(found), "wrong": wrong}, indent=1))
    sys.exit(bool(wrong))


def tell(name: str, result: str, found: Counter[str], wrong: list[str]) -> None:
    """Count a trial and print what is wrong with it."""
    found["right" if not result else result if result == "not reached" else "wrong"] += 1
    if result and result != "not reached":
        wrong.append(f"{name}: {result}")
    print(f"{name}: {result or 'right'}", flush=True)


if __name__ == "__main__":
    main()
