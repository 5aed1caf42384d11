"""Replies to score, and reward functions of a text."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from _models import EOS, PPO, toy_tokenizer

from cores.rewards.call import RewardFunctions
from cores.rewards.load import load_functions
from cores.rollout import Rollout

PROMPTS = [[5, 9, 13], [20]]
ROWS = [
    {"input_ids": [5, 9, 13], "prompt": "w5 w9 w13", "row": {"prompt": "w5 w9 w13", "answer": 7}},
    {"input_ids": [20], "prompt": "w20", "row": {"prompt": "w20", "answer": 8, "tags": ["a"]}},
]


def rollout(replies: list[list[int]], ended: list[bool]) -> Rollout:
    """These replies to PROMPTS, padded on both sides."""
    left, width = max(map(len, PROMPTS)), max(map(len, replies))
    ids = torch.full((len(replies), left + width), 6)  # what stands at padding is never read
    mask = torch.zeros_like(ids, dtype=torch.bool)
    for i, (prompt, reply) in enumerate(zip(PROMPTS, replies, strict=True)):
        row = slice(left - len(prompt), left + len(reply))
        ids[i, row], mask[i, row] = torch.tensor(prompt + reply), True
    response = mask[:, left:]
    return Rollout(ids, mask, response, torch.zeros(response.shape), torch.tensor(ended))


TWO = rollout([[7, 8, EOS], [9]], [True, False])


def asked(folder: Path, text: str, limit: float | None = 20.0, **weights: float) -> Any:
    """What the functions of a file of this text give TWO, `f` if none is named."""
    (folder / "rule.py").write_text(text, encoding="utf-8")
    rewards = {f"{folder}/rule.py:{name}": weight for name, weight in (weights or {"f": 1}).items()}
    functions = load_functions(rewards, limit).functions
    config = replace(PPO, rewards=rewards, reward_timeout=limit)
    return RewardFunctions(config, toy_tokenizer(), functions)(TWO, ROWS)
