"""Held-out pairs by `trl_reward`, and by the folder as TRL reads it: python trl_scores.py RUN.

TRL 1.16 (GRPOTrainer, `_calculate_rewards`) joins the texts of prompt and reply, tokenizes without
special tokens, and takes the logit at the last token.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from cores.interop import trl_reward

SIDES = ("chosen", "rejected")


def right(scores: dict[str, list[float]]) -> float:
    """Share of pairs whose chosen reply scores higher."""
    pairs = list(zip(*(scores[side] for side in SIDES), strict=True))
    return sum(chosen > rejected for chosen, rejected in pairs) / len(pairs)


@torch.no_grad()
def main(run: Path) -> None:
    """Print both accuracies and the correlation of the scores."""
    lines = (run / "data/preference_test.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    prompts = [f"Guest:\n{row['prompt']}\nDesk:\n" for row in rows]
    reward = trl_reward(run / "reward")
    ours = {side: reward(prompts, [row[side] for row in rows]) for side in SIDES}
    tokenizer = AutoTokenizer.from_pretrained(run / "reward")
    model = AutoModelForSequenceClassification.from_pretrained(run / "reward").eval()
    how = {"padding": True, "padding_side": "right", "add_special_tokens": False}
    theirs: dict[str, list[float]] = {side: [] for side in SIDES}
    for side in SIDES:
        texts = [prompt + row[side] for prompt, row in zip(prompts, rows, strict=True)]
        for start in range(0, len(rows), 32):
            batch = tokenizer(texts[start : start + 32], return_tensors="pt", **how)
            theirs[side] += model(**batch).logits[:, 0].tolist()
    both = torch.tensor([[found[side] for side in SIDES] for found in (ours, theirs)])
    related = torch.corrcoef(both.flatten(1))[0, 1].item()
    print(
        f"{len(rows)} pairs: right by trl_reward {right(ours):.3f}, by the folder named as a "
        f"string {right(theirs):.3f}; correlation of the scores {related:.3f}"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
