"""One PPO step: rollout -> score -> rewards -> advantages -> update."""

import math
import time
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from cores.config import FaultsSection, PPOSection
from cores.draws import permutation
from cores.errors import ANEW, UserError
from cores.models.images import ImageProcessor
from cores.ppo.experience import (
    Experience,
    Scored,
    Stats,
    Unread,
    average,
    describe,
    estimate,
    gather_rows,
    read,
)
from cores.ppo.passes import Minibatch, Passes, Turn, accumulate, shared
from cores.ppo.ptx import PtxRows, ptx_loss
from cores.ppo.roles import ACTOR, Roles, TrainedRole
from cores.ppo.score import Row, Scorer, decide, looks, with_room
from cores.ppo.state import PPOState
from cores.rewards.call import RewardFunctions
from cores.rl import next_kl_coef
from cores.rl.schedule import lr_factors
from cores.rollout import RolloutEngine
from cores.run.checkpoint import Checkpoint, State
from cores.runtime.launch import Launch, over_ranks

Parts = dict[bool, list[tuple[Experience, Turn]]]
"""Micro-batches of an optimizer step, by whether they are `halved`."""


class PPOTrainer(Scorer):
    """An update is a function of the state (here and in the roles) and the update's number."""

    def __init__(
        self,
        config: PPOSection,
        roles: Roles,
        engine: RolloutEngine,
        launch: Launch,
        seed: int,
        functions: RewardFunctions | None = None,
        ptx: PtxRows | None = None,
        faults: FaultsSection | None = None,
        images: ImageProcessor | None = None,
    ) -> None:
        super().__init__(config, roles, engine, launch, seed, functions, images)
        self.ptx, self.faults = ptx, faults or FaultsSection()
        """Stage-1 rows to train on beside the rollouts; what to do about steps that are none."""
        self.passes = Passes(config, roles, launch)
        """How a micro-batch goes through a model and back."""
        if self.packed and len(self.passes.kept) == len(roles.trained):
            self.captured, self.widths = self.passes.captured, self.passes.widths
        self.minibatch = 0
        """Optimizer steps of the present update so far."""
        self.minibatches = config.epochs * (config.batch_size // config.minibatch_size)
        self.waits = {role.name: 0 for role in roles.trained} | {ACTOR: config.critic_warmup}
        """Updates before a role's first step."""
        self.factors = {
            name: lr_factors(
                (config.updates - wait) * self.minibatches, config.warmup, config.lr_schedule
            )
            for name, wait in self.waits.items()
        }
        """Of the peak learning rate, at each of a role's optimizer steps."""
        self.looks = {update for update in range(config.updates) if looks(config, update)}
        """Updates whose rollouts the trainer scores too."""

    def state_dict(self) -> State:
        """The state with the roles', whole, on the main process; every rank calls it."""
        keep = self.launch.is_main
        roles = [role.state(keep) for role in self.roles.trained]
        steps = {role.name: role.steps for role in self.roles.trained}
        numbers = {**vars(self.state), "optimizer_steps": steps}
        scales = {r.name: r.trained.scale for r in self.roles.trained}
        numbers["loss_scales"] = {k: scale.state_dict() for k, scale in scales.items() if scale}
        return State({k: v for role in roles for k, v in role.items()}, numbers)

    def load_state_dict(self, saved: Checkpoint) -> None:
        """Go on from there. The trained weights were put in before the launch took the models."""
        for role in self.roles.trained:
            role.load(saved)
        self.state = PPOState.of(saved)

    def step(self, prompts: list[list[int]], rows: Sequence[Row] = ()) -> tuple[Experience, Stats]:
        """One update from replies to this rank's `prompts`, in groups of `samples_per_prompt`.

        `rows`: what reward functions are told of each prompt. Returns the experience and the
        statistics of all ranks.
        """
        c, state, group = self.config, self.state, self.config.samples_per_prompt
        # 1 rollout: a reply to each prompt, `group` of them
        asked = [prompt for prompt in prompts for _ in range(group)]
        told = [row for row in rows for _ in range(group)]
        rollout = self.rollout(asked, first=self.launch.rank * len(asked), rows=told)
        # 2 score: the models and functions on this rank's rows, then the rows of all ranks
        learning = state.update >= self.waits[ACTOR]
        looked = state.update in self.looks
        # An update of the critic alone would tell no entropy.
        reused = bool(state.reused) and learning and not looked
        scored = gather_rows(self.score(rollout, told, reuse=reused), self.launch)
        if looked:
            found, line = decide(scored, self.launch.precision)
            if found != state.reused:
                self.launch.say(line)
            state.reused = found
        # 3 estimate: rewards a token, advantages, returns
        experience = self.estimate(scored)
        # 4 update: epochs of minibatches, each one optimizer step of every trained role
        steps = self.update(experience)
        # 5 steer the price of KL, which the statistics show as it was
        stats = describe(experience, self.sources, self.roles.critic is not None, reused)
        if self.roles.texts is not None:
            cut = torch.tensor(float(self.roles.texts.cut), device=self.launch.device)
            stats["reward_truncated"] = over_ranks({"cut": cut}, self.launch.world)["cut"].item()
        stats |= {"kl_coef": state.kl_coef, "optimizer_steps": len(steps), **average(steps)}
        if learning and c.kl_target is not None:
            kl = stats["kl"]
            state.kl_coef = next_kl_coef(state.kl_coef, kl, c.kl_target, c.batch_size, c.kl_horizon)
        return experience, stats

    def estimate(self, scored: Scored) -> Experience:
        """Rewards a token, advantages and returns, over the rows of all ranks.

        On the CPU: hundreds of operations on small tensors, each of which a GPU would be asked for.
        UserError, on every rank, if anything in it is no number.
        """
        scored = scored.to("cpu")
        mask, critic = scored.response_mask, self.roles.critic is not None
        columns = {
            "the actor's log-probs": (~scored.logprobs.isfinite() & mask).any(dim=1),
            "the reference's log-probs": (~scored.ref_logprobs.isfinite() & mask).any(dim=1),
            "the critic's values": (~scored.values.isfinite() & mask).any(dim=1) & critic,
            "the weighted scores": ~scored.scores.isfinite(),
        }
        for what, rows in columns.items():
            if bool(rows.any()):
                numbers = rows.nonzero().flatten().tolist()
                raise UserError(
                    f"ppo: {what} are not finite at update {self.state.update + 1}, in "
                    f"{len(numbers)} of {len(rows)} replies (rows {numbers[:5]}). The models were "
                    "sound when they were loaded: lower the learning rate of the one that is "
                    "trained, look at the weights in ppo.rewards, or compute in fp32 "
                    f"(--model.precision fp32), {ANEW}."
                )
        return estimate(scored, self.config, self.state.kl_coef).to(self.launch.device)

    def update(self, experience: Experience) -> list[Stats]:
        """`epochs` passes of minibatches, each exactly one optimizer step of every trained role.

        Fewer where the policy has moved further than `early_stop_kl` from the rollout's. Statistics
        are read at the end, so that the device is never waited for in between.
        """
        limit, self.minibatch = self.config.early_stop_kl, 0
        steps: list[Unread] = []
        count, at = experience.ids.shape[0], self.state.update
        orders = [
            torch.tensor(permutation(count, self.seed, "minibatches", at, epoch))
            for epoch in range(self.config.epochs)
        ]
        begun = time.monotonic()
        for rows in (rows for order in orders for rows in order.split(self.config.minibatch_size)):
            step = self.optimize(experience, rows)
            steps.append(step)
            if len(steps) == 1:  # before any weight has moved
                if "approx_kl" in step:
                    step["first_kl"] = step["approx_kl"]
                if self.launch.device.type == "cuda":  # the share that Python waits here
                    launched = time.monotonic()
                    torch.cuda.synchronize(self.launch.device)
                    now = time.monotonic()
                    step["device_wait"] = (now - launched) / (now - begun)
            if limit is not None and float(steps[-1].get("approx_kl", 0.0)) > limit:
                break
        found = self._finite(read(steps))
        self.state.update += 1
        self.minibatch = 0
        return found

    def _finite(self, steps: list[Stats]) -> list[Stats]:
        """The steps that were taken; UserError for a gradient that was no number, unless it may be
        left out. Until here such a step has changed no weight: see `Trained.descend`."""
        taken = []
        scales = [role.trained.scale for role in self.roles.trained]
        scaled = not any(scale is None or scale.lost for scale in scales)
        for number, step in enumerate(steps, start=1):
            bad = [name for name, value in step.items() if not math.isfinite(value)]
            large = scaled and all(name.endswith("_grad_norm") for name in bad)
            self.state.skipped = self.state.skipped + 1 if bad and not large else 0
            allowed = self.faults.max_skips if self.faults.nonfinite == "skip" else 0
            if self.state.skipped > allowed:
                raise UserError(
                    f"ppo: {', '.join(bad)} not finite in optimizer step {number} of update "
                    f"{self.state.update + 1} ({self.state.skipped} in a row); the step was not "
                    "taken. Leave such steps out (--faults.nonfinite skip; so many in a row: "
                    "--faults.max_skips) to go on. Or lower ppo.actor_learning_rate or "
                    "ppo.critic_learning_rate, or compute in fp32 (--model.precision fp32), "
                    f"{ANEW}."
                )
            if not bad:
                taken.append(step)
        skipped = len(steps) - len(taken)
        if self.faults.nonfinite == "skip" or scaled:
            taken = taken or [{k: v for k, v in steps[0].items() if math.isfinite(v)}]
            taken = [{**step, "skipped_steps": float(skipped)} for step in taken]
        return taken

    def optimize(self, experience: Experience, rows: Tensor) -> Unread:
        """One optimizer step on the minibatch `rows` (of all ranks; this one takes its share).

        Losses are sums over this rank's tokens divided by the tokens of the whole minibatch, so
        that neither micro-batches nor ranks change the gradient.
        """
        update = self.state.update
        trained = [role for role in self.roles.trained if update >= self.waits[role.name]]
        sums: dict[str, Tensor] = {}
        factors: list[float] = []
        parts: Parts = {}
        for role in trained:
            # By where the run is, not by the steps taken: an update that ends early skips some.
            since = update - self.waits[role.name]
            factors.append(self.factors[role.name][since * self.minibatches + self.minibatch])
            for group in role.optimizer.param_groups:
                rate = role.learning_rate * factors[-1]
                if isinstance(group["lr"], Tensor):  # a captured step reads it there
                    group["lr"].fill_(rate)
                else:
                    group["lr"] = rate
            sums |= with_room(self, partial(self._descend, role, experience, rows.tolist(), parts))
        self.minibatch += 1
        return {
            **over_ranks(sums, self.launch.world),
            **{f"{role.name}_grad_norm": role.grad_norm for role in trained},
            "learning_rate_factor": factors[0],
        }

    def _descend(
        self, role: TrainedRole, experience: Experience, rows: list[int], parts: Parts
    ) -> dict[str, Tensor]:
        """The role's part of the step: its micro-batches, the step behind the last of them. `parts`
        holds those of the role before it."""
        sums: dict[str, Tensor] = {}
        acts = role is self.roles.actor
        tokens = max(1, sum(experience.lengths[i][1] for i in rows))
        first = self.minibatch < self.minibatches // self.config.epochs  # pass over the rows
        minibatch = Minibatch(
            tokens=torch.full((), tokens, device=self.launch.device),
            replies=len(rows),
            kl_coef=torch.full((), self.state.kl_coef, device=self.launch.device),
            measured=acts and experience.entropy is None and first,
        )
        if (halved := self.state.halved) not in parts:
            parts.clear()
            parts[halved] = list(self._micro_batches(experience, rows))

        def passes() -> None:
            if self.ptx is not None and acts:
                self._train_ptx(self.ptx, sums)
            for batch, turn in parts[halved]:
                accumulate(sums, self.passes.run(role, batch, minibatch, turn))

        # With shards ranks meet within a pass: one that fails ends, rather than wait for them.
        self.launch.together(passes, memory=True) if self.roles.sharding.apart else passes()
        self.passes.step(role)
        return sums

    def _train_ptx(self, ptx: PtxRows, sums: dict[str, Tensor]) -> None:
        """The stage-1 loss, before the minibatch whose last micro-batch takes the step."""
        actor, launch = self.roles.actor, self.launch
        micro = self.config.microbatch_size
        batches, tokens = ptx.at(actor.steps, launch.rank, launch.world, micro)
        for batch in batches:
            with launch.autocast():
                logprobs, _ = actor.says.logprobs(batch.rows, plain=True, entropy=False)
                loss = ptx_loss(logprobs, batch.trained, tokens)
                actor.trained.backward(self.config.ptx_coef * loss, last=False)
            accumulate(sums, {"ptx_loss": loss.detach()})

    def _micro_batches(
        self, scored: Experience, rows: list[int]
    ) -> Iterator[tuple[Experience, Turn]]:
        c, lengths, packed = self.config, scored.lengths, self.passes.packed
        if c.microbatch_tokens is not None and not packed:  # as wide as they will be
            lengths = scored.as_selected(lengths, self.passes.widths)
        ranks = shared(rows, lengths, c, self.state.halved, self.launch.world, packed=packed)
        mine = ranks[self.launch.rank]
        for i, part in enumerate(mine):
            batch = scored.select(part, self.passes.widths, packed)
            yield batch, Turn(first=i == 0, last=i == len(mine) - 1)
