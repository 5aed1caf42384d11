"""Forward and backward of one micro-batch, and the step behind the last, for actor and critic."""

from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cores.config import PPOSection
from cores.errors import UserError
from cores.models.actor import plain_model
from cores.models.body import attention_problem, looks_for_outliers
from cores.ppo.experience import Experience, columns, with_columns
from cores.ppo.objective import (
    Terms,
    Totals,
    critic_objective,
    policy_objective,
    response_values,
)
from cores.ppo.roles import Roles
from cores.ppo.trained import TrainedRole
from cores.rl import masked_mean
from cores.runtime.captured import Captured, KeptGradients, Tensors
from cores.runtime.launch import Launch

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

    @property
    def widths(self) -> int:
        """What the widths of padded micro-batches are multiples of."""
        return WIDTHS if self.kept else 1

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
            found = {f.name: inputs[f.name] for f in fields(Experience) if f.name in inputs}
            own = with_columns(Experience, found)
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
