"""Forward and backward of one micro-batch, and the step behind the last, for actor and critic."""

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cores.config import PPOSection
from cores.errors import UserError
from cores.models.actor import plain_model
from cores.models.body import attention_problem, looks_for_outliers
from cores.ppo.experience import Experience, Scored, columns
from cores.ppo.roles import Roles, TrainedRole
from cores.rl import (
    kl_estimate,
    masked_mean,
    policy_loss,
    rollout_weights,
    sequence_weights,
    value_loss,
)
from cores.rl.coati import read_values
from cores.runtime.captured import Captured, KeptGradients, Tensors
from cores.runtime.launch import Launch

Terms = dict[str, Tensor]


@dataclass(frozen=True)
class Totals:
    """Of the whole minibatch over all ranks: what sums over its parts are divided by."""

    tokens: Tensor
    """0-d, response tokens."""
    replies: int


SMALL = 500_000_000
"""Parameters of a model up to which its passes are captured unasked: kernels of larger ones run
for longer than their launches take, and a graph keeps the memory of its activations."""
WIDTHS = 32
"""Padded micro-batches of captured passes are as wide as a multiple of it: shapes come again."""


class Turn(NamedTuple):
    """Which micro-batch of an optimizer step it is."""

    first: bool
    last: bool


class Passes:
    """Adds a micro-batch's gradients to a role's, and takes the step behind the last one.

    Roles in `kept` do so by CUDA graphs (see `ppo.passes`); the numbers are the same.
    """

    def __init__(self, config: PPOSection, roles: Roles, launch: Launch) -> None:
        self.config = config
        self.roles = roles
        self.launch = launch
        self.captured = Captured()
        self.kept: dict[str, KeptGradients] = {}
        for role in roles.trained:
            if self._captures(role):
                role.make_capturable()
                self.kept[role.name] = KeptGradients(role.trained.parameters)
        self.widths = WIDTHS if self.kept else 1
        """What the widths of padded micro-batches are multiples of."""

    def _captures(self, role: TrainedRole) -> bool:
        """Whether the role's passes are captured; UserError if they must be and cannot."""
        problem = self._problem(role)
        if self.config.passes == "captured" and problem:
            raise UserError(
                f"ppo.passes: captured is not possible for the {role.name}: {problem}. Set it to "
                "auto or eager."
            )
        small = sum(p.numel() for p in role.unwrapped.parameters()) <= SMALL
        wanted = self.config.passes in ("auto", "compiled") and small
        return problem is None and (self.config.passes == "captured" or wanted)

    def _problem(self, role: TrainedRole) -> str | None:
        """What keeps the role's passes from being captured, if anything."""
        model = plain_model(role.unwrapped.model)
        if self.launch.device.type != "cuda":
            return "there is no GPU"
        if self.launch.world > 1 or self.roles.sharding.stage:
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

    def actor(
        self, batch: Experience, totals: Totals, kl_coef: float, measured: bool, turn: Turn
    ) -> Terms:
        """The policy's statistics; `measured`: the entropy among them."""

        def loss_of(batch: Experience, totals: Totals, kl_coef: Any) -> tuple[Tensor, Terms]:
            width = batch.response_mask.shape[1]
            entropy = measured or self.config.entropy_coef > 0
            logprobs, nats = self.roles.actor.module(
                batch.ids, batch.attended, width, entropy=entropy
            )
            loss, terms = policy_objective(batch, logprobs, nats, totals, self.config, kl_coef)
            if measured:
                terms["entropy"] = masked_mean(nats.detach(), batch.response_mask, totals.tokens)
            return loss, terms

        return self._run(self.roles.actor, loss_of, batch, totals, kl_coef, measured, turn)

    def critic(self, critic: TrainedRole, batch: Experience, totals: Totals, turn: Turn) -> Terms:
        """The critic's statistics."""

        def loss_of(batch: Experience, totals: Totals, kl_coef: Any) -> tuple[Tensor, Terms]:
            values = response_values(critic.module(batch.ids, batch.attended), batch, self.config)
            return critic_objective(batch, values, totals, self.config)

        return self._run(critic, loss_of, batch, totals, 0.0, False, turn)

    def _run(
        self,
        role: TrainedRole,
        loss_of: Any,
        batch: Experience,
        totals: Totals,
        kl_coef: float,
        measured: bool,
        turn: Turn,
    ) -> Terms:
        if role.name not in self.kept:
            with role.trained.micro_batch(turn.last), self.launch.autocast():
                loss, terms = loss_of(batch, totals, kl_coef)
                role.accumulate(loss, turn.last)
            return terms

        gradients = self.kept[role.name]
        lengths, whole = batch.lengths, batch.attended is None

        def work(inputs: Tensors) -> Tensors:
            own = replace(batch, **{name: inputs[name] for name in columns(batch)})
            vars(own)["lengths"] = lengths  # read for padding alone, which `whole` tells
            gradients.begin(turn.first, turn.last)
            with self.launch.autocast():
                loss, terms = loss_of(
                    own, Totals(inputs["tokens"], totals.replies), inputs["kl_coef"]
                )
                loss.backward()
            if turn.last:
                terms["grad_norm"] = role.trained.descend()
            gradients.end(turn.first, turn.last)
            return {name: term.detach() for name, term in terms.items()}

        price = torch.full((), kl_coef, device=self.launch.device)
        inputs = columns(batch) | {"tokens": totals.tokens, "kl_coef": price}
        key = (role.name, whole, measured, totals.replies, turn)
        terms = self.captured.run(key, inputs, work)
        if turn.last:
            role.count(terms.pop("grad_norm"))
        return terms


def policy_objective(
    batch: Experience,
    logprobs: Tensor,
    entropy: Tensor | None,
    totals: Totals,
    ppo: PPOSection,
    kl_coef: float | Tensor,
) -> tuple[Tensor, Terms]:
    """The actor's loss, 0-d, and its statistics: this micro-batch's share of the minibatch's.

    The clipped surrogate, plus kl_coef * KL where it is paid in the loss, less entropy_coef *
    entropy, scaled down where the ptx loss is mixed in. logprobs, entropy (B, T) have gradients;
    entropy may be None where entropy_coef is 0.
    """
    mask, tokens = batch.response_mask, totals.tokens
    mean = _mean_weights(batch, totals, ppo)
    weights = mean
    extra: Terms = {}
    if ppo.rollout_correction != "none":
        correction = rollout_weights(
            batch.logprobs, batch.rollout_logprobs, mask, ppo.rollout_correction, ppo.rollout_cap
        )
        weights = correction if mean is None else correction * mean
        extra["rollout_weight"] = masked_mean(correction, mask, tokens)
    loss, stats = policy_loss(
        logprobs,
        batch.logprobs,
        batch.advantages,
        mask,
        ppo.clip,
        tokens,
        clip_high=ppo.clip_high,
        dual_clip=ppo.dual_clip,
        weights=weights,
    )
    extra["policy_loss"] = loss.detach()
    if ppo.kl_in == "loss":
        kl = kl_estimate(logprobs, batch.ref_logprobs, ppo.kl_kind, mask)
        kl_loss = masked_mean(kl if mean is None else kl * mean, mask, tokens)
        loss = loss + kl_coef * kl_loss
        extra["kl_loss"] = kl_loss.detach()
    if ppo.entropy_coef:
        assert entropy is not None
        loss = loss - ppo.entropy_coef * masked_mean(
            entropy if mean is None else entropy * mean, mask, tokens
        )
    if ppo.ptx_coef and ppo.ptx_mix == "convex":
        loss = (1 - ppo.ptx_coef) * loss
    return loss, {**stats, **extra}


def critic_objective(
    batch: Experience, values: Tensor, totals: Totals, ppo: PPOSection
) -> tuple[Tensor, Terms]:
    """The critic's loss, 0-d, and its statistics; values (B, T) have gradients."""
    loss, stats = value_loss(
        values,
        batch.values,
        batch.returns,
        batch.response_mask,
        ppo.value_clip,
        totals.tokens,
        weights=_mean_weights(batch, totals, ppo),
    )
    return loss, {**stats, "value_loss": loss.detach()}


def response_values(values: Tensor, batch: Scored, ppo: PPOSection) -> Tensor:
    """Values (B, T) of the states before the response tokens, from all (B, L)."""
    width = batch.response_mask.shape[1]
    if ppo.estimator == "coati":
        switches = ppo.coati
        return read_values(
            values, batch.mask, width, switches.mean_over_positions, switches.r_minus_v
        )
    return values[:, -width - 1 : -1]


def _mean_weights(batch: Experience, totals: Totals, ppo: PPOSection) -> Tensor | None:
    """What makes the mean over tokens one over replies, if that is asked for."""
    if ppo.loss_mean == "tokens" and ppo.estimator != "coati":
        return None
    with torch.no_grad():
        return sequence_weights(batch.response_mask, totals.tokens, totals.replies)
