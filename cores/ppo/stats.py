"""Figures of an update: sums over micro-batches, means over steps, what the rollout was like."""

import torch
from accelerate.utils import reduce
from torch import Tensor

from cores.ppo.experience import Experience
from cores.rl import explained_variance, kl_estimate, masked_mean

Stats = dict[str, float]
Unread = dict[str, Tensor | float]
"""Statistics that may still be on the device, 0-d: to read one is to wait for all before it."""


def read(steps: list[Unread]) -> list[Stats]:
    """The same as numbers, by one transfer from the device."""
    waiting = [value for step in steps for value in step.values() if isinstance(value, Tensor)]
    numbers = iter(torch.stack(waiting).tolist() if waiting else [])
    return [
        {name: next(numbers) if isinstance(x, Tensor) else x for name, x in step.items()}
        for step in steps
    ]


def over_ranks(sums: dict[str, Tensor], world: int) -> dict[str, Tensor]:
    """Sums over ranks (largest of `_max`), on the device."""
    names = sorted(sums)
    if world == 1:
        return {name: sums[name] for name in names}
    own = torch.stack([sums[name] for name in names])
    total, largest = reduce(own, reduction="sum"), own.clone()
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return {name: (largest if name.endswith("_max") else total)[i] for i, name in enumerate(names)}


def accumulate(sums: dict[str, Tensor], stats: dict[str, Tensor]) -> None:
    """Add the statistics of a micro-batch to its minibatch's (the largest of `_max`)."""
    for name, value in stats.items():
        if name not in sums:
            sums[name] = value
        else:
            both = torch.stack([sums[name], value])
            sums[name] = both.amax() if name.endswith("_max") else both.sum()


def average(steps: list[Stats]) -> Stats:
    """Mean over the optimizer steps of an update (the largest of `_max`).

    What only the first ones measured is a mean over those.
    """
    merged = {}
    for name in steps[0]:
        values = [step[name] for step in steps if name in step]
        merged[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    return merged


def describe(
    experience: Experience, sources: list[str], critic: bool, reused: bool = False
) -> Stats:
    """What the rollout was like, before the update; `sources`: names of several, see `Scorer`.

    reused: the old log-probs are the engine's, so there is no mismatch to tell of.
    """
    e, mask = experience, experience.response_mask
    kl = kl_estimate(e.logprobs, e.ref_logprobs, "k1", mask)
    stats: Unread = {
        "score": e.scores.mean(),
        "score_std": e.scores.std(correction=0),
        "kl": kl.sum(dim=1).mean(),
        "response_length": mask.sum(dim=1).float().mean(),
        "ended": e.ended.float().mean(),
        "reward": e.rewards.sum(dim=1).mean(),
    }
    if e.entropy is not None:
        stats["entropy"] = masked_mean(e.entropy, mask)
    if not reused:
        gap = torch.where(mask, (e.logprobs - e.rollout_logprobs).abs(), 0.0)
        k3 = kl_estimate(e.rollout_logprobs, e.logprobs, "k3", mask)
        stats |= {"rollout_logprob_gap": gap.max(), "rollout_kl": masked_mean(k3, mask)}
    if critic:
        stats["explained_variance"] = explained_variance(e.values, e.returns, mask)
    for name, part in zip(sources, e.score_parts.unbind(dim=1), strict=bool(sources)):
        stats[f"score_{name}"] = part.nanmean()
        stats[f"unscored_{name}"] = part.isnan().float().sum()
    found = read([stats])[0]
    for name in sources:  # told only where there is something to tell
        if not found[f"unscored_{name}"]:
            del found[f"unscored_{name}"]
        elif found[f"unscored_{name}"] == len(e.scores):
            del found[f"score_{name}"]
    return found
