"""Forward and backward of one micro-batch, for the actor and for the critic."""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from cores.config import PPOSection
from cores.errors import UserError
from cores.models.actor import plain_model
from cores.models.plain import attention_problem, looks_for_outliers
from cores.ppo.captured import Captured, Tensors
from cores.ppo.experience import Experience, columns, with_columns
from cores.ppo.objective import (
    Terms,
    Totals,
    critic_objective,
    policy_objective,
    response_values,
)
from cores.ppo.roles import Roles, TrainedRole
from cores.rl import masked_mean
from cores.runtime.launch import Launch


class Passes:
    """Adds a micro-batch's gradients to a role's, and takes the step behind the last one.

    Where `ppo.passes` says captured they are CUDA graphs; the numbers are the same.
    """

    def __init__(self, config: PPOSection, roles: Roles, launch: Launch) -> None:
        self.config = config
        self.roles = roles
        self.launch = launch
        self.captured: Captured | None = None
        if config.passes == "captured":
            self._check()
            self.captured = Captured()
            for role in roles.trained:
                role.keep_gradients = True

    def _check(self) -> None:
        """UserError where passes cannot be captured."""
        model = plain_model(self.roles.actor.unwrapped.model)
        problem = attention_problem(model.config)
        if self.launch.device.type != "cuda":
            problem = "there is no GPU"
        elif self.launch.world > 1 or self.roles.actor.engine is not None:
            problem = "processes exchange gradients within a pass"
        elif any(looks_for_outliers(role.unwrapped.model) for role in self.roles.trained):
            problem = "layers in 8 bits look for outliers"
        elif model.is_gradient_checkpointing:
            problem = "layers are checkpointed (model.gradient_checkpointing)"
        if problem:
            raise UserError(f"ppo.passes: captured is not possible: {problem}. Set it to eager.")

    def actor(
        self, batch: Experience, totals: Totals, kl_coef: float, measured: bool, last: bool
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

        return self._run(self.roles.actor, loss_of, batch, totals, kl_coef, measured, last)

    def critic(self, critic: TrainedRole, batch: Experience, totals: Totals, last: bool) -> Terms:
        """The critic's statistics."""

        def loss_of(batch: Experience, totals: Totals, kl_coef: Any) -> tuple[Tensor, Terms]:
            width = batch.response_mask.shape[1]
            values = response_values(critic.module(batch.ids, batch.attended), width, self.config)
            return critic_objective(batch, values, totals, self.config)

        return self._run(critic, loss_of, batch, totals, 0.0, False, last)

    def _run(
        self,
        role: TrainedRole,
        loss_of: Any,
        batch: Experience,
        totals: Totals,
        kl_coef: float,
        measured: bool,
        last: bool,
    ) -> Terms:
        if self.captured is None:
            with role.micro_batch(last), self.autocast():
                loss, terms = loss_of(batch, totals, kl_coef)
                role.accumulate(loss, last)
            return terms

        lengths, whole = batch.lengths, batch.attended is None

        def work(inputs: Tensors) -> Tensors:
            found = {f.name: inputs[f.name] for f in fields(Experience) if f.name in inputs}
            own = with_columns(Experience, found)
            vars(own)["lengths"] = lengths  # read for padding alone, which `whole` tells
            with self.autocast():
                loss, terms = loss_of(
                    own, Totals(inputs["tokens"], totals.replies), inputs["kl_coef"]
                )
                loss.backward()
            return {name: term.detach() for name, term in terms.items()}

        price = torch.tensor(kl_coef).to(self.launch.device, non_blocking=True)
        inputs = columns(batch) | {"tokens": totals.tokens, "kl_coef": price}
        terms = self.captured.run((role.name, whole, measured, totals.replies), inputs, work)
        if last:
            role.step()
        return terms

    def autocast(self) -> torch.autocast:
        """bfloat16 compute where configured."""
        enabled = self.launch.precision == "bf16"
        return torch.autocast(self.launch.device.type, dtype=torch.bfloat16, enabled=enabled)
