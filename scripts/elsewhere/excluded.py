"""Probability that an engine which excludes nothing samples an excluded id: python excluded.py RUN.

Summed over the tokens of a reply, by the model's softmax over all of its rows, mean of 200 held-out
replies.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = 200


@torch.no_grad()
def main(folder: Path) -> None:
    """Print it for the model in `folder`, a stage 3's."""
    model, tokenizer = (
        kind.from_pretrained(folder) for kind in (AutoModelForCausalLM, AutoTokenizer)
    )
    banned = model.generation_config.suppress_tokens
    lines = (folder / "held_out_samples.jsonl").read_text(encoding="utf-8").splitlines()
    sums = []
    for row in map(json.loads, lines[:ROWS]):
        ids, first = row["after"]["ids"], len(tokenizer(row["prompt"])["input_ids"])
        shares = model.eval()(torch.tensor([ids])).logits[0, first - 1 : -1].softmax(dim=-1)
        sums.append(shares[:, banned].sum().item())
    print(f"{sum(sums) / len(sums):.1e} a reply, {len(banned)} excluded ids, {len(sums)} replies")


if __name__ == "__main__":
    main(Path(sys.argv[1]) / "ppo")
