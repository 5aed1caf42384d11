"""Write the demo's inputs: data files, a tokenizer and a base model of random weights.

    python research/demo/make.py --out runs/demo

leaves data/*.jsonl and base/ under `--out`, the same bytes for the same seed. No prompt of a test
file occurs in a training file.
"""

import argparse
import random
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from pairs import make_pair, prefers
from world import gold, make_prompt, make_reply

from scripts.tiny import write_base, write_rows

SIZES = {"sft": 12000, "preference": 16000, "prompts": 4000}
TEST_SIZES = {"sft_test": 400, "preference_test": 800, "prompts_test": 400}
VOCABULARY, POSITIONS = 1024, 128
TRANSCRIPT = "Guest:\n{prompt}\nDesk:\n{reply}"
"""A row as configs/demo.yaml renders it, for the tokenizer to learn from."""


def distinct_prompts(rng: random.Random) -> Iterator[str]:
    """Prompts that never repeat."""
    seen: set[str] = set()
    while True:
        prompt = make_prompt(rng)
        if prompt not in seen:
            seen.add(prompt)
            yield prompt


def preference_row(rng: random.Random, prompt: str, noisy: bool) -> dict[str, str]:
    """Two replies of different worth; clean labels where `noisy` is false."""
    first, second = make_pair(rng, prompt)
    if noisy:
        first_wins = prefers(rng, prompt, first, second)
    else:
        first_wins = gold(prompt, first) > gold(prompt, second)
    chosen, rejected = (first, second) if first_wins else (second, first)
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def make_rows(seed: int) -> dict[str, list[dict[str, str]]]:
    """The rows of each file, keyed by its name; each prompt is in one file only."""
    rng = random.Random(seed)
    prompts = distinct_prompts(rng)
    rows: dict[str, list[dict[str, str]]] = {}
    for name, size in {**SIZES, **TEST_SIZES}.items():
        own = [next(prompts) for _ in range(size)]
        if name.startswith("sft"):
            rows[name] = [{"prompt": p, "completion": make_reply(rng, p)} for p in own]
        elif name.startswith("preference"):
            noisy = name == "preference"
            rows[name] = [preference_row(rng, p, noisy) for p in own]
        else:
            rows[name] = [{"prompt": p} for p in own]
    return rows


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rows = make_rows(args.seed)
    write_rows(args.out / "data", rows)
    texts = (TRANSCRIPT.format(prompt=r["prompt"], reply=r["completion"]) for r in rows["sft"])
    write_base(args.out / "base", texts, VOCABULARY, POSITIONS, args.seed)


if __name__ == "__main__":
    main()
