"""The reward of the arithmetic example, for `ppo.rewards` (configs/arithmetic.yaml)."""

from typing import Any


def correct(prompts: list[str], responses: list[str], rows: list[dict[str, Any]]) -> list[float]:
    """1 for a response that is the row's answer and nothing else, otherwise 0."""
    return [float(reply == row["answer"]) for reply, row in zip(responses, rows, strict=True)]
