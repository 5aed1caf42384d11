"""Which rows go through a model together, decided on the host; forward and backward of one such
micro-batch, and the step behind the last."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cores.config import PPOSection
from cores.errors import UserError
from cores.models.actor import plain_model
from cores.models.body import attention_problem, looks_for_outliers
from cores.models.rows import Value, before_replies
from cores.ppo.experience import Experience, Lengths, Scored
from cores.ppo.roles import Roles, TrainedRole
from cores.rl import (
    kl_estimate,
    masked_mean,
    policy_loss,
    rollout_weights,
    sequence_weights,
    value_loss,
)
from cores.rl.coati import mean_over_row, read_values
from cores.runtime.captured import Captured, KeptGradients, Tensors
from cores.runtime.launch import Launch

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Minibatch:
    """What the passes over its parts have in common."""

    tokens: Tensor
    """0-d, response tokens on all ranks: what sums over its parts are divided by."""
    replies: int
    """On all ranks."""
    kl_coef: Any
    """Price of KL: a float, or 0-d where a graph reads it."""
    measured: bool
    """Whether the actor's statistics have the entropy among them."""


SMALL = 500_000_000
"""Parameters of a model up to which its passes are captured unasked: kernels of larger ones run
for longer than their launches take, and a graph keeps the memory of its activations."""
WORK = 3e12
"""Parameters times tokens of a pass up to which it is: a GPU is busy with more for longer too."""
WIDTHS = 32
"""Padded micro-batches of captured passes are as wide as a multiple of it: shapes come again."""


class Turn(NamedTuple):
    """Which micro-batch of an optimizer step it is."""

    first: bool
    last: bool


class Passes:
    """Adds a micro-batch's gradients to a role's, and takes the step behind the last one; roles in
    `kept` by CUDA graphs (see `ppo.passes`), with the same numbers. A graph of one process has the
    step in it; where ranks have gradients to add up, the step is a graph of its own."""

    def __init__(self, config: PPOSection, roles: Roles, launch: Launch) -> None:
        self.config, self.roles, self.launch = config, roles, launch
        self.by_token = config.loss_mean == "tokens" and config.estimator != "coati"
        """Whether losses are means over tokens; else over replies."""
        self.captured = Captured()
        self.kept: dict[str, KeptGradients] = {}
        self.norm: Tensor | None = None
        """0-d, of the gradient of a captured step; None until one is taken."""
        for role in roles.trained:
            if self._captures(role):
                role.make_capturable()
                self.kept[role.name] = KeptGradients(role.trained.parameters)
        self.widths = WIDTHS if self.kept else 1
        """What the widths of padded micro-batches are multiples of."""
        self.packed = roles.packs and (not self.kept or launch.precision != "fp32")
        """Whether rows are read without padding; captured ones in fp32 would get more back."""

    def _captures(self, role: TrainedRole) -> bool:
        """Whether the role's passes are captured; UserError if they must be and cannot."""
        problem = self._problem(role)
        if self.config.passes == "captured" and problem:
            what = f"captured is not possible for the {role.name}: {problem}"
            raise UserError(f"ppo.passes: {what}. Set it to auto or eager.")
        size = sum(p.numel() for p in role.unwrapped.parameters())
        small = size <= SMALL and size * self.config.pass_tokens <= WORK
        wanted = self.config.passes in ("auto", "compiled") and small
        return problem is None and (self.config.passes == "captured" or wanted)

    def _problem(self, role: TrainedRole) -> str | None:
        """What keeps the role's passes from being captured, if anything."""
        model = plain_model(role.unwrapped.model)
        if self.launch.device.type != "cuda":
            return "there is no GPU"
        if not self.roles.sharding.apart:
            return "processes exchange gradients within a pass"
        if looks_for_outliers(model):
            return "layers in 8 bits look for outliers"
        if any(not p.is_floating_point() for p in model.parameters()):
            return "its base is quantised"
        if model.is_gradient_checkpointing:
            return "layers are checkpointed (model.gradient_checkpointing)"
        if self.config.ptx_coef and role is self.roles.actor:
            return "ptx rows add to its gradients (ppo.ptx_coef)"
        return attention_problem(model.config)

    def run(self, role: TrainedRole, batch: Experience, minibatch: Minibatch, turn: Turn) -> Terms:
        """One micro-batch; its share of the minibatch's statistics."""
        loss_of = self._value_loss if role is self.roles.critic else self._policy_loss
        if role.name in self.kept:
            terms = self._captured(role, loss_of, batch, minibatch, turn)
            self.norm = terms.pop("grad_norm", None)
            return terms
        with self.launch.autocast():
            loss, terms = loss_of(batch, minibatch)
            role.trained.backward(loss, turn.last)
        return terms

    def step(self, role: TrainedRole) -> None:
        """The step behind the last micro-batch, unless its graph has taken it."""
        norm = self.norm if role.name in self.kept else role.trained.step()
        if norm is None:
            gradients = self.kept[role.name]
            gradients.begin(first=False, last=True)
            role.trained.add_up()
            found = self.captured.run(role.name, {}, lambda _: {"norm": role.trained.descend()})
            gradients.end(first=False, last=True)
            norm = found["norm"]
        role.grad_norm, role.steps = norm, role.steps + 1

    def _captured(
        self, role: TrainedRole, loss_of: Any, batch: Experience, minibatch: Minibatch, turn: Turn
    ) -> Terms:
        """The same as a CUDA graph, where the shape has come before."""
        gradients = self.kept[role.name]
        steps = turn.last and self.launch.world == 1

        def work(inputs: Tensors) -> Tensors:
            shares = replace(minibatch, tokens=inputs["tokens"], kl_coef=inputs["kl_coef"])
            gradients.begin(turn.first, steps)
            with self.launch.autocast():
                loss, terms = loss_of(batch.holding(inputs), shares)
                role.trained.backward(loss, turn.last)
            if steps:
                terms["grad_norm"] = role.trained.descend()
            gradients.end(turn.first, steps)
            return {name: term.detach() for name, term in terms.items()}

        price = torch.full((), minibatch.kl_coef, device=self.launch.device)
        how = (role.name, minibatch.measured, minibatch.replies, turn, batch.layout)
        given = batch.tensors | {"tokens": minibatch.tokens, "kl_coef": price}
        return self.captured.run(how, given, work)

    def _policy_loss(self, batch: Experience, minibatch: Minibatch) -> tuple[Tensor, Terms]:
        """The actor's loss, 0-d, and its statistics: this micro-batch's share of the minibatch's.

        The clipped surrogate, plus kl_coef * KL where it is paid in the loss, less entropy_coef *
        entropy, scaled down where the ptx loss is mixed in.
        """
        c, mask, tokens = self.config, batch.response_mask, minibatch.tokens
        wanted = minibatch.measured or c.entropy_coef > 0
        logprobs, entropy = self.roles.actor.says.logprobs(batch.rows, entropy=wanted)
        mean = None if self.by_token else sequence_weights(mask, tokens, minibatch.replies)
        weights = mean
        terms: Terms = {}
        if c.rollout_correction != "none":
            weights = rollout_weights(
                batch.logprobs, batch.rollout_logprobs, mask, c.rollout_correction, c.rollout_cap
            )
            terms["rollout_weight"] = masked_mean(weights, mask, tokens)
            weights = weights if mean is None else weights * mean
        loss, stats = policy_loss(
            logprobs,
            batch.logprobs,
            batch.advantages,
            mask,
            c.clip,
            tokens,
            clip_high=c.clip_high,
            dual_clip=c.dual_clip,
            weights=weights,
        )
        terms |= {**stats, "policy_loss": loss.detach()}
        if c.kl_in == "loss":
            kl = kl_estimate(logprobs, batch.ref_logprobs, c.kl_kind, mask)
            kl_loss = masked_mean(kl, mask, tokens, mean)
            loss = loss + minibatch.kl_coef * kl_loss
            terms["kl_loss"] = kl_loss.detach()
        if c.entropy_coef:
            loss = loss - c.entropy_coef * masked_mean(entropy, mask, tokens, mean)
        if minibatch.measured:
            terms["entropy"] = masked_mean(entropy.detach(), mask, tokens)
        if c.ptx_coef and c.ptx_mix == "convex":
            loss = (1 - c.ptx_coef) * loss
        return loss, terms

    def _value_loss(self, batch: Experience, minibatch: Minibatch) -> tuple[Tensor, Terms]:
        """The critic's loss, 0-d, and its statistics."""
        critic: Any = self.roles.critic
        mask, tokens = batch.response_mask, minibatch.tokens
        values = response_values(critic.says, batch, self.config)
        loss, stats = value_loss(
            values,
            batch.values,
            batch.returns,
            mask,
            self.config.value_clip,
            tokens,
            weights=None if self.by_token else sequence_weights(mask, tokens, minibatch.replies),
        )
        return loss, {**stats, "value_loss": loss.detach()}


def response_values(critic: Value, batch: Scored, ppo: PPOSection) -> Tensor:
    """Values (B, T) of the states before the response tokens, as the estimator reads them."""
    if ppo.estimator != "coati":
        return critic.values(batch.rows)
    everywhere = critic.everywhere(batch.rows)
    means = mean_over_row(everywhere, batch.mask) if ppo.coati.mean_over_positions else None
    values = before_replies(everywhere, batch.response_mask.shape[1])
    return read_values(values, means, ppo.coati.r_minus_v)


def cut(rows: Sequence[int], lengths: Lengths, tokens: int, size: int | None) -> list[list[int]]:
    """`rows` in parts of at most `tokens` tokens, those of padding with them (a row that has more
    goes alone), or of `size` rows if that is not None."""
    parts: list[list[int]] = []
    prompt = response = 0  # longest of the part being filled
    for row in rows:
        longer = max(prompt, lengths[row][0]), max(response, lengths[row][1])
        count = len(parts[-1]) + 1 if parts else 1
        fits = count * sum(longer) <= tokens if size is None else count <= size
        if parts and fits:
            parts[-1].append(row)
            prompt, response = longer
        else:
            parts.append([row])
            prompt, response = lengths[row]
    return parts


def deal(rows: Sequence[int], lengths: Lengths, tokens: int, times: int = 1) -> list[list[int]]:
    """`rows`, the longest first, in as few parts as have at most `tokens` tokens without padding,
    all of nearly as many, so that shapes come again; in `times` as many of the `times`-th part. A
    row that has more goes alone."""
    alone = [[row] for row in rows if sum(lengths[row]) > tokens // times]
    rest = rows[len(alone) :]
    count = times * -(-sum(sum(lengths[row]) for row in rest) // tokens)
    while True:
        parts: list[list[int]] = [[] for _ in range(min(count, len(rest)))]
        held = [0] * len(parts)
        for row in rest:  # to the part that has least
            part = held.index(min(held))
            parts[part].append(row)
            held[part] += sum(lengths[row])
        if max(held, default=0) <= tokens // times:
            return alone + parts
        count += 1


def in_parts(parts: list[list[int]], count: int) -> list[list[int]]:
    """`parts` as `count` parts, none of them empty, by halving the largest as often as it takes;
    ValueError if there are fewer rows than that, or more parts."""
    if not len(parts) <= count <= sum(map(len, parts)):
        raise ValueError(f"{parts} cannot be {count} parts")
    parts = list(parts)
    while len(parts) < count:
        largest = max(range(len(parts)), key=lambda i: len(parts[i]))
        half = (len(parts[largest]) + 1) // 2
        parts[largest : largest + 1] = [parts[largest][:half], parts[largest][half:]]
    return parts


def accumulate(sums: Terms, terms: Terms) -> None:
    """Add the statistics of a micro-batch to its minibatch's (the largest of `_max`)."""
    for name, value in terms.items():
        join = torch.maximum if name.endswith("_max") else torch.add
        sums[name] = join(sums[name], value) if name in sums else value


def shared(
    rows: Sequence[int],
    lengths: Lengths,
    ppo: PPOSection,
    halved: bool,
    world: int = 1,
    factor: int = 1,
    packed: bool = False,
) -> list[list[list[int]]]:
    """The micro-batches of each of `world` ranks: as many on each, since they meet at every one.

    `world` divides the number of rows, which are dealt out the longest first: neighbours then need
    little padding, and memory runs out at once or not at all. A micro-batch has `factor` times the
    rows or tokens of the configuration, half of that if `halved`. Packed (see `Scored.select`),
    rows go by tokens anyway: as many as the configured number of rows could have.
    """
    packed = packed and all(prompt for prompt, _ in lengths)
    half = 2 if halved else 1
    room = factor * ppo.pass_tokens
    size = None if ppo.microbatch_tokens else max(1, factor * ppo.microbatch_size // half)
    ordered = sorted(rows, key=lambda i: sum(lengths[i]), reverse=True)
    shares = [ordered[rank::world] for rank in range(world)]
    ranks = [
        deal(share, lengths, room, half) if packed else cut(share, lengths, room // half, size)
        for share in shares
    ]
    most = max(map(len, ranks))
    return [in_parts(parts, most) for parts in ranks]
