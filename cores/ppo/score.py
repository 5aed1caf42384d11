"""Replies sampled, and what the models and functions say of them: all that an evaluation needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from cores.config import PPOSection
from cores.data import right_pad
from cores.draws import uniforms
from cores.errors import ANEW, NoRoomError, UserError, out_of_memory
from cores.models.images import ImageProcessor
from cores.models.rows import Rows, Value, on_device
from cores.ppo.experience import Scored
from cores.ppo.passes import in_parts, shared
from cores.ppo.roles import Roles, response_values
from cores.ppo.state import PPOState
from cores.rewards.call import RewardFunctions
from cores.rl import masked_mean
from cores.rl.coati import mean_over_row
from cores.rollout import Rollout, RolloutEngine
from cores.rollout.pictures import pictures
from cores.runtime.captured import Captured, Tensors
from cores.runtime.launch import Launch
from cores.runtime.ranks import WATCH

Row = dict[str, Any]
Texts = list[list[int]] | None
"""Ids of each reply behind its prompt as a reward model reads them that has a tokenizer or template
of its own."""
FORWARD_FACTOR = 4
"""Rows or tokens of a forward pass that keeps nothing for a backward one, to one that does."""
T = TypeVar("T")


class Scorer:
    """The roles, the engine and the sources of the score."""

    def __init__(
        self,
        config: PPOSection,
        roles: Roles,
        engine: RolloutEngine,
        launch: Launch,
        seed: int,
        functions: RewardFunctions | None = None,
        images: ImageProcessor | None = None,
    ) -> None:
        self.config = config
        self.roles = roles
        self.engine = engine
        self.launch = launch
        self.seed = seed
        self.functions = functions
        """Sources of the score beside the reward model."""
        self.images = images
        """What the policy makes of images, if it reads any."""
        names = [source.rpartition(":")[2] for source in config.rewards]
        self.sources = names if len(names) > 1 else []
        """Names of the score's sources, where there are several."""
        self.state = PPOState(config.kl_coef)
        self.widths, self.packed = 1, roles.packs
        """How rows are selected: see `Scored.select`."""
        self.captured: Captured | None = None
        """What makes scoring one launch, where passes of the update are."""

    def rollout(
        self,
        prompts: list[list[int]],
        first: int = 0,
        purpose: str = "replies",
        rows: Sequence[Row] = (),
    ) -> Rollout:
        """A reply to each prompt from the actor as it is now.

        `first`: number of this rank's first reply among those of all ranks. The numbers that decide
        a reply are drawn from (seed, purpose, update, its number), so it is the same however many
        ranks there are; those of an evaluation whatever the update. `rows`: where the images of the
        prompts are named, for a policy that reads any.
        """
        position = self.state.update if purpose == "replies" else 0
        tokens = self.config.max_new_tokens
        uniform = uniforms(len(prompts), tokens, self.seed, purpose, position, first=first)
        with self.roles.actor.trained.gathered():  # whole weights, for generation
            if self.images is None:
                return self.engine.generate(prompts, uniform)
            engine: Any = self.engine  # that of Hugging Face, which alone runs such policies
            return engine.generate(prompts, uniform, images=pictures(self.images, list(rows)))

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
        UserError on every rank if the policy's numbers are none, or a function fails on any.
        """

        def asked() -> tuple[Tensor | None, Texts]:
            """What the functions, if any, say (B, S), and what the reward model reads."""
            if not bool(rollout.logprobs.isfinite().all()):
                raise UserError(
                    "ppo: the policy's logits are not finite: it has left what numbers can hold. "
                    "Lower ppo.actor_learning_rate, or compute in fp32 (--model.precision fp32), "
                    f"{ANEW}."
                )
            texts = None if self.roles.texts is None else self.roles.texts(rollout, rows)
            if self.functions is None:
                return None, texts
            with WATCH.doing("its reward functions"):
                return self.functions(rollout, list(rows)), texts

        said, texts = self.launch.together(asked)
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
            score_parts=zeros.new_zeros(len(zeros), len(self.config.rewards)),
            images=rollout.images,
            shown=rollout.shown,
        )
        work = partial(self._score_all, scored, texts, last_token, reuse)
        apart = self.roles.sharding.apart
        with_room(self, lambda: self.launch.together(work, memory=apart))
        if said is not None:
            columns = [i for i, name in enumerate(self.config.rewards) if name != "model"]
            scored.score_parts[:, columns] = said.to(zeros)
        scored.scores[:] = weighted_sum(scored.score_parts, list(self.config.rewards.values()))
        return scored

    def _score_all(self, scored: Scored, texts: Texts, last_token: bool, reuse: bool) -> None:
        """This rank's rows, in as many parts on every rank."""
        c, lengths = self.config, scored.lengths
        rows, halved = range(len(lengths)), self.state.halved
        (parts,) = shared(rows, lengths, c, halved, factor=FORWARD_FACTOR, packed=self.packed)
        (count,) = self.launch.agree(len(parts))
        for part in in_parts(parts, count):
            self._score_rows(scored, texts, part, last_token, reuse)
        if not bool(scored.score_parts.isfinite().all()):
            raise UserError(
                "ppo: the reward model scores a reply NaN or infinite. Its weights were sound when "
                "they were loaded: compute in fp32 (--model.precision fp32), or run stage 2 again."
            )

    def _score_rows(
        self, scored: Scored, texts: Texts, part: list[int], last_token: bool, reuse: bool
    ) -> None:
        """Fill in the model-made columns of the rows `part` of `scored`."""
        batch = scored.select(part, self.widths, self.packed)
        rows, width = on_device(part, scored.ids.device), scored.response_mask.shape[1]
        read = None
        if texts is not None:
            ids, mask = right_pad([texts[i] for i in part], 0)  # an id that is never read
            read = Rows(ids.to(rows.device), mask.to(rows.device), width=0)

        def work(inputs: Tensors) -> Tensors:
            return self._told(batch.holding(inputs), read, last_token, reuse)

        if self.captured is not None and read is None:
            told = self.captured.run(
                ("score", last_token, reuse, batch.layout), batch.tensors, work
            )
        else:
            told = work(batch.tensors)
        for name, values in told.items():
            values = values[: len(part)]  # behind them rows of nothing
            if name == "score":
                scored.score_parts[rows, list(self.config.rewards).index("model")] = values
            else:
                getattr(scored, name)[rows, : values.shape[1]] = values[:, :width]

    def _told(self, batch: Scored, read: Rows | None, last_token: bool, reuse: bool) -> Tensors:
        """What the models say of a batch, by column, and `score`; `read`: what the reward model
        reads in its place."""
        c = self.config
        found: Tensors = {}
        with self.launch.autocast():
            if not reuse:
                logprobs, entropy = self.roles.actor.says.logprobs(batch.rows)
                found |= {"logprobs": logprobs, "entropy": entropy}
            with self.roles.reference() as reference:
                found["ref_logprobs"], _ = reference.logprobs(batch.rows, entropy=False)
            if self.roles.critic is not None:
                found["values"] = response_values(self.roles.critic.says, batch, c)
            if self.roles.reward is not None:
                reward, rows = Value(self.roles.reward), read or batch.rows
                if c.estimator == "coati" and c.coati.mean_over_positions and not last_token:
                    mask = batch.mask if rows.mask is None else rows.mask
                    found["score"] = mean_over_row(reward.everywhere(rows), mask)
                else:
                    found["score"] = reward.score(rows)
        return found


def with_room(scorer: Scorer, work: Callable[[], T]) -> T:
    """What `work` returns. If memory runs out for the first time in a run, again with micro-batches
    of half as many rows or tokens: the same numbers, within rounding.

    On several processes where `work` told all of them (NoRoomError). Where weights or gradients are
    shards the others wait inside a pass, for this rank's part of a sum, and cannot turn back; nor
    can one process alone: a second try was seen to take another step (FSDP2).
    """
    while True:
        try:
            return work()
        except RuntimeError as error:
            _check_room(scorer, error)
        # Behind it: the error holds the tensors of the pass that failed.
        for role in scorer.roles.trained:
            role.trained.clear()
        scorer.state.halved = True
        scorer.launch.say("note: memory ran out; from here on micro-batches are half as large")
        if scorer.launch.device.type == "cuda":
            torch.cuda.empty_cache()


def _check_room(scorer: Scorer, error: RuntimeError) -> None:
    """UserError where less cannot go through a model together, the error itself where it is
    another."""
    known = isinstance(error, NoRoomError)  # by all ranks
    if not known and not out_of_memory(error):
        raise error
    alone = scorer.launch.world == 1 and scorer.roles.sharding.apart
    if scorer.state.halved or not (known or alone):
        ending = UserError(
            f"ppo: memory ran out ({str(error).splitlines()[0]}). Lower ppo.microbatch_size or "
            "ppo.microbatch_tokens (the result is the same), or set model.gradient_checkpointing, "
            f"{ANEW}; or go on with shards (docs/launching.md)."
        )
        ending.everywhere = known
        raise ending from None


def weighted_sum(parts: Tensor, weights: list[float]) -> Tensor:
    """Scores (B,) of parts (B, S): the sum over sources of weight times score, NaN counting as 0:
    a reward function that says None of a row."""
    if parts.dim() != 2 or parts.shape[1] != len(weights):
        raise ValueError(f"parts has shape {tuple(parts.shape)}, expected (B, {len(weights)})")
    return torch.where(parts.isnan(), 0.0, parts * parts.new_tensor(weights)).sum(dim=1)


@dataclass(frozen=True)
class Tolerance:
    """Largest mismatch |trainer - engine| of a token's log-prob, in nats."""

    mean: float
    """Over all tokens."""
    largest: float
    """Of any token."""


HALF = Tolerance(0.01, 0.5)
TOLERANCES = {"fp32": Tolerance(1e-5, 1e-4), "bf16": HALF, "fp16": HALF}
"""By precision. fp32: rounding through some tens of layers stays below; a ratio is off by 0.01% at
most, where it is clipped at 20%. bf16: with 8 bits two right computations of one token differ by
hundredths, in the tail by tenths; 0.01 moves a ratio by a twentieth of the clip. A real mistake (a
position, a temperature, a mask) is off by nats."""
LOOK = 10
"""Updates between looks. A forward pass of the actor every so often costs under 1% of an update."""


def looks(ppo: PPOSection, update: int) -> bool:
    """Whether the rollout of an update (from 0) is scored by the trainer too, to decide on."""
    if ppo.old_logprobs == "recompute" or ppo.rollout_correction != "none":
        return False  # the correction weighs one against the other: both are always there
    after = ppo.critic_warmup + 1 if ppo.lora.rank else 0
    return update >= after and (update - after) % LOOK == 0


def decide(scored: Scored, precision: str) -> tuple[bool, str]:
    """Whether rollouts from now on bring the old log-probs, from the rows of all ranks; a line."""
    gap = torch.where(scored.response_mask, (scored.logprobs - scored.rollout_logprobs).abs(), 0.0)
    mean, largest = masked_mean(gap, scored.response_mask).item(), gap.max().item()
    limit = TOLERANCES[precision]
    agree = mean <= limit.mean and largest <= limit.largest
    found = (
        f"old log-probs: the engine's differ from the trainer's by {mean:.1e} nats a token, at "
        f"most {largest:.1e} (tolerated: {limit.mean:g}, {limit.largest:g})"
    )
    if agree:
        return True, f"{found}; from here on they are the rollout's own"
    return False, f"{found}; they are recomputed for every update"
