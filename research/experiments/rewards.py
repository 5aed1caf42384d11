"""Reward functions of the experiments: the demo's true reward, and the same told to no purpose."""

import random
from typing import Any

from research.demo.world import gold as worth


def gold(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[float]:
    """What research/demo/world.py says each reply is worth."""
    return [worth(row["prompt"], reply) for row, reply in zip(rows, responses, strict=True)]


def shuffled(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[float]:
    """The same numbers, each given to some reply of the batch: there is nothing to learn."""
    scores = gold(prompts, responses, rows)
    random.Random("".join(responses)).shuffle(scores)
    return scores
