"""Figures of an update: sums over micro-batches, means over steps, what the rollout was like."""

import torch
from torch import Tensor

from cores.ppo.experience import Experience
from cores.rl import explained_variance, kl_estimate, masked_mean

Stats = dict[str, float]


def accumulate(sums: dict[str, Tensor], stats: dict[str, Tensor]) -> None:
    """Add the statistics of a micro-batch to its minibatch's (the largest of `_max`)."""
    for name, value in stats.items():
        if name not in sums:
            sums[name] = value
        else:
            both = torch.stack([sums[name], value])
            sums[name] = both.amax() if name.endswith("_max") else both.sum()


def average(steps: list[Stats]) -> Stats:
    """Mean over the optimizer steps of an update (the largest of `_max`)."""
    merged = {}
    for name in steps[0]:
        values = [step[name] for step in steps]
        merged[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    return merged


def describe(experience: Experience, sources: list[str], critic: bool) -> Stats:
    """What the rollout was like, before the update."""
    e, mask = experience, experience.response_mask
    kl = kl_estimate(e.logprobs, e.ref_logprobs, "k1", mask)
    gap = torch.where(mask, (e.logprobs - e.rollout_logprobs).abs(), 0.0)
    stats = {
        "score": e.scores.mean().item(),
        "score_std": e.scores.std(correction=0).item(),
        "kl": kl.sum(dim=1).mean().item(),
        "entropy": masked_mean(e.entropy, mask).item(),
        "response_length": mask.sum(dim=1).float().mean().item(),
        "ended": e.ended.float().mean().item(),
        "reward": e.rewards.sum(dim=1).mean().item(),
        "rollout_logprob_gap": gap.max().item(),
        "rollout_kl": masked_mean(
            kl_estimate(e.rollout_logprobs, e.logprobs, "k3", mask), mask
        ).item(),
    }
    if critic:
        stats["explained_variance"] = explained_variance(e.values, e.returns, mask).item()
    if len(sources) > 1:
        names = [source.rpartition(":")[2] for source in sources]
        stats |= {
            f"score_{n}": x for n, x in zip(names, e.score_parts.mean(dim=0).tolist(), strict=True)
        }
    return stats
