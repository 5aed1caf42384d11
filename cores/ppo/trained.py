"""A model that is trained, with its optimizer."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from cores.config import AdamSection, PPOSection
from cores.errors import UserError
from cores.ppo.accelerators import ACTOR, select_plugin
from cores.runtime.sharding import deepspeed_asked


def optimizer_settings(ppo: PPOSection, name: str) -> tuple[AdamSection, float]:
    """AdamW and peak learning rate of the role `name`."""
    if name == ACTOR:
        return ppo.actor_adam, ppo.actor_learning_rate
    return ppo.critic_adam, ppo.critic_learning_rate


class TrainedRole:
    """A model, its optimizer, and the one way to take a step with them in any kind of launch.

    Under DeepSpeed the engine clips and steps inside its backward pass, elsewhere we do; either
    way a step is: any number of `accumulate`, the last of them with `last=True`.
    """

    def __init__(
        self, name: str, model: nn.Module, accelerator: Accelerator, ppo: PPOSection
    ) -> None:
        model.train()  # no role has dropout, and layers are checkpointed in this mode only
        parameters = [p for p in model.parameters() if p.requires_grad]
        adam, learning_rate = optimizer_settings(ppo, name)
        optimizer = torch.optim.AdamW(
            parameters,
            lr=learning_rate,
            betas=(adam.beta1, adam.beta2),
            eps=adam.eps,
            weight_decay=adam.weight_decay,
            fused=not deepspeed_asked(),
        )
        select_plugin(accelerator, name)
        self.name = name
        self.accelerator = accelerator
        self.learning_rate = learning_rate
        self.max_grad_norm = ppo.max_grad_norm
        self.steps = 0
        self.grad_norm = torch.tensor(0.0)
        """0-d, of the last step before clipping, on the device that computed it."""
        self.module, self.optimizer = accelerator.prepare(model, optimizer)

    @property
    def norm_name(self) -> str:
        """The gradient norm's name among the statistics."""
        return f"{self.name}_grad_norm"

    @property
    def engine(self) -> Any:
        """DeepSpeed's engine behind the module, or None."""
        return getattr(self.accelerator, "deepspeed_engine_wrapped", None)

    @property
    def unwrapped(self) -> Any:
        """The `Actor` or `ScalarModel` itself."""
        return self.accelerator.unwrap_model(self.module)

    def set_rate(self, factor: float) -> None:
        """Learning rate of the next step, as a factor of the peak."""
        rate = self.learning_rate * factor
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate

    def make_capturable(self) -> None:
        """From now on a step may be part of a CUDA graph: the learning rate lies on the device."""
        for group in self.optimizer.param_groups:
            group["capturable"] = True
            group["lr"] = torch.tensor(group["lr"], device=self.unwrapped.model.device)
        # torch warns of each optimizer whose steps could be captured and are not.
        self.optimizer.optimizer._warned_capturable_if_run_uncaptured = True

    def micro_batch(self, last: bool) -> AbstractContextManager[Any]:
        """Around forward and `accumulate`: ranks exchange gradients at the last one only."""
        if last or self.engine is not None:
            return nullcontext()
        return self.accelerator.no_sync(self.module)

    def check_finite(self, norms: list[float]) -> None:
        """UserError if a gradient norm of the last steps was no number, rather than train on.

        Looked at when an update ends. Until then such a step changes no weight: see `descend`.
        """
        for step, norm in enumerate(norms, start=self.steps - len(norms) + 1):
            if not math.isfinite(norm):
                raise UserError(
                    f"ppo: the {self.name}'s gradient norm is {norm} at optimizer step {step}. "
                    f"Lower ppo.{self.name}_learning_rate, or compute in fp32 "
                    "(--model.precision fp32)."
                )

    def _check_count(self) -> None:
        """The engine decides by its own count of micro-batches when it steps."""
        taken = self.engine.engine.global_steps
        if taken != self.steps:
            raise RuntimeError(
                f"DeepSpeed took {taken} optimizer steps of the {self.name}, not {self.steps}."
            )

    def accumulate(self, loss: Tensor, last: bool) -> None:
        """Backward; at the last micro-batch also clip, step and clear the gradients.

        `loss` is this rank's part of a sum over all ranks. Ranks' gradients are averaged, so it is
        multiplied by their number first.
        """
        loss = loss * self.accelerator.num_processes
        if self.engine is not None:
            self.engine.backward(loss, sync_gradients=last)
            if last:
                norm = torch.as_tensor(self.engine.get_global_grad_norm(), dtype=torch.float32)
                self.grad_norm = norm.detach().to(loss.device)  # offloaded: it is on the CPU
                self.steps += 1
                self._check_count()
            return
        loss.backward()
        if last:
            self.step()

    @property
    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer changes."""
        return [p for p in self.module.parameters() if p.requires_grad]

    def step(self) -> None:
        """Clip, step, clear the gradients and count."""
        self.count(self.descend())
        self.optimizer.zero_grad(set_to_none=True)

    def descend(self) -> Tensor:
        """Clip and step; the norm before it, 0-d. The kernel leaves out a step that is no number.

        It does so by `found_inf`, meant for gradient scalers (torch.optim.AdamW, fused), so that
        nobody has to wait for the norm before the step.
        """
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.max_grad_norm).detach()
        self.optimizer.optimizer.found_inf = (~norm.isfinite()).float()
        self.optimizer.step()
        return norm

    def count(self, norm: Tensor) -> None:
        """A step was taken; `norm` is that of its gradient."""
        self.grad_norm = norm
        self.steps += 1
