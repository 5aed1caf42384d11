"""One PPO step: rollout -> score -> rewards -> advantages -> update."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import Tensor

from cores.config import PPOSection
from cores.errors import UserError
from cores.models.scalar import last_attended
from cores.ppo.batches import for_scoring, in_parts, on_device, shared
from cores.ppo.estimate import estimate, has_critic, weighted_sum
from cores.ppo.experience import Experience, Scored, gather_rows
from cores.ppo.objective import Totals, lengths_read, reads_padding, response_values
from cores.ppo.passes import Passes, Turn
from cores.ppo.ptx import PtxRows, ptx_loss
from cores.ppo.reuse import Reuse
from cores.ppo.roles import Roles
from cores.ppo.stats import Stats, Unread, accumulate, average, describe, over_ranks, read
from cores.ppo.trained import TrainedRole
from cores.rewards.call import RewardFunctions
from cores.rl import lr_factor, next_kl_coef
from cores.rl.coati import mean_over_row
from cores.rollout import Rollout, RolloutEngine
from cores.runtime.launch import Launch

Row = dict[str, Any]


class PPOTrainer:
    """Holds the roles and everything that changes from step to step."""

    def __init__(
        self,
        config: PPOSection,
        roles: Roles,
        engine: RolloutEngine,
        launch: Launch,
        seed: int,
        functions: RewardFunctions | None = None,
        ptx: PtxRows | None = None,
    ) -> None:
        self.config = config
        self.roles = roles
        self.engine = engine
        self.launch = launch
        self.functions = functions
        """Sources of the score beside the reward model."""
        self.ptx = ptx
        """Stage-1 rows to train on beside the rollouts."""
        self.passes = Passes(config, roles, launch)
        """How a micro-batch goes through a model and back."""
        self.reuse = Reuse(config, launch.precision)
        """Whether the engine's log-probs serve as the old ones."""
        self.shuffle = torch.Generator().manual_seed(seed)
        """Order of minibatches; the same on every rank."""
        self.kl_coef = config.kl_coef
        """Price of KL now."""
        self.updates = 0
        """Updates taken."""
        self.minibatch = 0
        """Optimizer steps of the present update so far."""
        self.minibatches = config.epochs * (config.batch_size // config.minibatch_size)

    def step(self, prompts: list[list[int]], rows: Sequence[Row] = ()) -> tuple[Experience, Stats]:
        """One update from replies to this rank's `prompts`, in groups of `samples_per_prompt`.

        `rows`: what reward functions are told of each prompt. Returns the experience and the
        statistics of all ranks.
        """
        group = self.config.samples_per_prompt
        rollout = self.rollout([prompt for prompt in prompts for _ in range(group)])
        told = [row for row in rows for _ in range(group)]
        learning = self.roles.actor in self._trained_now()
        reused = self.reuse.on and learning  # an update of the critic alone would tell no entropy
        scored = gather_rows(self.score(rollout, told, reuse=reused), self.launch)
        if not self.reuse.decided and self.updates >= self.reuse.after:
            self.launch.say(self.reuse.decide(scored))
        experience = self.estimate(scored)
        steps = self.update(experience)
        stats = describe(experience, list(self.config.rewards), has_critic(self.config), reused)
        stats |= {"kl_coef": self.kl_coef, "optimizer_steps": len(steps), **average(steps)}
        if learning:
            self._steer(stats["kl"])
        return experience, stats

    def rollout(self, prompts: list[list[int]]) -> Rollout:
        """A reply to each prompt from the actor as it is now."""
        with self.roles.policy():
            return self.engine.generate(prompts)

    @torch.no_grad()
    def score(
        self,
        rollout: Rollout,
        rows: Sequence[Row] = (),
        last_token: bool = False,
        reuse: bool = False,
    ) -> Scored:
        """What actor, reference, critic and the sources of the score say of each reply.

        `last_token`: the reward model's score is that of the last token whatever the estimator
        reads, so that evaluations compare. `reuse`: the actor's log-probs are the rollout's own.
        """
        names = list(self.config.rewards)
        zeros = torch.zeros_like(rollout.logprobs)
        scored = Scored(
            ids=rollout.ids,
            mask=rollout.mask,
            response_mask=rollout.response_mask,
            ended=rollout.ended,
            rollout_logprobs=rollout.logprobs,
            logprobs=rollout.logprobs.clone() if reuse else zeros,
            ref_logprobs=zeros.clone(),
            entropy=rollout.entropy if reuse else zeros.clone(),
            values=zeros.clone(),
            scores=zeros[:, 0].clone(),
            score_parts=zeros.new_zeros(len(zeros), len(names)),
        )
        for part in self._forward_batches(scored):
            self._score_rows(scored, part, last_token, reuse)
        if scored.score_parts.isnan().any():
            raise UserError(
                "ppo.rewards: the reward model scores a reply NaN; its weights or its reward_mean "
                "are broken: run stage 2 again."
            )
        if self.functions is not None:
            said = self.functions(rollout, list(rows)).to(zeros)
            columns = [i for i, name in enumerate(names) if name != "model"]
            scored.score_parts[:, columns] = said
        weights = list(self.config.rewards.values())
        scored.scores[:] = weighted_sum(scored.score_parts, weights)
        return scored

    def _forward_batches(self, scored: Scored) -> list[list[int]]:
        """This rank's rows as they are scored: in as many parts on every rank."""
        parts = for_scoring(lengths_read(scored, self.config), self.config)
        return in_parts(parts, max(gather_object([len(parts)])))

    def _score_rows(self, scored: Scored, part: list[int], last_token: bool, reuse: bool) -> None:
        """Fill in the model-made columns of the rows `part` of `scored`."""
        c, padded = self.config, reads_padding(self.config)
        everywhere = padded and not last_token
        batch = scored.select(part, trim=not padded)
        rows, width = on_device(part, scored.ids.device), batch.response_mask.shape[1]
        with self.passes.autocast():
            if not reuse:
                assert scored.entropy is not None
                logprobs, entropy = self.roles.actor.module(batch.ids, batch.attended, width)
                scored.logprobs[rows, :width] = logprobs
                scored.entropy[rows, :width] = entropy
            with self.roles.reference() as reference:
                ref_logprobs, _ = reference(batch.ids, batch.attended, width, entropy=False)
            if self.roles.critic is not None:
                values = self.roles.critic.module(batch.ids, batch.attended)
                scored.values[rows, :width] = response_values(values, width, c)
            if self.roles.reward is not None:
                judged = self.roles.reward(batch.ids, batch.attended)
                column = list(c.rewards).index("model")
                score = mean_over_row(judged) if everywhere else last_attended(judged, batch.mask)
                scored.score_parts[rows, column] = score
        scored.ref_logprobs[rows, :width] = ref_logprobs

    def estimate(self, scored: Scored) -> Experience:
        """Rewards a token, advantages and returns, over the rows of all ranks.

        On the CPU: hundreds of operations on small tensors, each of which a GPU would be asked for.
        """
        found = estimate(scored.to("cpu"), self.config, self.kl_coef)
        return found.to(self.launch.device)

    def update(self, experience: Experience) -> list[Stats]:
        """`epochs` passes of minibatches, each exactly one optimizer step of every trained role.

        Fewer where the policy has moved further than `early_stop_kl` from the rollout's. Statistics
        are read at the end, so that the device is never waited for in between.
        """
        limit, self.minibatch = self.config.early_stop_kl, 0
        steps: list[Unread] = []
        for rows in self._minibatches(experience.ids.shape[0]):
            steps.append(self.optimize(experience, rows))
            if limit is not None and float(steps[-1].get("approx_kl", 0.0)) > limit:
                break
        found = read(steps)
        for role in self._trained_now():
            role.check_finite([s[role.norm_name] for s in found if role.norm_name in s])
        self.updates += 1
        self.minibatch = 0
        return found

    def _minibatches(self, count: int) -> Iterator[Tensor]:
        for _ in range(self.config.epochs):
            order = torch.randperm(count, generator=self.shuffle)
            yield from order.split(self.config.minibatch_size)

    def optimize(self, experience: Experience, rows: Tensor) -> Unread:
        """One optimizer step on the minibatch `rows` (of all ranks; this one takes its share).

        Losses are sums over this rank's tokens divided by the tokens of the whole minibatch, so
        that neither micro-batches nor ranks change the gradient.
        """
        index = on_device(rows.tolist(), experience.ids.device)
        tokens = experience.response_mask[index].sum().clamp(min=1)
        totals = Totals(tokens, len(rows))
        trained = self._trained_now()
        factors = {role.name: self._rate(role) for role in trained}
        for role in trained:
            role.set_rate(factors[role.name])
        sums: dict[str, Tensor] = {}
        if self.ptx is not None and self.roles.actor in trained:
            self._train_ptx(self.ptx, sums)
        for micro, turn in self._micro_batches(experience, rows):
            trim = not reads_padding(self.config)
            batch = experience.select(micro, trim, self.passes.widths)
            if self.roles.actor in trained:
                first = self.minibatch < self.minibatches // self.config.epochs
                measured = batch.entropy is None and first  # in the first pass over the rows
                terms = self.passes.actor(batch, totals, self.kl_coef, measured, turn)
                accumulate(sums, terms)
            if self.roles.critic is not None:
                accumulate(sums, self.passes.critic(self.roles.critic, batch, totals, turn))
        self.minibatch += 1
        return {
            **over_ranks(sums, self.launch.world),
            **{role.norm_name: role.grad_norm for role in trained},
            "learning_rate_factor": factors[trained[0].name],
        }

    def _train_ptx(self, ptx: PtxRows, sums: dict[str, Tensor]) -> None:
        """The stage-1 loss, before the minibatch whose last micro-batch takes the step."""
        actor, launch = self.roles.actor, self.launch
        batches, tokens = ptx.next(launch.rank, launch.world, self.config.microbatch_size)
        for batch in batches:
            with actor.micro_batch(last=False), self.passes.autocast():
                width = batch.ids.shape[1] - 1
                logprobs, _ = actor.module(batch.ids, batch.mask, width, plain=True, entropy=False)
                loss = ptx_loss(logprobs, batch.trained, tokens)
                actor.accumulate(self.config.ptx_coef * loss, last=False)
            accumulate(sums, {"ptx_loss": loss.detach()})

    def _trained_now(self) -> list[TrainedRole]:
        """The critic alone in the first `critic_warmup` updates."""
        if self.roles.critic is not None and self.updates < self.config.critic_warmup:
            return [self.roles.critic]
        return self.roles.trained

    def _rate(self, role: TrainedRole) -> float:
        """The role's learning rate as a factor of its peak.

        By where the run is, not by the steps taken: an update that ends early skips some.
        """
        waits = self.config.critic_warmup if role is self.roles.actor else 0
        total = (self.config.updates - waits) * self.minibatches
        warmup = round(self.config.warmup_ratio * total)
        now = (self.updates - waits) * self.minibatches + self.minibatch
        return lr_factor(now, total, warmup, self.config.lr_schedule)

    def _steer(self, kl: float) -> None:
        """Move the price of KL towards where `kl_target` holds; kl in nats a reply."""
        c = self.config
        if c.kl_target is not None:
            self.kl_coef = next_kl_coef(self.kl_coef, kl, c.kl_target, c.batch_size, c.kl_horizon)

    def _micro_batches(self, scored: Scored, rows: Tensor) -> Iterator[tuple[list[int], Turn]]:
        c, lengths = self.config, lengths_read(scored, self.config)
        if c.microbatch_tokens is not None and not reads_padding(c):  # as wide as they will be
            lengths = scored.as_selected(lengths, self.passes.widths)
        ranks = shared(
            rows.tolist(), lengths, self.launch.world, c.microbatch_size, c.microbatch_tokens
        )
        parts = ranks[self.launch.rank]
        for i, part in enumerate(parts):
            yield part, Turn(first=i == 0, last=i == len(parts) - 1)
