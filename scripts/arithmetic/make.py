"""Write the inputs of the arithmetic example: sums, a tokenizer and a base of random weights.

    python scripts/arithmetic/make.py --out runs/arithmetic

leaves data/*.jsonl and base/ under `--out`, the same bytes for the same seed. Stage 1 learns from
replies of which half are wrong, so that it often knows better than it says; stage 3
gets the answers, for its reward function to compare with. A sum stands in one file only, in either
order of its terms.
"""

import argparse
import random
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from scripts.tiny import write_base, write_rows

TERMS = range(10, 100)
SIZES = {"sft_test": 100, "prompts_test": 400, "prompts": 800}
"""Sums of each file, each in both orders; all others are in sft."""
RIGHT = 0.5
"""Share of right replies in sft."""
VOCABULARY, POSITIONS = 257, 16
"""A token a digit: joined digits are harder to add."""


def slip(rng: random.Random, a: int, b: int) -> int:
    """A mistake as people make it: a place off by one, or a carry forgotten."""
    mistakes = [a + b - 1, a + b + 1, a + b - 10, a + b + 10]
    if a % 10 + b % 10 > 9:
        mistakes.append(a + b - 10)
    return rng.choice(mistakes)


def make_rows(seed: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of each file, keyed by its name."""
    rng = random.Random(seed)
    sums = [(a, b) for a in TERMS for b in TERMS if a <= b]
    rng.shuffle(sums)
    rows: dict[str, list[dict[str, Any]]] = {}
    for name, size in {**SIZES, "sft": len(sums)}.items():
        own, sums = sums[:size], sums[size:]
        rows[name] = []
        for pair in own:
            for a, b in dict.fromkeys((pair, pair[::-1])):
                row = {"prompt": f"{a}+{b}="}
                if name.startswith("sft"):
                    said = a + b if rng.random() < RIGHT else slip(rng, a, b)
                    row["completion"] = str(said)
                else:
                    row["answer"] = str(a + b)
                rows[name].append(row)
        rng.shuffle(rows[name])
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/arithmetic"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write_rows(args.out / "data", make_rows(args.seed))
    write_base(args.out / "base", [], VOCABULARY, POSITIONS, args.seed)


if __name__ == "__main__":
    main()
