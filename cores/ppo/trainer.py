"""One PPO step: rollout -> score -> rewards -> advantages -> update."""

from collections.abc import Iterator
from dataclasses import fields

import torch
from accelerate.utils import reduce
from torch import Tensor

from cores.config import PPOSection
from cores.models.scalar import last_attended
from cores.ppo.experience import Experience, Scored, gather_rows
from cores.ppo.roles import Roles
from cores.rl import (
    adjust_scores,
    explained_variance,
    gae,
    kl_estimate,
    lr_factor,
    masked_mean,
    policy_loss,
    shape_rewards,
    value_loss,
    whiten,
)
from cores.rollout import Rollout, RolloutEngine
from cores.runtime.launch import Launch

Stats = dict[str, float]


class PPOTrainer:
    """Holds the roles and everything that changes from step to step."""

    def __init__(
        self, config: PPOSection, roles: Roles, engine: RolloutEngine, launch: Launch, seed: int
    ) -> None:
        self.config = config
        self.roles = roles
        self.engine = engine
        self.launch = launch
        self.shuffle = torch.Generator().manual_seed(seed)
        """Order of minibatches; the same on every rank."""
        self.minibatches = config.epochs * (config.batch_size // config.minibatch_size)
        self.total_steps = config.updates * self.minibatches
        self.warmup_steps = round(config.warmup_ratio * self.total_steps)

    def step(self, prompts: list[list[int]]) -> tuple[Experience, Stats]:
        """One update from this rank's `prompts`; the experience and statistics of all ranks."""
        rollout = self.rollout(prompts)
        scored = gather_rows(self.score(rollout), self.launch)
        experience = self.estimate(scored)
        steps = self.update(experience)
        return experience, {**describe(experience), **average(steps)}

    def rollout(self, prompts: list[list[int]]) -> Rollout:
        """A reply to each prompt from the actor as it is now."""
        with self.roles.policy():
            return self.engine.generate(prompts)

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Scored:
        """What actor, reference, critic and reward model say of each row."""
        count = rollout.ids.shape[0]
        zeros = torch.zeros_like(rollout.logprobs)
        blank = Scored(
            ids=rollout.ids,
            mask=rollout.mask,
            response_mask=rollout.response_mask,
            ended=rollout.ended,
            rollout_logprobs=rollout.logprobs,
            logprobs=zeros,
            ref_logprobs=zeros.clone(),
            entropy=zeros.clone(),
            values=zeros.clone(),
            scores=zeros.new_zeros(count),
        )
        for rows in torch.arange(count, device=rollout.ids.device).split(self._forward_rows):
            self._score_rows(blank, rows)
        return blank

    @property
    def _forward_rows(self) -> int:
        return self.config.microbatch_size

    def _score_rows(self, scored: Scored, rows: Tensor) -> None:
        """Fill in the model-made columns of `rows` of `scored`."""
        batch = scored.select(rows)
        width = batch.response_mask.shape[1]
        with self.autocast():
            logprobs, entropy = self.roles.actor.module(batch.ids, batch.mask, width)
            with self.roles.reference() as reference:
                ref_logprobs, _ = reference(batch.ids, batch.mask, width)
            values = self.roles.critic.module(batch.ids, batch.mask)
            judged = self.roles.reward(batch.ids, batch.mask)
        scored.scores[rows] = last_attended(judged, batch.mask)
        scored.logprobs[rows, :width] = logprobs
        scored.entropy[rows, :width] = entropy
        scored.ref_logprobs[rows, :width] = ref_logprobs
        scored.values[rows, :width] = values[:, -width - 1 : -1]

    def estimate(self, scored: Scored) -> Experience:
        """Rewards a token, advantages and returns, over the rows of all ranks."""
        c, mask = self.config, scored.response_mask
        kl = kl_estimate(scored.logprobs, scored.ref_logprobs, c.kl_kind, mask)
        scores = adjust_scores(scored.scores, scored.ended, c.missing_eos_penalty, c.reward_clip)
        rewards = shape_rewards(scores, kl, mask, c.kl_coef)
        advantages, returns = gae(rewards, scored.values, mask, c.gamma, c.lam)
        if c.whiten_advantages is not False:
            advantages = whiten(advantages, mask)
        known = {f.name: getattr(scored, f.name) for f in fields(Scored)}
        return Experience(**known, rewards=rewards, advantages=advantages, returns=returns)

    def update(self, experience: Experience) -> list[Stats]:
        """`epochs` passes of minibatches, each exactly one optimizer step of actor and critic."""
        count = experience.ids.shape[0]
        steps = []
        for _ in range(self.config.epochs):
            order = torch.randperm(count, generator=self.shuffle).to(experience.ids.device)
            for rows in order.split(self.config.minibatch_size):
                steps.append(self.optimize(experience, rows))
        return steps

    def optimize(self, experience: Experience, rows: Tensor) -> Stats:
        """One optimizer step on the minibatch `rows` (of all ranks; this one takes its share).

        Losses are sums over this rank's tokens divided by the tokens of the whole minibatch, so
        that neither micro-batches nor ranks change the gradient.
        """
        c, actor, critic = self.config, self.roles.actor, self.roles.critic
        factor = lr_factor(actor.steps, self.total_steps, self.warmup_steps, c.lr_schedule)
        actor.set_rate(factor)
        critic.set_rate(factor)
        tokens = experience.response_mask[rows].sum().clamp(min=1)
        sums: dict[str, Tensor] = {}
        for micro, last in self._micro_batches(rows):
            batch = experience.select(micro)
            mask, width = batch.response_mask, batch.response_mask.shape[1]
            with actor.micro_batch(last), self.autocast():
                logprobs, _ = actor.module(batch.ids, batch.mask, width)
                policy, policy_stats = policy_loss(
                    logprobs, batch.logprobs, batch.advantages, mask, c.clip, tokens
                )
                actor.accumulate(policy, last)
            with critic.micro_batch(last), self.autocast():
                values = critic.module(batch.ids, batch.mask)[:, -width - 1 : -1]
                value, value_stats = value_loss(
                    values, batch.values, batch.returns, mask, c.value_clip, tokens
                )
                critic.accumulate(value, last)
            losses = {"policy_loss": policy.detach(), "value_loss": value.detach()}
            accumulate(sums, {**losses, **policy_stats, **value_stats})
        return {
            **self._over_ranks(sums),
            "actor_grad_norm": actor.grad_norm,
            "critic_grad_norm": critic.grad_norm,
            "learning_rate_factor": factor,
        }

    def autocast(self) -> torch.autocast:
        """bfloat16 compute where configured."""
        enabled = self.launch.precision == "bf16"
        return torch.autocast(self.launch.device.type, dtype=torch.bfloat16, enabled=enabled)

    def _micro_batches(self, rows: Tensor) -> Iterator[tuple[Tensor, bool]]:
        mine = rows[self.launch.rank :: self.launch.world]
        parts = mine.split(self.config.microbatch_size)
        for i, part in enumerate(parts):
            yield part, i == len(parts) - 1

    def _over_ranks(self, sums: dict[str, Tensor]) -> Stats:
        """Sums over ranks (largest of `_max`), as floats."""
        names = sorted(sums)
        own = torch.stack([sums[name] for name in names])
        if self.launch.world == 1:
            return dict(zip(names, own.tolist(), strict=True))
        total = reduce(own, reduction="sum").tolist()
        merged = dict(zip(names, total, strict=True))
        largest = own.clone()
        torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
        for name, value in zip(names, largest.tolist(), strict=True):
            if name.endswith("_max"):
                merged[name] = value
        return merged


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


def describe(experience: Experience) -> Stats:
    """What the rollout was like, before the update."""
    e, mask = experience, experience.response_mask
    kl = kl_estimate(e.logprobs, e.ref_logprobs, "k1", mask)
    gap = torch.where(mask, (e.logprobs - e.rollout_logprobs).abs(), 0.0)
    return {
        "score": e.scores.mean().item(),
        "score_std": e.scores.std(correction=0).item(),
        "kl": kl.sum(dim=1).mean().item(),
        "entropy": masked_mean(e.entropy, mask).item(),
        "explained_variance": explained_variance(e.values, e.returns, mask).item(),
        "response_length": mask.sum(dim=1).float().mean().item(),
        "ended": e.ended.float().mean().item(),
        "reward": e.rewards.sum(dim=1).mean().item(),
        "rollout_logprob_gap": gap.max().item(),
    }
