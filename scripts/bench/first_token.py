"""Time from a question to the first token of each stage, as the chat page streams it.

    python scripts/bench/first_token.py --config configs/demo.yaml

20 questions with the same words and other seeds, all stages at once; prints median and largest.
"""

import os
import statistics
import sys
from pathlib import Path
from threading import Event

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from dataclasses import replace

from cores.config import parse_config
from cores.runtime.cli import guarded

QUESTIONS = 20
PROMPT = "Good evening, room 214 here. Could I have more towels?"


def main(argv: list[str]) -> None:
    """Ask and print."""
    config = parse_config(argv, "first_token.py", "Time to the first token.")

    from cores.runtime.launch import launch
    from scripts.chat.voices import Reply, Voices

    voices = Voices(config, launch(config))
    found: dict[str, list[float]] = {name: [] for name in voices.engines}
    for seed in range(QUESTIONS):
        controls = replace(voices.default, seed=seed)
        for stage, said in voices.answer([{"role": "user", "content": PROMPT}], controls, Event()):
            if isinstance(said, Reply):
                found[stage].append(1000 * said.first)
    for stage, times in found.items():
        print(f"{stage}: {statistics.median(times):.0f} ms, at most {max(times):.0f} ms")
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    guarded(main)
