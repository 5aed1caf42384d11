"""Accuracy on held-out sums before and after PPO; writes summary.json.

    python scripts/arithmetic/report.py --run runs/arithmetic

Everything is loaded by stock transformers classes, without the pipeline's own code. Exit status 1
if PPO did not raise the accuracy of sampled replies.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from scripts.evaluation.stats import wilson

SEED = 1
NEW_TOKENS = 5
STAGES = {"base": "random weights", "sft": "after SFT", "ppo": "after PPO"}


@torch.no_grad()
def replies(folder: Path, tokenizer: Any, prompts: list[str], sampled: bool) -> list[str]:
    """A reply to each prompt, sampled at temperature 1 or the likeliest, from a fixed seed."""
    torch.manual_seed(SEED)
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([tokenizer(prompt)["input_ids"] for prompt in prompts])  # all of one length
    end = tokenizer.eos_token_id
    how = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {}
    found = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=sampled,
        max_new_tokens=NEW_TOKENS,
        eos_token_id=end,
        pad_token_id=end,
        **how,
    )
    return list(tokenizer.batch_decode(found[:, ids.shape[1] :], skip_special_tokens=True))


def accuracy(said: list[str], answers: list[str]) -> dict[str, float]:
    """Share of right replies and its 95% interval (Wilson)."""
    share = sum(a == b for a, b in zip(said, answers, strict=True)) / len(answers)
    low, high = wilson(share, len(answers))
    return {"mean": round(share, 4), "low": round(low, 4), "high": round(high, 4)}


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/arithmetic"))
    run = parser.parse_args().run
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    text = (run / "data" / "prompts_test.jsonl").read_text(encoding="utf-8")
    rows = [json.loads(line) for line in text.splitlines()]
    prompts, answers = ([row[name] for row in rows] for name in ("prompt", "answer"))
    tokenizer = AutoTokenizer.from_pretrained(run / "sft")
    summary: dict[str, dict[str, dict[str, float]]] = {"sampled": {}, "greedy": {}}
    print(f"accuracy on {len(rows)} held-out sums (95% intervals):")
    for stage, title in STAGES.items():
        for kind in summary:
            said = replies(run / stage, tokenizer, prompts, kind == "sampled")
            summary[kind][stage] = accuracy(said, answers)
        cells = (
            f"{kind} {found[stage]['mean']:.1%} [{found[stage]['low']:.1%}, "
            f"{found[stage]['high']:.1%}]"
            for kind, found in summary.items()
        )
        print(f"  {title:15} " + "   ".join(cells))
    path = run / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {path}")
    before, after = summary["sampled"]["sft"], summary["sampled"]["ppo"]
    if after["low"] <= before["high"]:
        sys.exit(f"error: PPO did not raise the accuracy: {before} before, {after} after.")


if __name__ == "__main__":
    main()
