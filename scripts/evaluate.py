"""Judge what is finished of a run: reward model, base, SFT and PPO. No trainer is needed.

    python scripts/evaluate.py --config c.yaml [--prompts FILE] [--json OUT]

Prints a table and writes <output_dir>/evaluation.json, or OUT and nothing else. docs/evaluation.md
says what each figure means and what OUT holds. Further `--section.key value` go to the
configuration, as for the stages.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a plain script

from cores.config import parse_config
from cores.errors import UserError
from cores.runtime.cli import guarded

PROMPTS = """prompts: what data.prompts.path takes, such as a .txt with one a line; by default those
held out"""
PAIRS = """pairs: what data.preference.path takes, or rows of RewardBench 2; by default those held
out"""
JUDGE = """a second judge: a reward model's folder, FILE.py:FUNCTION, or http://.../v1, an
OpenAI-compatible server"""
GATE = """a filter whose refusals are counted: the folder of a moderation model, or
FILE.py:FUNCTION, as for chat.py"""
BEST_OF = "replies a prompt for the curve of the best of n (8; 1: no curve)"


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--config", action="append", default=[], metavar="FILE", help="YAML file of the run")
    add("--prompts", metavar="FILE", help=PROMPTS)
    add("--pairs", metavar="FILE", help=PAIRS)
    add("--json", metavar="OUT", type=Path, help="file to write in place of evaluation.json")
    add("--judge", metavar="JUDGE", help=JUDGE)
    add("--judge-model", metavar="NAME", help="which model of an http judge; its first by default")
    add("--gate", metavar="GATE", help=GATE)
    add("--limit", type=int, default=500, help="held-out prompts at most (500)")
    add("--best-of", type=int, default=8, metavar="N", help=BEST_OF)
    args, more = parser.parse_known_args(argv)
    for name, least in (("limit", 2), ("best_of", 1)):
        if (value := getattr(args, name)) < least:
            raise UserError(f"--{name.replace('_', '-')} {value}: must be {least} or more.")
    words = [word for file in args.config for word in ("--config", file)]
    config = parse_config([*words, *more], "scripts/evaluate.py", "")

    # Heavy imports come after the arguments are known to be right.
    from scripts.evaluation.run import Wanted, judge

    judge(config, Wanted(**{k: v for k, v in vars(args).items() if k != "config"}))


if __name__ == "__main__":
    guarded(main)
