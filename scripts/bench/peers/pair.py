"""Our PPO step and TRL's in turn on one machine, and the ratio of their medians.

    python scripts/bench/peers/pair.py --workload W4 --peer-path FOLDER --json out.json
        [--engine hf] [--rounds 3] [--updates 5] [--peer-python PYTHON] [--ours "--micro 32"]

FOLDER holds trl==1.12.0 (`pip install --no-deps --target FOLDER trl==1.12.0`); or PYTHON is the
interpreter of an environment with it. Each round is a process of ours and then one of TRL's, so
that what changes on the machine meanwhile meets both. Each side's figure is the median over all
measured steps of all rounds.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))  # run as a plain script

from cores.errors import UserError
from cores.runtime.cli import guarded
from scripts.bench.ppo_step import ENGINES, at_least, json_file, write

BENCH = Path(__file__).resolve().parents[1]
HOW = "Make it by `pip install --no-deps --target FOLDER trl==1.12.0`."


def ratio(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Samples a second of both over the rounds, and how many times theirs ours is."""
    rates = [
        rounds[0]["workload"]["batch"]
        / statistics.median(second for found in rounds for second in found["step_seconds"])
        for rounds in (ours, theirs)
    ]
    by_round = [
        a["samples_per_second"] / b["samples_per_second"] for a, b in zip(ours, theirs, strict=True)
    ]
    return {
        "ours": rates[0],
        "peer": rates[1],
        "ratio": rates[0] / rates[1],
        "ratio_by_round": by_round,
    }


def run(command: list[str], path: str | None) -> dict[str, Any]:
    """The JSON of one measurement in a process of its own; UserError if that failed."""
    variables = dict(os.environ)
    if path is not None:
        variables["PYTHONPATH"] = os.pathsep.join(
            [path, *filter(None, [variables.get("PYTHONPATH")])]
        )
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        status = subprocess.run([*command, "--json", str(out)], env=variables, check=False)
        if status.returncode:
            raise UserError(
                f"`{shlex.join(command)}` ended with exit status {status.returncode}; what it "
                "printed stands above."
            )
        found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    return found


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Measure our PPO step and TRL's in turn.")
    parser.add_argument("--workload", choices=("W1", "W4"), required=True)
    parser.add_argument("--engine", choices=ENGINES, default="auto", help="of ours")
    count = at_least(1)
    parser.add_argument("--rounds", type=count, default=3)
    parser.add_argument("--updates", type=count, default=5, help="measured steps a round and side")
    parser.add_argument("--peer-path", help="folder that holds trl==1.12.0")
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter of the peer")
    parser.add_argument("--ours", default="", help="more options of ppo_step.py, one text")
    parser.add_argument("--json", type=json_file, help="file to write")
    args = parser.parse_args(argv)
    if args.peer_path is not None and not Path(args.peer_path).is_dir():
        raise UserError(f"--peer-path {args.peer_path}: there is no such folder. {HOW}")
    same = ["--workload", args.workload, "--updates", str(args.updates)]
    us = [sys.executable, str(BENCH / "ppo_step.py"), *same, "--engine", args.engine]
    them = [args.peer_python, str(BENCH / "peers" / "trl_ppo.py"), *same]
    ours, theirs = [], []
    for _ in range(args.rounds):
        ours.append(run([*us, *shlex.split(args.ours)], None))
        theirs.append(run(them, args.peer_path))
    found = {"kind": "pair", **ratio(ours, theirs), "rounds": {"ours": ours, "peer": theirs}}
    print(
        f"{args.workload}: ours {found['ours']:.2f} samples/s, TRL {found['peer']:.2f}, "
        f"{found['ratio']:.2f} times"
    )
    write(found, args.json)


if __name__ == "__main__":
    guarded(main)
