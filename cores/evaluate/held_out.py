"""Held-out prompts before, in between and after: score, KL from the reference, length."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from cores.data import readable
from cores.draws import share
from cores.ppo.experience import Scored, gather_rows
from cores.ppo.score import Row, Scorer
from cores.rl import kl_estimate

Z95 = 1.96
"""Half-width of a 95% interval in standard errors."""


@dataclass(frozen=True)
class Evaluation:
    """One sampled reply for each of N prompts."""

    scores: list[float]
    """Score of each reply, without clip or penalty."""
    kl: list[float]
    """Nats a reply, from the reference: sum of k1 over its tokens."""
    lengths: list[int]
    """Response tokens."""
    ended: list[bool]
    """Whether the reply stopped by itself."""
    rows: list[list[int]]
    """Prompt and reply tokens, without padding."""
    replies: list[list[int]]
    """Reply tokens alone."""
    parts: dict[str, list[float | None]] = field(default_factory=dict)
    """Where the score has several sources: what each of them says, before its weight."""

    def summary(self) -> dict[str, Any]:
        """Means; of score and KL with the half-width of a 95% interval (normal approximation),
        which one prompt has not."""
        figures = {"score": mean(self.scores), "kl": mean(self.kl)}
        for name, values in (("score", self.scores), ("kl", self.kl)):
            if (count := len(values)) > 1:
                deviation = torch.tensor(values).std().item()
                figures[f"{name}_interval"] = Z95 * deviation / math.sqrt(count)
        figures |= {"length": mean(self.lengths), "ended": mean(self.ended)}
        for name, part in self.parts.items():
            if said := [x for x in part if x is not None]:
                figures[f"score_{name}"] = mean(said)
        return {"prompts": len(self.scores), **{name: round(x, 4) for name, x in figures.items()}}


def evaluate(scorer: Scorer, prompts: list[list[int]], rows: Sequence[Row] = ()) -> Evaluation:
    """Sample and judge a reply to each prompt, with the same random numbers at each evaluation.

    `rows`: what reward functions are told of each prompt.
    """
    launch, result = scorer.launch, Evaluation([], [], [], [], [], [])
    rank, world = launch.rank, launch.world
    size = math.ceil(min(scorer.config.batch_size, len(prompts)) / world) * world
    for start in range(0, len(prompts), size):
        chunk, told = prompts[start : start + size], list(rows[start : start + size])
        lacking = -len(chunk) % world
        mine = share(chunk + chunk[-1:] * lacking, rank, world)
        told = share(told + told[-1:] * lacking, rank, world)
        rollout = scorer.rollout(mine, start + rank * len(mine), "evaluation", told)
        scored = scorer.score(rollout, told, last_token=True)
        _add(result, gather_rows(scored, launch), len(chunk), scorer.sources)
    return result


def sample_pairs(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], before: Evaluation, after: Evaluation
) -> list[dict[str, Any]]:
    """Replies to the same prompts before and after, the whole sequences scored, their scores."""

    def sample(side: Evaluation, i: int) -> dict[str, Any]:
        text = readable(tokenizer, side.replies[i], skip_special_tokens=True)
        figures = {"score": round(side.scores[i], 4), "kl": round(side.kl[i], 4)}
        return {"text": text, "ids": side.rows[i], **figures}

    return [
        {"prompt": prompt, "before": sample(before, i), "after": sample(after, i)}
        for i, prompt in enumerate(prompts)
    ]


def _add(result: Evaluation, scored: Scored, count: int, sources: list[str]) -> None:
    kl = kl_estimate(scored.logprobs, scored.ref_logprobs, "k1", scored.response_mask).sum(dim=1)
    result.scores.extend(scored.scores[:count].tolist())
    result.kl.extend(kl[:count].tolist())
    result.lengths.extend(scored.response_mask.sum(dim=1)[:count].tolist())
    result.ended.extend(scored.ended[:count].tolist())
    for name, part in zip(sources, scored.score_parts.unbind(dim=1), strict=bool(sources)):
        said = [None if math.isnan(x) else x for x in part[:count].tolist()]
        result.parts.setdefault(name, []).extend(said)
    for i in range(count):
        result.rows.append(scored.ids[i][scored.mask[i]].tolist())
        result.replies.append(scored.response_ids[i][scored.response_mask[i]].tolist())


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean."""
    return sum(values) / len(values)


def wins(left: Sequence[float], right: Sequence[float] | None = None) -> list[float]:
    """Of each place 1 where `left` is the larger, 0.5 for a tie, 0 else; `right`: zeros by
    default, so that `left` are margins."""
    against = [0.0] * len(left) if right is None else right
    return [(a > b) + 0.5 * (a == b) for a, b in zip(left, against, strict=True)]
