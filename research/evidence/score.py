"""Every outcome of an evidence run, row by row: OUT/scores.json.

Reads the saved models of whatever is finished and scores the held-out pairs with each reward model
and PPO's held-out replies with the judge. Arguments as research/evidence/run.py.

    hardware:      the GPU, or the processor, that scored
    pairs.<set>:   clusters, tfidf, longer; runs.<run>: outcome of each pair (1, 0.5, 0)
    replies.<set>: clusters; seeds.<seed>.{before,after}: score, kl, tokens, judge of each reply
"""

import argparse
import json
import os
import platform
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from cores.config import parse_config
from cores.runtime.cli import guarded
from research.evidence.plan import SEEDS, SETS, WITH_PPO, StageJob, jobs
from scripts.evaluation.baselines import length_margins, replies, tfidf_margins
from scripts.evaluation.stats import wins

USER = re.compile(r"<\|im_start\|>user\n(.*?)<\|im_end\|>", re.DOTALL)
"""The first user turn in a prompt as ChatML."""
SIDES = ("before", "after")


def first_turn(prompt: str) -> str:
    """What rows hang together by."""
    found = USER.search(prompt)
    return found[1] if found else prompt


class Scorer:
    """Scores rows of tokens with saved reward models, one at a time on the device."""

    def __init__(self, config: Any, tokenizer: Any) -> None:
        from cores.runtime.launch import launch

        self.launch = launch(config)
        self.tokenizer = tokenizer

    def __call__(self, folder: Path, rows: list[list[int]]) -> list[float]:
        """Calibrated score of each row."""
        from cores.models import ScalarModel, load_scalar
        from cores.training.calibration import score_rows

        model = ScalarModel(load_scalar(folder)).to(self.launch.device)
        return score_rows(model, rows, 32, self.launch)


def score_pairs(config: Any, tokenizer: Any, scorer: Scorer, folders: dict[str, Path]) -> Any:
    """Outcomes on the held-out pairs of a set, of both baselines and of each reward model."""
    from cores.data import preference_data

    data = preference_data(config, tokenizer)
    train, test = replies(data.train, tokenizer), replies(data.test, tokenizer)
    sides = [pair[side] for pair in data.test for side in ("chosen_ids", "rejected_ids")]
    prompts = [tokenizer.decode(pair["chosen_ids"][: pair["prompt_length"]]) for pair in data.test]
    runs = {}
    for run, folder in folders.items():
        scores = scorer(folder, sides)
        margins = [c - r for c, r in zip(scores[::2], scores[1::2], strict=True)]
        runs[run] = wins(margins)
    return {
        "train_pairs": len(train),
        "clusters": [first_turn(prompt) for prompt in prompts],
        "tfidf": wins(tfidf_margins(train, test)),
        "longer": wins(length_margins(test)),
        "runs": runs,
    }


def score_replies(folder: Path, judge: Path, scorer: Scorer) -> Any:
    """Score, KL and length of a PPO run's held-out replies, and the judge's score of them."""
    lines = (folder / "held_out_samples.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    result: dict[str, Any] = {"clusters": [first_turn(row["prompt"]) for row in rows]}
    for side in SIDES:
        texts = [row[side]["text"] for row in rows]
        result[side] = {
            "score": [row[side]["score"] for row in rows],
            "kl": [row[side]["kl"] for row in rows],
            "tokens": [float(len(ids)) for ids in scorer.tokenizer(texts)["input_ids"]],
            "judge": scorer(judge, [row[side]["ids"] for row in rows]),
        }
    return result


def score_set(name: str, plan: list[StageJob], out: Path) -> tuple[Any, Any]:
    """(pairs, replies) of one set; None where no stage that they need is finished."""
    from cores.models import load_tokenizer
    from cores.runtime.launch import quiet

    own = [job for job in plan if job.set == name and job.done]
    first = next((job for job in own if job.stage == "sft"), None)
    if first is None:
        return None, None
    quiet()
    tokenizer = load_tokenizer(first.folder)
    config = parse_config(list(first.arguments), "research/evidence/score.py", "")
    scorer = Scorer(config, tokenizer)
    rewards = {job.run: job.folder for job in own if job.stage == "reward"}
    pairs = score_pairs(config, tokenizer, scorer, rewards)
    runs = {}
    for seed in SEEDS:
        ppo, judge = out / name / f"seed{seed}-a" / "ppo", rewards.get(f"seed{seed}-b")
        if judge is not None and (ppo / "stage.json").is_file():
            runs[str(seed)] = score_replies(ppo, judge, scorer)
    return pairs, runs if name in WITH_PPO else None


def hardware() -> str:
    """The first GPU's name, or the processor's architecture, of the machine this runs on."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_name(0)
    return f"CPU {platform.machine()}, {os.cpu_count()} cores"


def main(argv: list[str]) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Score what an evidence run has finished.")
    for option in ("--data", "--model", "--out"):
        parser.add_argument(option, type=Path, required=True)
    args, more = parser.parse_known_args(argv)
    plan = jobs(args.data, args.model, args.out, more)
    result: dict[str, Any] = {"hardware": hardware(), "pairs": {}, "replies": {}}
    for name in SETS:
        pairs, runs = score_set(name, plan, args.out)
        result["pairs"] |= {name: pairs} if pairs else {}
        result["replies"] |= {name: runs} if runs else {}
        print(f"scored {name}", flush=True)
    (args.out / "scores.json").write_text(json.dumps(result) + "\n", encoding="utf-8")


if __name__ == "__main__":
    guarded(main)
