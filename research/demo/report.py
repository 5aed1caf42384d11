"""Judge the demo's models by its true reward on held-out prompts; writes summary.json.

    python research/demo/report.py --run runs/demo

Everything is loaded by stock transformers classes, without the pipeline's own code: what the
stages leave are ordinary checkpoints. scripts/evaluate.py judges any run, by that code. Exit status
1 if PPO did not raise the gold reward.
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # run as a plain script

from research.demo.world import gold
from scripts.evaluation.stats import average, mean, wins

BATCH = 128
SEED = 1
SAMPLES = 12
SHOWN = 4
POLICIES = ("base", "sft", "ppo")


@dataclass(frozen=True)
class Task:
    """How the run renders and samples text, as the stages recorded it in stage.json."""

    tokenizer: PreTrainedTokenizerBase
    template: dict[str, Any]
    max_new_tokens: int

    def prompt(self, text: str) -> str:
        """A request as the policy reads it."""
        user, assistant = self.template["user"], self.template["assistant"]
        return user["prefix"] + text + user["suffix"] + assistant["prefix"]

    def encode(self, text: str) -> list[int]:
        """Ids of a rendered text."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def dialogue(self, prompt: str, reply: str) -> list[int]:
        """Ids of a request and its whole reply, the end-of-sequence token included."""
        suffix = self.template["assistant"]["suffix"]
        return self.encode(self.prompt(prompt) + reply + suffix + self.tokenizer.eos_token)


@dataclass(frozen=True)
class Replies:
    """One sampled reply to each of N prompts."""

    rows: list[list[int]]
    """Prompt and reply with its end-of-sequence token, without padding."""
    lengths: list[int]
    """Tokens of the reply."""
    texts: list[str]
    """The reply."""


def excluded(task: Task, vocabulary: int) -> list[int]:
    """Ids that are never sampled: pad, and those beyond the tokenizer, where the model has them."""
    pad = task.tokenizer.pad_token_id
    return [i for i in range(vocabulary) if i == pad or i >= len(task.tokenizer)]


@torch.no_grad()
def sample(model: PreTrainedModel, task: Task, prompts: list[str]) -> Replies:
    """A reply to each prompt at temperature 1, unfiltered, from a fixed seed."""
    torch.manual_seed(SEED)
    end = task.tokenizer.eos_token_id
    replies = Replies([], [], [])
    for start in range(0, len(prompts), BATCH):
        rows = [task.encode(task.prompt(p)) for p in prompts[start : start + BATCH]]
        # The base model has no pad token; what stands at unattended places does not matter.
        width = max(map(len, rows))
        ids = torch.tensor([[end] * (width - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        generate: Any = model.generate
        output = generate(
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=task.max_new_tokens,
            eos_token_id=end,
            pad_token_id=end,
            suppress_tokens=excluded(task, model.config.vocab_size) or None,
        )
        for row, tokens in zip(rows, output[:, width:].tolist(), strict=True):
            reply = tokens[: tokens.index(end) + 1] if end in tokens else tokens
            replies.rows.append(row + reply)
            replies.lengths.append(len(reply))
            replies.texts.append(str(task.tokenizer.decode(reply, skip_special_tokens=True)))
    return replies


def right_padded(rows: list[list[int]], pad: int) -> tuple[Tensor, Tensor]:
    """Ids and attention mask, (B, L)."""
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


@torch.no_grad()
def scores(reward: PreTrainedModel, task: Task, rows: list[list[int]]) -> list[float]:
    """Stock logit less `reward_mean` of each row: mean 0 and deviation 1 on stage-1 replies."""
    found: list[float] = []
    for start in range(0, len(rows), BATCH):
        ids, mask = right_padded(rows[start : start + BATCH], task.tokenizer.pad_token_id)
        logits = reward(input_ids=ids, attention_mask=mask).logits.squeeze(-1)
        found += (logits - reward.config.reward_mean).tolist()
    return found


@torch.no_grad()
def kl(
    policy: PreTrainedModel, reference: PreTrainedModel, task: Task, replies: Replies
) -> list[float]:
    """KL(policy || reference) in nats along each reply, all of them sampled by `policy`.

    At each token of a reply the KL of the two next-token distributions is exact (a sum over the
    vocabulary, pad excluded); the sum over the tokens estimates the sequence's without bias.
    """
    banned = torch.tensor(excluded(task, policy.config.vocab_size))
    found: list[float] = []
    for start in range(0, len(replies.rows), BATCH):
        rows = replies.rows[start : start + BATCH]
        lengths = torch.tensor(replies.lengths[start : start + BATCH])
        ids, mask = right_padded(rows, task.tokenizer.pad_token_id)
        p, q = (
            model(input_ids=ids, attention_mask=mask)
            .logits[:, :-1]
            .index_fill(-1, banned, -1e4)  # probability 0, and no NaN in 0 * log 0
            .log_softmax(-1)
            for model in (policy, reference)
        )
        ends = mask.sum(dim=1)
        place = torch.arange(1, ids.shape[1])  # logits at i - 1 predict token i
        inside = (place >= (ends - lengths)[:, None]) & (place < ends[:, None])
        found += ((p.exp() * (p - q)).sum(-1) * inside).sum(-1).tolist()
    return found


def read_rows(path: str) -> list[dict[str, Any]]:
    """Rows of a JSONL file."""
    with Path(path).open(encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def reward_accuracy(reward: PreTrainedModel, task: Task, path: str) -> dict[str, float]:
    """Accuracy on the clean pairs in `path`, and that of taking the longer reply."""
    pairs = read_rows(path)
    chosen, rejected = (
        [task.dialogue(pair["prompt"], pair[side]) for pair in pairs]
        for side in ("chosen", "rejected")
    )
    lengths = ([float(len(row)) for row in side] for side in (chosen, rejected))
    scored = (scores(reward, task, side) for side in (chosen, rejected))
    return {
        "reward_accuracy": round(mean(wins(*scored)), 4),
        "reward_accuracy_longer": round(mean(wins(*lengths)), 4),
    }


def judge(run: Path) -> tuple[dict[str, Any], dict[str, dict[str, float]]]:
    """The summary, and what the table shows beside it: mean score and length by policy."""
    stages = {
        name: json.loads((run / name / "stage.json").read_text(encoding="utf-8"))
        for name in ("sft", "reward", "ppo")
    }
    config = stages["ppo"]["config"]
    tokenizer = AutoTokenizer.from_pretrained(run / "sft")
    task = Task(tokenizer, config["template"], config["ppo"]["max_new_tokens"])
    reward = AutoModelForSequenceClassification.from_pretrained(run / "reward").eval()
    models = {name: AutoModelForCausalLM.from_pretrained(run / name).eval() for name in POLICIES}
    prompts = [row["prompt"] for row in read_rows(config["data"]["prompts"]["test_path"])]

    replies = {name: sample(model, task, prompts) for name, model in models.items()}
    # The reward model knows replies such as its pairs hold; what it says of noise means nothing.
    scored = {name: scores(reward, task, replies[name].rows) for name in ("sft", "ppo")}
    golds = {name: list(map(gold, prompts, replies[name].texts)) for name in POLICIES}

    def reply(name: str, i: int) -> dict[str, Any]:
        sampled = replies[name]
        return {"text": sampled.texts[i], "ids": sampled.rows[i], "score": scored[name][i]}

    summary = {
        "gold": {name: average(golds[name]).to_json() for name in POLICIES},
        **reward_accuracy(reward, task, config["data"]["preference"]["test_path"]),
        "kl": round(mean(kl(models["ppo"], models["sft"], task, replies["ppo"])), 4),
        "seconds": {name: stage["seconds"] for name, stage in stages.items()},
        "samples": [
            {"prompt": prompt, "sft": reply("sft", i), "ppo": reply("ppo", i)}
            for i, prompt in enumerate(prompts[:SAMPLES] if config["logging"]["samples"] else [])
        ],
    }
    count = len(prompts)
    table = {
        "score": {name: sum(values) / count for name, values in scored.items()},
        "length": {name: sum(sampled.lengths) / count for name, sampled in replies.items()},
    }
    return summary, table


def show(summary: dict[str, Any], table: dict[str, dict[str, float]]) -> None:
    """Print the table and some replies."""
    columns = {"base": "random weights", "sft": "after SFT", "ppo": "after PPO"}
    print(f"{'':26}" + "".join(f"{title:>18}" for title in columns.values()))
    cells = []
    for name in columns:
        g = summary["gold"][name]
        cells.append(f"{g['mean']:+.2f} +- {g['high'] - g['mean']:.2f}")
    print(f"{'gold reward (-5 to 3.5)':26}" + "".join(f"{cell:>18}" for cell in cells))
    for label, key, form in (
        ("reward-model score", "score", "+.2f"),
        ("tokens a reply", "length", ".1f"),
    ):
        found = (format(table[key][name], form) if name in table[key] else "-" for name in columns)
        print(f"{label:26}" + "".join(f"{cell:>18}" for cell in found))
    print(
        f"\nreward model: right on {summary['reward_accuracy']:.1%} of clean held-out pairs "
        f'("the longer reply wins": {summary["reward_accuracy_longer"]:.1%})'
    )
    print(f"KL of PPO from SFT: {summary['kl']:.2f} nats a reply")
    print("seconds: " + ", ".join(f"{k} {v:.0f}" for k, v in summary["seconds"].items()))
    for row in summary["samples"][:SHOWN]:
        print(f"\n  Guest: {row['prompt']}")
        for name in ("sft", "ppo"):
            print(f"    {name} ({row[name]['score']:+.2f}): {row[name]['text']}")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    run = parser.parse_args().run
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    summary, table = judge(run)
    path = run / "summary.json"
    path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    show(summary, table)
    print(f"\nwrote {path}")
    sft, ppo = summary["gold"]["sft"], summary["gold"]["ppo"]
    if ppo["low"] <= sft["high"]:
        sys.exit(
            f"error: PPO did not raise the gold reward: its 95% interval begins at {ppo['low']}, "
            f"not above the end of SFT's, {sft['high']}."
        )


if __name__ == "__main__":
    main()
